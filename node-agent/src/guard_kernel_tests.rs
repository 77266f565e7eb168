//! The packet filter in a kernel: two guests are network namespaces on a bridge, in a network namespace of their
//! own. What they send under their own addresses arrives; what they send under others does not. Needs root, `ip`,
//! `nft` and busybox's `ping`.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{Rule, ruleset};

const SCRIPT: &str = r#"
set -e
mkdir -p /run/netns && mount -t tmpfs none /run/netns
ip link set lo up
ip link add br0 type bridge
ip link set br0 up
n=0
for guest in a b; do
  n=$((n + 1))
  ip netns add $guest
  ip link add tap$guest type veth peer name eth0 netns $guest
  ip link set tap$guest master br0 up
  ip -n $guest link set lo up
  ip -n $guest link set eth0 address 52:54:00:00:00:0$n up
  ip -n $guest addr add 10.20.0.$n/24 dev eth0
  ip -n $guest addr add fd00::$n/64 dev eth0 nodad
done
nft -f -
ping() {
  from=$1 name=$2
  shift 2
  # The bridge's ports and the links' own addresses take a moment; what must not arrive is tried twice only.
  for try in $(seq ${TRIES:-2}); do
    if ip netns exec $from busybox ping -c 1 -W 1 -q "$@" >/dev/null 2>&1; then echo "$name arrives"; return; fi
  done
  echo "$name is lost"
}
TRIES=20
ping b own-v4 -4 10.20.0.1
ping b own-v6 -6 fd00::1
TRIES=2
ip -n b addr add 10.20.0.99/24 dev eth0
ip -n b addr add fd00::99/64 dev eth0 nodad
ping b foreign-v4 -4 -I 10.20.0.99 10.20.0.1
ping b foreign-v6 -6 -I fd00::99 fd00::1
ping a answer-for-foreign-v4 -4 10.20.0.99
ping a answer-for-foreign-v6 -6 fd00::99
ip -n a neigh flush all
TRIES=20
ping a back-v4 -4 10.20.0.2
ping a back-v6 -6 fd00::2
TRIES=2
ip -n b link set eth0 down
ip -n b link set eth0 address 52:54:00:00:00:66 up
ping b foreign-mac -4 10.20.0.1
"#;

#[test]
fn own_addresses_arrive_and_foreign_ones_do_not() {
    let rule = |tap: &str, n: u8| {
        let addresses = [format!("10.20.0.{n}/24"), format!("fd00::{n}/64")];
        Rule::new(tap, &format!("52:54:00:00:00:0{n}"), &addresses).unwrap()
    };
    let text = ruleset(&[rule("tapa", 1), rule("tapb", 2)]);
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "bash", "-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let expected = "own-v4 arrives\nown-v6 arrives\nforeign-v4 is lost\nforeign-v6 is lost\n\
                    answer-for-foreign-v4 is lost\nanswer-for-foreign-v6 is lost\n\
                    back-v4 arrives\nback-v6 arrives\nforeign-mac is lost\n";
    assert_eq!(said, expected, "{errors}");
}
