//! Migration between fakes of one world: in no time, or broken off in one of the ways that libvirt has.

use std::sync::{Arc, PoisonError};

use super::super::migration::Migration;
use super::super::{Change, DomainState, Exit, HypervisorError, PauseReason, Result};
use super::{FakeHypervisor, Guest, find};

/// How the next migration out of a host breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Before anything has arrived.
    Early,
    /// The guest has arrived, the answer is lost, and the source goes on.
    Resumed,
    /// The guest has arrived, the answer is lost, and the source stands still.
    Stalled,
    /// All went well, but for the answer.
    Unheard,
}

impl FakeHypervisor {
    /// Makes this host the one that others reach at this URI.
    pub fn reachable_at(&self, uri: &str) {
        let mut hosts = self.world.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.insert(uri.to_owned(), Arc::clone(&self.state));
    }

    /// How the next migration out of here breaks.
    pub fn break_migration(&self, how: Break) {
        self.lock().broken = Some(how);
    }

    pub(super) fn send(&self, vm: uuid::Uuid, incarnation: u64, migration: &Migration) -> Result<()> {
        let mut state = self.reach()?;
        let guest = find(&mut state, vm, incarnation)?;
        let refused = |message: &str| HypervisorError::Refused {
            reason: "LibvirtFailed",
            message: message.to_owned(),
            permanent: false,
        };
        if guest.domain.state != DomainState::Running {
            return Err(refused("domain is not running"));
        }
        let (domain, spec, script) = (guest.domain.clone(), guest.spec.clone(), guest.script);
        let how = state.broken.take();
        let hosts = self.world.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let target = hosts.get(&migration.destination).cloned();
        drop(hosts);
        let Some(target) = target.filter(|_| how != Some(Break::Early)) else {
            return Err(refused("unable to connect to the destination"));
        };
        let mut arrived = domain;
        arrived.incarnation = migration.incarnation_to;
        arrived.state = DomainState::Paused(PauseReason::NotYetRun);
        arrived.guest_agent_connected = false;
        let arrived = Guest { domain: arrived, spec, script, button: false, console: None };
        target.lock().unwrap_or_else(PoisonError::into_inner).guests.insert(vm, arrived);
        match how {
            Some(Break::Resumed) => Err(refused("the answer was lost")),
            Some(Break::Stalled) => {
                let guest = find(&mut state, vm, incarnation)?;
                guest.domain.state = DomainState::Paused(PauseReason::Migration);
                self.change(&state, vm, Change::Paused(PauseReason::Migration));
                Err(refused("the answer was lost"))
            }
            Some(Break::Unheard) => {
                self.end(&mut state, vm, Exit::Migrated);
                Err(HypervisorError::Disconnected { message: "the fake is disconnected".to_owned() })
            }
            None | Some(Break::Early) => {
                self.end(&mut state, vm, Exit::Migrated);
                Ok(())
            }
        }
    }
}
