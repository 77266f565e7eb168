//! Fencing: what becomes of a node that is lost, and the evidence without which none of its VMs runs elsewhere.
//!
//! Invariants: a proof names one node, one boot of it and its last session, so that it says nothing of a node that has
//! come back since; it rests on a state that was observed, by a reader that could have seen the opposite. Silence is
//! believed only of a host with an armed watchdog, and Off only if it was read twice after it was asked for, of the machine
//! that the node is. Deliberately absent: who gathers evidence and when, and which VMs
//! go where.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use tamdao_seams::{Mutant, has};
use uuid::Uuid;

use crate::bmc::{self, Power, Seen, Wrong};
use crate::node::NodePhase;
use crate::vm::{GuestState, Vm};
use crate::{NodeId, PoolId, SessionId, TimeMs};

/// What happens to a node, as far as its lifecycle goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeEvent {
    /// Its agent has been silent for the session's timeout, or has said goodbye.
    Lost,
    /// Evidence is sought that it runs nothing any more.
    Sought,
    /// A fence proof is there.
    Proven,
    /// Its agent has opened a session.
    Heard,
    /// It has confirmed that nothing which runs elsewhere by now is left on it.
    Cleared,
    /// A report: libvirt works.
    Healthy,
    /// A report: it cannot run VMs.
    Unhealthy,
}

/// An event that cannot happen in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a node that is {phase:?}")]
pub struct Impossible {
    pub phase: NodePhase,
    pub event: NodeEvent,
}

/// The node's lifecycle.
///
/// # Errors
/// When the event cannot happen in this phase: whoever saw it looked at another state.
pub fn next(phase: NodePhase, event: NodeEvent) -> Result<NodePhase, Impossible> {
    use NodeEvent::{Cleared, Healthy, Heard, Lost, Proven, Sought, Unhealthy};
    use NodePhase::{Fenced, Fencing, Joining, NotReady, Ready, Returning, Unreachable};
    Ok(match (phase, event) {
        (Joining, Lost | Heard) => Joining,
        (Joining | Ready | NotReady, Healthy) => Ready,
        (Joining | Ready | NotReady, Unhealthy) => NotReady,
        (Ready, Heard) => Ready,
        (NotReady, Heard) => NotReady,
        (Ready | NotReady | Unreachable, Lost) => Unreachable,
        // It opened a session; its first report will say how it is.
        (Unreachable | Fencing, Heard) => Unreachable,
        (Unreachable, Healthy) => Ready,
        (Unreachable, Unhealthy) => NotReady,
        (Unreachable | Fencing, Sought) => Fencing,
        (Fencing, Lost) => Fencing,
        (Unreachable | Fencing | Fenced, Proven) => Fenced,
        // For what the first proof does not cover, more are sought.
        (Fenced, Lost | Sought) => Fenced,
        (Fenced | Returning, Heard) => Returning,
        // Nothing was given to it since it came back, so its proofs still hold.
        (Returning, Lost) => Fenced,
        (Returning, Cleared) => NotReady,
        (Joining | Ready | NotReady | Returning, Sought | Proven)
        | (Joining | Ready | NotReady | Unreachable | Fencing | Fenced, Cleared)
        | (Fencing | Fenced | Returning, Healthy | Unhealthy) => return Err(Impossible { phase, event }),
    })
}

/// An agent's word that nothing runs and no storage lease is held, with which its session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    pub session: SessionId,
    pub time: TimeMs,
}

/// What is proven of a node that was lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    pub proofs: Vec<FenceProof>,
    /// What was taken off it since: VMs that were restarted elsewhere, and deletions that went on without it. Grows with each batch, which so guards the node's record.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub evacuated: u64,
}

/// Evidence that one boot of a node runs none of the VMs that it covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceProof {
    pub node: NodeId,
    pub boot_id: String,
    /// The node's last session. A node that has opened another one since is not what was observed.
    pub session: Option<SessionId>,
    pub evidence: Evidence,
    /// A node's name, an operator's, or the controller.
    pub observed_by: String,
    pub time: TimeMs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Read twice from the node's own BMC after it was decided to fence.
    PowerOff { bmc: String, system_uuid: String },
    /// The node did not renew its storage lease for longer than that lasts, under an armed watchdog.
    StorageSilence { pool: PoolId, silence: Silence },
    /// The node said itself that nothing runs.
    Goodbye,
    /// A person answers for it.
    Attestation { reason: String },
}

impl Evidence {
    /// One word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::PowerOff { .. } => "PowerOff",
            Self::StorageSilence { .. } => "StorageSilence",
            Self::Goodbye => "Goodbye",
            Self::Attestation { .. } => "Attestation",
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff { bmc, system_uuid } => {
                write!(f, "its BMC {bmc} (system {system_uuid}) said Off twice")
            }
            Self::StorageSilence { pool, silence } => write!(
                f,
                "its lease of {} ms on pool {pool} stood at counter {} for {} ms, with a watchdog of {} ms armed",
                silence.lease_ms, silence.counter, silence.apart_ms, silence.watchdog_timeout_ms
            ),
            Self::Goodbye => {
                f.write_str("its agent ended as planned, with nothing running and no storage lease held")
            }
            Self::Attestation { reason } if reason.is_empty() => f.write_str("an operator answers for it"),
            Self::Attestation { reason } => write!(f, "an operator answers for it: {reason}"),
        }
    }
}

impl Fence {
    /// The proof that a VM does not run on this node any more; `pools` are the shared ones that its disks lie on.
    ///
    /// A silent storage lease speaks only of guests that the keeper kills with it: those on that pool which it has, or
    /// which never began. The other proofs speak of the whole host.
    pub fn covers(&self, vm: &Vm, pools: &BTreeSet<PoolId>) -> Option<&FenceProof> {
        self.proofs.iter().find(|proof| match &proof.evidence {
            Evidence::PowerOff { .. } | Evidence::Goodbye | Evidence::Attestation { .. } => true,
            Evidence::StorageSilence { pool, .. } => pools.contains(pool) && is_guarded(vm),
        })
    }
}

/// Whether a VM that its node runs is guarded there. What has not been reported is: it is registered before it runs.
pub fn is_guarded(vm: &Vm) -> bool {
    vm.status.seen.as_ref().is_none_or(|seen| {
        seen.guarded || !matches!(seen.state, GuestState::Running | GuestState::Paused | GuestState::Stopping)
    })
}

/// One look at a node's lease record. Times are ms of the reader's own clock since its boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub reader: NodeId,
    /// The reader's, which also tells its boot.
    pub session: SessionId,
    pub began_ms: u64,
    pub ended_ms: u64,
    /// When the last good renewal of the reader's own lease on the pool was sent, as known when the read began.
    pub own_renewed_ms: Option<u64>,
    pub record: RecordSeen,
}

/// A lease record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSeen {
    pub boot_id: String,
    pub counter: u64,
    pub lease_ms: u64,
    /// Of an armed watchdog.
    pub watchdog_timeout_ms: Option<u64>,
    pub released: bool,
}

/// One look at a host's power. Times are ms of the looking controller's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    pub began_ms: u64,
    pub ended_ms: u64,
    pub seen: Seen,
}

/// How far apart two looks at a host's power have to be, ms: what a BMC says from memory it has looked up anew by then.
pub const LOOKS_APART_MS: u64 = 2_000;

/// Why two looks at a host's power prove nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PowerDoubt {
    #[error("{}", .0.message)]
    Machine(Wrong),
    #[error("says that the power is not off")]
    NotOff,
    #[error("was looked at before it was asked to power off")]
    TooEarly,
    #[error("was looked at twice within too short a time")]
    TooClose,
}

/// Whether two looks at the power of a host show that it went off after `asked_ms`, when that was asked for.
///
/// # Errors
/// The doubt that is left.
pub fn power_off(host: Uuid, asked_ms: u64, first: &Look, second: &Look) -> Result<(), PowerDoubt> {
    for look in [first, second] {
        bmc::check_machine(host, look.seen.system_uuid).map_err(PowerDoubt::Machine)?;
        if look.seen.power != Power::Off {
            return Err(PowerDoubt::NotOff);
        }
        if look.began_ms < asked_ms {
            return Err(PowerDoubt::TooEarly);
        }
    }
    if second.began_ms < first.ended_ms.saturating_add(LOOKS_APART_MS) {
        return Err(PowerDoubt::TooClose);
    }
    Ok(())
}

/// How long a lease record of this length has to stand still before its holder is not seen alive, ms: a living keeper
/// renews it after each sixth of the lease.
pub fn not_alive_after_ms(lease_ms: u64) -> u64 {
    (lease_ms / 6).saturating_add(2_000)
}

/// What two readings have shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    pub counter: u64,
    pub lease_ms: u64,
    pub watchdog_timeout_ms: u64,
    /// From the end of the first reading to the beginning of the second, by the reader's clock.
    pub apart_ms: u64,
}

/// Why two readings prove nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("it is renewed")]
    Alive,
    #[error("no watchdog is armed, so silence proves nothing")]
    NotArmed,
    #[error("its watchdog fires too late for its lease")]
    WatchdogTooSlow,
    #[error("it was given back, so it says nothing")]
    Released,
    #[error("it is of another boot than the one that was lost")]
    OtherBoot,
    #[error("the readings are too close to each other")]
    TooClose,
    #[error("the reader did not renew its own lease in between, so it may not have seen the storage itself")]
    ReaderBlind,
    #[error("the readings are not of one reader")]
    ReaderChanged,
}

/// How far apart two readings of a lease of this length have to be, ms: 1.02 times the lease, for clocks that drift, and
/// two seconds.
pub fn apart_ms(lease_ms: u64) -> u64 {
    lease_ms.saturating_mul(102).div_ceil(100).saturating_add(2_000)
}

/// What two readings of the record of one boot of a node prove.
///
/// # Errors
/// The doubt that is left.
pub fn silence(boot_id: &str, first: &Reading, second: &Reading) -> Result<Silence, Doubt> {
    let (before, after) = (&first.record, &second.record);
    if (first.reader, first.session) != (second.reader, second.session) {
        return Err(Doubt::ReaderChanged);
    }
    if before.boot_id != boot_id || after.boot_id != boot_id {
        return Err(Doubt::OtherBoot);
    }
    if before.released || after.released {
        return Err(Doubt::Released);
    }
    if before != after {
        return Err(Doubt::Alive);
    }
    let believed = has(Mutant::SilenceWithoutWatchdog).then_some(0);
    let watchdog_timeout_ms = after.watchdog_timeout_ms.or(believed).ok_or(Doubt::NotArmed)?;
    // At 5/6 of its lease a keeper stops feeding what must then fire within the last sixth.
    if watchdog_timeout_ms > after.lease_ms / 6 {
        return Err(Doubt::WatchdogTooSlow);
    }
    let apart = second.began_ms.saturating_sub(first.ended_ms);
    if apart < apart_ms(after.lease_ms) {
        return Err(Doubt::TooClose);
    }
    let saw = |sent: u64| sent > first.ended_ms && sent < second.began_ms;
    if !second.own_renewed_ms.is_some_and(saw) {
        return Err(Doubt::ReaderBlind);
    }
    Ok(Silence { counter: after.counter, lease_ms: after.lease_ms, watchdog_timeout_ms, apart_ms: apart })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [NodePhase; 7] = [
        NodePhase::Joining,
        NodePhase::Ready,
        NodePhase::Unreachable,
        NodePhase::NotReady,
        NodePhase::Fencing,
        NodePhase::Fenced,
        NodePhase::Returning,
    ];
    const EVENTS: [NodeEvent; 7] = [
        NodeEvent::Lost,
        NodeEvent::Sought,
        NodeEvent::Proven,
        NodeEvent::Heard,
        NodeEvent::Cleared,
        NodeEvent::Healthy,
        NodeEvent::Unhealthy,
    ];

    #[test]
    fn only_a_proof_fences_and_only_a_cleared_node_comes_back() {
        for (phase, event) in PHASES.into_iter().flat_map(|phase| EVENTS.map(|event| (phase, event))) {
            let Ok(after) = next(phase, event) else { continue };
            if after == NodePhase::Fenced && phase != NodePhase::Fenced {
                let again = (phase, event) == (NodePhase::Returning, NodeEvent::Lost);
                assert!(event == NodeEvent::Proven || again, "{phase:?} {event:?}");
            }
            if matches!(phase, NodePhase::Fenced | NodePhase::Returning) {
                let stays = matches!(after, NodePhase::Fenced | NodePhase::Returning);
                assert!(stays || event == NodeEvent::Cleared, "{phase:?} {event:?} gives {after:?}");
            }
            if matches!(after, NodePhase::Ready) {
                assert!(matches!(event, NodeEvent::Healthy) || phase == after, "{phase:?} {event:?}");
            }
        }
    }

    #[test]
    fn a_hello_calls_the_search_for_evidence_off() {
        assert_eq!(next(NodePhase::Fencing, NodeEvent::Heard), Ok(NodePhase::Unreachable));
        assert!(next(NodePhase::Ready, NodeEvent::Proven).is_err());
        assert!(next(NodePhase::Returning, NodeEvent::Healthy).is_err());
    }

    const HOST: Uuid = Uuid::from_u128(0xA);

    fn look(began_ms: u64) -> Look {
        Look { began_ms, ended_ms: began_ms + 5, seen: Seen { system_uuid: HOST, power: Power::Off } }
    }

    #[test]
    fn off_read_twice_after_it_was_asked_for_proves_and_nothing_less_does() {
        assert_eq!(power_off(HOST, 100, &look(100), &look(2_105)), Ok(()));
        assert_eq!(power_off(HOST, 101, &look(100), &look(2_105)), Err(PowerDoubt::TooEarly));
        assert_eq!(power_off(HOST, 100, &look(100), &look(2_104)), Err(PowerDoubt::TooClose));
        assert_eq!(power_off(HOST, 100, &look(100), &look(100)), Err(PowerDoubt::TooClose));
        for (power, at) in [(Power::On, 0), (Power::On, 1), (Power::Between, 0), (Power::Between, 1)] {
            let mut looks = [look(100), look(9_000)];
            looks[at].seen.power = power;
            assert_eq!(power_off(HOST, 100, &looks[0], &looks[1]), Err(PowerDoubt::NotOff));
        }
        for at in 0..2 {
            let mut looks = [look(100), look(9_000)];
            looks[at].seen.system_uuid = Uuid::from_u128(0xB);
            assert!(matches!(power_off(HOST, 100, &looks[0], &looks[1]), Err(PowerDoubt::Machine(_))));
        }
    }

    fn reading(began_ms: u64, own: u64) -> Reading {
        Reading {
            reader: NodeId(Uuid::from_u128(1)),
            session: SessionId(Uuid::from_u128(2)),
            began_ms,
            ended_ms: began_ms + 10,
            own_renewed_ms: Some(own),
            record: RecordSeen {
                boot_id: "b1".into(),
                counter: 7,
                lease_ms: 60_000,
                watchdog_timeout_ms: Some(10_000),
                released: false,
            },
        }
    }

    fn doubt(change: impl FnOnce(&mut Reading, &mut Reading)) -> Result<Silence, Doubt> {
        let (mut first, mut second) = (reading(1_000, 990), reading(64_210, 60_000));
        change(&mut first, &mut second);
        silence("b1", &first, &second)
    }

    #[test]
    fn silence_is_believed_only_without_any_doubt() {
        assert_eq!(doubt(|_, _| {}).map(|silence| silence.apart_ms), Ok(63_200));
        assert_eq!(doubt(|_, second| second.began_ms -= 1), Err(Doubt::TooClose));
        assert_eq!(doubt(|first, _| first.ended_ms += 1), Err(Doubt::TooClose));
        assert_eq!(doubt(|_, second| second.record.counter += 1), Err(Doubt::Alive));
        let unarmed = |first: &mut Reading, second: &mut Reading| {
            first.record.watchdog_timeout_ms = None;
            second.record.watchdog_timeout_ms = None;
        };
        assert_eq!(doubt(unarmed), Err(Doubt::NotArmed));
        let slow = |first: &mut Reading, second: &mut Reading| {
            first.record.watchdog_timeout_ms = Some(10_001);
            second.record.watchdog_timeout_ms = Some(10_001);
        };
        assert_eq!(doubt(slow), Err(Doubt::WatchdogTooSlow));
        assert_eq!(doubt(|_, second| second.record.released = true), Err(Doubt::Released));
        assert_eq!(doubt(|_, second| second.record.boot_id = "b2".into()), Err(Doubt::OtherBoot));
        assert_eq!(doubt(|_, second| second.own_renewed_ms = None), Err(Doubt::ReaderBlind));
        assert_eq!(doubt(|_, second| second.own_renewed_ms = Some(1_010)), Err(Doubt::ReaderBlind));
        assert_eq!(doubt(|_, second| second.own_renewed_ms = Some(64_210)), Err(Doubt::ReaderBlind));
        let other = SessionId(Uuid::from_u128(9));
        assert_eq!(doubt(|_, second| second.session = other), Err(Doubt::ReaderChanged));
        assert_eq!(silence("b0", &reading(1_000, 990), &reading(64_210, 60_000)), Err(Doubt::OtherBoot));
        // A reader whose clock jumped back proves nothing.
        assert_eq!(doubt(|_, second| second.began_ms = 0), Err(Doubt::TooClose));
    }
}
