//! Migration: what a move by the cloud takes, beside bare `virsh migrate` of the same machine, on real nodes.
//!
//! A cloud of three controllers and two nodes with libvirt, keepers and a shared pool. Two guests of 1 GiB, the cloud's
//! and its likeness (`bare`), fill most of it and then dirty 50 MB of it a second, both all the time; each round moves
//! the first by the cloud, then the other by `virsh` there and back, once encrypted and once not. Job time is what libvirt
//! of the target says of the job when it is over; a guest stands still from the source's event *suspended* to the
//! target's *resumed*.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tamdao_proto::v1::{Move, Vm};
use tamdao_tests::figures::{ms, say};
use tamdao_tests::process::said;
use tamdao_tests::wait::BOOT;
use tamdao_tests::{Cloud, api, eventually, not_yet};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::bare::{self, BARE};
use crate::report::Report;

const ROUNDS: usize = 10;
const NODES: [&str; 2] = ["n1", "n2"];
/// How long a move may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the guest says when its memory is full.
const FULL: &str = "tamdao-tiny: full";
/// What it must hold then, MiB.
const HELD_MIB: u64 = 800;
/// Fills 800 MiB of memory, and then writes 5 MB of it over ten times a second. Times are hundredths of a second.
const WORK: &str = "#!/bin/sh
mkdir -p /full && mount -t tmpfs -o size=95% tmpfs /full
dd if=/dev/urandom of=/full/seed bs=1000000 count=8
at=0
while [ $at -lt 104 ]; do
  dd if=/full/seed of=/full/data bs=8000000 count=1 seek=$at conv=notrunc
  at=$((at + 1))
done
echo 'tamdao-tiny: full' >/dev/ttyS0
now() { read -r up _ </proc/uptime; now=${up%.*}${up#*.}; }
now; began=$now turn=0
while :; do
  dd if=/full/seed of=/full/data bs=1000000 count=5 skip=$((turn % 4)) seek=$((turn * 5 % 800)) conv=notrunc
  turn=$((turn + 1))
  now
  while [ $((now - began)) -lt $((turn * 10)) ]; do usleep 10000; now; done
  [ $((turn % 50)) -gt 0 ] || echo \"tamdao-tiny: dirtied $((turn * 5)) MB in $((now - began)) cs\" >/dev/ttyS0
done
";

/// Who moves which guest.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Us,
    Virsh { encrypted: bool },
}

const ALL: [(By, &str); 3] = [
    (By::Us, "tamdao vm migrate"),
    (By::Virsh { encrypted: true }, "virsh migrate --tls"),
    (By::Virsh { encrypted: false }, "virsh migrate unencrypted"),
];

/// What one move took.
struct Took {
    command: Duration,
    /// By libvirt's statistics.
    job: Duration,
    /// From the guest's stop on the source to its start on the target.
    still: Duration,
    sent_mib: f64,
}

/// # Errors
/// When a guest does not arrive, or the cloud does not do what it is asked.
pub async fn run(report: &mut Report) -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).nodes(2).shared().start().await?;
    bare::certify(&cloud)?;
    cloud.nodes_ready().await?;
    let bench = Bench::start(&cloud).await?;
    bench.measure(report).await?;
    cloud.done()
}

struct Bench<'a> {
    cloud: &'a Cloud,
    /// The domain of the cloud's VM.
    ours: String,
    /// The places of the two guests in the list of nodes.
    at: usize,
    bare_at: usize,
    events: mpsc::UnboundedReceiver<Event>,
    _watching: Vec<Child>,
}

/// A guest stops or runs.
#[derive(Debug)]
struct Event {
    node: usize,
    line: String,
    when: Instant,
}

impl<'a> Bench<'a> {
    async fn start(cloud: &'a Cloud) -> Result<Self> {
        let work = cloud.slot.directory.join("work");
        std::fs::write(&work, WORK)?;
        let work = work.to_str().context("a plain path")?;
        let create = ["vm", "create", "web", "--vcpus", "1", "--memory", "1G", "--network", "lan"];
        let more = ["--disk", "size=256M,image=tiny,pool=shared", "--user-data", work];
        let vm: Vm = cloud.cli.json(&[&create[..], &more].concat()).await?;
        let node = api::node(&vm).to_owned();
        let at = NODES.iter().position(|name| *name == node).context("a node")?;
        let id = vm.metadata.context("metadata")?.id;
        bare::liken(cloud, &id, &node)?;
        cloud.guest("web").says(FULL, 1).await?;
        eventually("the bare guest's memory is full", BOOT, async || {
            let held = stat(
                &cloud.testbed.shell(&node, &format!("virsh -c qemu:///system dommemstat {BARE}"))?,
                "rss ",
            )?;
            if held > HELD_MIB << 10 { Ok(()) } else { not_yet(format!("{held} KiB")) }
        })
        .await?;
        let (tell, events) = mpsc::unbounded_channel();
        let watching =
            (0..NODES.len()).map(|node| watch(cloud, node, tell.clone())).collect::<Result<_>>()?;
        Ok(Self { cloud, ours: format!("tamdao-{id}"), at, bare_at: at, events, _watching: watching })
    }

    async fn measure(mut self, report: &mut Report) -> Result<()> {
        let forecast: Move = self.cloud.cli.json(&["vm", "migrate", "web", "--dry-run"]).await?;
        let forecast = forecast.status.and_then(|status| status.forecast).unwrap_or_default();
        report.row("guest's memory in use", forecast.memory_bytes as f64 / 1e6, "MB");
        report.row("dirtied by the guest, as it counts itself", self.dirtied().await?, "MB/s");
        let mut all: [Vec<Took>; ALL.len()] = Default::default();
        for round in 1..=ROUNDS {
            let mut told = Vec::new();
            for (took, (by, _)) in all.iter_mut().zip(ALL) {
                let one = self.go(by).await?;
                told.push(format!("{:.0}/{:.0}/{:.0}", ms(one.job), ms(one.command), ms(one.still)));
                took.push(one);
            }
            say(&format!("{round} of {ROUNDS}, job/command/still ms: {}", told.join(", ")));
        }
        for (took, (_, who)) in all.iter().zip(ALL) {
            let list = |of: fn(&Took) -> Duration| took.iter().map(of).collect::<Vec<_>>();
            report.spread_ms(&format!("{who}: job by libvirt"), list(|one| one.job));
            report.spread_ms(&format!("{who}: whole command"), list(|one| one.command));
            report.spread_ms(&format!("{who}: guest stands still"), list(|one| one.still));
            let sent = took.iter().map(|one| one.sent_mib).sum::<f64>() / took.len() as f64;
            report.row(&format!("{who}: sent by libvirt's statistics, mean"), sent, "MiB");
        }
        let [ours, bare @ ..] = &all;
        for (bare, (_, who)) in bare.iter().zip(&ALL[1..]) {
            let pairs = || ours.iter().zip(bare);
            let mut ratios: Vec<f64> = pairs().map(|(our, their)| ms(our.job) / ms(their.job)).collect();
            ratios.sort_by(f64::total_cmp);
            let mut more: Vec<f64> =
                pairs().map(|(our, their)| ms(our.command) - ms(their.command)).collect();
            more.sort_by(f64::total_cmp);
            report.row(
                &format!("our job over that of {who}, median of pairs"),
                ratios[ratios.len() / 2],
                "x",
            );
            report.row(
                &format!("our command longer than {who}, median of pairs"),
                more[more.len() / 2],
                "ms",
            );
        }
        Ok(())
    }

    /// One move to the other node.
    async fn go(&mut self, by: By) -> Result<Took> {
        while self.events.try_recv().is_ok() {}
        let at = if by == By::Us { &mut self.at } else { &mut self.bare_at };
        let (from, to) = (*at, 1 - *at);
        *at = to;
        let (source, target) = (NODES[from], NODES[to]);
        let (command, domain) = match by {
            By::Us => {
                let began = Instant::now();
                let output =
                    self.cloud.cli.within(PATIENCE, &["vm", "migrate", "web", "--to", target]).await?;
                ensure!(output.status.success(), "{}", said(&output));
                (began.elapsed(), self.ours.clone())
            }
            By::Virsh { encrypted } => {
                let cloud = self.cloud;
                let moved = tokio::task::block_in_place(|| bare::migrate(cloud, source, target, encrypted));
                (moved?, BARE.to_owned())
            }
        };
        let (mut stopped, mut ran) = (None, None);
        let wait = async {
            while ran.is_none() {
                let event = self.events.recv().await.context("virsh event has ended")?;
                match (event.node == from, event.line.contains(&domain)) {
                    (true, true) if event.line.contains("Suspended") => {
                        stopped.get_or_insert(event.when);
                    }
                    (false, true) if event.line.contains("Resumed") => ran = Some(event.when),
                    _ => {}
                }
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("{domain} does not run"))??;
        let still = ran.zip(stopped).map(|(ran, stopped)| ran.saturating_duration_since(stopped));
        let told = self.cloud.testbed.shell(
            target,
            &format!("virsh -q -c qemu:///system domjobinfo {domain} --completed --rawstats"),
        )?;
        Ok(Took {
            command,
            job: Duration::from_millis(stat(&told, "time_elapsed:")?),
            still: still.context("it was never suspended")?,
            sent_mib: stat(&told, "memory_processed:")? as f64 / f64::from(1 << 20),
        })
    }

    /// How fast the cloud's guest says that it writes, MB a second.
    async fn dirtied(&self) -> Result<f64> {
        let log = self.cloud.guest("web").says("tamdao-tiny: dirtied", 2).await?;
        let line = log.lines().rev().find(|line| line.contains("tamdao-tiny: dirtied"));
        let words: Vec<&str> = line.unwrap_or_default().split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok());
        let (mb, cs) = number(2).zip(number(5)).with_context(|| format!("it says {line:?}"))?;
        Ok(mb * 100.0 / cs)
    }
}

/// Tells of the guests of a node as long as the child lives.
fn watch(cloud: &Cloud, node: usize, tell: mpsc::UnboundedSender<Event>) -> Result<Child> {
    let mut command = cloud.testbed.inside(NODES[node]);
    command.args(["virsh", "-q", "-c", "qemu:///system", "event", "--event", "lifecycle", "--loop"]);
    let mut command = Command::from(command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let lines = child.stdout.take().context("the events")?;
    tokio::spawn(async move {
        let mut lines = BufReader::new(lines).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if tell.send(Event { node, line, when: Instant::now() }).is_err() {
                break;
            }
        }
    });
    Ok(child)
}

/// The number after a word in what virsh says.
fn stat(told: &str, word: &str) -> Result<u64> {
    let rest = told.lines().find_map(|line| line.trim().strip_prefix(word));
    rest.and_then(|rest| rest.trim().parse().ok())
        .with_context(|| format!("no number after {word} in {told}"))
}
