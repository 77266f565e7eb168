//! A VM moves to another node while it runs, under memory and disk writes: its ticks go on without a gap, its data is
//! as it was, and at no moment does it run twice.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;
use tamdao_proto::v1::{Move, MovePhase, Vm, VmPhase};
use tamdao_tests::cloud::POOL;
use tamdao_tests::guest::READY;
use tamdao_tests::wait::{BOOT, SOON};
use tamdao_tests::watcher::Watcher;
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

/// Keeps memory and the second disk busy until it is told to end.
pub(super) const LOAD: &str = "(while [ ! -e /run/rest ]; do dd if=/dev/urandom of=/run/dirt bs=64k count=64; \
    dd if=/run/dirt of=/dev/vdb bs=64k seek=512 conv=notrunc; done >/dev/null 2>&1 &) ; echo b''usy now.";

/// The id of a VM.
pub(super) fn id(vm: &Vm) -> String {
    vm.metadata.as_ref().map(|metadata| metadata.id.clone()).unwrap_or_default()
}

/// A pool that all nodes of this machine see.
async fn shared_pool(cloud: &Cloud) -> Result<()> {
    let path = cloud.slot.directory.join("san");
    std::fs::create_dir_all(&path)?;
    let text = path.to_str().context("a plain path")?;
    let pool: Value =
        cloud.cli.json(&["pool", "create", "san", "--shared", "--path", text, "--no-wait"]).await?;
    let id = pool["metadata"]["id"].as_str().context("an id")?;
    std::fs::write(path.join(".tamdao-pool"), format!("{id}\n"))?;
    Ok(())
}

/// The serial log that one node keeps of a VM.
pub(super) fn log_file(cloud: &Cloud, vm: &str, node: &str) -> Result<PathBuf> {
    Ok(cloud.agent(node)?.data_dir.join("serial").join(format!("{vm}.log")))
}

pub(super) fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).replace('\r', "")
}

/// Refuses a gap in the ticks. Only those since the guest became busy are looked at: before, what was typed on its
/// console stands in the midst of them.
pub(super) fn gapless(log: &str) -> Result<usize> {
    let since = log.rsplit("busy now.").next().unwrap_or_default();
    let number = |line: &str| line.rsplit_once("tick ")?.1.trim().parse().ok();
    let ticks: Vec<u64> = since.lines().filter_map(number).collect();
    for pair in ticks.windows(2) {
        ensure!(pair[1] == pair[0] + 1, "{} follows {}:\n{log}", pair[1], pair[0]);
    }
    Ok(ticks.len())
}

/// Fills a part of the second disk that nothing writes to, and says what is there.
pub(super) async fn fill(cloud: &Cloud, name: &str) -> Result<String> {
    let line = "dd if=/dev/urandom of=/dev/vdb bs=1M seek=2 count=8 conv=fsync,notrunc 2>/dev/null; echo f''illed here.";
    cloud.guest(name).answers(line, "filled here.").await?;
    sum(cloud, name).await
}

pub(super) async fn sum(cloud: &Cloud, name: &str) -> Result<String> {
    let line = "sync; echo 3 >/proc/sys/vm/drop_caches; echo s''um=$(dd if=/dev/vdb bs=1M skip=2 count=8 2>/dev/null | md5sum | cut -c1-32).; echo t''old all.";
    let heard = cloud.guest(name).answers(line, "told all.").await?;
    let sum = heard.lines().rev().find_map(|line| line.trim().strip_prefix("sum=")?.strip_suffix('.'));
    let sum = sum.filter(|sum| sum.len() == 32).with_context(|| format!("a checksum in {heard:?}"))?;
    Ok(sum.to_owned())
}

/// Moves a busy guest from n1 to n2 and back, and looks at everything.
async fn there_and_back(pool: Option<&str>) -> Result<()> {
    // On a shared pool nothing starts without a keeper.
    let builder = Cloud::builder().nodes(2);
    let cloud = if pool.is_some() { builder.shared() } else { builder }.start().await?;
    let disk = match pool {
        Some(pool) => {
            shared_pool(&cloud).await?;
            format!("size=64M,pool={pool}")
        }
        None => "size=64M".to_owned(),
    };
    // With one disk shared and the boot disk local, or both local: the boot disk is an overlay on a cached image.
    cloud.create_tiny("web", &["--disk", &disk]).await?;
    cloud.guest("web").says(READY, 1).await?;
    let vm = cloud.vm("web").await?;
    let (vm_id, from) = (id(&vm), api::node(&vm).to_owned());
    let to = if from == "n1" { "n2" } else { "n1" };
    let before = fill(&cloud, "web").await?;
    cloud.guest("web").answers(LOAD, "busy now.").await?;

    // The node that it leaves clears its log; by another name what is written to it stays.
    let kept = cloud.slot.directory.join("kept.log");
    std::fs::hard_link(log_file(&cloud, &vm_id, &from)?, &kept)?;
    let dry: Move = cloud.cli.json(&["vm", "migrate", "web", "--to", to, "--dry-run"]).await?;
    let told = dry.status.unwrap_or_default();
    let forecast = told.forecast.with_context(|| format!("a forecast: {}", told.message))?;
    // How much it writes is sampled, and on a busy machine may come out as nothing; small disks count as nothing too.
    ensure!(forecast.memory_bytes > 0, "{forecast:?}");
    ensure!(api::node(&cloud.vm("web").await?) == from, "nothing was changed");
    let watcher = Watcher::begin(&vm_id);
    cloud.cli.run(&["vm", "migrate", "web", "--to", to]).await?;
    let vm = cloud.reaches("web", VmPhase::Running).await?;
    ensure!(api::node(&vm) == to, "it is on {}", api::node(&vm));
    ensure!(cloud.testbed.qemus(&from)?.is_empty(), "nothing of it is left on {from}");
    ensure!(cloud.testbed.qemus(to)?.len() == 1, "it runs on {to}");
    cloud.event("web", "Moved").await?;
    let there = cloud.guest("web").ticks_on(to)?.len();
    eventually("it ticks on over there", BOOT, async || {
        let now = cloud.guest("web").ticks_on(to)?.len();
        if now > there + 2 { Ok(()) } else { not_yet(format!("{now} ticks")) }
    })
    .await?;
    let seen = watcher.end()?;
    ensure!(seen.two_processes > 0, "the watcher has seen the move: {seen:?}");
    let log = read(&kept) + &read(&log_file(&cloud, &vm_id, to)?);
    gapless(&log)?;
    ensure!(log.matches("tamdao-tiny: booted").count() == 1, "it booted once");
    ensure!(!log.contains("other writer"), "its disk had one writer:\n{log}");
    ensure!(!log.contains("disk error"), "{log}");

    cloud.guest("web").answers("touch /run/rest; sleep 2; echo at r''est now.", "at rest now.").await?;
    let after = sum(&cloud, "web").await?;
    ensure!(before == after, "its data was {before} and is {after}");
    files_are_only_on(&cloud, &from, to).await?;

    // And back, with files where some were removed before.
    cloud.cli.run(&["vm", "migrate", "web"]).await?;
    let vm = cloud.reaches("web", VmPhase::Running).await?;
    ensure!(api::node(&vm) == from, "it is on {}", api::node(&vm));
    ensure!(before == sum(&cloud, "web").await?, "its data is the same");
    files_are_only_on(&cloud, to, &from).await?;

    // It lives on as any other: off, on, gone.
    cloud.cli.run(&["vm", "stop", "web"]).await?;
    cloud.cli.run(&["vm", "start", "web"]).await?;
    eventually("it booted again", BOOT, async || {
        let log = read(&log_file(&cloud, &vm_id, &from)?);
        if log.matches(READY).count() >= 1 { Ok(()) } else { not_yet("not ready") }
    })
    .await?;
    cloud.cli.run(&["vm", "delete", "web", "--yes"]).await?;
    cloud.vanishes("web").await?;
    for node in ["n1", "n2"] {
        let files = cloud.testbed.shell(node, &format!("find {POOL}/volumes -type f 2>/dev/null || true"))?;
        ensure!(files.is_empty(), "{node} keeps {files}");
    }
    cloud.done()
}

/// The local files of what has left go.
pub(super) async fn files_are_only_on(cloud: &Cloud, left: &str, there: &str) -> Result<()> {
    let files = |node: &str| {
        cloud.testbed.shell(node, &format!("find {POOL}/volumes -type f -name '*.qcow2' 2>/dev/null || true"))
    };
    ensure!(!files(there)?.is_empty(), "its files are on {there}");
    eventually("the files that were left are removed", SOON, async || match files(left)?.as_str() {
        "" => Ok(()),
        kept => not_yet(kept),
    })
    .await
}

#[tokio::test]
async fn a_busy_guest_moves_with_its_local_disks_and_back() -> Result<()> {
    there_and_back(None).await
}

#[tokio::test]
async fn a_busy_guest_moves_with_a_disk_in_a_shared_pool_and_back() -> Result<()> {
    there_and_back(Some("san")).await
}

/// The newest move.
pub(super) async fn newest(cloud: &Cloud) -> Result<Move> {
    let list: Value = cloud.cli.json(&["move", "list"]).await?;
    let moves: Vec<Move> = serde_json::from_value(list["moves"].clone())?;
    let begun = |one: &Move| {
        let time = one.metadata.as_ref().and_then(|metadata| metadata.create_time).unwrap_or_default();
        (time.seconds, time.nanos)
    };
    moves.into_iter().max_by_key(begun).context("a move")
}

pub(super) fn phase(one: &Move) -> MovePhase {
    one.status.as_ref().map_or(MovePhase::Unspecified, |status| status.phase())
}

/// Waits until the newest move is over.
pub(super) async fn over(cloud: &Cloud) -> Result<Move> {
    eventually("the move is over", BOOT, async || {
        let one = newest(cloud).await?;
        match phase(&one) {
            MovePhase::Done | MovePhase::Failed | MovePhase::Cancelled => Ok(one),
            _ => not_yet(format!("{:?}", one.status)),
        }
    })
    .await
}

/// Waits until the newest move is being sent, with something of it on its way.
pub(super) async fn under_way(cloud: &Cloud) -> Result<()> {
    eventually("the guest is on its way", SOON, async || {
        let one = newest(cloud).await?;
        let progress = one.status.as_ref().and_then(|status| status.progress);
        if progress.is_some_and(|progress| progress.sent_bytes > 1 << 20) {
            return Ok(());
        }
        not_yet(format!("{:?}", one.status))
    })
    .await
}

/// After a move: one QEMU in all, where the record says, and the guest runs on without having booted again.
pub(super) async fn one_guest_where_the_record_says(cloud: &Cloud, name: &str) -> Result<String> {
    let node = eventually("one guest, where the record says", BOOT, async || {
        let vm = cloud.vm(name).await?;
        let node = api::node(&vm).to_owned();
        let other = if node == "n1" { "n2" } else { "n1" };
        let (here, there) = (cloud.testbed.qemus(&node)?.len(), cloud.testbed.qemus(other)?.len());
        if (here, there) == (1, 0) && api::phase(&vm) == VmPhase::Running {
            return Ok(node);
        }
        not_yet(format!("{here} on {node}, {there} on {other}: {}", api::told(&vm)))
    })
    .await?;
    let before = cloud.guest(name).ticks_on(&node)?.len();
    eventually("it ticks", BOOT, async || {
        let now = cloud.guest(name).ticks_on(&node)?.len();
        if now > before { Ok(()) } else { not_yet(format!("{now} ticks")) }
    })
    .await?;
    cloud.guest(name).answers("echo u''p for $(cut -d. -f1 /proc/uptime) s.", "up for").await?;
    Ok(node)
}

#[tokio::test]
async fn a_move_that_is_cancelled_leaves_the_guest_where_it_was() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(2).start().await?;
    cloud.create_tiny("web", &[]).await?;
    cloud.guest("web").says(READY, 1).await?;
    let vm = cloud.vm("web").await?;
    let (vm_id, from) = (id(&vm), api::node(&vm).to_owned());
    let to = if from == "n1" { "n2" } else { "n1" };
    cloud.agent(&from)?.limit_moves(4)?;
    cloud.agent_mut(&from)?.stop().await?;
    cloud.agent_mut(&from)?.start()?;
    cloud.nodes_ready().await?;
    cloud.guest("web").answers(&LOAD.replace("/dev/vdb", "/run/more"), "busy now.").await?;

    let watcher = Watcher::begin(&vm_id);
    cloud.cli.run(&["vm", "migrate", "web", "--no-wait"]).await?;
    under_way(&cloud).await?;
    let refused = cloud.cli.attempt(&["vm", "stop", "web"]).await?;
    ensure!(!refused.status.success(), "a VM that moves is not stopped");
    let one = newest(&cloud).await?;
    let name = one.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    cloud.cli.run(&["move", "cancel", &name]).await?;
    ensure!(phase(&newest(&cloud).await?) == MovePhase::Cancelled);
    let node = one_guest_where_the_record_says(&cloud, "web").await?;
    watcher.end()?;
    ensure!(node == from, "it is on {node}");
    let log = read(&log_file(&cloud, &vm_id, &from)?);
    gapless(&log)?;
    ensure!(log.matches("tamdao-tiny: booted").count() == 1, "it booted once");
    files_are_only_on(&cloud, to, &from).await?;

    // And then it moves all the same.
    cloud.agent(&from)?.limit_moves(0)?;
    cloud.agent_mut(&from)?.stop().await?;
    cloud.agent_mut(&from)?.start()?;
    cloud.nodes_ready().await?;
    cloud.cli.run(&["vm", "migrate", "web", "--to", to]).await?;
    ensure!(one_guest_where_the_record_says(&cloud, "web").await? == to);
    cloud.done()
}

/// The agent of one end dies at each step of a move, and comes back.
async fn agent_dies(source: bool, steps: &[&str]) -> Result<()> {
    let mut cloud = Cloud::builder().nodes(2).start().await?;
    cloud.create_tiny("web", &[]).await?;
    cloud.guest("web").says(READY, 1).await?;
    let vm_id = id(&cloud.vm("web").await?);
    cloud.guest("web").answers(&LOAD.replace("/dev/vdb", "/run/more"), "busy now.").await?;
    for step in steps {
        let from = api::node(&cloud.vm("web").await?).to_owned();
        let to = if from == "n1" { "n2" } else { "n1" };
        let dies = if source { from.clone() } else { to.to_owned() };
        cloud.agent_mut(&dies)?.stop().await?;
        cloud.agent_mut(&dies)?.start_to_die_at(step)?;
        eventually("both nodes are ready", SOON, async || {
            cloud.cli.run(&["vm", "migrate", "web", "--to", to, "--no-wait"]).await.map(drop)
        })
        .await?;
        let watcher = Watcher::begin(&vm_id);
        cloud.agent_mut(&dies)?.dies().await?;
        cloud.agent_mut(&dies)?.start()?;
        let one = over(&cloud).await.with_context(|| format!("{dies} died at {step}"))?;
        let node = one_guest_where_the_record_says(&cloud, "web").await;
        let node = node.with_context(|| format!("{dies} died at {step}; {:?}", one.status))?;
        watcher.end().with_context(|| format!("{dies} died at {step}"))?;
        let expected = if phase(&one) == MovePhase::Done { to } else { &from };
        ensure!(node == expected, "{dies} died at {step}: {:?}, and it is on {node}", one.status);
        let boots = read(&log_file(&cloud, &vm_id, &node)?).matches("tamdao-tiny: booted").count();
        ensure!(boots <= 1, "{dies} died at {step}: it booted again");
        files_are_only_on(&cloud, if node == "n1" { "n2" } else { "n1" }, &node).await?;
    }
    cloud.done()
}

#[tokio::test]
async fn a_move_survives_the_death_of_the_source_s_agent_at_each_step() -> Result<()> {
    agent_dies(true, &["move-sending", "move-sent", "move-gone", "move-said"]).await
}

#[tokio::test]
async fn a_move_survives_the_death_of_the_target_s_agent_at_each_step() -> Result<()> {
    agent_dies(false, &["move-receive", "move-ready", "move-heard", "resumed", "running"]).await
}

/// A guest `web` that always writes, on nodes n1 and n2 between which a move takes a while; its id.
pub(super) async fn busy_guest_on_slow_links(cloud: &mut Cloud) -> Result<String> {
    cloud.create_tiny("web", &[]).await?;
    cloud.guest("web").says(READY, 1).await?;
    for node in ["n1", "n2"] {
        cloud.agent(node)?.limit_moves(8)?;
        cloud.agent_mut(node)?.stop().await?;
        cloud.agent_mut(node)?.start()?;
    }
    cloud.nodes_ready().await?;
    cloud.guest("web").answers(&LOAD.replace("/dev/vdb", "/run/more"), "busy now.").await?;
    Ok(id(&cloud.vm("web").await?))
}

#[tokio::test]
async fn a_move_survives_the_death_of_either_libvirtd_and_of_the_leader() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(2).start().await?;
    let vm_id = busy_guest_on_slow_links(&mut cloud).await?;
    for dies in ["the source's libvirtd", "the target's libvirtd", "the leader"] {
        let from = api::node(&cloud.vm("web").await?).to_owned();
        let to = if from == "n1" { "n2" } else { "n1" };
        cloud.nodes_ready().await?;
        cloud.cli.run(&["vm", "migrate", "web", "--to", to, "--no-wait"]).await?;
        let watcher = Watcher::begin(&vm_id);
        under_way(&cloud).await?;
        match dies {
            "the leader" => {
                cloud.controllers[0].kill()?;
                cloud.start_controller(0)?;
            }
            libvirtd => {
                let node = if libvirtd.contains("source") { &from } else { to };
                cloud.testbed.shell(node, "kill -KILL $(cat /run/libvirtd.pid); sleep 0.2; libvirtd -d")?;
            }
        }
        let one = over(&cloud).await.with_context(|| format!("{dies} died"))?;
        let node = one_guest_where_the_record_says(&cloud, "web").await;
        let node = node.with_context(|| format!("{dies} died; {:?}", one.status))?;
        watcher.end().with_context(|| format!("{dies} died"))?;
        let expected = if phase(&one) == MovePhase::Done { to } else { &from };
        ensure!(node == expected, "{dies} died: {:?}, and it is on {node}", one.status);
        files_are_only_on(&cloud, if node == "n1" { "n2" } else { "n1" }, &node).await?;
    }
    cloud.done()
}
