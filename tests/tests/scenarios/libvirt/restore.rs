//! All controllers are lost with their disks, and the cloud comes back from a backup while real guests run on: none is
//! stopped, doubled or robbed of its address, and no disk is emptied.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use tamdao_proto::v1::{Vm, VmPhase};
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::{Lookout, running};
use tamdao_tests::process::run;
use tamdao_tests::wait::BOOT;
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

use super::moves::id;

/// A VM that is up on a node.
async fn on(cloud: &Cloud, node: &str, name: &str, more: &[&str]) -> Result<Vm> {
    let other = if node == "n1" { "n2" } else { "n1" };
    cloud.cli.run(&["node", "cordon", other]).await?;
    let arguments = ["vm", "create", name, "--flavor", "tiny", "--network", "lan"];
    let _: Vm = cloud.cli.json(&[&arguments, more].concat()).await?;
    cloud.guest(name).says(READY, 1).await?;
    cloud.cli.run(&["node", "uncordon", other]).await?;
    let vm = cloud.vm(name).await?;
    ensure!(api::node(&vm) == node, "{name} is on {}", api::node(&vm));
    Ok(vm)
}

/// A backup of now, and the file with the secret key that opens it.
async fn back_up(cloud: &Cloud) -> Result<(PathBuf, PathBuf)> {
    let (key, directory) = (cloud.slot.directory.join("cloud.key"), cloud.slot.directory.join("backups"));
    std::fs::create_dir_all(&directory)?;
    run(Command::new("age-keygen").arg("-o").arg(&key))?;
    let recipient = run(Command::new("age-keygen").arg("-y").arg(&key))?;
    let to = directory.to_str().context("a plain path")?;
    cloud.cli.run(&["backup", "create", "--to", to, "--recipient", recipient.trim()]).await?;
    let file = std::fs::read_dir(&directory)?.next().context("a backup was written")??.path();
    let (backup, secret) = (file.to_str().context("a path")?, key.to_str().context("a path")?);
    cloud.cli.run(&["backup", "verify", backup, "--identity", secret]).await?;
    Ok((file, key))
}

/// Those in one of the lists of `recovery status`.
fn found(status: &Value, list: &str) -> Vec<String> {
    let guests = status[list].as_array().into_iter().flatten();
    guests.filter_map(|guest| guest["vm_id"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn real_guests_outlive_the_loss_of_all_records() -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).nodes(2).shared().start().await?;
    let (own, shared): (&[&str], &[&str]) =
        (&["--image", "tiny"], &["--disk", "size=256M,image=tiny,pool=shared"]);
    let stays = on(&cloud, "n1", "stays", own).await?;
    let moves = on(&cloud, "n2", "moves", shared).await?;
    let cut = on(&cloud, "n2", "cut", own).await?;
    let gone = on(&cloud, "n2", "gone", own).await?;
    let (backup, key) = back_up(&cloud).await?;

    // What the backup cannot know: one moves, one is deleted, one comes.
    cloud.cli.run(&["vm", "migrate", "moves", "--to", "n1"]).await?;
    cloud.cli.run(&["vm", "delete", "gone", "--yes"]).await?;
    cloud.vanishes("gone").await?;
    let late = on(&cloud, "n1", "late", own).await?;
    let held = api::addresses(&late);
    ensure!(held.len() == 1, "it has an address: {held:?}");

    // Everything above the nodes is lost, and one node's power with it.
    let lookout = Lookout::start();
    for controller in &mut cloud.controllers {
        controller.lose()?;
    }
    cloud.power_cut("n2")?;
    let before = running()?;
    ensure!(before.len() == 3 && !before.contains_key(&id(&cut)), "{before:?}");
    cloud.boot("n2").await?;
    cloud.controllers[0].restore(&backup, &key)?;
    cloud.start_controller(0)?;

    let status = eventually("both nodes have said what they run", BOOT, async || {
        let status: Value = cloud.cli.json(&["recovery", "status"]).await?;
        match status["reported"].as_array().map_or(0, Vec::len) {
            2 => Ok(status),
            _ => not_yet(status.to_string()),
        }
    })
    .await?;
    ensure!(found(&status, "unknown") == [id(&late)], "{status}");
    ensure!(found(&status, "moved") == [id(&moves)], "{status}");
    let mut down = [id(&cut), id(&gone)];
    down.sort();
    let mut said = found(&status, "down");
    said.sort();
    ensure!(said == down && found(&status, "twice").is_empty(), "{status}");
    let refused = cloud.cli.attempt(&["vm", "stop", "stays", "--force", "--yes"]).await?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && words.contains("recover"), "{words}");
    ensure!(running()? == before, "nothing was started or stopped");

    cloud.cli.run(&["recovery", "end", "--yes"]).await?;
    cloud.guest("cut").says(READY, 2).await?;
    ensure!(cloud.guest("cut").boots().await? == 2, "it is the same disk");
    let lacks = |vm: &Vm| api::told(vm).contains("VolumeMissing");
    cloud.becomes("gone", "told that its disk was deleted", BOOT, lacks).await?;
    for (name, vm) in [("stays", &stays), ("moves", &moves)] {
        let vm_now = cloud.reaches(name, VmPhase::Running).await?;
        ensure!(api::node(&vm_now) == "n1" && id(&vm_now) == id(vm), "{vm_now:?}");
    }
    ensure!(cloud.vm("late").await.is_err(), "the backup does not know it");
    // Who comes now is given no address that is in use.
    let new = on(&cloud, "n1", "new", own).await?;
    ensure!(api::addresses(&new) != held, "{held:?} is given twice");
    let after = running()?;
    ensure!(before.iter().all(|(vm, process)| after.get(vm) == Some(process)), "{before:?} became {after:?}");
    ensure!(after.len() == 5, "with cut and new: {after:?}");

    // The group grows again, on disks that know nothing of before.
    cloud.gather().await?;
    lookout.end()?;
    cloud.done()
}
