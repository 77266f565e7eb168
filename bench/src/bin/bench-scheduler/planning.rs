//! The tables about plans of moves: joining fragments, emptying nodes, maintenance, and evening out load.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use tamdao_bench::emptying::Emptying;
use tamdao_bench::evening::{self, Evened};
use tamdao_bench::fleet::{self, Fleet, Kind};
use tamdao_bench::report::Table;
use tamdao_bench::roadef::{self, Instance};
use tamdao_bench::{fragments, ganeti, rebalance, turns};
use tamdao_model::NodeId;
use tamdao_scheduler::plan::defragment::Fragments;
use tamdao_scheduler::plan::{Budget, Terms};

use crate::{Plans, seconds};

/// Steps of the search for as many empty nodes as possible.
const STEPS: u64 = 200_000;

pub fn fragments(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    let rate = |of: Fragments| format!("{:.2} %", of.rate() as f64 / 100.0);
    for (name, view) in fragments::clusters()? {
        let least = fragments::least(&view);
        let (two, five) = (view.vm_count() / 50, view.vm_count() / 20);
        let cases = [(10, ""), (25, ""), (50, ""), (100, ""), (two, ", 2 % of VMs"), (five, ", 5 % of VMs")];
        for (moves, what) in cases {
            let done = plans.checked(&format!("fragments {name} {moves}"), |plan| {
                fragments::measure(&view, moves, plan)
            })?;
            rows.push(vec![
                format!("{name}, at most {moves} moves{what}"),
                rate(done.before),
                rate(done.after),
                rate(least),
                format!("{} to {}", done.before.places, done.after.places),
                done.moves.to_string(),
                done.rounds.to_string(),
                seconds(done.took),
            ]);
        }
    }
    let text = "Two snapshots of ByteDance's clusters (VMR2L, EuroSys 2025): 236 hosts with 1,934 VMs and 43 hosts with \
        155, each host with two NUMA cells of 44 CPUs. FR16 is the part of all free CPUs that is left over in its cell \
        when VMs of 16 take what they can. *At least*: by sums, whatever moves. Each plan has 5 s.";
    Ok(Table {
        title: "Fragmentation with few moves".into(),
        text: text.into(),
        head: vec![
            "cluster",
            "FR16 before",
            "after",
            "at least",
            "places for 16",
            "moves",
            "rounds",
            "plan s",
        ],
        rows,
    })
}

pub fn emptying(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    let row = |name: String, done: &Emptying| {
        vec![
            name,
            format!("{} of {}", done.moves, done.vms),
            format!("{} of {}", done.moved_mib / 1_024, done.memory_mib / 1_024),
            done.rounds.to_string(),
            done.stuck.to_string(),
            format!("{:.1}", done.took.as_secs_f64() * 1e3),
        ]
    };
    let nodes = 1_000;
    for percent in [60, 80] {
        let fleet = Fleet::new(Kind::Plain, nodes, percent)?;
        for k in [1, 5, nodes / 20, nodes / 10] {
            let empty: BTreeSet<NodeId> = (0..k).map(fleet::node_id).collect();
            let done = plans.checked(&format!("emptying {percent} {k}"), |plan| {
                tamdao_bench::emptying::measure(&fleet.view, &empty, &Terms::default(), plan)
            })?;
            rows.push(row(format!("{k} of {nodes} nodes, {percent} % full"), &done));
        }
        let (emptied, done) = plans.checked(&format!("emptying {percent} most"), |plan| {
            tamdao_bench::emptying::most(&fleet.view, &Terms::default(), STEPS, plan)
        })?;
        let bound = tamdao_bench::emptying::bound(&fleet.view);
        let name = format!("the most: {emptied} of at most {bound} nodes, {percent} % full");
        rows.push(row(name, &done));
    }
    let text = "Live moves that empty given nodes, at most two at once on a node and 32 in the cluster, both ends held \
        while a move runs. *Of* is the least: each VM that stands there moves once. \
        *The most*: as many as the planner can, against what sums of CPU and memory allow.";
    Ok(Table {
        title: "Emptying nodes".into(),
        text: text.into(),
        head: vec![
            "nodes",
            "moves, of the least",
            "GiB moved, of the least",
            "rounds",
            "VMs stuck",
            "plan ms",
        ],
        rows,
    })
}

pub fn planted(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    for k in [2, 4, 10, 20, 50, 100, 400] {
        let view = tamdao_bench::emptying::planted(k)?;
        let in_use = view.nodes().filter(|node| !view.vms_on(node.id).is_empty()).count();
        let (emptied, done) = plans.checked(&format!("planted {k}"), |plan| {
            tamdao_bench::emptying::most(&view, &Terms::default(), STEPS, plan)
        })?;
        let after = in_use - emptied;
        rows.push(vec![
            format!("{k} full nodes, scattered over {in_use}"),
            after.to_string(),
            format!("{:.1} %", 100.0 * (after as f64 / k as f64 - 1.0)),
            done.moves.to_string(),
            done.rounds.to_string(),
            seconds(done.took),
        ]);
    }
    let text = "K nodes of 64 CPUs and 256 GiB, full to the last CPU and GiB, are each cut at random into about 20 VMs, and \
        these scattered over half as many nodes more. The best possible answer has K nodes in use; the plan is one of \
        live moves, each feasible after those before it.";
    Ok(Table {
        title: "Planted optima".into(),
        text: text.into(),
        head: vec!["planted", "in use after", "over the optimum", "moves", "rounds", "plan s"],
        rows,
    })
}

pub fn maintenance(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    for percent in [60, 80] {
        let fleet = Fleet::new(Kind::Plain, 1_000, percent)?;
        for guarded in [false, true] {
            let done = plans.checked(&format!("racks {percent} {guarded}"), |plan| {
                turns::racks(&fleet.view, guarded, plan)
            })?;
            let with = if guarded { ", any node may still be lost" } else { "" };
            rows.push(vec![
                format!("each rack of 40 for itself, {percent} % full{with}"),
                format!("{} of {}", done.possible, done.racks),
                done.moves.to_string(),
                seconds(done.took),
            ]);
        }
        let done = plans.checked(&format!("turns {percent}"), |plan| {
            turns::measure(&fleet.view, &mut Budget::default(), plan)
        })?;
        let left = if done.left > 0 { format!(", {} nodes without one", done.left) } else { String::new() };
        rows.push(vec![
            format!("all 1000 nodes in turns, {percent} % full"),
            format!("{} turns, at least {}{left}", done.groups.len(), done.least),
            done.moves.to_string(),
            seconds(done.took),
        ]);
    }
    let text = "1,000 nodes in 25 racks, emptied by live moves. *Turns* are the groups of nodes that are down together, one \
        after the other, until each node had its turn; the least is what the VMs' sums leave free.";
    Ok(Table {
        title: "Maintenance".into(),
        text: text.into(),
        head: vec!["what is maintained", "possible", "moves", "plans s"],
        rows,
    })
}

pub fn evening(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    let row = |who: String, done: Evened| {
        vec![
            who,
            done.moves.to_string(),
            (done.moved_mib / 1_024).to_string(),
            format!("{:.2} %", done.after.cpu),
            format!("{:.2} %", done.after.memory),
            format!("{:.1} %", done.after.worst),
            seconds(done.took),
        ]
    };
    for (nodes, at_most) in [(20, 10_000), (100, 2), (100, 10_000), (1_000, 10_000)] {
        let fleet = Fleet::new(Kind::Plain, nodes, 60)?;
        let before = evening::spread(&fleet.view);
        let name = if at_most < 10_000 { format!(", {at_most} moves") } else { String::new() };
        let nothing = Evened { took: Default::default(), moves: 0, moved_mib: 0, after: before };
        rows.push(row(format!("{nodes} nodes before"), nothing));
        let ours = plans.checked(&format!("evening {nodes} {at_most}"), |plan| {
            evening::ours(&fleet.view, at_most, plan)
        })?;
        rows.push(row(format!("ours{name}"), ours));
        // One move takes it a quarter of a minute at 100 nodes.
        if ganeti::is_installed() && (nodes < 100 || at_most < 100) {
            rows.push(row(format!("hbal{name}"), evening::theirs(&fleet.view, at_most, &plans.folder)?));
        }
    }
    let text = "Live moves that even out the load of nodes, 60 % full at random. *Off*: the deviation of nodes' loads from \
        the fleet's, in percent of a node, and the farthest node's. `hbal` (Debian: ganeti-htools) gets the same \
        cluster on shared disks and reads it from a file. Processor time; both stop where no move is worth it by their \
        own measure.";
    Ok(Table {
        title: "Evening out load".into(),
        text: text.into(),
        head: vec!["plan", "moves", "GiB moved", "CPU off", "memory off", "farthest", "plan s"],
        rows,
    })
}

/// Processor seconds after which the objective is told.
const LOOKS: [u64; 3] = [10, 60, 300];

pub fn rebalance(at_most: u64) -> Result<Table> {
    let looks: Vec<Duration> =
        LOOKS.iter().filter(|s| **s <= at_most).map(|s| Duration::from_secs(*s)).collect();
    let mut rows = Vec::new();
    for reference in roadef::references()? {
        let instance = Instance::read(&reference.name)?;
        let initial = instance.cost(&instance.start).total();
        let mut costs = Vec::new();
        for places in rebalance::solve(&instance, &looks) {
            let breaches = instance.breaches(&places);
            ensure!(breaches.is_empty(), "{} breaks {:?}", reference.name, breaches.first());
            costs.push(instance.cost(&places).total());
        }
        let last = costs.last().copied().unwrap_or(initial);
        let off = (last as f64 - reference.recalled as f64) / initial as f64;
        let mut row = vec![reference.name, initial.to_string()];
        row.extend((0..LOOKS.len()).map(|at| costs.get(at).map_or("-".to_owned(), u64::to_string)));
        row.extend([
            instance.least().to_string(),
            reference.published.map_or("-".to_owned(), |value| value.to_string()),
            reference.recalled.to_string(),
            format!("{:.2} %", 100.0 * off),
        ]);
        rows.push(row);
    }
    let text = "ROADEF/EURO 2012, machine reassignment: the objective after processor seconds of one thread, by a \
        simulated annealing of the bench's own that the scheduler has no part in; every assignment is judged by the \
        challenge's rules. *At least*: by sums of loads. *Published*: the better of a MIP solver's after an hour and \
        team S32's after 300 s. *Recalled*: the best of the literature from memory, without a stored source, so not \
        verified. *Off*: the last objective less the recalled one, in parts of the initial one.";
    Ok(Table {
        title: "Global rebalance".into(),
        text: text.into(),
        head: vec![
            "instance",
            "initial",
            "after 10 s",
            "60 s",
            "300 s",
            "at least",
            "published",
            "recalled",
            "off",
        ],
        rows,
    })
}
