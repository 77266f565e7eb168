#!/bin/sh
# A QEMU guest agent in shell: one JSON command a line on the virtio port org.qemu.guest_agent.0,
# answered in the real agent's form. Only what tests and a controller ask for.
port=""
for entry in /sys/class/virtio-ports/*; do
  [ "$(cat "$entry/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] && port=/dev/${entry##*/}
done
[ -n "$port" ] || exit 0

commands="guest-sync guest-sync-delimited guest-ping guest-info guest-get-host-name guest-network-get-interfaces guest-shutdown"

# number KEY LINE: the whole number that stands behind "KEY": in LINE.
number() {
  rest=${2##*\""$1"\"}
  rest=${rest#*:}
  while [ "${rest# }" != "$rest" ]; do rest=${rest# }; done
  echo "${rest%%[!0-9-]*}"
}

info() {
  list=""
  for command in $commands; do
    answers=true
    [ "$command" = guest-shutdown ] && answers=false
    list="$list${list:+, }{\"enabled\": true, \"name\": \"$command\", \"success-response\": $answers}"
  done
  echo "{\"version\": \"7.2.0\", \"supported_commands\": [$list]}"
}

interfaces() {
  {
    for card in /sys/class/net/*; do echo "link ${card##*/} $(cat "$card/address")"; done
    ip -o addr show
  } | awk '
    $1 == "link" { order[++links] = $2; mac[$2] = $3; next }
    $3 ~ /^inet6?$/ {
      split($4, part, "/")
      name = $2; sub("@.*", "", name)
      type = $3 == "inet" ? "ipv4" : "ipv6"
      list[name] = list[name] (list[name] ? ", " : "") "{\"ip-address-type\": \"" type "\", \"ip-address\": \"" part[1] "\", \"prefix\": " part[2] "}"
    }
    END {
      for (i = 1; i <= links; i++) {
        name = order[i]
        printf "%s{\"name\": \"%s\", \"ip-addresses\": [%s], \"hardware-address\": \"%s\"}", (i > 1 ? ", " : ""), name, list[name], mac[name]
      }
    }'
}

answer() {
  case $1 in
  *'"guest-sync-delimited"'*) printf '\377{"return": %s}\n' "$(number id "$1")" ;;
  *'"guest-sync"'*) echo "{\"return\": $(number id "$1")}" ;;
  *'"guest-ping"'*) echo '{"return": {}}' ;;
  *'"guest-info"'*) echo "{\"return\": $(info)}" ;;
  *'"guest-get-host-name"'*) echo "{\"return\": {\"host-name\": \"$(hostname)\"}}" ;;
  *'"guest-network-get-interfaces"'*) echo "{\"return\": [$(interfaces)]}" ;;
  # The real agent too answers nothing when a shutdown works.
  *'"guest-shutdown"'*'"reboot"'*) kill -TERM 1 ;;
  *'"guest-shutdown"'*) kill -USR2 1 ;;
  *) echo '{"error": {"class": "CommandNotFound", "desc": "The command has not been found"}}' ;;
  esac
}

# The port opens once; while nobody listens on the host a read ends at once.
exec 3<>"$port"
while :; do
  if read -r line <&3; then
    [ -z "$line" ] || answer "$line" >&3
  else
    sleep 1
  fi
done
