# shellcheck shell=bash
# What the cloud holds when it is handed over, and what the user is told then.
# shellcheck disable=SC2154 # the variables are the quickstart's

# ensure NOUN NAME COMMAND...: runs the CLI's command unless there is such a resource.
ensure() {
  local noun=$1 name=$2
  shift 2
  if cloud "$noun" get "$name" >/dev/null 2>&1; then
    say "  $noun $name is there"
  else
    step "$noun $name" cloud "$@"
  fi
}

make_resources() {
  ensure agency "$agency" agency create "$agency" --description "made by the quickstart"
  ensure flavor s flavor create s --vcpus 1 --memory 512M
  ensure flavor m flavor create m --vcpus 2 --memory 1G
  ensure flavor l flavor create l --vcpus 4 --memory 2G
  ensure pool default pool create default --path "$pool"
  ensure network lan network create lan --bridge br-guests --subnet "$network.0/24,gateway=$network.1,range=$network.100-$network.200"
  import_image debian-12 "$image"
}

# import_image NAME FILE: with the CLI's own progress bar; an import that broke off is begun anew.
import_image() {
  if cloud image get "$1" -o json 2>/dev/null | grep -q IMAGE_PHASE_AVAILABLE; then
    say "  image $1 is there"
    return
  fi
  cloud -q image delete "$1" --yes >/dev/null 2>&1 || true
  say "  image $1"
  cloud image import "$1" --file "$2" >/dev/null || fail "the image cannot be imported" "read the lines above; running \`$0\` again is safe"
}

make_vm() {
  mkdir -p "$state/ssh"
  [ -e "$state/ssh/id_ed25519" ] || ssh-keygen -q -t ed25519 -N "" -C "tamdao quickstart" -f "$state/ssh/id_ed25519"
  if cloud vm get "$vm" >/dev/null 2>&1; then
    say "  vm $vm is there"
  else
    rm -f "$state/ssh/known_hosts"
    say "  vm $vm"
    cloud vm create "$vm" --flavor s --image debian-12 --disk 4G --network lan --ssh-key "$state/ssh/id_ed25519.pub" >/dev/null ||
      fail "the VM $vm does not come to run" "ask why: $(program tamdao) vm explain $vm"
  fi
  wait_for "vm $vm has an address" 60 /dev/null vm_address
  # Login proves network, key and user; cloud-init's own word is that it has finished.
  wait_for "cloud-init in $vm has finished" 600 "$(serial_log)" finished
}

vm_address() {
  cloud vm get "$vm" -o json | tr -d ' \n' | grep -o '"status":.*' | grep -o "\"${network//./\\.}\.[0-9]*/" | head -n 1 | tr -d '"/' | grep .
}

serial_log() { find "$state/agents" -path '*/serial/*.log' 2>/dev/null | head -n 1; }

login() {
  ssh -i "$state/ssh/id_ed25519" -o BatchMode=yes -o ConnectTimeout=5 -o StrictHostKeyChecking=accept-new \
    -o LogLevel=ERROR -o UserKnownHostsFile="$state/ssh/known_hosts" "debian@$(vm_address)" "$@"
}

finished() { login cloud-init status | grep -x 'status: done'; }

report() {
  local tamdao address
  tamdao=$(program tamdao) address=$(vm_address)
  section "Controllers" && cloud controller list >&2
  section "Nodes" && cloud node list >&2
  section "VMs" && cloud vm list >&2
  cat >&2 <<TEXT

What to try next
  log in              ssh -i $state/ssh/id_ed25519 -o UserKnownHostsFile=$state/ssh/known_hosts debian@$address
  serial console      $tamdao vm console $vm           (Ctrl-] and then "." leaves)
  what happened       $tamdao events --vm $vm
  one more VM         $tamdao vm create db --flavor s --image debian-12 --network lan --ssh-key $state/ssh/id_ed25519.pub
  REST                curl --cacert $(founder_file ca.pem) -H "Authorization: Bearer \$(cat $(founder_file admin-token))" https://$(controller_address "${controllers[1]}")/v1/vms
  kill a controller   kill -KILL $(running "$(controller_home "${controllers[0]}")") && $tamdao vm list
  ... and bring it back, and all that does not run:   $0
  the end             $0 down
TEXT
}

# status: what runs, asked of the processes themselves and of the cloud.
status() {
  local name pid
  if [ ! -e "$state/.tamdao-quickstart" ]; then
    echo "There is no quickstart cloud in $state; make one: $0"
    return
  fi
  for name in "${controllers[@]}"; do
    pid=$(running "$(controller_home "$name")") && echo "$name runs at $(controller_address "$name") as process $pid" || echo "$name does not run"
  done
  for name in "${nodes[@]}"; do
    pid=$(running "$(agent_home "$name")") && echo "the agent of $name runs (process $pid)" || echo "the agent of $name does not run"
  done
  "$here/testbed/node" status
  if [ -x "$(program tamdao)" ]; then
    for name in controller node vm; do
      echo ""
      cloud --retry-for 2s "$name" list || true
    done
  fi
}
