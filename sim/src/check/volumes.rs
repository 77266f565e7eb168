//! A volume is made once, and goes only when no guest has it.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Breach;
use crate::short;

/// What was made: on which node counts for copies that moves bring.
#[derive(Default)]
pub struct Volumes(BTreeSet<(Uuid, u64)>);

impl Volumes {
    pub fn made(&mut self, node: usize, volume: Uuid, copy: u64) -> Option<Breach> {
        (!self.0.insert((volume, copy))).then(|| {
            let what = format!("n{node} makes volume {} once more", short(volume));
            Breach { rule: "volumes", what }
        })
    }

    pub fn deleted(&self, node: usize, volume: Uuid, user: Option<usize>) -> Option<Breach> {
        let user = user?;
        let what = format!("n{node} removes volume {}, which a guest on n{user} has", short(volume));
        Some(Breach { rule: "volumes", what })
    }
}
