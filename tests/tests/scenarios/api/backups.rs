//! Backups as an operator has them: the leader makes them by itself, the command line lists and drills them, and what is
//! damaged fails both. The drill restores with the real program of the controller.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use tamdao_tests::process::{run, said};
use tamdao_tests::wait::{SOON, eventually, not_yet};
use tamdao_tests::{Cloud, Result, binaries};

#[tokio::test]
async fn the_newest_backup_is_drilled_and_what_is_damaged_is_told() -> Result<()> {
    let mut cloud = Cloud::builder().start().await?;
    let [key, kept, scratch] = ["cloud.key", "kept", "scratch"].map(|name| cloud.slot.directory.join(name));
    [&kept, &scratch].into_iter().try_for_each(fs::create_dir)?;
    run(Command::new("age-keygen").arg("-o").arg(&key))?;
    let recipient = run(Command::new("age-keygen").arg("-y").arg(&key))?;
    cloud.cli.run(&["agency", "create", "works"]).await?;
    cloud.controllers[0].stop().await?;
    let section = format!("[backup]\ndestination = {kept:?}\nrecipients = [{:?}]\n", recipient.trim());
    cloud.controllers[0].configure(&section)?;
    cloud.start_controller(0)?;
    eventually("a backup is made", SOON, async || {
        let list = cloud.cli.attempt(&["--retry-for", "60s", "backup", "list"]).await?;
        let is_there = list.status.success() && said(&list).contains("whole");
        if is_there { Ok(()) } else { not_yet(said(&list)) }
    })
    .await?;

    let controller = binaries::find("tamdao-controller")?;
    let plain = |path: &Path| path.to_str().map(str::to_owned).context("a plain path");
    let places = [plain(&kept)?, plain(&key)?, plain(&controller)?, plain(&scratch)?];
    let [kept_at, key_at, program, scratch_at] = places.each_ref().map(String::as_str);
    let drill = ["backup", "drill", "--destination", kept_at, "--identity", key_at, "--controller", program];
    let drill = [&drill[..], &["--scratch", scratch_at, "--max-age", "1h"]].concat();
    let report = cloud.cli.run(&drill).await?;
    let agencies = report.lines().find(|line| line.starts_with("agency ")).context("a row of agencies")?;
    let counts: Vec<&str> = agencies.split_whitespace().skip(1).collect();
    ensure!(counts.len() == 2 && counts[0] == counts[1] && counts[0] != "0", "{report}");
    ensure!(fs::read_dir(&scratch)?.next().is_none(), "something is left");

    // It comes here whole, and over nothing.
    let name = fs::read_dir(&kept)?.next().context("a backup")??.file_name();
    let name = name.to_str().context("a plain name")?;
    let here = plain(&cloud.slot.directory.join("here"))?;
    let fetch = ["backup", "fetch", name, "--destination", kept_at, "--to", &here];
    cloud.cli.run(&fetch).await?;
    ensure!(fs::read(&here)? == fs::read(kept.join(name))?);
    ensure!(!cloud.cli.attempt(&fetch).await?.status.success());

    // Too old, with another's key, and damaged.
    let old = cloud.cli.attempt(&[&drill[..drill.len() - 1], &["0s"]].concat()).await?;
    ensure!(old.status.code() == Some(1) && said(&old).contains("is allowed"), "{}", said(&old));
    let other = cloud.slot.directory.join("other.key");
    run(Command::new("age-keygen").arg("-o").arg(&other))?;
    let other = plain(&other)?;
    let stranger: Vec<&str> =
        drill.iter().map(|word| if *word == key_at { other.as_str() } else { *word }).collect();
    let stranger = cloud.cli.attempt(&stranger).await?;
    ensure!(stranger.status.code() == Some(1), "{}", said(&stranger));
    ensure!(said(&stranger).contains("not encrypted to this identity"), "{}", said(&stranger));
    let file = fs::read_dir(&kept)?.next().context("a backup")??.path();
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().context("a byte")? ^= 1;
    fs::write(&file, bytes)?;
    for command in [&drill[..], &["backup", "list", "--destination", kept_at], &["backup", "list"]] {
        let told = cloud.cli.attempt(command).await?;
        ensure!(told.status.code() == Some(1), "{}", said(&told));
        ensure!(said(&told).contains("not as it was written"), "{}", said(&told));
    }
    ensure!(fs::read_dir(&scratch)?.next().is_none(), "something is left");
    cloud.done()
}
