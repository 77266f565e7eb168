//! What many nodes have in common. Nodes of one cluster differ in few ways once amounts, labels and failure domains
//! are set aside, so the rules about the rest are asked once per set of traits and not once per node. A set lives
//! as long as a node has it. Deliberately absent: amounts, which differ from node to node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, Vector};
use tamdao_model::PoolId;

use crate::shape::NodeShape;

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Traits {
    pub(crate) ready: bool,
    pub(crate) cordoned: bool,
    pub(crate) emulation: bool,
    pub(crate) tpm: bool,
    pub(crate) platforms: BTreeSet<Arc<str>>,
    pub(crate) bridges: BTreeSet<String>,
    pub(crate) firmware: BTreeSet<String>,
    /// Pools that the node should hold, with whether they are ready.
    pub(crate) pools: BTreeMap<PoolId, bool>,
}

impl Traits {
    pub(crate) fn of(node: &NodeShape) -> Self {
        Self {
            ready: node.ready,
            cordoned: node.cordoned,
            emulation: node.emulation,
            tpm: node.tpm,
            platforms: node.platforms.clone(),
            bridges: node.bridges.clone(),
            firmware: node.firmware.clone(),
            pools: node.pools.iter().map(|(id, pool)| (*id, pool.ready)).collect(),
        }
    }
}

/// Sets of traits under small numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct TraitsTable {
    held: Vector<Option<(Arc<Traits>, u32)>>,
    numbers: OrdMap<Arc<Traits>, u32>,
    vacant: Vector<u32>,
}

impl TraitsTable {
    /// The number of this set, held once more.
    pub(crate) fn hold(&mut self, traits: Traits) -> u32 {
        let traits = Arc::new(traits);
        if let Some(number) = self.numbers.get(&traits).copied() {
            if let Some(Some((_, count))) = self.held.get_mut(number as usize) {
                *count += 1;
            }
            return number;
        }
        let number = match self.vacant.pop_back() {
            Some(number) => {
                self.held.set(number as usize, Some((traits.clone(), 1)));
                number
            }
            None => {
                self.held.push_back(Some((traits.clone(), 1)));
                u32::try_from(self.held.len() - 1).expect("there are no more sets than nodes")
            }
        };
        self.numbers.insert(traits, number);
        number
    }

    pub(crate) fn release(&mut self, number: u32) {
        let Some(held) = self.held.get_mut(number as usize) else { return };
        let Some((traits, count)) = held else { return };
        *count -= 1;
        if *count == 0 {
            self.numbers.remove(&*traits);
            *held = None;
            self.vacant.push_back(number);
        }
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Traits> {
        Some(&*self.held.get(number as usize)?.as_ref()?.0)
    }

    /// One more than the largest number in use.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}
