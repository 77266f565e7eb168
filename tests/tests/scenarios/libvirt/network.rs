//! Guests on different nodes reach each other, and none can speak under another's address.

use anyhow::Context;
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
    guest.answers(&ping(&format!("-I {foreign}")), "silence.").await?;
    let counted = || cloud.testbed.shell("n1", "nft list table bridge tamdao");
    let dropped =
        |rules: &str| rules.lines().any(|line| line.contains("packets") && !line.contains("packets 0"));
    let rules = counted()?;
    assert!(dropped(&rules), "no rule has counted a packet:\n{rules}");

    let line =
        "ip addr del DEV dev eth0; ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; \
                ip link set eth0 up; echo changed."
            .replace("DEV", &format!("{foreign}/24"));
    guest.answers(&line, "changed.").await?;
    guest.answers(&ping(""), "silence.").await?;
    cloud.done()
}
