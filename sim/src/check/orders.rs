//! Absence is never a command: a guest is brought down only by an entry that says so.

use tamdao_node_agent::desired::{Intent, WantedVm};
use uuid::Uuid;

use super::Breach;
use crate::short;

#[derive(Default)]
pub struct Orders;

impl Orders {
    /// An agent brings a guest down, with the entry that it acts by.
    pub fn stops(&self, node: usize, vm: Uuid, entry: Option<&WantedVm>) -> Option<Breach> {
        let reason = match entry {
            Some(entry) if entry.intent == Intent::Wanted && entry.fault.is_some() => {
                "its entry is not understood"
            }
            Some(_) => return None,
            None => "no entry speaks of it",
        };
        let what = format!("n{node} brings down vm {}: {reason}", short(vm));
        Some(Breach { rule: "orders", what })
    }
}
