//! The phase of a VM over everything that it is derived from.

use std::fmt::Write;

use insta::assert_snapshot;
use tamdao_model::NodeId;
use tamdao_model::vm::{GuestExit, GuestState, Power, Problem, RunPolicy, Seen, phase};

use crate::updates::vm;
use crate::world::id;

#[test]
fn all_phases() {
    let states = [
        None,
        Some(GuestState::Absent),
        Some(GuestState::Preparing),
        Some(GuestState::Starting),
        Some(GuestState::Running),
        Some(GuestState::Paused),
        Some(GuestState::Stopping),
        Some(GuestState::Stopped),
    ];
    let mut out = String::new();
    let flags = [true, false];
    for deleting in flags {
        for placed in flags {
            for reachable in flags {
                for wants_on in flags {
                    let word = |flag: bool, yes: &'static str, no: &'static str| if flag { yes } else { no };
                    let (d, p) = (word(deleting, "deleting", "kept"), word(placed, "placed", "unplaced"));
                    let (r, w) = (word(reachable, "heard", "silent"), word(wants_on, "on", "off"));
                    write!(out, "{d:8} {p:8} {r:6} wants {w:3} |").unwrap();
                    for state in states {
                        let mut vm = vm();
                        vm.spec.deleting = deleting;
                        vm.spec.power = if wants_on { Power::On } else { Power::Off };
                        vm.status.node = placed.then_some(NodeId(id(1)));
                        vm.status.seen = state.map(seen);
                        let state = state.map_or("unseen".to_owned(), |s| format!("{s:?}").to_lowercase());
                        write!(out, " {state}={:?}", phase(&vm, reachable)).unwrap();
                    }
                    out.push('\n');
                }
            }
        }
    }
    assert_snapshot!(out);
}

#[test]
fn phases_of_failures_and_exits() {
    let mut out = String::new();
    for (title, permanent, exit, run) in [
        ("permanent problem", true, None, RunPolicy::OnFailure),
        ("passing problem", false, None, RunPolicy::OnFailure),
        ("shut itself down, on_failure", false, Some(GuestExit::ByItself), RunPolicy::OnFailure),
        ("shut itself down, always", false, Some(GuestExit::ByItself), RunPolicy::Always),
        ("shut itself down, stopped", false, Some(GuestExit::ByItself), RunPolicy::Stopped),
        ("crashed, on_failure", false, Some(GuestExit::Failed), RunPolicy::OnFailure),
        ("stopped on order, then wanted again", false, Some(GuestExit::OnOrder), RunPolicy::OnFailure),
    ] {
        write!(out, "{title:36} |").unwrap();
        for state in [GuestState::Absent, GuestState::Starting, GuestState::Running, GuestState::Stopped] {
            let mut vm = vm();
            vm.spec.run = run;
            vm.status.node = Some(NodeId(id(1)));
            let problem = Problem { reason: "X".into(), message: String::new(), permanent, attempts: 1 };
            vm.status.seen = Some(Seen { exit, problem: Some(problem), ..seen(state) });
            write!(out, " {state:?}={:?}", phase(&vm, true)).unwrap();
        }
        out.push('\n');
    }
    assert_snapshot!(out);
}

fn seen(state: GuestState) -> Seen {
    Seen {
        state,
        exit: None,
        problem: None,
        pause_reason: String::new(),
        vcpus: 0,
        memory_mib: 0,
        guarded: false,
    }
}
