//! Decisions of the placer computed again, from the records of the revision that they were decided from and the
//! events that they left (docs/decisions/0132).
//!
//! Its invariant: equal input gives an equal decision, so what differs is an input that is not what it was, a decision
//! that left no event, or a fault. VMs that were refused change nothing for those after them, so only what was placed
//! must be known of a pass. Deliberately absent: history beyond what the cache keeps.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tamdao_model::VmId;
use tamdao_model::event::{Decision, Event};
use tamdao_model::vm::Vm;
use tamdao_scheduler::survive::guarantee::{Guarantee, Refusal as Unfit};
use tamdao_scheduler::{Placement, VmShape};
use tamdao_store::cache::{Cache, Commit};
use tamdao_store::kv::Revision;
use tamdao_store::view::{Row, View};

use super::hold::Hold;
use super::turn;
use crate::decide::waiting;
use crate::engine::{self, Engine, past};

/// The reasons of events that tell of a place; all others of the placer tell why there is none.
const PLACES: [&str; 2] = ["Placed", "PlaceOvertaken"];

/// A decision and what it is when computed again.
#[derive(Debug, Clone)]
pub struct Replayed {
    pub event: Row<Event>,
    /// What is decided now from the same records, in words; empty if it could not be computed.
    pub again: String,
    /// What differs; empty if nothing does.
    pub differs: String,
}

/// Commits that the cache keeps, with the view after each.
struct Past {
    /// Before the first commit.
    base: View,
    commits: Vec<Commit>,
    views: Vec<View>,
}

/// What tells whether a VM asked for the same, of the same engine.
pub fn digest(shape: &VmShape) -> String {
    let asked = format!("{} {shape:?}", env!("CARGO_PKG_VERSION"));
    hex::encode(&Sha256::digest(asked)[..8])
}

/// Computes again all decisions of the view's events that are wanted, in the order in which they were decided.
pub fn replay(cache: &Cache, view: &View, wanted: impl Fn(&Row<Event>) -> bool) -> Vec<Replayed> {
    let passes = passes(view, &wanted);
    let starts = passes.keys().map(|(start, _)| Revision(*start)).filter(|start| cache.after(*start).is_ok());
    let past = starts.min().and_then(|start| {
        let commits = past::commits(cache, start, view.revision)?;
        Some(Past::new(view, commits))
    });
    all(past.as_ref(), &passes, &wanted)
}

/// The decisions by passes of which some is wanted: by what their plans go back to and what they looked at.
fn passes(view: &View, wanted: impl Fn(&Row<Event>) -> bool) -> BTreeMap<(u64, u64), Vec<Row<Event>>> {
    let mut passes: BTreeMap<(u64, u64), Vec<Row<Event>>> = BTreeMap::new();
    for event in view.events.iter() {
        if let Some(decision) = &event.decision {
            passes.entry((start(decision), decision.revision)).or_default().push(event.clone());
        }
    }
    passes.retain(|_, events| events.iter().any(&wanted));
    passes
}

fn start(decision: &Decision) -> u64 {
    if decision.planned == 0 { decision.revision } else { decision.planned }
}

fn all(
    past: Option<&Past>,
    passes: &BTreeMap<(u64, u64), Vec<Row<Event>>>,
    wanted: impl Fn(&Row<Event>) -> bool,
) -> Vec<Replayed> {
    let mut replayed = Vec::new();
    let mut engine: Option<(u64, Engine)> = None;
    for ((start, revision), events) in passes {
        let guarded = events.iter().any(|event| event.decision.as_ref().is_some_and(|d| d.planned > 0));
        // Without plans the picture alone counts, whatever it was followed from.
        let key = if guarded { *start } else { 0 };
        let at = past.and_then(|past| {
            engine = engine.take().filter(|(of, engine)| *of == key && engine.at.0 <= *revision);
            if engine.is_none() {
                let mut drawn = Engine::draw(past.at(*start)?);
                drawn.at = Revision(*start);
                if guarded {
                    drawn.plan();
                }
                engine = Some((key, drawn));
            }
            let (_, engine) = engine.as_mut()?;
            past.carry(engine, Revision(*revision));
            Some((&*engine, past.at(*revision)?))
        });
        let again = match at {
            Some((engine, view)) => pass(engine, view, events),
            None => {
                let lost = format!("the history since revision {start} is no longer kept");
                let lost = |event: &Row<Event>| {
                    let (event, again) = (event.clone(), String::new());
                    Replayed { event, again, differs: lost.clone() }
                };
                events.iter().map(lost).collect()
            }
        };
        replayed.extend(again.into_iter().filter(|one| wanted(&one.event)));
    }
    replayed
}

impl Past {
    fn new(end: &View, commits: Vec<Commit>) -> Self {
        let views = past::views(end, &commits);
        let base = match (views.first(), commits.first()) {
            (Some(view), Some(commit)) => past::before(view, commit),
            _ => end.clone(),
        };
        Self { base, commits, views }
    }

    /// How many of the commits are in a revision.
    fn count(&self, revision: u64) -> usize {
        self.commits.partition_point(|commit| commit.revision.0 <= revision)
    }

    fn at(&self, revision: u64) -> Option<&View> {
        let first = self.commits.first().map_or(self.base.revision.0, |commit| commit.revision.0 - 1);
        match self.count(revision) {
            0 => (revision >= first || self.commits.is_empty()).then_some(&self.base),
            count => self.views.get(count - 1),
        }
    }

    /// Lets an engine follow to a revision, one commit after the other.
    fn carry(&self, engine: &mut Engine, to: Revision) {
        for at in self.count(engine.at.0)..self.count(to.0) {
            engine.follow(&self.commits[at..=at], &self.views[at]);
        }
        engine.at = to;
    }
}

/// A VM with what it asked for.
type Asked<'a> = (&'a Vm, Arc<VmShape>);

/// One pass, from the engine and the view that it was decided from.
fn pass(engine: &Engine, view: &View, events: &[Row<Event>]) -> Vec<Replayed> {
    let id = |event: &Event| VmId(event.subject);
    let mut asked: Vec<(&Row<Event>, Option<Asked>)> = events
        .iter()
        .map(|event| {
            let vm = view.vms.get(id(event)).map(|row| &*row.value);
            (event, vm.and_then(|vm| Some((vm, Arc::new(engine::shape(view, vm).ok()?)))))
        })
        .collect();
    asked.sort_by_key(|(event, _)| turn(view, id(event)));
    let mut fork = engine.guarantee.clone();
    let kept = events.iter().find_map(|event| event.decision.as_ref()?.kept.clone());
    if let Some(kept) = kept {
        let mut shapes: Vec<Arc<VmShape>> =
            asked.iter().filter_map(|(_, vm)| Some(vm.as_ref()?.1.clone())).collect();
        Hold::from(kept).keep(&mut fork, view, &mut shapes);
        let mut shapes = shapes.into_iter();
        asked
            .iter_mut()
            .filter_map(|(_, vm)| vm.as_mut())
            .zip(&mut shapes)
            .for_each(|(vm, shape)| vm.1 = shape);
    }
    let mut placed = 0;
    let mut replayed = Vec::new();
    for (event, vm) in asked {
        let (again, mut differs) = match vm {
            None => (String::new(), vec!["its record at that revision cannot be read".to_owned()]),
            Some((vm, shape)) => one(&mut fork, vm, &shape, event),
        };
        if let Some(decision) = &event.decision
            && decision.turn != placed
        {
            differs.push(format!("{} were placed before it, and {placed} are recorded", decision.turn));
        }
        placed += u32::from(PLACES.contains(&event.reason.as_str()));
        replayed.push(Replayed { event: event.clone(), again, differs: differs.join("; ") });
    }
    replayed
}

/// One decision, which is carried out in the fork as it was recorded, whatever comes of it now.
fn one(fork: &mut Guarantee, vm: &Vm, shape: &Arc<VmShape>, event: &Event) -> (String, Vec<String>) {
    let mut differs = Vec::new();
    let Some(decision) = &event.decision else { return (String::new(), differs) };
    if decision.digest != digest(shape) {
        differs.push("the VM asked for something else, or the engine is of another version".to_owned());
    }
    let recorded = event.node.filter(|_| PLACES.contains(&event.reason.as_str()));
    let answer = fork.admit(shape);
    let again = match &answer {
        Ok(Placement { node, score, .. }) => {
            let name = fork.view().node(*node).map(|node| node.name.to_string()).unwrap_or_default();
            if recorded != Some(*node) {
                differs.push(format!("it goes to {name} now"));
            } else if decision.score != *score {
                differs.push(format!("its score was {} and is {score}", decision.score));
            }
            format!("placed on {name}")
        }
        Err(refusal) => refused(vm, refusal, event, recorded.is_some(), &mut differs),
    };
    let now = answer.ok().map(|placement| placement.node);
    if now != recorded {
        now.map(|node| fork.release(node, shape.id));
        if let Some(node) = recorded {
            let cells = fork.view().cells_for(node, shape);
            // A node that is not there any more is said to differ already.
            fork.assign_to(node, cells, shape.clone()).ok();
        }
    }
    (again, differs)
}

fn refused(vm: &Vm, refusal: &Unfit, event: &Event, was_placed: bool, differs: &mut Vec<String>) -> String {
    let (reason, message) = waiting::told(vm, refusal);
    if was_placed || (reason, message.as_str()) != (event.reason.as_str(), event.message.as_str()) {
        differs.push(format!("it has no place now: {message}"));
    }
    message
}

#[cfg(test)]
mod tests {
    use tamdao_model::assignment::Reservation;
    use tamdao_model::convert::vm::VmRequest;
    use tamdao_model::node::NumaCell;
    use tamdao_model::pool::Pool;
    use tamdao_model::scheduling_policy::SchedulingPolicy;
    use tamdao_model::{ClusterId, TimeMs};
    use tamdao_store::view::Record;
    use uuid::Uuid;

    use super::super::{Outcome, Placer, Waits};
    use super::*;
    use crate::decide::place::{Overtaken, Proposal};
    use crate::decide::tests::{AGENCY, node_id, request};
    use crate::decide::{place, vm_create};
    use crate::engine::tests::Followed;
    use crate::sessions::expand;

    const NOW: TimeMs = TimeMs(1_000);

    fn carry_out(cloud: &mut Followed, outcome: &Outcome) {
        for (_, node, proposal) in &outcome.places {
            cloud.commit(|draft, moment| {
                assert_eq!(place::place(draft, moment, *node, std::slice::from_ref(proposal)), [Ok(())]);
            });
        }
        cloud.commit(|draft, moment| {
            for Waits { vm, reason, message, decision } in &outcome.waiting {
                place::explain_waiting(draft, moment, *vm, reason, message, decision.as_ref());
            }
        });
    }

    /// Passes over three nodes of 4 GiB with shared disks, until some VMs have no place: guarded from the third on.
    fn cloud() -> Followed {
        let mut cloud = Followed::new();
        cloud.commit(|draft, _| {
            let mut pool: Pool = (*draft.view().pools.iter().next().unwrap().value).clone();
            pool.spec.shared = true;
            draft.put(pool);
        });
        let mut placer = Placer::default();
        for round in 0..6u8 {
            if round == 2 {
                cloud.commit(|draft, _| {
                    let mut policy = SchedulingPolicy::of(ClusterId(Uuid::from_u128(9)), TimeMs(1));
                    policy.spec.guarded_failure_domains = ["node".into()].into();
                    draft.create(policy);
                });
            }
            cloud.commit(|draft, moment| {
                for at in 0..3 {
                    let size = 256 << (at % 3);
                    let mut wanted = request(round * 3 + at, 1, size, 64);
                    wanted.interfaces.clear();
                    vm_create::create(draft, moment, wanted, AGENCY, None, "test").unwrap();
                }
            });
            cloud.engine.plan();
            let outcome = placer.decide(&cloud.view, &cloud.engine, NOW);
            carry_out(&mut cloud, &outcome);
            if round == 4 {
                cloud.commit(|draft, _| {
                    let mut node = (*draft.view().nodes.get(node_id(1)).unwrap().value).clone();
                    node.spec.cordoned = true;
                    draft.put(node);
                });
            }
        }
        cloud
    }

    fn replayed(view: &View, commits: Vec<Commit>) -> Vec<Replayed> {
        all(Some(&Past::new(view, commits)), &passes(view, |_| true), |_| true)
    }

    #[test]
    fn every_decision_is_the_same_when_computed_again() {
        let cloud = cloud();
        let all = replayed(&cloud.view, cloud.commits.clone());
        let count = |reason: &str| all.iter().filter(|one| one.event.reason == reason).count();
        assert!(
            count("Placed") > 5 && count("RoomKeptForFailures") > 0,
            "{} of {}",
            count("Placed"),
            all.len()
        );
        assert!(all.iter().any(|one| one.event.decision.as_ref().unwrap().planned > 0));
        for one in &all {
            assert_eq!(one.differs, "", "{}: {}", one.event.name, one.event.message);
            assert!(!one.again.is_empty());
        }
    }

    #[test]
    fn a_vm_on_cells_is_placed_on_cells_and_its_node_is_told_of_them() {
        let mut cloud = Followed::new();
        cloud.commit(|draft, _| {
            for at in 0..3 {
                let mut node = (*draft.view().nodes.get(node_id(at)).unwrap().value).clone();
                // Some hosts leave numbers out.
                let cell = |id, cpus: [u32; 2]| NumaCell { id, cpus: cpus.into(), memory_mib: 2_048 };
                node.status.inventory.numa_cells = vec![cell(0, [0, 2]), cell(4, [1, 3])];
                draft.put(node);
            }
        });
        cloud.commit(|draft, moment| {
            for (at, cells) in [(0, 1), (1, 1), (2, 2), (3, 0), (4, 2)] {
                let wanted = VmRequest { numa_cells: cells, ..request(at, 2, 512, 64) };
                vm_create::create(draft, moment, wanted, AGENCY, None, "test").unwrap();
            }
            let odd = VmRequest { numa_cells: 2, ..request(9, 3, 512, 64) };
            let refused = vm_create::create(draft, moment, odd, AGENCY, None, "test").unwrap_err();
            assert_eq!(refused.fields[0].0, "vm.spec.numa_cells");
        });
        let outcome = Placer::default().decide(&cloud.view, &cloud.engine, NOW);
        super::super::judge(&outcome).unwrap();
        assert_eq!(outcome.places.len(), 5);
        carry_out(&mut cloud, &outcome);
        for node in (0..3).map(node_id) {
            let record = cloud.view.nodes.get(node).unwrap().value.clone();
            let assignment = cloud.view.assignment(node);
            for (cell, room) in [0, 4].into_iter().zip(record.cells_allocatable()) {
                let held = assignment.reserved_on(cell);
                assert!(held.vcpus <= room.vcpus && held.memory_mib <= room.memory_mib);
            }
            let told = expand::assignment(&cloud.view, node, None, &|_| None).vms;
            for (id, entry) in &assignment.vms {
                let vm = cloud.view.vms.get(*id).unwrap();
                assert_eq!(entry.cells.len(), vm.spec.numa_cells as usize);
                assert_eq!(cloud.engine.picture().cells_of(node, *id).len(), vm.spec.numa_cells);
                let machine = told.iter().find(|told| told.vm_id == id.to_string()).unwrap().machine.as_ref();
                let cells: Vec<(u32, &[u32])> =
                    machine.unwrap().cells.iter().map(|cell| (cell.id, &*cell.cpus)).collect();
                let known = [(0, &[0, 2][..]), (4, &[1, 3][..])];
                assert!(cells.iter().all(|cell| known.contains(cell)) && cells.len() == entry.cells.len());
            }
            // A cell that is full takes nobody, whatever the node has.
            let (full, held) = assignment.vms.iter().next().map(|(id, entry)| (*id, entry.clone())).unwrap();
            let mut draft = tamdao_store::typed::Draft::new(cloud.view.clone(), Uuid::nil());
            let mut vm = (*cloud.view.vms.get(full).unwrap().value).clone();
            vm.status.node = None;
            draft.put(vm);
            let mut rest = assignment.clone();
            rest.vms.clear();
            draft.put(rest);
            let reservation = Reservation { vcpus: 3, ..held.reservation };
            let proposal = Proposal { cells: vec![4], ..(full, reservation).into() };
            let moment = &mut crate::admission::Moment { now: NOW };
            assert_eq!(place::place(&mut draft, moment, node, &[proposal]), [Err(Overtaken::Room)]);
        }
    }

    #[test]
    fn an_input_that_is_not_what_it_was_shows() {
        let cloud = cloud();
        // A node was smaller all the time.
        let small = |view: &mut View| {
            let mut draft = tamdao_store::typed::Draft::new(view.clone(), Uuid::nil());
            let mut node = (*view.nodes.get(node_id(0)).unwrap().value).clone();
            node.status.inventory.memory_mib = 600;
            draft.put(node);
            *view = draft.view().clone();
        };
        let mut past = Past::new(&cloud.view, cloud.commits.clone());
        small(&mut past.base);
        past.views.iter_mut().for_each(small);
        let differ = |past: &Past, view: &View| {
            let all = all(Some(past), &passes(view, |_| true), |_| true);
            all.into_iter().filter(|one| !one.differs.is_empty()).map(|one| one.differs).collect::<Vec<_>>()
        };
        assert!(differ(&past, &cloud.view).iter().any(|differs| differs.starts_with("it goes to ")));

        // A VM asked for another priority, which decides nothing here.
        let mut past = Past::new(&cloud.view, cloud.commits.clone());
        let id = VmId(cloud.view.events.iter().find(|event| event.decision.is_some()).unwrap().subject);
        for view in &mut past.views {
            let Some(vm) = view.vms.get(id).map(|row| (*row.value).clone()) else { continue };
            let mut draft = tamdao_store::typed::Draft::new(view.clone(), Uuid::nil());
            draft.put(Vm { spec: tamdao_model::vm::VmSpec { tpm: true, ..vm.spec }, ..vm });
            *view = draft.view().clone();
        }
        assert!(differ(&past, &cloud.view)[0].starts_with("the VM asked for something else"));

        // A placement that left no event.
        let mut events = cloud.view.clone();
        let of =
            |event: &Row<Event>| event.decision.as_ref().map(|decision| (decision.revision, decision.turn));
        let second = events.events.iter().filter_map(of).find(|(_, turn)| *turn == 1).unwrap();
        let is_first = |event: &&Row<Event>| event.reason == "Placed" && of(event) == Some((second.0, 0));
        let first = events.events.iter().find(is_first).unwrap().clone();
        let mut draft = tamdao_store::typed::Draft::new(events, Uuid::nil());
        draft.delete::<Event>(tamdao_model::Stored::key(&*first.value));
        events = draft.view().clone();
        let past = Past::new(&cloud.view, cloud.commits.clone());
        let differ = differ(&past, &events);
        assert!(
            differ.iter().any(|one| one.contains("1 were placed before it, and 0 are recorded")),
            "{differ:?}"
        );
    }

    #[test]
    fn what_is_out_of_the_kept_history_is_said_to_be() {
        let cloud = cloud();
        let later = cloud.commits[12..].to_vec();
        let all = replayed(&cloud.view, later);
        assert!(all[0].differs.ends_with("is no longer kept"), "{}", all[0].differs);
        assert_eq!(all.last().unwrap().differs, "");
        assert!(matches!(cloud.commits[0].deltas[0].after, Some(Record::Pool(_))));
    }
}
