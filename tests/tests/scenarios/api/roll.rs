//! Nodes are updated in turns: as few groups as there can be, each emptied before anybody works on it, nothing left away,
//! and a run that was broken off is gone on with. Nodes are sessions without hypervisors; how guests fare on the way is
//! `libvirt::roll`'s.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tamdao_tests::fleet::Fleet;
use tamdao_tests::process::said;
use tamdao_tests::wait::SOON;
use tamdao_tests::{Cloud, Result, binaries, eventually, not_yet};

/// Two of these nodes hold what stands on four.
const NODES: usize = 4;
const PER_NODE: usize = 2;
const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::test]
async fn nodes_are_updated_in_the_fewest_groups_and_a_run_that_failed_is_gone_on_with() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let fleet = cloud.fleet(NODES + 1).await?;
    cloud.cli.run(&["pool", "create", "san", "--path", "/san", "--shared", "--timeout", "60s"]).await?;
    cordon(&cloud, "cordon", NODES + 1).await?;
    for node in 0..NODES {
        for at in 0..PER_NODE {
            create(&cloud, &format!("fleet-{node}"), &format!("v{node}-{at}"), "3G").await?;
        }
    }
    // One node is full of a VM that does not go, which holds nobody else up.
    let held = format!("fleet-{NODES}");
    create(&cloud, &held, "held", "13G").await?;
    cloud.cli.run(&["vm", "update", "held", "--maintenance", "block"]).await?;
    cordon(&cloud, "uncordon", NODES + 1).await?;
    let homes = homes(&cloud).await?;

    let folder = cloud.slot.directory.join("roll");
    std::fs::create_dir_all(&folder)?;
    let roll = ["node", "roll", "--all", "--until", "qemu=9.2"];
    let output = cloud.cli.attempt(&[&roll[..], &["--dry-run", "-o", "json"]].concat()).await?;
    ensure!(output.status.code() == Some(1), "one node is left out: {}", said(&output));
    let plan: Value = serde_json::from_slice(&output.stdout)?;
    let groups = groups(&plan);
    ensure!(groups.iter().map(Vec::len).collect::<Vec<_>>() == [2, 2], "{plan}");
    ensure!(plan["left_out"][0]["node"] == *held && plan["left_out"].to_string().contains("is to block"));
    ensure!(homes == self::homes(&cloud).await?, "a dry run changes nothing");

    // The work on one node of the second group fails.
    let bad = &groups[1][0];
    std::fs::write(folder.join(format!("bad-{bad}")), "")?;
    let hook = hook(&folder)?;
    let command = [&roll[..], &["--run", &hook, "--yes"]].concat();
    let output = worked(&cloud, &fleet, &folder, &command).await?;
    let told = said(&output);
    ensure!(output.status.code() == Some(1), "{told}");
    for part in [format!("the command for {bad} ended with"), format!("{bad} is drained"), "once more".into()]
    {
        ensure!(told.contains(&part), "{part:?} is not in {told}");
    }
    eventually("all but one are updated", SOON, async || {
        let qemus = qemus(&cloud).await?;
        match qemus.values().filter(|qemu| *qemu == "9.2.0").count() == NODES - 1 {
            true => Ok(()),
            false => not_yet(format!("{qemus:?}")),
        }
    })
    .await?;

    std::fs::remove_file(folder.join(format!("bad-{bad}")))?;
    let output = worked(&cloud, &fleet, &folder, &command).await?;
    let told = said(&output);
    ensure!(output.status.code() == Some(1) && told.contains("2 nodes updated"), "{told}");
    ensure!(told.contains(&format!("{bad}: in use again: all that it had is back")), "{told}");
    ensure!(
        told.contains(&format!("{held} was left out: lab/held: its maintenance policy is to block")),
        "{told}"
    );
    let work = std::fs::read_to_string(folder.join("work"))?;
    let mut work: Vec<&str> = work.lines().collect();
    work.sort_unstable();
    let expected: Vec<String> = (0..NODES).map(|at| format!("fleet-{at} DRAIN_PHASE_DRAINED 0")).collect();
    ensure!(work == expected, "each node was worked on once, when nothing was there: {work:?}");
    ensure!(homes == self::homes(&cloud).await?, "each VM is where it was");
    for node in cloud.nodes().await? {
        let (spec, status) = (node.spec.context("a spec")?, node.status.context("a status")?);
        ensure!(!spec.cordoned && status.drain.is_none(), "{status:?}");
    }

    // All that can be done is done, and the next run sees it.
    let again = cloud.cli.attempt(&[&roll[..], &["--dry-run", "-o", "json"]].concat()).await?;
    let plan: Value = serde_json::from_slice(&again.stdout)?;
    ensure!(
        plan["groups"] == serde_json::json!([]) && plan["done"].as_array().is_some_and(|d| d.len() == NODES)
    );

    // What somebody drains for something else is none of ours.
    cloud.cli.run(&["node", "drain", bad, "--yes", "--reason", "new fan"]).await?;
    let later = ["node", "roll", bad, "--until", "qemu=10", "--dry-run"];
    let told = said(&cloud.cli.attempt(&later).await?);
    ensure!(told.contains("its drain is not of this update (new fan)"), "{told}");
    cloud.done()
}

#[tokio::test]
async fn without_a_command_a_new_boot_ends_the_work() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let fleet = cloud.fleet(2).await?;
    cloud.cli.run(&["pool", "create", "san", "--path", "/san", "--shared", "--timeout", "60s"]).await?;
    cordon(&cloud, "cordon", 2).await?;
    create(&cloud, "fleet-0", "web", "3G").await?;
    cordon(&cloud, "uncordon", 2).await?;
    let roll = cloud.cli.within(PATIENCE, &["node", "roll", "fleet-0", "--yes"]);
    let boot = async {
        let drained = |node: &tamdao_proto::v1::Node| {
            node.status.as_ref().and_then(|s| s.drain.as_ref()).is_some_and(|drain| drain.phase == 2)
        };
        let before = cloud.node_becomes("fleet-0", "drained", drained).await?;
        // It goes on being drained until something of it has changed.
        ensure!(place(&cloud, "web").await? == "fleet-1");
        fleet.update("fleet-0", "7.2.0")?;
        Ok(before)
    };
    let (output, before) = tokio::try_join!(roll, boot)?;
    ensure!(output.status.success(), "{}", said(&output));
    ensure!(place(&cloud, "web").await? == "fleet-0");
    let boot = |node: &tamdao_proto::v1::Node| {
        let status = node.status.clone().unwrap_or_default();
        (
            status.boot_id,
            status.boot_time.map_or(0, |time| time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000),
        )
    };
    let after = cloud.node_becomes("fleet-0", "in use", |node| boot(node).0 != boot(&before).0).await?;
    ensure!(boot(&after).1 > boot(&before).1, "{after:?}");
    cloud.done()
}

/// What is run for each node: it writes down how the cloud sees the node, waits until the host is updated, and fails
/// where it shall.
fn hook(folder: &Path) -> Result<String> {
    let (tamdao, folder) = (binaries::find("tamdao")?, folder.display());
    Ok(format!(
        "cd {folder} && test ! -e bad-$TAMDAO_NODE && \
         {} node get $TAMDAO_NODE -o json > $TAMDAO_NODE.json && touch do-$TAMDAO_NODE && \
         until test -e did-$TAMDAO_NODE; do sleep 0.1; done",
        tamdao.display()
    ))
}

/// Runs the command line while hosts are updated as its hooks ask for it.
async fn worked(cloud: &Cloud, fleet: &Fleet, folder: &Path, command: &[&str]) -> Result<Output> {
    let hands = async {
        loop {
            for at in 0..NODES {
                let node = format!("fleet-{at}");
                let asked = folder.join(format!("do-{node}"));
                if asked.exists() {
                    std::fs::remove_file(asked)?;
                    note(folder, &node)?;
                    fleet.update(&node, "9.2.0")?;
                    std::fs::write(folder.join(format!("did-{node}")), "")?;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        output = cloud.cli.within(PATIENCE, command) => output,
        ended = hands => ended,
    }
}

/// Writes down what was there when a node was worked on.
fn note(folder: &Path, node: &str) -> Result<()> {
    use std::io::Write;
    let seen: Value = serde_json::from_slice(&std::fs::read(folder.join(format!("{node}.json")))?)?;
    let phase = seen["status"]["drain"]["phase"].as_str().unwrap_or("in use").to_owned();
    let vms = seen["status"]["vms"].as_u64().unwrap_or_default();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("work"))?;
    Ok(writeln!(file, "{node} {phase} {vms}")?)
}

fn groups(plan: &Value) -> Vec<Vec<String>> {
    let names = |group: &Value| {
        let names = group["nodes"].as_array().into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    plan["groups"].as_array().into_iter().flatten().map(names).collect()
}

async fn cordon(cloud: &Cloud, verb: &str, nodes: usize) -> Result<()> {
    for at in 0..nodes {
        cloud.cli.run(&["node", verb, &format!("fleet-{at}")]).await?;
    }
    Ok(())
}

/// Makes a VM on a node, while all are cordoned.
async fn create(cloud: &Cloud, node: &str, name: &str, memory: &str) -> Result<()> {
    cloud.cli.run(&["node", "uncordon", node]).await?;
    let vm = ["vm", "create", name, "--vcpus", "1", "--memory", memory, "--disk", "size=1G,pool=san"];
    cloud.cli.run(&[&vm[..], &["--timeout", "60s"]].concat()).await?;
    cloud.cli.run(&["node", "cordon", node]).await.map(drop)
}

async fn place(cloud: &Cloud, name: &str) -> Result<String> {
    eventually(&format!("{name} runs"), SOON, async || {
        let vm = cloud.vm(name).await?;
        match tamdao_tests::api::phase(&vm) {
            tamdao_proto::v1::VmPhase::Running => Ok(tamdao_tests::api::node(&vm).to_owned()),
            _ => not_yet(tamdao_tests::api::told(&vm)),
        }
    })
    .await
}

/// Where each VM runs.
async fn homes(cloud: &Cloud) -> Result<BTreeMap<String, String>> {
    let mut homes = BTreeMap::new();
    for vm in cloud.api.vms().await? {
        let name = vm.metadata.context("metadata")?.name;
        let node = place(cloud, &name).await?;
        homes.insert(name, node);
    }
    Ok(homes)
}

async fn qemus(cloud: &Cloud) -> Result<BTreeMap<String, String>> {
    let nodes = cloud.nodes().await?.into_iter();
    let qemu = |node: tamdao_proto::v1::Node| {
        let name = node.metadata.map(|metadata| metadata.name).unwrap_or_default();
        (name, node.status.and_then(|s| s.inventory).map(|has| has.qemu_version).unwrap_or_default())
    };
    Ok(nodes.map(qemu).collect())
}
