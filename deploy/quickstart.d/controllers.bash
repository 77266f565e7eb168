# shellcheck shell=bash
# The three controllers: processes of this host on the bridge's address, each with a port of its own.
# shellcheck disable=SC2154 # the variables are the quickstart's

controller_home() { printf '%s/controllers/%s\n' "$state" "$1"; }

# controller_address NAME: controller-1 is at port 7443, controller-2 at 7444, and so on.
controller_address() { printf '%s.1:%s\n' "$network" $((7442 + ${1##*-})); }

founder_file() { printf '%s/data/%s\n' "$(controller_home "${controllers[0]}")" "$1"; }

start_controllers() {
  local name
  # Those that are members already come first: one alone has no majority and cannot answer.
  for name in "${controllers[@]}"; do
    if [ -e "$(controller_home "$name")/data/identity.json" ]; then run_controller "$name"; fi
  done
  for name in "${controllers[@]}"; do
    configure_controller "$name"
    if [ "$name" = "${controllers[0]}" ]; then found "$name"; else join_controller "$name"; fi
    run_controller "$name"
    [ "$name" != "${controllers[0]}" ] || set_context
    wait_for "$name answers at $(controller_address "$name")" 60 "$(controller_home "$name")/log" controller_answers "$name"
  done
}

configure_controller() {
  local home
  home=$(controller_home "$1")
  mkdir -p "$home"
  cat >"$home/controller.toml" <<CONF
name = "$1"
address = "$(controller_address "$1")"
listen = "$(controller_address "$1")"
data_dir = "$home/data"

[metrics]
listen = "$network.1:$((7480 + ${1##*-}))"
CONF
}

# clean_start HOME: a data directory without an identity is what an interrupted run left.
clean_start() {
  [ ! -e "$1/data/identity.json" ] || return 1
  rm -rf "$1/data"
}

found() {
  local home
  home=$(controller_home "$1")
  if clean_start "$home"; then
    step "$1 founds the cluster" "$(program tamdao-controller)" init --config "$home/controller.toml" --cluster-name quickstart
  fi
}

join_controller() {
  local home token
  home=$(controller_home "$1")
  if clean_start "$home"; then
    token=$(cloud controller add "$1" -o json | secret) || fail "no join token for $1" "$0 status"
    step "$1 joins" "$(program tamdao-controller)" join --config "$home/controller.toml" --controller "$(controller_address "${controllers[0]}")" --token "$token"
  fi
}

# secret: takes the secret out of the CLI's JSON.
secret() { sed -n 's/.*"secret": *"\([^"]*\)".*/\1/p' | grep .; }

run_controller() {
  local home
  home=$(controller_home "$1")
  if running "$home" >/dev/null; then
    say "  $1 runs already"
  else
    launch "$home" "$(program tamdao-controller)" run --config "$home/controller.toml"
  fi
}

# controller_answers NAME: it serves, and knows itself as a member with a vote.
controller_answers() {
  running "$(controller_home "$1")" >/dev/null || { echo "its process has ended"; return 1; }
  "$(program tamdao)" --endpoint "$(controller_address "$1")" --ca "$(founder_file ca.pem)" --token-file "$(founder_file admin-token)" \
    --retry-for 1s controller get "$1" -o json | grep -E 'CONTROLLER_ROLE_(LEADER|FOLLOWER)'
}

set_context() {
  local name endpoints=()
  for name in "${controllers[@]}"; do endpoints+=(--endpoint "$(controller_address "$name")"); done
  "$(program tamdao)" -q context set "$context" --use "${endpoints[@]}" --ca "$(founder_file ca.pem)" --token-file "$(founder_file admin-token)" -a "$agency"
}

# forget_context: removes the CLI's context, if it is the one that was set here.
forget_context() {
  [ -x "$(program tamdao)" ] || return 0
  if "$(program tamdao)" context show "$context" -o json 2>/dev/null | grep -qF "$state/"; then
    "$(program tamdao)" -q context remove "$context" 2>/dev/null || true
  fi
}

stop_controllers() {
  local name
  for name in "${controllers[@]}"; do halt "$(controller_home "$name")" "$name"; done
}
