//! The bench of the API: three real controllers with fsync, a fleet of nodes that answer at once, and clients over
//! gRPC and REST. `cargo xtask bench api` runs it. It prints a table on standard error and, with --json FILE, writes
//! the same as data. What it measures shares this machine with the clients and the fleet.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tamdao_proto::v1;
use tamdao_proto::v1::cluster_service_client::ClusterServiceClient;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tamdao_tests::cloud::Cloud;
use tamdao_tests::figures::{at, ms, say};
use tamdao_tests::fleet::{Fleet, NO_VLANS, Size};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::Code;
use uuid::Uuid;

/// How long creates are sent in each round.
const ROUND: Duration = Duration::from_secs(5);
/// VMs made in a round at most, so that all rounds together make fewer than are listed.
const ROUND_MOST: usize = 3_200;
/// How long a VM may take from its accept to Running; the aim is 60 s.
const PATIENCE: Duration = Duration::from_secs(90);
const NODES: usize = 64;
const AGENCIES: usize = 64;
/// VMs for the lists.
const LISTED: usize = 20_000;
/// How often the leader is killed.
const KILLS: usize = 30;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--json"), Some(file)) => Some(PathBuf::from(file)),
        _ => bail!("usage: bench-api [--json FILE]"),
    };
    let bench = Bench::start().await?;
    let report = bench.run().await?;
    if let Some(file) = file {
        std::fs::write(&file, serde_json::to_string_pretty(&report)?)
            .with_context(|| file.display().to_string())?;
    }
    Ok(())
}

struct Bench {
    cloud: Cloud,
    _fleet: Fleet,
    _beside: Beside,
    rows: Vec<Value>,
    made: usize,
}

/// The fleet's own threads, so that what it takes of the machine can be told from what the clients take.
struct Beside(Option<Runtime>);

impl Beside {
    const NAME: &str = "fleet";

    fn start() -> Result<Self> {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        Ok(Self(Some(threads.worker_threads(2).thread_name(Self::NAME).enable_all().build()?)))
    }

    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        Ok(self.0.as_ref().context("the threads are gone")?.spawn(work).await?)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Processor time taken so far.
#[derive(Clone, Copy, Default)]
struct Spent {
    leader: Duration,
    followers: Duration,
    fleet: Duration,
    clients: Duration,
}

impl Bench {
    async fn start() -> Result<Self> {
        let cloud = Cloud::builder().controllers(3).bare().start().await?;
        let addresses: Vec<String> = cloud.controllers.iter().map(|one| one.address.clone()).collect();
        let request = v1::CreateJoinTokenRequest {
            kind: v1::JoinTokenKind::Node.into(),
            uses: NODES as u32,
            ..v1::CreateJoinTokenRequest::default()
        };
        let send = async |wire| ClusterServiceClient::new(wire).create_join_token(request.clone()).await;
        let token = cloud.api.call(send).await?.secret;
        let size = Size { cpus: 160, memory_mib: 1 << 20, pool_mib: 64 << 20, vlans: NO_VLANS };
        let beside = Beside::start()?;
        let ca = cloud.ca.clone();
        let fleet = beside
            .run(async move { Fleet::join(&addresses, &ca, &token, ("fleet", NODES), size).await })
            .await??;
        for at in 0..AGENCIES {
            cloud.cli.run(&["agency", "create", &format!("a{at}")]).await?;
        }
        cloud.cli.run(&["pool", "create", "default", "--path", "/pool", "--timeout", "60s"]).await?;
        cloud
            .cli
            .run(&["network", "create", "lan", "--bridge", "br-guests", "--subnet", "10.0.0.0/8"])
            .await?;
        say(&format!("three controllers and {NODES} nodes are up"));
        Ok(Self { cloud, _fleet: fleet, _beside: beside, rows: Vec::new(), made: 0 })
    }

    async fn run(mut self) -> Result<Value> {
        for agencies in [AGENCIES, 1] {
            for clients in [1, 16, 64] {
                self.creates(clients, agencies).await?;
            }
        }
        self.fill().await?;
        self.lists().await?;
        self.rest().await?;
        self.memory()?;
        self.failover().await?;
        let report = json!({ "bench": "api", "rows": self.rows });
        self.cloud.done()?;
        Ok(report)
    }

    fn row(&mut self, name: &str, value: f64, unit: &str) {
        say(&format!("{name:<64} {value:>10.1} {unit}"));
        self.rows.push(json!({ "name": name, "value": value, "unit": unit }));
    }

    /// Creates as many VMs as are accepted in a round, and waits until all run.
    async fn creates(&mut self, clients: usize, agencies: usize) -> Result<()> {
        let before = self.spent().await?;
        let until = Instant::now() + ROUND;
        let began = Instant::now();
        let mut work = JoinSet::new();
        for client in 0..clients {
            let wire = self.cloud.api.wire(client % self.cloud.api.count());
            let made = self.made;
            work.spawn(async move {
                let (mut client_of, mut took) = (VmServiceClient::new(wire), Vec::new());
                while Instant::now() < until && took.len() < ROUND_MOST / clients {
                    let name = format!("v{made}-{client}-{}", took.len());
                    let agency = format!("a{}", (client + took.len()) % agencies);
                    let sent = Instant::now();
                    client_of.create_vm(request(&agency, &name)).await?;
                    took.push(sent.elapsed());
                }
                anyhow::Ok(took)
            });
        }
        let mut took = Vec::new();
        while let Some(done) = work.join_next().await {
            took.extend(done??);
        }
        let seconds = began.elapsed().as_secs_f64();
        self.made += took.len();
        took.sort_unstable();
        let of = format!("{clients} clients, {agencies} agencies");
        self.row(&format!("creates accepted, {of}"), took.len() as f64 / seconds, "/s");
        self.row(&format!("create p50, {of}"), ms(at(&took, 0.5)), "ms");
        self.row(&format!("create p99, {of}"), ms(at(&took, 0.99)), "ms");
        let last = Instant::now();
        self.all_run().await?;
        self.row(&format!("last accept to all Running, {of}"), last.elapsed().as_secs_f64(), "s");
        let after = self.spent().await?;
        for (who, before, after) in [
            ("the leader", before.leader, after.leader),
            ("the followers", before.followers, after.followers),
            ("the fleet", before.fleet, after.fleet),
            ("the clients", before.clients, after.clients),
        ] {
            let each = after.saturating_sub(before).as_secs_f64() * 1e6 / took.len().max(1) as f64;
            self.row(&format!("processor time of {who} for one VM, {of}"), each, "us");
        }
        Ok(())
    }

    /// What each part has taken of the processors since it began, by the kernel.
    async fn spent(&self) -> Result<Spent> {
        let leader = self.cloud.leader().await?;
        let mut spent = Spent::default();
        for (at, controller) in self.cloud.controllers.iter().enumerate() {
            let id = controller.id().context("a controller does not run")?;
            let part = if at == leader { &mut spent.leader } else { &mut spent.followers };
            *part += processor_time(&format!("/proc/{id}/stat"))?.1;
        }
        for task in std::fs::read_dir("/proc/self/task")? {
            // A thread may end while we look.
            let Ok((name, time)) = processor_time(&format!("{}/stat", task?.path().display())) else {
                continue;
            };
            let part = if name == Beside::NAME { &mut spent.fleet } else { &mut spent.clients };
            *part += time;
        }
        Ok(spent)
    }

    /// Waits until nothing is under way.
    async fn all_run(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut waiting = Vec::new();
            for phase in [v1::VmPhase::Pending, v1::VmPhase::Scheduled, v1::VmPhase::Starting] {
                let request = v1::ListVmsRequest { page_size: 1, phase: phase.into(), ..Default::default() };
                let send = async |wire| VmServiceClient::new(wire).list_vms(request.clone()).await;
                waiting.extend(self.cloud.api.call(send).await?.vms);
            }
            let Some(one) = waiting.pop() else { return Ok(()) };
            if Instant::now() > until {
                let seconds = PATIENCE.as_secs();
                bail!(
                    "not all VMs run {seconds} s after the last accept; one of them: {}",
                    tamdao_tests::api::told(&one)
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes up the number for the lists.
    async fn fill(&mut self) -> Result<()> {
        let missing = LISTED.saturating_sub(self.made);
        let mut work = JoinSet::new();
        for client in 0..64 {
            let wire = self.cloud.api.wire(client % self.cloud.api.count());
            work.spawn(async move {
                let mut client_of = VmServiceClient::new(wire);
                for at in (client..missing).step_by(64) {
                    client_of
                        .create_vm(request(&format!("a{}", at % AGENCIES), &format!("fill-{at}")))
                        .await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = work.join_next().await {
            done??;
        }
        self.made += missing;
        self.all_run().await
    }

    async fn lists(&mut self) -> Result<()> {
        let (mut walks, mut firsts, mut gets, mut seen) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let leader = self.cloud.leader().await?;
        let mut client =
            VmServiceClient::new(self.cloud.api.wire(leader)).max_decoding_message_size(64 << 20);
        for _ in 0..10 {
            let began = Instant::now();
            let (mut page_token, mut first) = (String::new(), true);
            seen = 0;
            loop {
                let asked = v1::ListVmsRequest { page_size: 1_000, page_token, ..Default::default() };
                let page = client.list_vms(asked).await?.into_inner();
                if std::mem::replace(&mut first, false) {
                    firsts.push(began.elapsed());
                }
                seen += page.vms.len();
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            walks.push(began.elapsed());
        }
        for _ in 0..1_000 {
            let began = Instant::now();
            let asked = v1::GetVmRequest { agency: "a0".into(), name: "fill-0".into() };
            client.get_vm(asked).await?;
            gets.push(began.elapsed());
        }
        for list in [&mut walks, &mut firsts, &mut gets] {
            list.sort_unstable();
        }
        self.row(&format!("gRPC walk over {seen} VMs, pages of 1,000, median"), ms(at(&walks, 0.5)), "ms");
        self.row("gRPC first page of 1,000, median", ms(at(&firsts, 0.5)), "ms");
        self.row("gRPC get by name p50", ms(at(&gets, 0.5)), "ms");
        self.row("gRPC get by name p99", ms(at(&gets, 0.99)), "ms");
        Ok(())
    }

    async fn rest(&mut self) -> Result<()> {
        let leader = self.cloud.leader().await?;
        let rest = self.cloud.rest(leader)?;
        let mut walks = Vec::new();
        for _ in 0..5 {
            let began = Instant::now();
            let mut token = String::new();
            loop {
                let page = rest.get(&format!("/v1/vms?page_size=1000&page_token={token}")).await?;
                token = page.json()["next_page_token"].as_str().unwrap_or_default().to_owned();
                if token.is_empty() {
                    break;
                }
            }
            walks.push(began.elapsed());
        }
        walks.sort_unstable();
        self.row("REST walk over the same, median", ms(at(&walks, 0.5)), "ms");
        Ok(())
    }

    /// What the controllers hold in memory, by the kernel.
    fn memory(&mut self) -> Result<()> {
        let mut sizes = Vec::new();
        for controller in &self.cloud.controllers {
            let id = controller.id().context("a controller does not run")?;
            let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
            let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
            sizes.push(kib / 1_024.0);
        }
        let most = sizes.into_iter().fold(0.0, f64::max);
        self.row(&format!("memory of the largest controller with {} VMs", self.made), most, "MiB");
        Ok(())
    }

    /// How long writes are blocked when the leader dies: from the kill to the next accepted create.
    async fn failover(&mut self) -> Result<()> {
        let (mut blocked, mut elected) = (Vec::new(), Vec::new());
        for kill in 0..KILLS {
            let leader = self.cloud.leader().await?;
            let other = (leader + 1) % self.cloud.api.count();
            let mut client = VmServiceClient::new(self.cloud.api.wire(other));
            let (began, killed) = (Instant::now(), SystemTime::now());
            self.cloud.controllers[leader].kill()?;
            let name = format!("after-{kill}");
            let request_id = Uuid::new_v4().to_string();
            loop {
                let asked = v1::CreateVmRequest { request_id: request_id.clone(), ..request("a0", &name) };
                match client.create_vm(asked).await {
                    Ok(_) => break,
                    Err(status)
                        if matches!(
                            status.code(),
                            Code::Unavailable | Code::Aborted | Code::DeadlineExceeded
                        ) =>
                    {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(status) => return Err(status.into()),
                }
                if began.elapsed() > PATIENCE {
                    bail!("no write was accepted {} s after the leader was killed", PATIENCE.as_secs());
                }
            }
            blocked.push(began.elapsed());
            elected.push(self.office_taken(leader)?.duration_since(killed).unwrap_or_default());
            self.cloud.start_controller(leader)?;
            let count = self.cloud.controllers.len();
            self.cloud.controllers_ready(count).await?;
        }
        for (until, times) in [("next office", &mut elected), ("next accepted create", &mut blocked)] {
            times.sort_unstable();
            let name = format!("leader killed to {until}, of {KILLS}");
            self.row(&format!("{name}: median"), ms(at(times, 0.5)), "ms");
            self.row(&format!("{name}: 90th percentile"), ms(at(times, 0.9)), "ms");
            self.row(&format!("{name}: worst"), ms(at(times, 1.0)), "ms");
        }
        Ok(())
    }

    /// When a controller other than this one last took office, by the logs.
    fn office_taken(&self, except: usize) -> Result<SystemTime> {
        let mut newest = None;
        for (at, controller) in self.cloud.controllers.iter().enumerate() {
            let text = std::fs::read_to_string(&controller.log)?;
            let line = text.lines().rev().find(|line| line.contains("took office")).filter(|_| at != except);
            let time = line.and_then(|line| line.split_whitespace().next());
            newest = newest.max(time.map(humantime::parse_rfc3339).transpose()?);
        }
        newest.context("no log says that an office was taken")
    }
}

/// A VM with a disk and an address, as users make them.
fn request(agency: &str, name: &str) -> v1::CreateVmRequest {
    let disk = v1::DiskTemplate { size_mib: 1_024, ..v1::DiskTemplate::default() };
    let disk = v1::Disk { source: Some(v1::disk::Source::Create(disk)), ..v1::Disk::default() };
    let interface = v1::Interface { network: "lan".into(), ..v1::Interface::default() };
    let spec = v1::VmSpec {
        vcpus: 1,
        memory_mib: 512,
        disks: vec![disk],
        interfaces: vec![interface],
        ..v1::VmSpec::default()
    };
    let metadata = v1::Metadata { name: name.into(), ..v1::Metadata::default() };
    v1::CreateVmRequest {
        agency: agency.into(),
        vm: Some(v1::Vm { metadata: Some(metadata), spec: Some(spec), status: None }),
        request_id: Uuid::new_v4().to_string(),
        validate_only: false,
    }
}

/// The name and the processor time of a process or thread, out of its `stat` (proc(5)).
fn processor_time(stat: &str) -> Result<(String, Duration)> {
    let text = std::fs::read_to_string(stat).with_context(|| stat.to_owned())?;
    let (head, rest) = text.rsplit_once(") ").context("no name in stat")?;
    let name = head.split_once('(').context("no name in stat")?.1;
    let ticks: u64 = rest.split(' ').skip(11).take(2).map(|ticks| ticks.parse().unwrap_or(0)).sum();
    // The kernel counts in hundredths of a second for all programs.
    Ok((name.to_owned(), Duration::from_millis(ticks * 10)))
}
