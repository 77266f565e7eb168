//! The bench of a start: from an accepted create to QEMU running the guest, on a node that has the image, beside a bare
//! `virsh start` of the same machine. `cargo xtask bench start` runs it; it needs root. It prints a table on standard
//! error and, with --json FILE, writes the same as data.
//!
//! One cloud of three controllers and one node with libvirt of its own. A round is one create through the API, and then
//! one start of a domain with the same XML and an overlay disk made the same way; never two guests at a time. Both ends
//! are told by the same `virsh event` on the node, which costs nothing between events. The bare start is asked of a
//! `virsh` that is connected already, and its disk and definition are made before the clock runs.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tamdao_proto::v1;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tamdao_tests::Cloud;
use tamdao_tests::api;
use tamdao_tests::cloud::{AGENCY, POOL};
use tamdao_tests::figures::{at, ms, say};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Rounds that count, after one that does not.
const ROUNDS: usize = 30;
const NODE: &str = "n1";
/// The domain that no cloud knows.
const BARE: &str = "bare";
/// How long a start may take; it takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--json"), Some(file)) => Some(PathBuf::from(file)),
        _ => bail!("usage: bench-start [--json FILE]"),
    };
    let cloud = Cloud::builder().controllers(3).nodes(1).start().await?;
    let report = Bench::new(&cloud)?.run().await?;
    cloud.done()?;
    if let Some(file) = file {
        std::fs::write(&file, serde_json::to_string_pretty(&report)?)
            .with_context(|| file.display().to_string())?;
    }
    Ok(())
}

struct Bench<'a> {
    cloud: &'a Cloud,
    /// Which domain was seen to run, and when.
    runs: mpsc::UnboundedReceiver<(String, Instant)>,
    virsh: ChildStdin,
    _processes: [Child; 2],
}

/// What the bare machine is made of.
struct Bare {
    /// The image's format and file.
    backing: (String, String),
    size: String,
}

impl<'a> Bench<'a> {
    fn new(cloud: &'a Cloud) -> Result<Self> {
        let virsh = |words: &[&str]| {
            let mut command = cloud.testbed.inside(NODE);
            command.args(["virsh", "-q", "-c", "qemu:///system"]).args(words);
            let mut command = Command::from(command);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()
        };
        let mut events = virsh(&["event", "--event", "lifecycle", "--loop"])?;
        let lines = events.stdout.take().context("the events")?;
        let mut asked = virsh(&[])?;
        let (tell, runs) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut lines = BufReader::new(lines).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let now = Instant::now();
                let domain = line.split('\'').nth(3).unwrap_or_default();
                if line.contains("Resumed") && tell.send((domain.to_owned(), now)).is_err() {
                    break;
                }
            }
        });
        let virsh = asked.stdin.take().context("virsh's input")?;
        Ok(Self { cloud, runs, virsh, _processes: [events, asked] })
    }

    async fn run(mut self) -> Result<Value> {
        say(&format!("three controllers and one node are up; {ROUNDS} rounds"));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let (_, bare) = self.create("warm").await?;
        self.start(&bare).await?;
        for round in 0..ROUNDS {
            ours.push(self.create(&format!("m{round}")).await?.0);
            theirs.push(self.start(&bare).await?);
        }
        ours.sort_unstable();
        theirs.sort_unstable();
        let mut rows = Vec::new();
        let last = format!("p99 (the worst of {ROUNDS})");
        for (share, word) in [(0.5, "median"), (0.99, last.as_str())] {
            let (our, their) = (ms(at(&ours, share)), ms(at(&theirs, share)));
            for (name, value) in [
                ("accepted create to running", our),
                ("bare virsh start to running", their),
                ("overhead", our - their),
            ] {
                say(&format!("{:<60} {value:>8.1} ms", format!("{name}, {word}")));
                rows.push(json!({ "name": format!("{name}, {word}"), "value": value, "unit": "ms" }));
            }
        }
        Ok(json!({ "bench": "start", "rows": rows }))
    }

    /// Creates a VM, waits until it runs, takes its likeness and deletes it. Answers how long the start took from the
    /// accept on.
    async fn create(&mut self, name: &str) -> Result<(Duration, Bare)> {
        let mut client = VmServiceClient::new(self.cloud.api.wire(0));
        let vm = client.create_vm(request(name)).await?.into_inner();
        let accepted = Instant::now();
        let id = vm.metadata.context("a VM has metadata")?.id;
        let domain = format!("tamdao-{id}");
        let took = self.running(&domain).await?.saturating_duration_since(accepted);
        let bare = self.liken(name, &id).await?;
        let asked = v1::DeleteVmRequest {
            agency: AGENCY.into(),
            name: name.into(),
            force: true,
            ..Default::default()
        };
        client.delete_vm(asked).await?;
        self.cloud.vanishes(name).await?;
        Ok((took, bare))
    }

    /// When this domain's guest began to run.
    async fn running(&mut self, domain: &str) -> Result<Instant> {
        let wait = async {
            loop {
                let (who, when) = self.runs.recv().await.context("virsh event has ended")?;
                if who == domain {
                    return anyhow::Ok(when);
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("{domain} does not run"))?
    }

    /// Makes a definition of the bare machine out of a running VM.
    async fn liken(&self, name: &str, id: &str) -> Result<Bare> {
        let testbed = &self.cloud.testbed;
        let vm = self.cloud.vm(name).await?;
        let data = &self.cloud.agent(api::node(&vm))?.data_dir;
        let xml = testbed.shell(NODE, &format!("virsh -c qemu:///system dumpxml --inactive tamdao-{id}"))?;
        let disk = between(&xml, &format!("{POOL}/volumes/"), ".qcow2").context("the domain has no disk")?;
        let disk = format!("{POOL}/volumes/{disk}.qcow2");
        let info: Value =
            serde_json::from_str(&testbed.shell(NODE, &format!("qemu-img info -U --output=json {disk}"))?)?;
        let text = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
        let backing = (text("backing-filename-format"), text("full-backing-filename"));
        let seed = data.join("seeds").join(format!("{id}.iso")).display().to_string();
        testbed.shell(NODE, &format!("cp {seed} {POOL}/bare.iso"))?;
        // Without the metadata it is nobody's, so the agent leaves it alone.
        let metadata = between(&xml, "<metadata>", "</metadata>").unwrap_or_default().to_owned();
        let xml = xml
            .replace(&format!("<metadata>{metadata}</metadata>"), "")
            .replace(&format!("<name>tamdao-{id}</name>"), &format!("<name>{BARE}</name>"))
            .replace(&format!("<uuid>{id}</uuid>"), &format!("<uuid>{}</uuid>", Uuid::new_v4()))
            .replace(&disk, &format!("{POOL}/bare.qcow2"))
            .replace(&seed, &format!("{POOL}/bare.iso"));
        std::fs::write(data.join("bare.xml"), xml)?;
        Ok(Bare { backing, size: info["virtual-size"].to_string() })
    }

    /// Starts the bare machine and ends it.
    async fn start(&mut self, bare: &Bare) -> Result<Duration> {
        let testbed = &self.cloud.testbed;
        let definition = self.cloud.agent(NODE)?.data_dir.join("bare.xml");
        let (format, backing) = &bare.backing;
        let disk = format!("{POOL}/bare.qcow2");
        testbed.shell(
            NODE,
            &format!("qemu-img create -q -f qcow2 -F {format} -b {backing} {disk} {}", bare.size),
        )?;
        testbed.shell(NODE, &format!("virsh -q -c qemu:///system define {}", definition.display()))?;
        let asked = Instant::now();
        self.virsh.write_all(format!("start {BARE}\n").as_bytes()).await?;
        let took = self.running(BARE).await?.saturating_duration_since(asked);
        testbed.shell(
            NODE,
            &format!("virsh -q -c qemu:///system destroy {BARE} && virsh -q -c qemu:///system undefine {BARE} && rm {disk}"),
        )?;
        Ok(took)
    }
}

/// A small VM as users make them: a disk from an image, an address, a seed.
fn request(name: &str) -> v1::CreateVmRequest {
    let disk = v1::DiskTemplate { image: "tiny".into(), ..v1::DiskTemplate::default() };
    let disk = v1::Disk { source: Some(v1::disk::Source::Create(disk)), ..v1::Disk::default() };
    let interface = v1::Interface { network: "lan".into(), ..v1::Interface::default() };
    let spec = v1::VmSpec {
        flavor: "tiny".into(),
        disks: vec![disk],
        interfaces: vec![interface],
        ..v1::VmSpec::default()
    };
    let metadata = v1::Metadata { name: name.into(), ..v1::Metadata::default() };
    v1::CreateVmRequest {
        agency: AGENCY.into(),
        vm: Some(v1::Vm { metadata: Some(metadata), spec: Some(spec), status: None }),
        request_id: Uuid::new_v4().to_string(),
        validate_only: false,
    }
}

fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    text.split_once(before)?.1.split_once(after).map(|(within, _)| within)
}
