//! The rules, each with one checker in one file. Some look at the whole after every event, some at what a commit changed,
//! and some are asked by the world when it does what they are about.

mod acknowledged;
mod addresses;
mod brake;
mod capacity;
mod converged;
mod deposed;
mod epochs;
mod judgement;
mod one_place;
mod orders;
mod proofs;
mod resumed;
mod starts;
mod usage;
mod volumes;

use std::fmt;

use tamdao_store::view::Record;

use crate::world::World;

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// The checker's name.
    pub rule: &'static str,
    pub what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// Those that are asked, with what they remember.
#[derive(Default)]
pub struct Checks {
    pub acknowledged: acknowledged::Acknowledged,
    pub deposed: deposed::Deposed,
    pub epochs: epochs::Epochs,
    pub orders: orders::Orders,
    pub proofs: proofs::Proofs,
    pub resumed: resumed::Resumed,
    pub starts: starts::Starts,
    pub volumes: volumes::Volumes,
}

impl World {
    /// Looks whether every rule holds, after an event.
    pub fn check(&mut self) {
        let breach = one_place::check(&self.nodes);
        self.blame(breach);
        let view = self.truth.view();
        if view.revision == self.truth.seen {
            return;
        }
        let commits = self.truth.cache.after(self.truth.seen).unwrap_or_default();
        self.truth.seen = view.revision;
        for delta in commits.iter().flat_map(|commit| commit.deltas.iter()) {
            match (&delta.before, &delta.after) {
                (None, Some(Record::Event(event))) => {
                    let (name, reason, message) =
                        (event.name.clone(), event.reason.clone(), event.message.clone());
                    self.tell(|| format!("    {name}: {reason}: {message}"));
                }
                (Some(Record::Node(before)), Some(Record::Node(after))) => {
                    let breach = judgement::check(before, after, self.now_ms, self.office)
                        .or_else(|| self.checks.proofs.noted(before, after, &self.nodes));
                    self.blame(breach);
                }
                (Some(Record::Vm(before)), Some(Record::Vm(after))) => {
                    let breach = self
                        .checks
                        .proofs
                        .evacuated(before, after, &self.nodes)
                        .or_else(|| brake::check(before, after, &view));
                    self.blame(breach);
                }
                (Some(Record::Vm(before)), None) => {
                    let breach = addresses::freed(before, &self.nodes);
                    self.blame(breach);
                }
                _ => {}
            }
        }
        let breach = capacity::check(&view)
            .or_else(|| usage::check(&view))
            .or_else(|| addresses::check(&view))
            .or_else(|| self.checks.acknowledged.check(&view));
        self.blame(breach);
    }

    /// Whether all is as it is wanted.
    pub fn is_converged(&self) -> bool {
        converged::check(self).is_none()
    }

    /// Looks whether all is as it is wanted, after all faults have healed for a while.
    pub fn check_converged(&mut self) {
        let breach = converged::check(self);
        self.blame(breach);
    }
}
