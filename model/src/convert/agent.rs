//! Between the agents' protocol and the model, both ways. A report is believed in what it says of states, but its
//! texts may come from a guest, so they are cut to size and freed of control characters before they are stored
//! and shown on terminals. A report that names no id or no state is refused as a whole.

use std::net::IpAddr;
use std::str::FromStr;

use tamdao_proto::{agent, v1};
use uuid::Uuid;

use super::{Twin, metadata};
use crate::fence::{FenceProof, Reading, RecordSeen};
use crate::node::{Inventory, LeaseSeen, NumaCell, PoolSeen};
use crate::vm::{Action, Guest, Platform, Problem, Seen};
use crate::{ActionId, MoveId, NodeId, PoolId, SessionId, TimeMs, VmId, VolumeId, limits};

/// Why a report cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    #[error("{field} is not a UUID")]
    Id { field: &'static str },
    #[error("{field} has the unknown number {number}")]
    Number { field: &'static str, number: i32 },
}

/// One VM as its node reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSeen {
    pub vm: VmId,
    pub incarnation: u64,
    pub generation: u64,
    pub seen: Seen,
    pub guest: Guest,
    pub platform: Option<Platform>,
    pub action_done: Option<ActionId>,
    pub started_time: Option<TimeMs>,
    pub restarts: u32,
    /// No entry of the assignment names it.
    pub unknown: bool,
    /// No domain and no process is left.
    pub gone: bool,
    /// What this end says of the VM's move.
    pub moving: Option<MoveSeen>,
    /// Addresses that the packet filter lets it use; of what is unknown only.
    pub addresses: Vec<IpAddr>,
}

/// What one end says of a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveSeen {
    pub id: MoveId,
    pub state: MoveState,
    pub problem: Option<Problem>,
}

/// How far one end of a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveState {
    Preparing,
    Ready,
    Runs,
    Sending,
    Kept,
    Gone,
}

/// What a volume's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    Making,
    Made,
    Missing,
    Failed,
    Deleted,
}

/// One volume's file as its node reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSeen {
    pub volume: VolumeId,
    pub state: FileState,
    pub size_mib: u32,
    pub used_mib: u64,
    pub problem: Option<Problem>,
}

pub fn read_vm(report: &agent::v1::VmReport) -> Result<VmSeen, ReportError> {
    let exit = match report.exit {
        0 => None,
        number => Some(twin("exit", number)?),
    };
    let seen = Seen {
        state: twin("state", report.state)?,
        exit,
        problem: report.problem.as_ref().map(read_problem),
        pause_reason: clean(&report.pause_reason),
        vcpus: report.vcpus,
        memory_mib: report.memory_mib,
        guarded: report.guarded,
    };
    let action_done = match report.action_id.as_str() {
        "" => None,
        text => Some(id("action_id", text)?),
    };
    Ok(VmSeen {
        vm: id("vm_id", &report.vm_id)?,
        incarnation: report.incarnation,
        generation: report.generation,
        seen,
        guest: report.guest.as_ref().map(read_guest).unwrap_or_default(),
        platform: report.platform.as_ref().map(read_platform),
        action_done,
        started_time: report.started_time.as_ref().map(metadata::time_ms),
        restarts: report.restarts,
        unknown: report.unknown,
        gone: report.gone,
        moving: report.r#move.as_ref().map(read_move).transpose()?,
        addresses: report
            .addresses
            .iter()
            .take(limits::GUEST_ADDRESSES)
            .filter_map(|text| text.parse().ok())
            .collect(),
    })
}

fn read_move(report: &agent::v1::MoveReport) -> Result<MoveSeen, ReportError> {
    use agent::v1::MoveState as Said;
    let unknown = ReportError::Number { field: "move.state", number: report.state };
    let state = match Said::try_from(report.state).map_err(|_| unknown.clone())? {
        Said::Unspecified => return Err(unknown),
        Said::Preparing => MoveState::Preparing,
        Said::Ready => MoveState::Ready,
        Said::Runs => MoveState::Runs,
        Said::Sending => MoveState::Sending,
        Said::Kept => MoveState::Kept,
        Said::Gone => MoveState::Gone,
    };
    let problem = report.problem.as_ref().map(read_problem);
    Ok(MoveSeen { id: id("move.move_id", &report.move_id)?, state, problem })
}

pub fn read_volume(report: &agent::v1::VolumeReport) -> Result<VolumeSeen, ReportError> {
    use agent::v1::VolumeState;
    let unknown = ReportError::Number { field: "state", number: report.state };
    let state = match VolumeState::try_from(report.state).map_err(|_| unknown.clone())? {
        VolumeState::Unspecified => return Err(unknown),
        VolumeState::Making => FileState::Making,
        VolumeState::Made => FileState::Made,
        VolumeState::Missing => FileState::Missing,
        VolumeState::Failed => FileState::Failed,
        VolumeState::Deleted => FileState::Deleted,
    };
    Ok(VolumeSeen {
        volume: id("volume_id", &report.volume_id)?,
        state,
        size_mib: report.size_mib,
        used_mib: report.used_mib,
        problem: report.problem.as_ref().map(read_problem),
    })
}

pub fn read_pool(report: &agent::v1::PoolReport) -> Result<(PoolId, PoolSeen), ReportError> {
    let seen = PoolSeen {
        ready: report.ready,
        capacity_mib: report.capacity_mib,
        used_mib: report.used_mib,
        message: clean(&report.message),
        lease: report.lease.as_ref().map(read_lease),
        lost_time: None,
    };
    Ok((id("pool_id", &report.pool_id)?, seen))
}

fn read_lease(lease: &agent::v1::LeaseReport) -> LeaseSeen {
    let watchdog_timeout_ms = Some(lease.watchdog_timeout_ms).filter(|ms| *ms > 0);
    LeaseSeen { lease_ms: lease.lease_ms, watchdog_timeout_ms }
}

/// A look at another node's lease record: the pool, the node that it is about, and the reading, or why there is none.
pub fn read_reading(
    reader: NodeId,
    session: SessionId,
    told: &agent::v1::LeaseReading,
) -> Result<(PoolId, NodeId, Result<Reading, String>), ReportError> {
    let record = told.record.as_ref().map(|record| RecordSeen {
        boot_id: clean(&record.boot_id),
        counter: record.counter,
        lease_ms: record.lease_ms,
        watchdog_timeout_ms: Some(record.watchdog_timeout_ms).filter(|ms| *ms > 0),
        released: record.released,
    });
    let reading = record.map(|record| Reading {
        reader,
        session,
        began_ms: told.began_ms,
        ended_ms: told.ended_ms,
        own_renewed_ms: Some(told.own_renewed_ms).filter(|ms| *ms > 0),
        record,
    });
    let reading = reading.ok_or_else(|| clean(&told.error));
    Ok((id("pool_id", &told.pool_id)?, id("node_id", &told.node_id)?, reading))
}

pub fn show_proof(proof: &FenceProof) -> v1::FenceProof {
    v1::FenceProof {
        kind: proof.evidence.word().into(),
        node_id: proof.node.to_string(),
        boot_id: proof.boot_id.clone(),
        evidence: proof.evidence.to_string(),
        observed_by: proof.observed_by.clone(),
        observed_time: metadata::timestamp(proof.time),
    }
}

pub fn read_problem(problem: &agent::v1::Problem) -> Problem {
    Problem {
        reason: clean(&problem.reason),
        message: clean(&problem.message),
        permanent: problem.permanent,
        attempts: problem.attempts,
    }
}

pub fn show_problem(problem: &Problem) -> agent::v1::Problem {
    agent::v1::Problem {
        reason: problem.reason.clone(),
        message: problem.message.clone(),
        permanent: problem.permanent,
        attempts: problem.attempts,
    }
}

pub fn read_action(action: &agent::v1::Action) -> Result<Action, ReportError> {
    Ok(Action {
        id: id("action.id", &action.id)?,
        kind: twin("action.kind", action.kind)?,
        deadline_s: action.deadline_s,
    })
}

pub fn show_action(action: &Action) -> agent::v1::Action {
    agent::v1::Action { id: action.id.to_string(), kind: action.kind.number(), deadline_s: action.deadline_s }
}

pub fn read_platform(platform: &v1::Platform) -> Platform {
    Platform { machine_type: clean(&platform.machine_type), cpu_model: clean(&platform.cpu_model) }
}

pub fn show_platform(platform: &Platform) -> v1::Platform {
    v1::Platform { machine_type: platform.machine_type.clone(), cpu_model: platform.cpu_model.clone() }
}

pub fn read_guest(guest: &v1::GuestStatus) -> Guest {
    let addresses = guest.addresses.iter().take(limits::GUEST_ADDRESSES);
    Guest {
        ready: guest.ready,
        hostname: clean(&guest.hostname),
        addresses: addresses.map(|text| clean(text)).collect(),
    }
}

pub fn show_guest(guest: &Guest) -> v1::GuestStatus {
    let Guest { ready, hostname, addresses } = guest.clone();
    v1::GuestStatus { ready, hostname, addresses }
}

pub fn read_inventory(inventory: &v1::Inventory) -> Inventory {
    let texts = |list: &[String]| list.iter().map(|text| clean(text)).collect();
    let cells = inventory.numa_cells.iter();
    Inventory {
        hostname: clean(&inventory.hostname),
        agent_version: clean(&inventory.agent_version),
        libvirt_version: clean(&inventory.libvirt_version),
        qemu_version: clean(&inventory.qemu_version),
        acceleration: clean(&inventory.acceleration),
        cpu_model: clean(&inventory.cpu_model),
        cpu_features: texts(&inventory.cpu_features),
        cpus: inventory.cpus,
        memory_mib: inventory.memory_mib,
        numa_cells: cells
            .map(|cell| NumaCell { id: cell.id, cpus: cell.cpus.clone(), memory_mib: cell.memory_mib })
            .collect(),
        bridges: texts(&inventory.bridges),
        clock_offset_ms: inventory.clock_offset_ms,
        machine_types: texts(&inventory.machine_types),
        firmware: texts(&inventory.firmware),
        tpm: inventory.tpm,
        cpu_models: texts(&inventory.cpu_models),
    }
}

pub fn show_inventory(inventory: &Inventory) -> v1::Inventory {
    let inventory = inventory.clone();
    let cells = inventory.numa_cells.into_iter();
    v1::Inventory {
        hostname: inventory.hostname,
        agent_version: inventory.agent_version,
        libvirt_version: inventory.libvirt_version,
        qemu_version: inventory.qemu_version,
        acceleration: inventory.acceleration,
        cpu_model: inventory.cpu_model,
        cpu_features: inventory.cpu_features,
        cpus: inventory.cpus,
        memory_mib: inventory.memory_mib,
        numa_cells: cells
            .map(|cell| v1::NumaCell { id: cell.id, cpus: cell.cpus, memory_mib: cell.memory_mib })
            .collect(),
        bridges: inventory.bridges,
        clock_offset_ms: inventory.clock_offset_ms,
        machine_types: inventory.machine_types,
        firmware: inventory.firmware,
        tpm: inventory.tpm,
        cpu_models: inventory.cpu_models,
    }
}

fn id<I: From<Uuid>>(field: &'static str, text: &str) -> Result<I, ReportError> {
    Uuid::from_str(text).map(I::from).map_err(|_| ReportError::Id { field })
}

fn twin<T: Twin>(field: &'static str, number: i32) -> Result<T, ReportError> {
    T::from_number(number).ok_or(ReportError::Number { field, number })
}

/// A text that can be stored and printed.
fn clean(text: &str) -> String {
    text.chars().take(limits::REPORT_TEXT_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
