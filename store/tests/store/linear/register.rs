//! One register, and whether it could have shown what clients saw. The scenarios of the whole product judge by it too
//! (`tests/tests/scenarios/api/linear.rs`).

use todc_utils::{Action, History, Specification, WGLChecker};

/// What a client did to a register, and what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Write(u64),
    Read(Option<u64>),
    /// From one number to another.
    Swap(u64, u64),
    /// It was another number.
    Unswapped(u64),
    /// Whether it happened nobody knows.
    MaybeSwap(u64, u64),
}

pub struct Register;

impl Specification for Register {
    type State = Option<u64>;
    type Operation = Op;

    fn init() -> Option<u64> {
        None
    }

    fn apply(op: &Op, state: &Option<u64>) -> (bool, Option<u64>) {
        match op {
            Op::Write(number) => (true, Some(*number)),
            Op::Read(found) => (found == state, *state),
            Op::Swap(from, to) => (*state == Some(*from), Some(*to)),
            Op::Unswapped(from) => (*state != Some(*from), *state),
            Op::MaybeSwap(from, to) => (true, if *state == Some(*from) { Some(*to) } else { *state }),
        }
    }
}

/// When an operation began and ended, in the order of all; none has no end, as nobody knows it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub key: u64,
    pub began: u64,
    pub ended: Option<u64>,
    pub op: Op,
}

/// Whether one register could have shown all this. The checker is todc-utils' (decision 0206).
pub fn linearizable(seen: &[Seen]) -> bool {
    let mut actions: Vec<(u64, usize, Action<Op>)> = Vec::new();
    for (process, one) in seen.iter().enumerate() {
        actions.push((one.began, process, Action::Call(one.op.clone())));
        actions.push((one.ended.unwrap_or(u64::MAX), process, Action::Response(one.op.clone())));
    }
    actions.sort_by_key(|(at, ..)| *at);
    let actions: Vec<_> = actions.into_iter().map(|(_, process, action)| (process, action)).collect();
    actions.is_empty() || WGLChecker::<Register>::is_linearizable(History::from_actions(actions))
}
