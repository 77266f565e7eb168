//! What a guest may send: frames under its own MAC address, and packets under its own IP addresses. One nftables
//! table of the bridge family, a chain per tap, written whole and swapped in one transaction.
//!
//! Invariants: a tap's rules are there before its guest runs, and a tap without rules of ours is not filtered by
//! us, so bridges of others are not touched. IPv4 and ARP by address; IPv6 by address, with link-local and
//! unspecified sources for neighbour discovery, no router advertisements and no answers for foreign addresses.
//! Deliberately absent: security groups and anything about what a guest may receive.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What one tap may send.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Rule {
    /// The host's end of the guest's interface.
    pub tap: String,
    pub mac: String,
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("{field}: {value:?} cannot be used in a packet filter")]
    Bad { field: &'static str, value: String },
    #[error("nft: {0}")]
    Io(#[source] std::io::Error),
    #[error("nft: {0}")]
    Refused(String),
}

impl Rule {
    /// Makes a rule of an interface's MAC and its addresses with or without prefix length.
    ///
    /// # Errors
    /// The tap's name, the MAC or an address has another form than these; nothing else reaches the filter's text.
    pub fn new(tap: &str, mac: &str, addresses: &[String]) -> Result<Self, GuardError> {
        let bad = |field, value: &str| GuardError::Bad { field, value: value.to_owned() };
        let name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if tap.is_empty() || tap.len() > 15 || !tap.chars().all(name) {
            return Err(bad("tap", tap));
        }
        let pairs: Vec<&str> = mac.split(':').collect();
        let pair = |text: &&str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if pairs.len() != 6 || !pairs.iter().all(pair) {
            return Err(bad("mac", mac));
        }
        let parse = |text: &String| {
            let bare = text.split_once('/').map_or(text.as_str(), |(bare, _)| bare);
            bare.parse::<IpAddr>().map_err(|_| bad("addresses", text))
        };
        let addresses = addresses.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { tap: tap.to_owned(), mac: mac.to_ascii_lowercase(), addresses })
    }
}

/// The whole table as `nft -f -` takes it: the old one goes and the new one comes in one transaction.
#[must_use]
pub fn ruleset(rules: &[Rule]) -> String {
    let mut rules: Vec<&Rule> = rules.iter().collect();
    rules.sort();
    rules.dedup_by(|a, b| a.tap == b.tap);
    let mut text =
        String::from("add table bridge tamdao\ndelete table bridge tamdao\ntable bridge tamdao {\n");
    for rule in &rules {
        chain(&mut text, rule);
    }
    text.push_str("\tchain from_guests {\n\t\ttype filter hook prerouting priority -300; policy accept;\n");
    if !rules.is_empty() {
        let jumps: Vec<String> = rules.iter().map(|rule| format!("\"{0}\" : jump {0}", rule.tap)).collect();
        let _ = writeln!(text, "\t\tiifname vmap {{ {} }}", jumps.join(", "));
    }
    text.push_str("\t}\n}\n");
    text
}

fn chain(text: &mut String, rule: &Rule) {
    let Rule { tap, mac, .. } = rule;
    let v4: Vec<String> = rule.addresses.iter().filter(|a| a.is_ipv4()).map(ToString::to_string).collect();
    let v6: Vec<std::net::Ipv6Addr> = rule
        .addresses
        .iter()
        .filter_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        })
        .collect();
    let _ = writeln!(text, "\tchain {tap} {{");
    let mut line = |rule: String| {
        let _ = writeln!(text, "\t\t{rule}");
    };
    line(format!("ether saddr != {mac} counter drop"));
    if !v4.is_empty() {
        let own = v4.join(", ");
        line(format!("arp saddr ether != {mac} counter drop"));
        // A probe for a duplicate of one's own address has the sender 0.0.0.0 and the address as its target.
        line(format!("arp saddr ip 0.0.0.0 arp daddr ip {{ {own} }} accept"));
        line(format!("arp saddr ip {{ {own} }} accept"));
        line(format!("ip saddr {{ {own} }} accept"));
    }
    if !v6.is_empty() {
        let own: Vec<String> = v6.iter().map(ToString::to_string).collect();
        let targets: Vec<String> = v6.iter().map(|a| format!("{:#x}", u128::from(*a))).collect();
        line("icmpv6 type { nd-router-advert, nd-redirect } counter drop".to_owned());
        // An advertisement's target is 8 bytes into the ICMPv6 message; fe80::/10 is 0x3fa in its first ten bits.
        line("icmpv6 type nd-neighbor-advert @th,64,10 0x3fa accept".to_owned());
        line(format!(
            "icmpv6 type nd-neighbor-advert @th,64,128 != {{ {} }} counter drop",
            targets.join(", ")
        ));
        line(format!("ip6 saddr {{ {} }} accept", own.join(", ")));
        line("ip6 saddr fe80::/10 accept".to_owned());
        line("ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld2-listener-report } accept".to_owned());
    }
    // QEMU announces a guest that has moved by reverse ARP under the guest's MAC.
    line("ether type 0x8035 accept".to_owned());
    line("counter drop".to_owned());
    text.push_str("\t}\n");
}

/// The filter of this node's network namespace.
#[derive(Debug)]
pub struct Guard {
    /// `None` when the operator filters elsewhere.
    applied: Option<tokio::sync::Mutex<Option<String>>>,
}

impl Guard {
    #[must_use]
    pub fn new(block: bool) -> Self {
        Self { applied: block.then(|| tokio::sync::Mutex::new(None)) }
    }

    /// Makes the table say exactly this. Nothing is done when it does already, as far as we wrote it.
    ///
    /// # Errors
    /// `nft` cannot be run or refuses; the old table is then still in force.
    pub async fn apply(&self, rules: &[Rule]) -> Result<(), GuardError> {
        let Some(applied) = &self.applied else { return Ok(()) };
        let mut applied = applied.lock().await;
        let text = ruleset(rules);
        if applied.as_ref() == Some(&text) {
            return Ok(());
        }
        load(&text).await?;
        *applied = Some(text);
        Ok(())
    }
}

async fn load(text: &str) -> Result<(), GuardError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(GuardError::Io)?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(text.as_bytes()).await.map_err(GuardError::Io)?;
    }
    let output = nft.wait_with_output().await.map_err(GuardError::Io)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(GuardError::Refused(words.lines().next().unwrap_or("failed and said nothing").to_owned()))
}

#[cfg(test)]
#[path = "guard_kernel_tests.rs"]
mod kernel_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Vec<Rule> {
        vec![
            Rule::new("tap0000000000b1", "52:54:00:00:00:02", &["10.20.0.8/24".into(), "fd00::8/64".into()])
                .unwrap(),
            Rule::new("tap0000000000a0", "52:54:00:00:00:01", &["10.20.0.7/24".into()]).unwrap(),
        ]
    }

    #[test]
    fn the_table_reads() {
        insta::assert_snapshot!(ruleset(&rules()));
    }

    #[test]
    fn no_guest_leaves_an_empty_hook() {
        insta::assert_snapshot!(ruleset(&[]));
    }

    #[test]
    fn order_does_not_matter() {
        let mut turned = rules();
        turned.reverse();
        assert_eq!(ruleset(&rules()), ruleset(&turned));
    }

    #[test]
    fn nothing_but_names_and_addresses_reaches_the_text() {
        let none: &[String] = &[];
        assert!(Rule::new("tap0; flush ruleset", "52:54:00:00:00:01", none).is_err());
        assert!(Rule::new("tap0", "52:54:00:00:00:0g", none).is_err());
        assert!(Rule::new("tap0", "52:54:00:00:00:01", &["10.0.0.1 } accept".into()]).is_err());
    }
}
