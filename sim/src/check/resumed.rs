//! A source that a broken move left standing goes on only when the target has nothing of the guest.

use uuid::Uuid;

use super::Breach;
use crate::short;

#[derive(Default)]
pub struct Resumed;

impl Resumed {
    /// A guest goes on after a move; `elsewhere` is a node that has a domain of it.
    pub fn goes_on(&self, node: usize, vm: Uuid, elsewhere: Option<usize>) -> Option<Breach> {
        let other = elsewhere?;
        let what = format!("vm {} goes on at n{node}, and n{other} has it too", short(vm));
        Some(Breach { rule: "resumed", what })
    }
}
