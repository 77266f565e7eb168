//! A volume is made once, goes only when no guest has it, and is started only with all that was last written to it.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::Breach;
use crate::short;

/// What was made, on which node counts for copies that moves bring; and how often each file was written to.
#[derive(Default)]
pub struct Volumes {
    made: BTreeSet<(Uuid, u64)>,
    /// Of the newest file of each local volume.
    written: BTreeMap<Uuid, u64>,
    /// Of each node's file.
    files: BTreeMap<(usize, Uuid), u64>,
}

impl Volumes {
    pub fn made(&mut self, node: usize, volume: Uuid, copy: u64) -> Option<Breach> {
        self.files.insert((node, volume), 0);
        (!self.made.insert((volume, copy))).then(|| {
            let what = format!("n{node} makes volume {} once more", short(volume));
            Breach { rule: "volumes", what }
        })
    }

    pub fn deleted(&mut self, node: usize, volume: Uuid, user: Option<usize>) -> Option<Breach> {
        self.files.remove(&(node, volume));
        let user = user?;
        let what = format!("n{node} removes volume {}, which a guest on n{user} has", short(volume));
        Some(Breach { rule: "volumes", what })
    }

    /// A move has brought what one node has of a volume to another.
    pub fn carried(&mut self, from: usize, to: usize, volume: Uuid) {
        let written = self.files.get(&(from, volume)).copied().unwrap_or_default();
        self.files.insert((to, volume), written);
    }

    /// A guest begins to run on a node, and writes to its local volumes.
    pub fn used(&mut self, node: usize, volumes: &[Uuid]) -> Option<Breach> {
        let lacks = |volume: &&Uuid| {
            let here = self.files.get(&(node, **volume)).copied().unwrap_or_default();
            here != self.written.get(*volume).copied().unwrap_or_default()
        };
        if let Some(volume) = volumes.iter().find(lacks) {
            let what = format!("n{node} runs a guest from an older file of volume {}", short(*volume));
            return Some(Breach { rule: "volumes", what });
        }
        for volume in volumes {
            let written = self.written.entry(*volume).or_default();
            *written += 1;
            self.files.insert((node, *volume), *written);
        }
        None
    }
}
