//! All nodes are updated in turns while nobody notices: ticks go on without a gap, no guest boots again, none ever runs
//! twice, and each is at home again in the end.

use anyhow::ensure;
use tamdao_proto::v1::VmPhase;
use tamdao_tests::process::said;
use tamdao_tests::wait::BOOT;
use tamdao_tests::watcher::Watcher;
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

use super::drains::{Guest, guests};
use super::moves::{gapless, log_file, read};

#[tokio::test]
async fn all_nodes_are_rolled_and_no_guest_notices() -> Result<()> {
    let cloud = Cloud::builder().nodes(3).start().await?;
    let first = guests(&cloud, "n1", &["web", "mail"]).await?;
    let second = guests(&cloud, "n2", &["db"]).await?;
    let watchers = [Watcher::begin(&first[0].id), Watcher::begin(&second[0].id)];
    // What an update of libvirt does: nothing of it is left that ran before.
    let hook = cloud.testbed.restarts_libvirtd("\"$TAMDAO_NODE\"");
    let roll = ["node", "roll", "--all", "--run", &hook, "--yes", "--timeout", "10m"];
    let output = cloud.cli.within(5 * BOOT, &roll).await?;
    let told = said(&output);
    ensure!(output.status.success() && told.contains("3 nodes updated"), "{told}");
    for watcher in watchers {
        watcher.end()?;
    }
    for (node, guests) in [("n1", &first), ("n2", &second)] {
        for guest in guests {
            let vm = cloud.reaches(&guest.name, VmPhase::Running).await?;
            ensure!(api::node(&vm) == node, "{} is on {}", guest.name, api::node(&vm));
            has_come_back(&cloud, guest, node).await?;
        }
    }
    cloud.done()
}

/// It ticks on at home from where it was when it left, with the boot that it had. What it said in between went with the
/// log of the node on which it was.
async fn has_come_back(cloud: &Cloud, guest: &Guest, home: &str) -> Result<()> {
    let numbers = |log: &str| -> Vec<u64> {
        log.lines().filter_map(|line| line.rsplit_once("tick ")?.1.trim().parse().ok()).collect()
    };
    let log = eventually(&format!("{} ticks on at home", guest.name), BOOT, async || {
        let log = read(&log_file(cloud, &guest.id, home)?);
        match numbers(&log).len() {
            0..3 => not_yet(log),
            _ => Ok(log),
        }
    })
    .await?;
    gapless(&log)?;
    ensure!(!log.contains("tamdao-tiny: booted"), "{} has booted again", guest.name);
    let (left, back) = (numbers(&read(&guest.kept)), numbers(&log));
    ensure!(left.last() < back.first(), "{}: {back:?} after {left:?}", guest.name);
    Ok(())
}
