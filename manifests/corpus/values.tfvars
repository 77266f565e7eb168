replicas = 3
sites = {
  north = { vlan = 10, bridge = "br0" }
}
password = "x${1 + 1}"
