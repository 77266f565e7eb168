# shellcheck shell=bash
# The three nodes: hosts made of namespaces, each with an agent inside.
# shellcheck disable=SC2154 # the variables are the quickstart's

# Where the pool lies on every node: a directory of the node's own.
pool=/var/lib/libvirt/tamdao

agent_home() { printf '%s/agents/%s\n' "$state" "$1"; }

node_address() { printf '%s.%s\n' "$network" $((10 + ${1##*-})); }

inside() { "$here/testbed/node" exec "$@"; }

start_nodes() {
  local name
  for name in "${nodes[@]}"; do
    host_up "$name"
    run_keeper "$name"
    configure_agent "$name"
    join_node "$name"
    run_agent "$name"
  done
  for name in "${nodes[@]}"; do
    wait_for "$name is ready" 120 "$(agent_home "$name")/log" node_ready "$name"
  done
}

host_up() {
  local home
  home=$(agent_home "$1")
  mkdir -p "$home"
  # A host that comes back must be the same one, also for libvirt.
  [ -s "$home/uuid" ] || cat /proc/sys/kernel/random/uuid >"$home/uuid"
  step "host $1 with its libvirtd" "$here/testbed/node" up "$1" --bridge "$bridge" --address "$(node_address "$1")/24" --uuid "$(cat "$home/uuid")" --gateway "$network.1"
  inside "$1" -- mkdir -p "$pool"
}

# run_keeper NODE: the keeper inside, and outside what stands in for the host's watchdog. Both rest until there is a
# shared pool.
run_keeper() {
  local home run
  home=$(agent_home "$1")/keeper run=/run/tamdao-keeper
  mkdir -p "$home" "$home-watchdog"
  cat >"$home/keeper.toml" <<CONF
socket = "$run/socket"
state = "$run/state.json"
watchdog = "$run/watchdog"
watchdog_timeout_ms = 10000
CONF
  running "$home-watchdog" >/dev/null || launch "$home-watchdog" "$here/testbed/watchdog" "$1" -- 10
  wait_for "$1 has a watchdog" 20 "$home-watchdog/log" test -p "$TAMDAO_TESTBED_DIR/$1$run/watchdog"
  running "$home" >/dev/null || launch "$home" "$here/testbed/node" exec "$1" -- "$(program tamdao-keeper)" --config "$home/keeper.toml"
}

configure_agent() {
  local home name list=""
  home=$(agent_home "$1")
  for name in "${controllers[@]}"; do list+="${list:+, }\"$(controller_address "$name")\""; done
  cat >"$home/agent.toml" <<CONF
name = "$1"
controllers = [$list]
data_dir = "$home/data"
acceleration = "$acceleration"
address = "$(node_address "$1")"
CONF
}

join_node() {
  local home token
  home=$(agent_home "$1")
  [ ! -e "$home/data/node.json" ] || return 0
  token=$(cloud node join-token create --name "$1" -o json | secret) || fail "no join token for $1" "$0 status"
  step "$1 joins" inside "$1" -- "$(program tamdao-agent)" --config "$home/agent.toml" join --token "$token"
}

run_agent() {
  local home
  home=$(agent_home "$1")
  if running "$home" >/dev/null; then
    say "  the agent of $1 runs already"
  else
    launch "$home" "$here/testbed/node" exec "$1" -- "$(program tamdao-agent)" --config "$home/agent.toml" run
  fi
}

node_ready() {
  running "$(agent_home "$1")" >/dev/null || { echo "its agent has ended"; return 1; }
  cloud --retry-for 1s node get "$1" -o json | grep NODE_PHASE_READY
}

# stop_nodes [KEEP]: guests first, each host by a cut of its power when it does not matter any more.
stop_nodes() {
  local name purge=(--purge)
  [ -z "$1" ] || purge=()
  for name in "${nodes[@]}"; do
    halt "$(agent_home "$name")" "the agent of $name" child
    if [ -n "$1" ]; then shut_down_guests "$name"; fi
    halt "$(agent_home "$name")/keeper-watchdog" "the watchdog of $name"
    "$here/testbed/node" down "$name" "${purge[@]}"
    rm -f "$(agent_home "$name")/keeper/pid"
    [ ! -d "$(agent_home "$name")" ] || say "  host $name is down"
  done
}

# shut_down_guests NODE: by ACPI, for a minute at most, so that their file systems are whole when kept.
shut_down_guests() {
  # shellcheck disable=SC2016 # expands inside
  inside "$1" -- bash -c '
    for guest in $(virsh -q -c qemu:///system list --name 2>/dev/null); do virsh -q -c qemu:///system shutdown "$guest"; done
    for _ in $(seq 120); do
      [ -n "$(virsh -q -c qemu:///system list --name 2>/dev/null)" ] || break
      sleep 0.5
    done' >/dev/null 2>&1 || true
}
