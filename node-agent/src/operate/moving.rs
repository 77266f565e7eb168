//! The doing of moves: sends a guest and settles what came of it, makes ready for one that comes, and lets it run.
//!
//! Invariants: before anything may leave, the ledger says that it may be on its way; the source's word is in the ledger
//! before anyone hears it; the target's ledger has heard it before the guest runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tamdao_proto::agent::v1::MachinePaths;
use uuid::Uuid;

use super::{Context, OperateError, Operator, Result, holdings, rules, seed};
use crate::checkpoint::checkpoint;
use crate::cloudinit;
use crate::desired::{WantedMove, WantedVm};
use crate::hypervisor::migration::Migration;
use crate::hypervisor::{Domain, DomainSpec, DomainState, HypervisorError};
use crate::keeper::Lease;
use crate::ledger::{End, Incoming, Life, Outgoing, VmRecord, Word};
use crate::moves::{Arrival, SOCKETS};
use crate::reconcile::may_run_arrived;

/// How often a migration is looked at that is to end.
const LOOK: Duration = Duration::from_millis(100);
/// How long a migration may take to end after it was given up.
const ENDING: Duration = Duration::from_secs(20);

pub(super) fn moving(wanted: &WantedVm) -> Result<&WantedMove> {
    wanted.moving.as_ref().ok_or(OperateError::Overtaken("the move is over"))
}

impl Operator {
    /// Sends a guest. Whatever comes of it is settled, written down and said before this returns well.
    pub(super) async fn send(
        &self,
        vm: Uuid,
        wanted: &WantedVm,
        domain: &Domain,
        context: &Context,
    ) -> Result<()> {
        let moving = moving(wanted)?;
        let theirs = self.moves.ask_paths(vm, moving).await?;
        let ours = paths(&self.own_spec(vm, wanted, context)?);
        let files = pair(&ours, &theirs)?;
        let local = wanted
            .machine
            .disks
            .iter()
            .zip(&ours.disks)
            .filter(|(disk, _)| !disk.shared && !disk.volume_id.is_empty());
        let copies = local.map(|(_, path)| PathBuf::from(path)).collect();
        let carrier = self.moves.carry(vm, moving).await?;
        let sockets = Path::new(SOCKETS).join(moving.id.to_string());
        let migration = Migration {
            destination: format!("qemu+unix:///system?socket={}", sockets.join("libvirt").display()),
            memory_socket: sockets.join("memory"),
            disks_socket: sockets.join("disks"),
            incarnation_to: moving.to,
            files,
            copies,
            auto_converge: moving.auto_converge,
        };
        let id = moving.id;
        let outgoing = Outgoing { id, word: Word::Sending, reason: String::new(), files: false };
        self.ledger.vm(vm, |record| record.outgoing = Some(outgoing)).await?;
        checkpoint("move-sending").await;
        tracing::info!(%vm, incarnation = domain.incarnation, peer = %moving.peer, "guest is being sent");
        let watching = self.moves.watch(vm, id, self.hypervisor.clone(), carrier.sent.clone());
        let sent = self.hypervisor.migrate(vm, domain.incarnation, &migration).await;
        checkpoint("move-sent").await;
        drop(watching);
        let bytes = carrier.sent.load(std::sync::atomic::Ordering::Relaxed);
        let word = self.settle(vm, Some(&sent), context.now_ms).await?;
        drop(carrier);
        let kept = match (word, sent) {
            (Word::Gone, _) => {
                checkpoint("move-gone").await;
                None
            }
            (_, Err(error)) => Some(error.to_string()),
            (_, Ok(())) => Some("it was sent, and is still here".to_owned()),
        };
        self.tell_of_sending(vm, moving, kept, bytes).await;
        Ok(())
    }

    /// Tells the target, and the log, of what came of a sending that is written down: `kept` says why the guest stays.
    pub(super) async fn tell_of_sending(
        &self,
        vm: Uuid,
        moving: &WantedMove,
        kept: Option<String>,
        bytes: u64,
    ) {
        if let Some(why) = kept {
            tracing::warn!(%vm, bytes, error = %why, "guest was not sent, it stays");
            return;
        }
        if let Err(error) = self.moves.say_gone(vm, moving).await {
            // The leader hears it from this node's report, and tells the target.
            tracing::warn!(%vm, error = %error, "target was not told that the guest is gone");
        }
        checkpoint("move-said").await;
        tracing::info!(%vm, bytes, "guest has gone to another node");
    }

    /// Finds out what came of a sending, and writes it down for ever. `sent` is libvirt's answer, if it was heard.
    pub(super) async fn settle(
        &self,
        vm: Uuid,
        sent: Option<&std::result::Result<(), HypervisorError>>,
        now_ms: u64,
    ) -> Result<Word> {
        self.end_migration(vm).await?;
        let seen = self.hypervisor.observe().await?;
        let here = seen.ours.into_iter().find(|domain| domain.vm == vm);
        let state = self.ledger.state();
        let outgoing = state.vms.get(&vm).and_then(|record| record.outgoing.as_ref());
        let gone = match (&here, sent) {
            // What was carried of its files is not known to be whole. An end of old, when it came here by an earlier
            // move, would say that it was migrated.
            _ if outgoing.is_some_and(|outgoing| outgoing.files) => false,
            (Some(_), _) => false,
            (None, Some(Ok(()))) => true,
            // Whatever else ended it, ended it here: then nothing may run over there.
            (None, _) => self.hypervisor.last_exit(vm).await? == Some(crate::hypervisor::Exit::Migrated),
        };
        let word = if gone { Word::Gone } else { Word::Kept };
        let reason = match (sent, &here) {
            _ if gone => String::new(),
            (Some(Err(error)), _) => error.to_string(),
            (_, Some(domain)) if domain.state == DomainState::Running => "the sending was cut off".to_owned(),
            (_, Some(_)) => "the sending was cut off, and the guest stands still".to_owned(),
            (_, None) if outgoing.is_some_and(|outgoing| outgoing.files) => {
                "the carrying of its disks was cut off".to_owned()
            }
            (_, None) => "the guest has ended".to_owned(),
        };
        let change = |record: &mut VmRecord| {
            let Some(outgoing) = record.outgoing.as_mut().filter(|outgoing| outgoing.word == Word::Sending)
            else {
                return;
            };
            outgoing.word = word;
            outgoing.reason = reason;
            if gone {
                let_go(record, now_ms);
            }
        };
        self.ledger.vm(vm, change).await?;
        Ok(word)
    }

    /// Gives up the migration of a guest if one is at work, and returns when none is.
    async fn end_migration(&self, vm: Uuid) -> Result<()> {
        let deadline = tokio::time::Instant::now() + ENDING;
        while self.hypervisor.migration(vm).await?.is_some() {
            let seen = self.hypervisor.observe().await?;
            if let Some(domain) = seen.ours.iter().find(|domain| domain.vm == vm)
                && let Err(error) = self.hypervisor.abort_migration(vm, domain.incarnation).await
            {
                tracing::debug!(%vm, error = %error, "migration not given up yet");
            }
            if tokio::time::Instant::now() > deadline {
                return Err(OperateError::Overtaken("libvirt still migrates the guest"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Writes down that a guest is not sent by this move.
    pub(super) async fn keep(&self, vm: Uuid, wanted: &WantedVm, reason: &str) -> Result<()> {
        let outgoing =
            Outgoing { id: moving(wanted)?.id, word: Word::Kept, reason: reason.to_owned(), files: false };
        Ok(self.ledger.vm(vm, |record| record.outgoing = Some(outgoing)).await?)
    }

    /// Writes down that a guest that is off never starts here again under its incarnation.
    pub(super) async fn let_go(&self, vm: Uuid, wanted: &WantedVm, now_ms: u64) -> Result<()> {
        let outgoing =
            Outgoing { id: moving(wanted)?.id, word: Word::Gone, reason: String::new(), files: false };
        let change = |record: &mut VmRecord| {
            record.incarnation = record.incarnation.max(wanted.incarnation);
            record.outgoing = Some(outgoing);
            let_go(record, now_ms);
        };
        self.ledger.vm(vm, change).await?;
        checkpoint("move-gone").await;
        Ok(())
    }

    /// Makes seed, filter and sockets ready for a guest that comes; then its source is let in.
    pub(super) async fn receive(&self, vm: Uuid, wanted: &WantedVm, context: &Context) -> Result<()> {
        let &WantedMove { id, stays_off, .. } = moving(wanted)?;
        let seed = seed(wanted)?;
        let record = VmRecord {
            incarnation: wanted.incarnation,
            generation: wanted.generation,
            life: if stays_off { Life::Ended } else { Life::Starting },
            end: stays_off.then_some(End::ByItself),
            boot_id: self.boot_id.clone(),
            action: wanted.action.map(|action| action.id),
            platform: wanted.machine.platform.clone(),
            started_ms: context.now_ms,
            rules: rules(vm, wanted)?,
            images: wanted.images.clone(),
            volumes: wanted.volumes.iter().map(|(id, _)| *id).collect(),
            leases: holdings(context)?,
            untidy: true,
            ..VmRecord::default()
        };
        self.ledger.vm(vm, |slot| *slot = record).await?;
        if let Some(seed) = &seed {
            cloudinit::write_iso(&self.seed_path(vm), seed).await?;
        }
        self.filter().await?;
        self.moves.make_room(id).await?;
        checkpoint("move-receive").await;
        self.ledger.vm(vm, |record| record.incoming = Some(Incoming { id, go: false })).await?;
        checkpoint("move-ready").await;
        Ok(())
    }

    fn own_spec(&self, vm: Uuid, wanted: &WantedVm, context: &Context) -> Result<DomainSpec> {
        let seed = wanted.machine.cloud_init.as_ref().map(|_| self.seed_path(vm));
        self.spec(vm, wanted, seed, &context.pools, &self.ledger.state())
    }

    /// Where the files of a guest that may come are here.
    ///
    /// # Errors
    /// The assignment is not whole.
    pub fn arrival_paths(&self, vm: Uuid, arrival: &Arrival) -> Result<MachinePaths> {
        let context = Context { pools: arrival.pools.clone(), ..Context::default() };
        if !self.is_ready_for(vm, arrival) {
            return Err(OperateError::Overtaken("this node is not ready for it"));
        }
        Ok(paths(&self.own_spec(vm, &arrival.wanted, &context)?))
    }

    pub(super) fn is_ready_for(&self, vm: Uuid, arrival: &Arrival) -> bool {
        let state = self.ledger.state();
        let incoming = state.vms.get(&vm).filter(|record| record.incarnation == arrival.moving.to);
        incoming.and_then(|record| record.incoming).is_some_and(|incoming| incoming.id == arrival.moving.id)
    }

    /// Takes the source's word that a guest is gone there; it is on disk when this returns.
    ///
    /// # Errors
    /// This node was not ready for it, or the ledger cannot be written.
    pub async fn hear_gone(&self, vm: Uuid, arrival: &Arrival) -> Result<()> {
        if !self.is_ready_for(vm, arrival) {
            return Err(OperateError::Overtaken("this node is not ready for it"));
        }
        let id = arrival.moving.id;
        self.ledger.vm(vm, |record| record.incoming = Some(Incoming { id, go: true })).await?;
        checkpoint("move-heard").await;
        Ok(())
    }

    /// Lets a guest run that has arrived, if the source has let go of it. Where that fails the loop does it.
    pub async fn run_arrived(&self, vm: Uuid, arrival: &Arrival) {
        let run = async {
            let seen = self.hypervisor.observe().await?;
            let domain = seen.ours.into_iter().find(|domain| domain.vm == vm);
            let domain = domain.ok_or(HypervisorError::NotFound { vm })?;
            let record = self.ledger.state().vms.get(&vm).cloned();
            let may = |record: &VmRecord| may_run_arrived(record, domain.incarnation, arrival.moving.id);
            if let Some(record) = record.filter(may) {
                // Whether it is gone there is the source's word; that it runs nowhere else, those leases'.
                let held = |(pool, since): (Uuid, u64)| (pool, Lease { lease_ms: 0, held_since_ms: since });
                let leases = record.leases.into_iter().map(held).collect();
                let (wanted, pools) = (Some(arrival.wanted.clone()), arrival.pools.clone());
                let context = Context { vm: wanted, pools, leases, ..Context::default() };
                self.run_first(vm, &domain, &context).await?;
                self.moves.clear(arrival.moving.id).await;
            }
            Ok::<_, OperateError>(())
        };
        match run.await {
            Ok(()) => tracing::info!(%vm, incarnation = arrival.moving.to, "guest has come and runs"),
            Err(error) => tracing::warn!(%vm, error = %error, "guest that has come does not run yet"),
        }
        self.moves.changed.notify_one();
    }
}

fn let_go(record: &mut VmRecord, now_ms: u64) {
    record.life = Life::Ended;
    record.end = Some(End::Migrated);
    record.stop = None;
    record.paused = false;
    record.ended_ms = now_ms;
}

/// The files that a domain of this spec names.
fn paths(spec: &DomainSpec) -> MachinePaths {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let optional = |path: &Option<PathBuf>| path.as_deref().map(text).unwrap_or_default();
    MachinePaths {
        disks: spec.disks.iter().map(|disk| optional(&disk.path)).collect(),
        seed: optional(&spec.seed),
        kernel: optional(&spec.kernel),
        initrd: optional(&spec.initrd),
        serial_log: text(&spec.serial_log),
        nvram: text(&spec.nvram),
    }
}

/// Each file by its name here and there.
fn pair(ours: &MachinePaths, theirs: &MachinePaths) -> Result<BTreeMap<PathBuf, PathBuf>> {
    if ours.disks.len() != theirs.disks.len() {
        return Err(OperateError::Overtaken("the two nodes do not speak of the same disks"));
    }
    let rest = |paths: &MachinePaths| {
        let MachinePaths { seed, kernel, initrd, serial_log, nvram, .. } = paths.clone();
        [seed, kernel, initrd, serial_log, nvram]
    };
    let disks = ours.disks.iter().cloned().zip(theirs.disks.iter().cloned());
    let pairs = disks.chain(rest(ours).into_iter().zip(rest(theirs))).filter(|(here, _)| !here.is_empty());
    let mut files = BTreeMap::new();
    for (here, there) in pairs {
        if !Path::new(&there).is_absolute() {
            return Err(OperateError::Overtaken("the target names no file for one that is here"));
        }
        files.insert(PathBuf::from(here), PathBuf::from(there));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_name_on_both_nodes_or_nothing_is_sent() {
        let of = |root: &str| MachinePaths {
            disks: vec![format!("{root}/a"), String::new()],
            serial_log: format!("{root}/log"),
            nvram: format!("{root}/nvram"),
            ..MachinePaths::default()
        };
        let files = pair(&of("/x"), &of("/y")).unwrap();
        assert_eq!(files[Path::new("/x/a")], Path::new("/y/a"));
        assert_eq!(files.len(), 3, "an empty cdrom has none");
        let lacks = MachinePaths { seed: "/x/seed".into(), ..of("/x") };
        assert!(pair(&lacks, &of("/y")).is_err());
        assert!(pair(&of("/x"), &MachinePaths { disks: vec!["/y/a".into()], ..of("/y") }).is_err());
        assert!(pair(&of("/x"), &MachinePaths { nvram: "nvram".into(), ..of("/y") }).is_err());
    }
}
