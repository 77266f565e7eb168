//! Guests on different nodes reach each other, and none can speak under another's address.

use anyhow::{Context, ensure};
use tamdao_tests::guest::READY;
use tamdao_tests::{Cloud, Result, api};

#[tokio::test]
async fn guests_reach_each_other_and_cannot_pretend() -> Result<()> {
    let cloud = Cloud::builder().nodes(2).start().await?;
    let one = cloud.create_tiny("one", &["--pin-node", "n1"]).await?;
    let two = cloud.create_tiny("two", &["--pin-node", "n2"]).await?;
    assert_eq!((api::node(&one), api::node(&two)), ("n1", "n2"));
    for name in ["one", "two"] {
        cloud.guest(name).says(READY, 1).await?;
    }
    let there = api::addresses(&two).first().cloned().context("two has an address")?;
    let own = api::addresses(&one).first().cloned().context("one has an address")?;
    let guest = cloud.guest("one");
    let ping =
        |from: &str| format!("ping -c 3 -W 2 {from} {there} >/dev/null && echo reached. || echo silence.");
    guest.answers(&ping(""), "reached.").await?;

    // The control: another address that the cloud gave to this guest would pass, as its own does when named.
    guest.answers(&ping(&format!("-I {own}")), "reached.").await?;
    let foreign = cloud.testbed.address(250);
    guest.answers(&format!("ip addr add {foreign}/24 dev eth0 && echo added."), "added.").await?;
    // The counter-check of a silence: it is the filter that dropped the packets.
    let before = dropped(&cloud)?;
    guest.answers(&ping(&format!("-I {foreign}")), "silence.").await?;
    let by_address = dropped(&cloud)?;
    ensure!(by_address > before, "the filter dropped {before} packets before and {by_address} after");

    let line =
        "ip addr del DEV dev eth0; ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; \
                ip link set eth0 up; echo changed."
            .replace("DEV", &format!("{foreign}/24"));
    guest.answers(&line, "changed.").await?;
    guest.answers(&ping(""), "silence.").await?;
    let by_mac = dropped(&cloud)?;
    ensure!(by_mac > by_address, "the filter dropped {by_address} packets before and {by_mac} after");
    cloud.done()
}

/// How many packets of guests the filter of n1 has dropped.
fn dropped(cloud: &Cloud) -> Result<u64> {
    let rules = cloud.testbed.shell("n1", "nft list table bridge tamdao")?;
    let counted = rules.lines().filter_map(|line| line.split_once("counter packets ")?.1.split_once(' '));
    counted.filter(|(_, rest)| rest.ends_with(" drop")).map(|(packets, _)| Ok(packets.parse::<u64>()?)).sum()
}
