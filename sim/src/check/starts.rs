//! The start rule: a guest begins only as an incarnation that the leader has named to this boot of the node.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Breach;
use crate::short;

#[derive(Default)]
pub struct Starts;

impl Starts {
    pub fn begins(
        &self,
        node: usize,
        vm: Uuid,
        incarnation: u64,
        ordered: &BTreeSet<(Uuid, u64)>,
    ) -> Option<Breach> {
        (!ordered.contains(&(vm, incarnation))).then(|| {
            let what = format!("n{node} starts vm {} and was not told to in this boot", short(vm));
            Breach { rule: "starts", what }
        })
    }
}
