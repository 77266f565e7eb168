//! The real hypervisor: libvirt and QEMU.
//!
//! Invariants: domains are transient, start paused and never start by themselves; before anything is done to a
//! domain its name, its mark and its incarnation have been read; a foreign domain is not even looked into further
//! than its name and its mark. Deliberately absent: waiting for a guest, and retries.

pub mod connection;
mod console;
mod errors;
mod exits;
mod ffi;
mod guest;
mod migrate;
mod process;
mod stats;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tamdao_keeper::protocol::ProcessId;
use tamdao_proto::v1::{GuestStatus, Inventory};
use tokio::sync::{OnceCell, broadcast};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::{Domain as Handle, DomainPausedReason, DomainState as Said, DomainStateReason};
use virt::enumutil::Enum;
use virt::error::ErrorNumber;
use virt::stream::Stream;

use self::connection::Link;
use self::errors::Fault;
use super::host::{self, Acceleration, Host};
use super::migration::{Dirtying, Migration, MigrationProgress};
use super::xml::XmlError;
use super::{
    Console, Domain, DomainEvent, DomainSpec, DomainState, DomainStats, Exit, Hypervisor, HypervisorError,
    Observation, PauseReason, Resized, Result, domain_name, domain_xml, probe, vm_of_domain_name,
};

/// How long the guest agent may take for one answer, seconds.
const GUEST_AGENT_TIMEOUT_S: i32 = 2;
/// How long a start waits for libvirt to clear up after an earlier life of the domain: 5 s.
const REMOVAL_TRIES: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

/// How long a guest's writing is measured, seconds; libvirt takes no less.
const DIRTYING_S: i32 = 1;
/// How often it is looked for the result after that, and how many times.
const DIRTYING_PAUSE: Duration = Duration::from_millis(100);
const DIRTYING_TRIES: u32 = 20;

/// What the backend needs to know.
#[derive(Clone, Debug)]
pub struct LibvirtConfig {
    /// `qemu:///system`, or `qemu:///system?socket=/path` for another daemon than the host's.
    pub uri: String,
    pub acceleration: AccelerationChoice,
    /// Where libvirtd keeps a log for each domain, as this process sees it.
    pub log_directory: PathBuf,
    /// Where libvirtd keeps the process id of each domain, as this process sees it.
    pub run_directory: PathBuf,
    /// The network devices of the network namespace in which libvirtd runs.
    pub class_net: PathBuf,
}

impl Default for LibvirtConfig {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".to_owned(),
            acceleration: AccelerationChoice::Auto,
            log_directory: PathBuf::from("/var/log/libvirt/qemu"),
            run_directory: PathBuf::from("/run/libvirt/qemu"),
            class_net: PathBuf::from("/sys/class/net"),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelerationChoice {
    /// KVM if a tiny machine runs under it, else emulation; tried once.
    #[default]
    Auto,
    Kvm,
    Emulation,
}

/// libvirt on this host.
pub struct Libvirt {
    config: LibvirtConfig,
    link: Link,
    acceleration: OnceCell<Acceleration>,
    /// What was read of the host, and on which connection.
    host: Mutex<Option<(u64, Arc<Host>)>>,
}

impl Libvirt {
    /// Connects, and keeps connecting: libvirtd may come and go. Fails only when a thread cannot be made.
    pub async fn open(config: LibvirtConfig) -> Result<Libvirt> {
        let link = Link::open(&config.uri).await?;
        Ok(Libvirt { config, link, acceleration: OnceCell::new(), host: Mutex::new(None) })
    }

    async fn host(&self) -> Result<Arc<Host>> {
        let opened = self.link.opened();
        let known = self.host.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, host)) = known
            && at == opened
        {
            return Ok(host);
        }
        let capabilities = self.link.call(None, |connect| Ok(connect.capabilities()?)).await?;
        let (kvm_offered, emulator) = host::offers(&capabilities).map_err(unreadable)?;
        let acceleration =
            *self.acceleration.get_or_init(|| choose(self.config.acceleration, kvm_offered, &emulator)).await;
        let domain_capabilities = self
            .link
            .call(None, move |connect| {
                let kind = Some(acceleration.as_str());
                Ok(connect.domain_capabilities(Some(&emulator), Some("x86_64"), Some("q35"), kind, 0)?)
            })
            .await?;
        let host =
            Arc::new(Host::read(&capabilities, &domain_capabilities, acceleration).map_err(unreadable)?);
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) = Some((opened, Arc::clone(&host)));
        Ok(host)
    }

    /// Creates a domain, paused.
    async fn create(&self, vm: Uuid, document: Arc<str>) -> Result<Domain> {
        self.link
            .call(Some(vm), move |connect| {
                match connect.create_domain_xml(&document, virt_sys::VIR_DOMAIN_START_PAUSED) {
                    Ok(handle) => look(&handle)?.ok_or_else(|| HypervisorError::NotFound { vm }.into()),
                    Err(error) => match find(connect, vm) {
                        Ok((_, domain)) => {
                            Err(HypervisorError::Exists { vm, incarnation: domain.incarnation }.into())
                        }
                        Err(_) => Err(error.into()),
                    },
                }
            })
            .await
    }

    /// Does something to a domain of ours after having checked whose it is.
    async fn act<T, F>(&self, vm: Uuid, incarnation: u64, action: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Handle, &Domain) -> std::result::Result<T, Fault> + Send + 'static,
    {
        self.link
            .call(Some(vm), move |connect| {
                let (handle, domain) = find(connect, vm)?;
                if domain.incarnation != incarnation {
                    let running = domain.incarnation;
                    return Err(HypervisorError::Stale { vm, asked: incarnation, running }.into());
                }
                action(&handle, &domain)
            })
            .await
    }
}

#[async_trait]
impl Hypervisor for Libvirt {
    async fn inventory(&self) -> Result<Inventory> {
        let host = self.host().await?;
        let class_net = self.config.class_net.clone();
        self.link
            .call(None, move |connect| {
                let node = connect.node_info()?;
                Ok(Inventory {
                    hostname: connect.hostname()?,
                    libvirt_version: host::version(connect.lib_version()?),
                    qemu_version: host::version(connect.hyp_version()?),
                    cpus: node.cpus,
                    memory_mib: node.memory / 1024,
                    bridges: host::bridges(&class_net),
                    ..host.inventory()
                })
            })
            .await
    }

    async fn observe(&self) -> Result<Observation> {
        self.link.call(None, observe).await
    }

    async fn start(&self, spec: &DomainSpec) -> Result<Domain> {
        let host = self.host().await?;
        let platform = host.resolve(spec.machine.platform.as_ref());
        let document: Arc<str> =
            domain_xml::write(spec, &platform, host.acceleration, SystemTime::now()).into();
        let mut tries = 0;
        loop {
            match self.create(spec.vm, document.clone()).await {
                // A guest that has just ended is listed no more a moment before its name is free.
                Err(HypervisorError::Refused { reason: errors::BEING_REMOVED, .. })
                    if tries < REMOVAL_TRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(REMOVAL_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    async fn resume(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        self.act(vm, incarnation, |handle, domain| {
            if domain.state == DomainState::Running {
                return Ok(());
            }
            if let Err(error) = handle.resume() {
                // Somebody else of this agent may have let it run since it was looked at.
                let runs = look(handle)?.is_some_and(|now| now.state == DomainState::Running);
                return if runs { Ok(()) } else { Err(error.into()) };
            }
            // The mark comes after the deed: a guest that runs and is marked as never run is put right by the
            // next pause; one marked as having run that never did would look paused on demand for ever.
            if domain.state == DomainState::Paused(PauseReason::NotYetRun) {
                mark(handle, domain, domain.generation, true)?;
            }
            Ok(())
        })
        .await
    }

    async fn process(&self, vm: Uuid, incarnation: u64) -> Result<ProcessId> {
        let directory = self.config.run_directory.clone();
        self.act(vm, incarnation, move |_, _| Ok(process::find(&directory, vm)?)).await
    }

    async fn pause(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        self.act(vm, incarnation, |handle, domain| {
            if matches!(domain.state, DomainState::Paused(_)) {
                return Ok(());
            }
            mark(handle, domain, domain.generation, true)?;
            Ok(handle.suspend().map(drop)?)
        })
        .await
    }

    async fn shutdown(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        self.act(vm, incarnation, |handle, _| {
            Ok(handle.shutdown_flags(virt_sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN).map(drop)?)
        })
        .await
    }

    async fn destroy(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        self.link.call(Some(vm), move |connect| destroy(connect, vm, incarnation)).await
    }

    async fn reset(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        self.act(vm, incarnation, |handle, _| Ok(handle.reset().map(drop)?)).await
    }

    async fn resize(&self, vm: Uuid, incarnation: u64, vcpus: u32, memory_mib: u32) -> Result<Resized> {
        self.act(vm, incarnation, move |handle, domain| {
            // A guest need not give anything back that it has: less of something waits for the next start, and so
            // does more memory, for which the machine has no room.
            if memory_mib != domain.memory_mib || vcpus < domain.vcpus {
                return Ok(Resized::NeedsRestart);
            }
            if vcpus == domain.vcpus {
                return Ok(Resized::Live);
            }
            let room =
                handle.vcpus_flags(virt_sys::VIR_DOMAIN_VCPU_LIVE | virt_sys::VIR_DOMAIN_VCPU_MAXIMUM)?;
            if vcpus > room {
                return Ok(Resized::NeedsRestart);
            }
            handle.set_vcpus_flags(vcpus, virt_sys::VIR_DOMAIN_VCPU_LIVE)?;
            Ok(Resized::Live)
        })
        .await
    }

    async fn set_generation(&self, vm: Uuid, incarnation: u64, generation: u64) -> Result<()> {
        self.act(vm, incarnation, move |handle, domain| {
            let has_run = domain.state != DomainState::Paused(PauseReason::NotYetRun);
            mark(handle, domain, generation, has_run)
        })
        .await
    }

    async fn migrate(&self, vm: Uuid, incarnation: u64, migration: &Migration) -> Result<()> {
        let migration = migration.clone();
        self.act(vm, incarnation, move |handle, domain| migrate::send(handle, domain, &migration)).await
    }

    async fn abort_migration(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        self.act(vm, incarnation, |handle, _| Ok(ffi::abort_job(handle)?)).await
    }

    async fn migration(&self, vm: Uuid) -> Result<Option<MigrationProgress>> {
        let asked = self.link.call(Some(vm), move |connect| migrate::progress(connect, vm)).await;
        match asked {
            Err(HypervisorError::NotFound { .. }) => Ok(None),
            other => other,
        }
    }

    async fn dirtying(&self, vm: Uuid) -> Result<Dirtying> {
        let begin = move |connect: &Connect| {
            let (handle, _) = find(connect, vm)?;
            Ok(ffi::measure_dirtying(&handle, DIRTYING_S)?)
        };
        self.link.call(Some(vm), begin).await?;
        tokio::time::sleep(Duration::from_secs(u64::from(DIRTYING_S.unsigned_abs()))).await;
        for _ in 0..DIRTYING_TRIES {
            let look = move |connect: &Connect| Ok(ffi::dirtying(&find(connect, vm)?.0)?);
            let record = self.link.call(Some(vm), look).await?;
            if let Some(told) = record.as_ref().and_then(stats::dirtying) {
                return Ok(told);
            }
            tokio::time::sleep(DIRTYING_PAUSE).await;
        }
        let message = "libvirt has not measured it in time".to_owned();
        Err(HypervisorError::Refused { reason: "NotMeasured", message, permanent: false })
    }

    async fn guest(&self, vm: Uuid) -> Result<Option<GuestStatus>> {
        self.link
            .call(Some(vm), move |connect| {
                let (handle, domain) = find(connect, vm)?;
                if !domain.guest_agent_connected || domain.state != DomainState::Running {
                    return Ok(None);
                }
                let ask = |command| match handle.qemu_agent_command(command, GUEST_AGENT_TIMEOUT_S, 0) {
                    Ok(answer) => Ok(Some(answer)),
                    Err(error) if is_silence(&error) => Ok(None),
                    Err(error) => Err(Fault::from(error)),
                };
                let Some(host_name) = ask(guest::HOST_NAME)? else { return Ok(None) };
                let interfaces = ask(guest::INTERFACES)?.unwrap_or_default();
                Ok(Some(guest::read(&host_name, &interfaces)))
            })
            .await
    }

    async fn console(&self, vm: Uuid, force: bool) -> Result<Console> {
        let stream = self
            .link
            .call(Some(vm), move |connect| {
                let (handle, _) = find(connect, vm)?;
                let stream = Stream::new(connect, 0)?;
                let force = if force { virt_sys::VIR_DOMAIN_CONSOLE_FORCE } else { 0 };
                handle.open_console(None, &stream, virt_sys::VIR_DOMAIN_CONSOLE_SAFE | force)?;
                Ok(stream)
            })
            .await?;
        console::join(stream)
    }

    async fn stats(&self) -> Result<Vec<DomainStats>> {
        self.link
            .call(None, |connect| {
                let mut all: Vec<_> = ffi::stats(connect)?.iter().filter_map(stats::read).collect();
                // A name alone does not make a domain ours.
                let ours: BTreeSet<Uuid> = observe(connect)?.ours.iter().map(|domain| domain.vm).collect();
                all.retain(|stats| ours.contains(&stats.vm));
                all.sort_by_key(|stats| stats.vm);
                Ok(all)
            })
            .await
    }

    async fn last_exit(&self, vm: Uuid) -> Result<Option<Exit>> {
        let log = self.config.log_directory.join(format!("{}.log", domain_name(vm)));
        let unreadable =
            |message: String| HypervisorError::Refused { reason: "LogUnreadable", message, permanent: false };
        tokio::task::spawn_blocking(move || exits::last(&log))
            .await
            .map_err(|error| unreadable(error.to_string()))?
            .map_err(|error| unreadable(error.to_string()))
    }

    fn events(&self) -> broadcast::Receiver<DomainEvent> {
        self.link.events()
    }
}

async fn choose(choice: AccelerationChoice, kvm_offered: bool, emulator: &str) -> Acceleration {
    match choice {
        AccelerationChoice::Kvm => Acceleration::Kvm,
        AccelerationChoice::Emulation => Acceleration::Emulation,
        AccelerationChoice::Auto if !kvm_offered => Acceleration::Emulation,
        AccelerationChoice::Auto => match probe::kvm_runs(Path::new(emulator)).await {
            Ok(()) => Acceleration::Kvm,
            Err(error) => {
                tracing::warn!(%error, "kvm does not run a guest: guests will be emulated");
                Acceleration::Emulation
            }
        },
    }
}

fn unreadable(error: XmlError) -> HypervisorError {
    HypervisorError::Refused { reason: "LibvirtUnreadable", message: error.to_string(), permanent: false }
}

fn observe(connect: &Connect) -> std::result::Result<Observation, Fault> {
    let mut observation = Observation::default();
    for handle in connect.list_all_domains(0)? {
        match look(&handle) {
            Ok(Some(domain)) => observation.ours.push(domain),
            Ok(None) if is_ours_and_off(&handle) => {}
            Ok(None) => observation.foreign += 1,
            // It has gone since the list was made.
            Err(fault) if fault.is_absent() => {}
            Err(fault) => return Err(fault),
        }
    }
    observation.ours.sort_by_key(|domain| domain.vm);
    Ok(observation)
}

/// A domain of ours that someone made persistent stays in libvirt's list when it is off.
fn is_ours_and_off(handle: &Handle) -> bool {
    handle.name().is_ok_and(|name| vm_of_domain_name(&name).is_some()) && !handle.is_active().unwrap_or(true)
}

fn find(connect: &Connect, vm: Uuid) -> std::result::Result<(Handle, Domain), Fault> {
    let handle = connect.lookup_domain_by_uuid(vm)?;
    match look(&handle)? {
        Some(domain) => Ok((handle, domain)),
        None => Err(HypervisorError::NotFound { vm }.into()),
    }
}

/// `None` for a domain that is not ours, or is off.
fn look(handle: &Handle) -> std::result::Result<Option<Domain>, Fault> {
    if vm_of_domain_name(&handle.name()?).is_none() {
        return Ok(None);
    }
    let (said, reason) = handle.state()?;
    let state = match said {
        Enum::Known(Said::Paused) => DomainState::Paused(match reason {
            Enum::Known(DomainStateReason::Paused(Enum::Known(reason))) => match reason {
                DomainPausedReason::User => PauseReason::OnDemand,
                DomainPausedReason::StartingUp => PauseReason::NotYetRun,
                DomainPausedReason::IOError => PauseReason::IoError,
                DomainPausedReason::Migration
                | DomainPausedReason::PostCopy
                | DomainPausedReason::PostCopyFailed => PauseReason::Migration,
                _ => PauseReason::Other,
            },
            _ => PauseReason::Other,
        }),
        Enum::Known(Said::Shutdown) => DomainState::ShuttingDown,
        Enum::Known(Said::Crashed) => DomainState::Crashed,
        Enum::Known(Said::Shutoff) => {
            if handle.is_persistent()? {
                return Ok(None);
            }
            // It is coming up or going away.
            DomainState::ShuttingDown
        }
        _ => DomainState::Running,
    };
    Ok(domain_xml::read(&handle.xml_desc(0)?, state).map_err(unreadable)?)
}

/// Writes our mark anew.
fn mark(handle: &Handle, domain: &Domain, generation: u64, has_run: bool) -> std::result::Result<(), Fault> {
    let mark = domain_xml::mark(domain.incarnation, generation, &domain.platform, domain.started, has_run);
    handle.set_metadata(
        virt_sys::VIR_DOMAIN_METADATA_ELEMENT as i32,
        Some(&mark.print()),
        Some(domain_xml::PREFIX),
        Some(domain_xml::NAMESPACE),
        virt_sys::VIR_DOMAIN_AFFECT_LIVE,
    )?;
    Ok(())
}

fn destroy(connect: &Connect, vm: Uuid, incarnation: u64) -> std::result::Result<(), Fault> {
    let (handle, domain) = match find(connect, vm) {
        Ok(found) => found,
        Err(fault) if fault.is_absent() => return Ok(()),
        Err(fault) => return Err(fault),
    };
    if domain.incarnation > incarnation {
        return Err(HypervisorError::Stale { vm, asked: incarnation, running: domain.incarnation }.into());
    }
    // libvirt answers when the process has been reaped, or with an error when that takes too long.
    match handle.destroy() {
        Ok(_) => {}
        Err(error) => {
            let fault = Fault::from(error);
            if !fault.is_absent() {
                return Err(fault);
            }
        }
    }
    // Another thread of libvirtd may have been first and may not be done yet: what counts is that it is gone.
    match find(connect, vm) {
        Err(fault) if fault.is_absent() => Ok(()),
        Err(fault) => Err(fault),
        Ok(_) => Err(HypervisorError::Refused {
            reason: "ProcessStuck",
            message: "the domain is still there after it was destroyed".to_owned(),
            permanent: false,
        }
        .into()),
    }
}

/// The agent is not there, or does not answer in time, or does not know the command: nothing that is wrong here.
fn is_silence(error: &virt::error::Error) -> bool {
    [
        ErrorNumber::AgentUnresponsive,
        ErrorNumber::AgentUnsynced,
        ErrorNumber::AgentCommandTimeout,
        ErrorNumber::AgentCommandFailed,
        ErrorNumber::OperationInvalid,
        ErrorNumber::OperationTimeout,
        ErrorNumber::InternalError,
    ]
    .iter()
    .any(|code| error.code() == (*code).into())
}
