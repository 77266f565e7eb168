//! What the leader wants of this node: its assignment, checked and folded entry by entry.
//!
//! Invariants: absence is never a command, so an entry that a message does not name stays as it was, and one that
//! a complete assignment leaves out is only forgotten; every path made of an assignment is made of parsed ids and
//! digests. Deliberately absent: what to do about it (`reconcile`), and keeping it on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tamdao_proto::agent::v1 as wire;
use tamdao_proto::v1::{MoveWay, Power, RunPolicy};
use uuid::Uuid;

/// ACPI's time when an entry names none, ms.
const ACPI_MS: u64 = 120_000;

/// A SHA-256 in lower-case hexadecimal digits: an image's name, in the cluster and on disk.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    #[error("{0:?} is not a SHA-256 in 64 lower-case hexadecimal digits")]
    Digest(String),
    #[error("{field}: {value:?} is not a UUID")]
    Id { field: &'static str, value: String },
    #[error("{field}: {message}")]
    Field { field: &'static str, message: String },
}

impl Digest {
    /// # Errors
    /// It is not 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, DesiredError> {
        let good = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(text.into())) } else { Err(DesiredError::Digest(text.to_owned())) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = DesiredError;
    fn try_from(text: String) -> Result<Self, DesiredError> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0.to_string()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    Wanted,
    Stop,
    Stale,
    /// It comes by a move.
    Incoming,
    /// It leaves by a move.
    Outgoing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeIntent {
    Make,
    Keep,
    Delete,
    /// Make it for a move to fill.
    Receive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedAction {
    pub id: Uuid,
    pub kind: ActionKind,
    pub deadline_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    Reboot,
    Reset,
}

/// How a guest moves, as far as its two ends do different things for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// While it runs.
    Live,
    /// While it is off; it is shut down first.
    Cold,
    /// As cold, and the files of its disks in local pools are carried.
    ColdWithDisks,
}

/// What one end must know of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedMove {
    pub id: Uuid,
    /// The other end's node.
    pub peer: Uuid,
    /// Where the other end's agent listens for moves, host:port.
    pub address: String,
    /// The source's incarnation.
    pub from: u64,
    /// The target's incarnation.
    pub to: u64,
    pub way: Way,
    /// The source shall keep the guest if it still can.
    pub recall: bool,
    pub auto_converge: bool,
    /// It had shut itself down, and is not started before someone asks for it.
    pub stays_off: bool,
}

/// One entry for a VM.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedVm {
    pub incarnation: u64,
    pub generation: u64,
    pub intent: Intent,
    pub power: Power,
    pub run: RunPolicy,
    /// Empty unless wanted.
    pub machine: Arc<wire::Machine>,
    /// The volumes of its disks, and their pools, without repeats.
    pub volumes: Vec<(Uuid, Uuid)>,
    /// ISO images, kernel and initrd.
    pub images: Vec<Digest>,
    pub action: Option<WantedAction>,
    pub stop_force: bool,
    pub stop_ms: u64,
    /// Of those that are due at once the highest start first.
    pub priority: u32,
    /// With the intents incoming and outgoing.
    pub moving: Option<WantedMove>,
    /// Received in the present session. Only a fresh entry lets anything begin.
    pub fresh: bool,
    /// Why the entry cannot be understood; it is then reported and not acted on.
    pub fault: Option<DesiredError>,
}

impl WantedVm {
    /// The pools of its disks that other nodes see too.
    pub fn shared_pools<'a>(
        &'a self,
        pools: &'a BTreeMap<Uuid, WantedPool>,
    ) -> impl Iterator<Item = Uuid> + 'a {
        let all = self.volumes.iter().map(|(_, pool)| *pool);
        all.filter(|pool| pools.get(pool).is_some_and(|pool| pool.shared))
    }

    /// Whether it moves while it is off, and the files of its disks are carried.
    pub fn goes_with_files(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.way == Way::ColdWithDisks)
    }

    /// The volumes of its disks that only this node has, as far as it knows.
    pub fn local_volumes(&self, pools: &BTreeMap<Uuid, WantedPool>) -> Vec<Uuid> {
        let local = |pool: &Uuid| pools.get(pool).is_none_or(|pool| !pool.shared);
        self.volumes.iter().filter(|(_, pool)| local(pool)).map(|(volume, _)| *volume).collect()
    }
}

/// One entry for a volume.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedVolume {
    pub pool: Uuid,
    pub intent: VolumeIntent,
    pub size_mib: u32,
    pub image: Option<Digest>,
    /// Tells this node's files of the volume apart, of which moves may have made and removed several.
    pub copy: u64,
    pub fresh: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPool {
    pub name: String,
    pub path: PathBuf,
    pub shared: bool,
}

/// The assignment as it stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// A complete assignment has been taken in this session, so what it does not name is unknown.
    pub complete: bool,
    pub vms: BTreeMap<Uuid, WantedVm>,
    pub volumes: BTreeMap<Uuid, WantedVolume>,
    pub pools: BTreeMap<Uuid, WantedPool>,
    /// Images to keep, used or not.
    pub images: BTreeSet<Digest>,
}

impl Desired {
    /// Folds a message of the leader's in. Returns what could not even be named; the rest is taken.
    pub fn apply(&mut self, assignment: &wire::Assignment) -> Vec<DesiredError> {
        let mut faults = Vec::new();
        if assignment.complete {
            *self = Self { complete: true, ..Self::default() };
        }
        for pool in &assignment.pools {
            match parse_pool(pool) {
                Ok((id, pool)) => drop(self.pools.insert(id, pool)),
                Err(fault) => faults.push(fault),
            }
        }
        for volume in &assignment.volumes {
            match parse_volume(volume) {
                Ok((id, volume)) => drop(self.volumes.insert(id, volume)),
                Err(fault) => faults.push(fault),
            }
        }
        for vm in &assignment.vms {
            match id("vm_id", &vm.vm_id) {
                Ok(id) => {
                    let entry = parse_vm(vm);
                    // Messages of one leader come in order; a lower incarnation is another, older leader's word.
                    if self.vms.get(&id).is_none_or(|old| old.incarnation <= entry.incarnation) {
                        self.vms.insert(id, entry);
                    }
                }
                Err(fault) => faults.push(fault),
            }
        }
        for image in &assignment.wanted_images {
            match Digest::parse(image) {
                Ok(digest) => drop(self.images.insert(digest)),
                Err(fault) => faults.push(fault),
            }
        }
        faults
    }

    /// The session is over: nothing new may begin until the next one speaks.
    pub fn cut(&mut self) {
        self.complete = false;
        self.vms.values_mut().for_each(|vm| vm.fresh = false);
        self.volumes.values_mut().for_each(|volume| volume.fresh = false);
    }

    /// The entries of the volumes of a VM's disks.
    #[must_use]
    pub fn volumes_of(&self, vm: &WantedVm) -> BTreeMap<Uuid, WantedVolume> {
        let own = vm.volumes.iter().filter_map(|(id, _)| self.volumes.get_key_value(id));
        own.map(|(id, volume)| (*id, volume.clone())).collect()
    }

    /// All images that any entry names.
    #[must_use]
    pub fn wanted_images(&self) -> BTreeSet<Digest> {
        let mut all = self.images.clone();
        all.extend(self.vms.values().flat_map(|vm| vm.images.iter().cloned()));
        all.extend(self.volumes.values().filter_map(|volume| volume.image.clone()));
        all
    }
}

fn id(field: &'static str, text: &str) -> Result<Uuid, DesiredError> {
    Uuid::try_parse(text).map_err(|_| DesiredError::Id { field, value: text.to_owned() })
}

fn optional_digest(text: &str) -> Result<Option<Digest>, DesiredError> {
    if text.is_empty() { Ok(None) } else { Digest::parse(text).map(Some) }
}

fn parse_pool(pool: &wire::AssignedPool) -> Result<(Uuid, WantedPool), DesiredError> {
    let id = id("pool_id", &pool.pool_id)?;
    let path = Path::new(&pool.path);
    let plain = path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir);
    if !plain {
        let message = format!("{:?} is not an absolute path without ..", pool.path);
        return Err(DesiredError::Field { field: "path", message });
    }
    Ok((id, WantedPool { name: pool.name.clone(), path: path.to_owned(), shared: pool.shared }))
}

fn parse_volume(volume: &wire::AssignedVolume) -> Result<(Uuid, WantedVolume), DesiredError> {
    let intent = match volume.intent() {
        wire::VolumeIntent::Make => VolumeIntent::Make,
        wire::VolumeIntent::Keep => VolumeIntent::Keep,
        wire::VolumeIntent::Delete => VolumeIntent::Delete,
        wire::VolumeIntent::Receive => VolumeIntent::Receive,
        wire::VolumeIntent::Unspecified => {
            return Err(DesiredError::Field { field: "intent", message: "is not given".to_owned() });
        }
    };
    let wanted = WantedVolume {
        pool: id("pool_id", &volume.pool_id)?,
        intent,
        size_mib: volume.size_mib,
        image: optional_digest(&volume.image)?,
        copy: volume.copy,
        fresh: true,
    };
    Ok((id("volume_id", &volume.volume_id)?, wanted))
}

/// An entry whose VM is known is always taken; what is wrong with it stands in `fault`.
fn parse_vm(vm: &wire::AssignedVm) -> WantedVm {
    let mut fault = None;
    let mut note = |error: DesiredError| fault = fault.take().or(Some(error));
    let intent = match vm.intent() {
        wire::Intent::Wanted => Intent::Wanted,
        wire::Intent::Stop => Intent::Stop,
        wire::Intent::Stale => Intent::Stale,
        wire::Intent::Incoming => Intent::Incoming,
        wire::Intent::Outgoing => Intent::Outgoing,
        wire::Intent::Unspecified => {
            note(DesiredError::Field { field: "intent", message: "is not given".to_owned() });
            Intent::Wanted
        }
    };
    let machine = vm.machine.clone().unwrap_or_default();
    let (mut volumes, mut images) = (Vec::new(), Vec::new());
    if matches!(intent, Intent::Wanted | Intent::Incoming | Intent::Outgoing) {
        if vm.power() == Power::Unspecified {
            note(DesiredError::Field { field: "power", message: "is not given".to_owned() });
        }
        if vm.machine.is_none() {
            note(DesiredError::Field { field: "machine", message: "is not given".to_owned() });
        }
        for disk in &machine.disks {
            if disk.volume_id.is_empty() {
                match optional_digest(&disk.iso) {
                    Ok(iso) => images.extend(iso),
                    Err(error) => note(error),
                }
                continue;
            }
            match (id("volume_id", &disk.volume_id), id("pool_id", &disk.pool_id)) {
                (Ok(volume), Ok(pool)) if !volumes.contains(&(volume, pool)) => volumes.push((volume, pool)),
                (Ok(_), Ok(_)) => {}
                (Err(error), _) | (_, Err(error)) => note(error),
            }
        }
        if let Some(boot) = &machine.direct_boot {
            match Digest::parse(&boot.kernel) {
                Ok(kernel) => images.push(kernel),
                Err(error) => note(error),
            }
            match optional_digest(&boot.initrd) {
                Ok(initrd) => images.extend(initrd),
                Err(error) => note(error),
            }
        }
    }
    let action = vm.action.as_ref().and_then(|action| {
        let kind = match action.kind() {
            wire::ActionKind::Reboot => ActionKind::Reboot,
            wire::ActionKind::Reset => ActionKind::Reset,
            wire::ActionKind::Unspecified => return None,
        };
        let id = id("action", &action.id).map_err(&mut note).ok()?;
        Some(WantedAction { id, kind, deadline_ms: seconds_or_default(action.deadline_s) })
    });
    let moving = match (intent, &vm.r#move) {
        (Intent::Incoming | Intent::Outgoing, Some(told)) => parse_move(told).map_err(&mut note).ok(),
        (Intent::Incoming | Intent::Outgoing, None) => {
            note(DesiredError::Field { field: "move", message: "is not given".to_owned() });
            None
        }
        (Intent::Wanted | Intent::Stop | Intent::Stale, _) => None,
    };
    let run = match vm.run() {
        RunPolicy::Unspecified => RunPolicy::OnFailure,
        given => given,
    };
    WantedVm {
        incarnation: vm.incarnation,
        generation: vm.generation,
        intent,
        power: vm.power(),
        run,
        machine: Arc::new(machine),
        volumes,
        images,
        action,
        stop_force: vm.stop_force,
        stop_ms: seconds_or_default(vm.stop_deadline_s),
        priority: vm.priority,
        moving,
        fresh: true,
        fault,
    }
}

fn parse_move(told: &wire::AssignedMove) -> Result<WantedMove, DesiredError> {
    Ok(WantedMove {
        id: id("move_id", &told.move_id)?,
        peer: id("peer_node", &told.peer_node)?,
        address: told.peer_address.clone(),
        from: told.incarnation_from,
        to: told.incarnation_to,
        way: match told.way() {
            MoveWay::Cold => Way::Cold,
            MoveWay::ColdWithDisks => Way::ColdWithDisks,
            // A way of a later version is taken for a live one, and a guest that is off is then kept.
            MoveWay::Live | MoveWay::LiveWithDisks | MoveWay::Unspecified => Way::Live,
        },
        recall: told.recall,
        auto_converge: told.auto_converge,
        stays_off: told.stays_off,
    })
}

fn seconds_or_default(seconds: u32) -> u64 {
    if seconds == 0 { ACPI_MS } else { u64::from(seconds) * 1000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u128, incarnation: u64) -> wire::AssignedVm {
        wire::AssignedVm {
            vm_id: Uuid::from_u128(n).to_string(),
            incarnation,
            intent: wire::Intent::Wanted.into(),
            power: Power::On.into(),
            machine: Some(wire::Machine::default()),
            ..Default::default()
        }
    }

    fn message(complete: bool, vms: Vec<wire::AssignedVm>) -> wire::Assignment {
        wire::Assignment { complete, vms, ..Default::default() }
    }

    #[test]
    fn what_an_incremental_message_leaves_out_stays() {
        let mut desired = Desired::default();
        desired.apply(&message(true, vec![entry(1, 1), entry(2, 1)]));
        desired.apply(&message(false, vec![entry(2, 2)]));
        assert_eq!(desired.vms.len(), 2);
        assert_eq!(desired.vms[&Uuid::from_u128(2)].incarnation, 2);
    }

    #[test]
    fn what_a_complete_message_leaves_out_is_forgotten() {
        let mut desired = Desired::default();
        desired.apply(&message(true, vec![entry(1, 1)]));
        desired.apply(&message(true, vec![entry(2, 1)]));
        assert_eq!(desired.vms.keys().copied().collect::<Vec<_>>(), [Uuid::from_u128(2)]);
    }

    #[test]
    fn a_lower_incarnation_does_not_replace_a_higher_one() {
        let mut desired = Desired::default();
        desired.apply(&message(true, vec![entry(1, 5)]));
        desired.apply(&message(false, vec![entry(1, 4)]));
        assert_eq!(desired.vms[&Uuid::from_u128(1)].incarnation, 5);
    }

    #[test]
    fn a_cut_leaves_the_entries_and_takes_their_freshness() {
        let mut desired = Desired::default();
        desired.apply(&message(true, vec![entry(1, 1)]));
        desired.cut();
        assert!(!desired.vms[&Uuid::from_u128(1)].fresh && !desired.complete);
    }

    #[test]
    fn digests_and_paths_cannot_leave_their_directory() {
        assert!(Digest::parse("../../etc/passwd").is_err());
        assert!(Digest::parse(&"A".repeat(64)).is_err());
        assert!(Digest::parse(&"0a".repeat(32)).is_ok());
        for path in ["relative", "/a/../etc", ""] {
            let pool = wire::AssignedPool {
                pool_id: Uuid::from_u128(1).to_string(),
                path: path.to_owned(),
                ..Default::default()
            };
            assert!(parse_pool(&pool).is_err(), "{path}");
        }
    }

    #[test]
    fn an_entry_that_is_wrong_is_kept_with_its_fault() {
        let mut desired = Desired::default();
        let mut wrong = entry(1, 1);
        wrong.power = 0;
        let faults = desired.apply(&message(true, vec![wrong, wire::AssignedVm::default()]));
        assert_eq!(faults.len(), 1, "the one without an id");
        assert!(desired.vms[&Uuid::from_u128(1)].fault.is_some());
    }
}
