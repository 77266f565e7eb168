# Reads a cloud-init network-config of version 2, as block YAML, flow YAML or JSON, and prints what
# /init does. Not a YAML parser: every key that is not a known word begins a new interface.
BEGIN {
  split("network version renderer ethernets match macaddress name driver set-name mtu dhcp4 dhcp6 " \
        "accept-ra addresses gateway4 gateway6 routes to via metric on-link nameservers search " \
        "optional critical link-local wakeonlan dhcp4-overrides dhcp6-overrides dhcp-identifier", list, " ")
  for (i in list) known[list[i]] = 1
}
{
  sub(/(^|[ \t])#.*/, "")
  gsub(/["'][ \t]*:/, ": ")
  gsub(/[]["'{},]/, " ")
  for (f = 1; f <= NF; f++) {
    token = $f
    if (token == "-") continue
    if (token ~ /:$/) {
      key = substr(token, 1, length(token) - 1)
      if (!(key in known)) { finish(); nic = key }
      else if (key == "nameservers") servers = 1
      else if (key != "addresses" && key != "search") servers = 0
    }
    else if (key == "macaddress") mac = tolower(token)
    else if (key == "set-name") rename = token
    else if (key == "mtu") mtu = token
    else if (key == "dhcp4" && token == "true") dhcp = 1
    else if (key == "addresses" && !servers) addresses[++count] = token
    else if (key == "gateway4") route("0.0.0.0/0", token)
    else if (key == "gateway6") route("::/0", token)
    else if (key == "to") { to = token; if (via) route(to, via) }
    else if (key == "via") { via = token; if (to) route(to, via) }
  }
}
END { finish() }
function route(target, gateway) {
  if (target == "default") target = gateway ~ /:/ ? "::/0" : "0.0.0.0/0"
  routes[++ways] = target " " gateway
  to = via = ""
}
function finish(   i) {
  if (nic) {
    print "nic", mac ? mac : "-", nic
    if (rename) print "rename", rename
    if (mtu) print "mtu", mtu
    print "up"
    for (i = 1; i <= count; i++) print "address", addresses[i]
    for (i = 1; i <= ways; i++) print "route", routes[i]
    if (dhcp) print "dhcp"
  }
  nic = mac = rename = mtu = to = via = ""
  count = ways = dhcp = servers = 0
}
