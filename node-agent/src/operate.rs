//! The doing: carries out one step of the reconciler's on disks, filter and hypervisor.
//!
//! Invariants: what a restart must know is in the ledger, fsynced, before the act; every step may be killed at any
//! line and taken again; an action (reboot, reset) is written down first and so done at most once. A start is
//! paused → registered with the keeper, where its disks are shared → run. Deliberately absent: retries, which the reconciler times.

mod carrying;
mod moving;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tamdao_proto::agent::v1::Problem;
use tamdao_proto::v1::DiskKind;
use uuid::Uuid;

use crate::checkpoint::checkpoint;
use crate::cloudinit::{self, Seed};
use crate::desired::{Digest, WantedPool, WantedVm, WantedVolume};
use crate::dial::Dial;
use crate::guard::{Guard, GuardError, Rule};
use crate::hypervisor::{
    DiskFile, DiskFormat, Domain, DomainSpec, Hypervisor, HypervisorError, Port, Resized, disk_serial,
    tap_name,
};
use crate::image::{ImageCache, ImageError};
use crate::keeper::{Keeper, KeeperError, Lease};
use crate::ledger::{Ledger, LedgerError, Life, State, Stop, VmRecord};
use crate::moves::{MoveError, Moves};
use crate::reconcile::{Go, Step};
use crate::volume::{Source, Volume, VolumeError, file_path};

/// A guest that ran this long before it ended does not count towards the back-off of restarts, ms.
const STEADY_MS: u64 = 600_000;

#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Seed(#[from] cloudinit::SeedError),
    #[error(transparent)]
    Move(#[from] MoveError),
    #[error("keeper: {0}")]
    Keeper(#[from] KeeperError),
    #[error("packet filter: {0}")]
    Guard(#[from] GuardError),
    /// The assignment changed under the step; the next decision knows better.
    #[error("{0}")]
    Overtaken(&'static str),
}

impl OperateError {
    /// What the leader is told; attempts are counted by the caller.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let (reason, permanent) = match self {
            Self::Hypervisor(error) => (error.reason(), error.is_permanent()),
            Self::Ledger(_) => ("LedgerUnwritable", false),
            Self::Volume(error) => (error.reason(), error.is_permanent()),
            Self::Image(error) => (error.reason(), false),
            Self::Move(error) => (error.reason(), false),
            Self::Seed(error) => ("BadCloudInit", error.is_permanent()),
            Self::Keeper(error) => (error.reason(), false),
            Self::Guard(GuardError::Bad { .. }) => ("BadInterface", true),
            Self::Guard(_) => ("PacketFilter", false),
            Self::Overtaken(_) => ("Overtaken", false),
        };
        Problem { reason: reason.to_owned(), message: self.to_string(), permanent, attempts: 0 }
    }
}

type Result<T> = std::result::Result<T, OperateError>;

/// What a step may need of the moment at which it was decided.
#[derive(Clone, Debug, Default)]
pub struct Context {
    pub now_ms: u64,
    pub vm: Option<WantedVm>,
    pub domain: Option<Domain>,
    pub volume: Option<WantedVolume>,
    pub pools: BTreeMap<Uuid, WantedPool>,
    /// The storage leases that the decision saw.
    pub leases: BTreeMap<Uuid, Lease>,
    pub controllers: Vec<String>,
}

/// The hands of the agent. Steps on different subjects may run side by side.
pub struct Operator {
    pub data_dir: PathBuf,
    pub boot_id: String,
    pub hypervisor: Arc<dyn Hypervisor>,
    pub ledger: Arc<Ledger>,
    pub images: Arc<ImageCache>,
    pub guard: Guard,
    pub keeper: Keeper,
    pub dial: Dial,
    pub moves: Arc<Moves>,
    /// Loading the filter's whole table is cheap, and must not be done with an older list of guests.
    pub filtering: tokio::sync::Mutex<()>,
    /// What cached images are, asked of qemu-img once: the bytes of a digest never change.
    pub sources: Mutex<BTreeMap<Digest, Source>>,
}

/// Where a guest's serial port is kept.
#[must_use]
pub fn serial_log(data_dir: &Path, vm: Uuid) -> PathBuf {
    data_dir.join("serial").join(format!("{vm}.log"))
}

impl Operator {
    /// Makes the directories below the data directory.
    ///
    /// # Errors
    /// One cannot be made.
    pub fn prepare(data_dir: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        for name in ["seeds", "serial", "nvram"] {
            let dir = data_dir.join(name);
            std::fs::create_dir_all(&dir)?;
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o711))?;
        }
        Ok(())
    }

    fn seed_path(&self, vm: Uuid) -> PathBuf {
        self.data_dir.join("seeds").join(format!("{vm}.iso"))
    }

    fn nvram_path(&self, vm: Uuid) -> PathBuf {
        self.data_dir.join("nvram").join(format!("{vm}.fd"))
    }

    /// Carries out one step.
    ///
    /// # Errors
    /// It could not be done, or not be seen to be done; taking it again later is right.
    pub async fn carry_out(&self, step: &Step, context: &Context) -> Result<()> {
        // What made this step necessary was heard at some revision, which has to be on disk before the act.
        self.ledger.update(|_| ()).await?;
        let domain = || context.domain.as_ref().ok_or(OperateError::Overtaken("the domain is gone"));
        match step {
            Step::RecordEnd { vm, end } => self.record_end(*vm, *end, context.now_ms).await,
            Step::Recognise { vm, paused } => self.recognise(*vm, *paused, wanted(context)?, domain()?).await,
            Step::Tidy { vm, incarnation } => self.tidy(*vm, *incarnation).await,
            Step::Start { vm, again } => self.start(*vm, *again, wanted(context)?, context).await,
            Step::Resume { vm, why } => self.resume(*vm, *why, domain()?, context).await,
            Step::Guard { vm } => self.register(*vm, domain()?, &shared(context)?, BTreeMap::new()).await,
            Step::Pause { vm } => {
                self.ledger.vm(*vm, |record| record.paused = true).await?;
                Ok(self.hypervisor.pause(*vm, domain()?.incarnation).await?)
            }
            Step::Shutdown { vm, deadline_ms, reboot } => {
                let stop = Stop { deadline_ms: *deadline_ms, asked_ms: context.now_ms };
                self.going_down(*vm, domain()?, stop, |record| record.reboot = *reboot).await?;
                Ok(self.hypervisor.shutdown(*vm, domain()?.incarnation).await?)
            }
            Step::Destroy { vm, incarnation, .. } => {
                let stop = Stop { deadline_ms: context.now_ms, asked_ms: context.now_ms };
                self.going_down(*vm, domain()?, stop, |_| {}).await?;
                Ok(self.hypervisor.destroy(*vm, *incarnation).await?)
            }
            Step::Reboot { vm, action, deadline_ms } => {
                let stop = Stop { deadline_ms: *deadline_ms, asked_ms: context.now_ms };
                let note = |record: &mut VmRecord| {
                    record.action = Some(*action);
                    record.reboot = true;
                };
                self.going_down(*vm, domain()?, stop, note).await?;
                checkpoint("action").await;
                Ok(self.hypervisor.shutdown(*vm, domain()?.incarnation).await?)
            }
            Step::Reset { vm, action } => {
                self.ledger.vm(*vm, |record| record.action = Some(*action)).await?;
                checkpoint("action").await;
                Ok(self.hypervisor.reset(*vm, domain()?.incarnation).await?)
            }
            Step::Update { vm } => self.update(*vm, wanted(context)?, domain()?).await,
            Step::Send { vm } => match wanted(context)? {
                wanted if wanted.goes_with_files() => self.send_files(*vm, wanted, context).await,
                wanted => self.send(*vm, wanted, domain()?, context).await,
            },
            Step::Recall { vm } => match self.moves.recall(*vm) {
                true => Ok(()),
                false => Ok(self.hypervisor.abort_migration(*vm, domain()?.incarnation).await?),
            },
            Step::Settle { vm } => self.settle(*vm, None, context.now_ms).await.map(drop),
            Step::Keep { vm, reason } => self.keep(*vm, wanted(context)?, reason).await,
            Step::LetGo { vm } => self.let_go(*vm, wanted(context)?, context.now_ms).await,
            Step::Receive { vm } => self.receive(*vm, wanted(context)?, context).await,
            Step::FetchImage { digest } => {
                Ok(self.images.fetch(digest, &context.controllers, &self.dial).await?)
            }
            Step::RecogniseVolume { volume } => {
                Ok(self.volume(*volume, context)?.recognise(&self.ledger).await?)
            }
            Step::MakeVolume { volume } => {
                let volume = self.volume(*volume, context)?;
                let image = match &volume.wanted.image {
                    Some(digest) => Some(self.source(digest).await?),
                    None => None,
                };
                Ok(volume.make(image.as_ref(), &self.ledger).await?)
            }
            Step::GrowVolume { volume, size_mib } => {
                Ok(self.volume(*volume, context)?.grow(*size_mib, &self.ledger).await?)
            }
            Step::DeleteVolume { volume } if self.moves.is_taking(*volume) => {
                Err(OperateError::Overtaken("its file is still being received"))
            }
            Step::DeleteVolume { volume } => Ok(self.volume(*volume, context)?.delete(&self.ledger).await?),
        }
    }

    fn volume(&self, id: Uuid, context: &Context) -> Result<Volume> {
        let wanted = context.volume.clone().ok_or(OperateError::Overtaken("the volume's entry is gone"))?;
        let pool = context.pools.get(&wanted.pool).cloned();
        Ok(Volume { id, wanted, pool: pool.ok_or(OperateError::Overtaken("the pool's entry is gone"))? })
    }

    async fn source(&self, digest: &Digest) -> Result<Source> {
        let sources = || self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sources().get(digest).cloned();
        if let Some(source) = known {
            return Ok(source);
        }
        let source = Source::read(self.images.path(digest)).await?;
        let cached = self.images.digests();
        let mut sources = sources();
        sources.retain(|digest, _| cached.contains(digest));
        sources.insert(digest.clone(), source.clone());
        Ok(source)
    }

    async fn record_end(&self, vm: Uuid, end: crate::ledger::End, now_ms: u64) -> Result<()> {
        let change = |record: &mut VmRecord| {
            if now_ms.saturating_sub(record.started_ms) >= STEADY_MS {
                record.streak = 0;
            }
            record.life = Life::Ended;
            record.end = Some(end);
            record.stop = None;
            record.paused = false;
            record.ended_ms = now_ms;
        };
        self.ledger.vm(vm, change).await?;
        tracing::info!(%vm, end = ?end, "guest has ended");
        Ok(())
    }

    /// Takes up a domain of ours that the ledger does not know as it is.
    async fn recognise(&self, vm: Uuid, paused: bool, wanted: &WantedVm, domain: &Domain) -> Result<()> {
        let rules = rules(vm, wanted)?;
        let change = |record: &mut VmRecord| {
            record.incarnation = domain.incarnation;
            record.generation = domain.generation;
            record.life = if paused { Life::Starting } else { Life::Running };
            record.boot_id.clone_from(&self.boot_id);
            record.stop = None;
            record.reboot = false;
            // Whatever was asked before we knew it is given up: an action is done at most once.
            record.action = record.action.or(wanted.action.map(|action| action.id));
            record.platform = Some(domain.platform.clone());
            record.rules.clone_from(&rules);
            record.images.clone_from(&wanted.images);
            record.volumes = wanted.volumes.iter().map(|(id, _)| *id).collect();
            // Under which leases it began nobody knows.
            record.leases.clear();
            record.untidy = true;
        };
        self.ledger.vm(vm, change).await?;
        self.filter().await?;
        tracing::info!(%vm, incarnation = domain.incarnation, "guest recognised");
        Ok(())
    }

    /// Writes down that a domain is being brought down, before it is.
    async fn going_down(
        &self,
        vm: Uuid,
        domain: &Domain,
        stop: Stop,
        note: impl FnOnce(&mut VmRecord) + Send,
    ) -> Result<()> {
        let boot_id = self.boot_id.clone();
        let incarnation = domain.incarnation;
        let change = move |record: &mut VmRecord| {
            record.incarnation = record.incarnation.max(incarnation);
            record.boot_id = boot_id;
            record.life = Life::Running;
            record.stop = Some(stop);
            record.untidy = true;
            note(record);
        };
        Ok(self.ledger.vm(vm, change).await?)
    }

    /// Clears what a VM left that has no business here any more.
    async fn tidy(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        let change = |record: &mut VmRecord| {
            record.incarnation = record.incarnation.max(incarnation);
            record.rules.clear();
            record.images.clear();
            record.volumes.clear();
        };
        self.ledger.vm(vm, change).await?;
        self.filter().await?;
        for path in [self.seed_path(vm), self.nvram_path(vm), serial_log(&self.data_dir, vm)] {
            match tokio::fs::remove_file(&path).await {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(LedgerError::Io { path, source }.into());
                }
                _ => {}
            }
        }
        if let Some(incoming) = self.ledger.state().vms.get(&vm).and_then(|record| record.incoming) {
            self.moves.clear(incoming.id).await;
        }
        let change = |record: &mut VmRecord| {
            record.incoming = None;
            record.untidy = false;
        };
        self.ledger.vm(vm, change).await?;
        Ok(())
    }

    /// Writes the packet filter for all guests that the ledger knows.
    ///
    /// # Errors
    /// nft refuses.
    pub async fn filter(&self) -> Result<()> {
        let _order = self.filtering.lock().await;
        let state = self.ledger.state();
        let rules: Vec<Rule> = state.vms.values().flat_map(|record| record.rules.iter().cloned()).collect();
        Ok(self.guard.apply(&rules).await?)
    }

    async fn start(&self, vm: Uuid, again: bool, wanted: &WantedVm, context: &Context) -> Result<()> {
        let state = self.ledger.state();
        let seed = seed(wanted)?;
        let rules = rules(vm, wanted)?;
        let spec =
            self.spec(vm, wanted, seed.as_ref().map(|_| self.seed_path(vm)), &context.pools, &state)?;
        let before = state.vms.get(&vm).filter(|record| record.incarnation == wanted.incarnation).cloned();
        let old = before.clone().unwrap_or_default();
        let record = VmRecord {
            incarnation: wanted.incarnation,
            generation: wanted.generation,
            life: Life::Starting,
            boot_id: self.boot_id.clone(),
            stop: None,
            reboot: false,
            paused: false,
            // A start fulfils whatever reboot or reset was asked for.
            action: wanted.action.map(|action| action.id).or(old.action),
            restarts: old.restarts + u32::from(again),
            streak: if again { old.streak + 1 } else { 0 },
            started_ms: context.now_ms,
            rules,
            images: wanted.images.clone(),
            volumes: wanted.volumes.iter().map(|(id, _)| *id).collect(),
            leases: BTreeMap::new(),
            untidy: true,
            ..old
        };
        self.ledger.vm(vm, |slot| *slot = record).await?;
        let domain = match self.bring_up(vm, seed, &spec).await {
            Ok(domain) => domain,
            Err(error) => {
                // A plain no leaves the guest as it was, so that a cut-off node may try its restart again. After
                // a lost connection nobody knows, and `Starting` says so.
                let unknown = matches!(error, OperateError::Hypervisor(HypervisorError::Disconnected { .. }));
                if let (Some(before), false) = (before, unknown) {
                    self.ledger.vm(vm, |record| record.life = before.life).await?;
                }
                return Err(error);
            }
        };
        checkpoint("start").await;
        if let Err(error) = self.run_first(vm, &domain, context).await {
            // It has never run and nobody guards it: no paused QEMU is to hold the disks of a VM that may go elsewhere.
            if matches!(error, OperateError::Keeper(_)) {
                self.hypervisor.destroy(vm, domain.incarnation).await?;
            }
            return Err(error);
        }
        tracing::info!(%vm, incarnation = wanted.incarnation, generation = wanted.generation, again, "guest started");
        Ok(())
    }

    /// The middle of a start: seed and packet filter side by side, then the domain, paused.
    async fn bring_up(&self, vm: Uuid, seed: Option<Seed>, spec: &DomainSpec) -> Result<Domain> {
        let seeding = async {
            if let Some(seed) = &seed {
                cloudinit::write_iso(&self.seed_path(vm), seed).await?;
            }
            checkpoint("seed").await;
            Ok(())
        };
        tokio::try_join!(seeding, self.filter())?;
        checkpoint("define").await;
        Ok(self.hypervisor.start(spec).await?)
    }

    /// The last part of a start: paused → registered with the keeper → run.
    async fn run_first(&self, vm: Uuid, domain: &Domain, context: &Context) -> Result<()> {
        let (shared, under) = (shared(context)?, holdings(context)?);
        self.register(vm, domain, &shared, under.clone()).await?;
        checkpoint("registered").await;
        self.hypervisor.resume(vm, domain.incarnation).await?;
        checkpoint("resumed").await;
        // Until this is written the domain's own mark tells its platform.
        let change = |record: &mut VmRecord| {
            record.life = Life::Running;
            record.leases = under;
            record.platform = Some(domain.platform.clone());
        };
        self.ledger.vm(vm, change).await?;
        checkpoint("running").await;
        Ok(())
    }

    /// Has the keeper guard a guest whose disks lie on shared pools; others need nobody.
    async fn register(
        &self,
        vm: Uuid,
        domain: &Domain,
        shared: &BTreeSet<Uuid>,
        under: BTreeMap<Uuid, u64>,
    ) -> Result<()> {
        if shared.is_empty() {
            return Ok(());
        }
        let process = self.hypervisor.process(vm, domain.incarnation).await?;
        Ok(self.keeper.guard(vm, domain.incarnation, process, shared.clone(), under).await?)
    }

    async fn resume(&self, vm: Uuid, why: Go, domain: &Domain, context: &Context) -> Result<()> {
        match why {
            Go::FirstTime => self.run_first(vm, domain, context).await,
            Go::OnOrder => {
                self.hypervisor.resume(vm, domain.incarnation).await?;
                Ok(self.ledger.vm(vm, |record| record.paused = false).await?)
            }
            Go::Kept => {
                tracing::info!(%vm, "move is over, guest goes on");
                self.hypervisor.resume(vm, domain.incarnation).await?;
                Ok(self.ledger.vm(vm, |record| record.outgoing = None).await?)
            }
            Go::Room => {
                tracing::info!(%vm, "pool has room again, guest goes on");
                Ok(self.hypervisor.resume(vm, domain.incarnation).await?)
            }
        }
    }

    /// A new generation for a running guest: its size where that can be done live. The rest comes with a start.
    async fn update(&self, vm: Uuid, wanted: &WantedVm, domain: &Domain) -> Result<()> {
        let machine = &wanted.machine;
        if (machine.vcpus, machine.memory_mib) != (domain.vcpus, domain.memory_mib) {
            let resized =
                self.hypervisor.resize(vm, domain.incarnation, machine.vcpus, machine.memory_mib).await?;
            let live = resized == Resized::Live;
            tracing::info!(%vm, vcpus = machine.vcpus, memory_mib = machine.memory_mib, live, "guest resized");
        }
        self.hypervisor.set_generation(vm, domain.incarnation, wanted.generation).await?;
        Ok(self.ledger.vm(vm, |record| record.generation = wanted.generation).await?)
    }

    fn spec(
        &self,
        vm: Uuid,
        wanted: &WantedVm,
        seed: Option<PathBuf>,
        pools: &BTreeMap<Uuid, WantedPool>,
        state: &State,
    ) -> Result<DomainSpec> {
        let mut machine = wanted.machine.as_ref().clone();
        let mut disks = Vec::new();
        for disk in &machine.disks {
            let volume = Uuid::try_parse(&disk.volume_id).ok();
            let cdrom = disk.kind() == DiskKind::Cdrom;
            let (path, format) = match volume {
                Some(volume) => {
                    let pool = Uuid::try_parse(&disk.pool_id).ok().and_then(|id| pools.get(&id));
                    let pool = pool.ok_or(OperateError::Overtaken("the pool's entry is gone"))?;
                    (Some(file_path(&pool.path, volume)), DiskFormat::Qcow2)
                }
                None => {
                    let iso = Digest::parse(&disk.iso).ok();
                    iso.iter().for_each(|digest| self.images.touch(digest));
                    (iso.map(|digest| self.images.path(&digest)), DiskFormat::Raw)
                }
            };
            disks.push(DiskFile {
                path,
                format,
                kind: if cdrom { DiskKind::Cdrom } else { DiskKind::Disk },
                boot_order: disk.boot_order,
                shared: disk.shared,
                readonly: cdrom,
                serial: volume.map(disk_serial).unwrap_or_default(),
            });
        }
        for (volume, _) in &wanted.volumes {
            let image = state.volumes.get(volume).and_then(|record| record.image.as_ref());
            image.into_iter().for_each(|digest| self.images.touch(digest));
        }
        let interfaces = machine.interfaces.iter().enumerate();
        let interfaces = interfaces
            .map(|(index, interface)| Port {
                mac: interface.mac.clone(),
                bridge: bridge(&interface.bridge, interface.vlan),
                mtu: interface.mtu,
                tap: tap_name(vm, index),
            })
            .collect();
        let image = |text: &str| {
            let digest = Digest::parse(text).ok()?;
            self.images.touch(&digest);
            Some(self.images.path(&digest))
        };
        let boot = machine.direct_boot.clone();
        // What was resolved here at the first start holds, also when the leader has not heard of it yet.
        let known = state.vms.get(&vm).filter(|record| record.incarnation == wanted.incarnation);
        machine.platform = machine.platform.or_else(|| known.and_then(|record| record.platform.clone()));
        Ok(DomainSpec {
            vm,
            incarnation: wanted.incarnation,
            generation: wanted.generation,
            machine,
            disks,
            interfaces,
            seed,
            kernel: boot.as_ref().and_then(|boot| image(&boot.kernel)),
            initrd: boot.as_ref().and_then(|boot| image(&boot.initrd)),
            serial_log: serial_log(&self.data_dir, vm),
            nvram: self.nvram_path(vm),
        })
    }
}

fn wanted(context: &Context) -> Result<&WantedVm> {
    context.vm.as_ref().ok_or(OperateError::Overtaken("the entry is gone"))
}

/// The shared pools that the VM's disks lie on.
fn shared(context: &Context) -> Result<BTreeSet<Uuid>> {
    Ok(wanted(context)?.shared_pools(&context.pools).collect())
}

/// The leases on them that the decision saw: since when each is held without a break.
fn holdings(context: &Context) -> Result<BTreeMap<Uuid, u64>> {
    let held = shared(context)?.into_iter().map(|pool| {
        let lease = context.leases.get(&pool).ok_or(KeeperError::NotHeld(pool))?;
        Ok((pool, lease.held_since_ms))
    });
    held.collect()
}

/// The texts of the seed, for a VM that has one.
fn seed(wanted: &WantedVm) -> Result<Option<Seed>> {
    let told = wanted.machine.cloud_init.as_ref();
    Ok(told.map(|told| cloudinit::seed(told, &wanted.machine.interfaces)).transpose()?)
}

/// The bridge for a VLAN is named after the plain one: `br0` and tag 30 make `br0.30`.
fn bridge(bridge: &str, vlan: u32) -> String {
    if vlan == 0 { bridge.to_owned() } else { format!("{bridge}.{vlan}") }
}

/// What each interface may send.
fn rules(vm: Uuid, wanted: &WantedVm) -> Result<Vec<Rule>> {
    let interfaces = wanted.machine.interfaces.iter().enumerate();
    let rules = interfaces
        .map(|(index, interface)| Rule::new(&tap_name(vm, index), &interface.mac, &interface.addresses));
    Ok(rules.collect::<std::result::Result<_, _>>()?)
}
