//! The tables about placing VMs: tightness, speed, with and without the guarantee, and beside Ganeti.

use std::path::Path;

use anyhow::{Result, ensure};
use tamdao_bench::fleet::{self, Fleet, Kind};
use tamdao_bench::policy::Policy;
use tamdao_bench::report::Table;
use tamdao_bench::speed::now;
use tamdao_bench::stream;
use tamdao_model::VmId;
use tamdao_scheduler::VmShape;
use tamdao_scheduler::place::find;
use tamdao_scheduler::survive::Loss;
use uuid::Uuid;

use crate::{Plans, micros, share};

pub fn tightness(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    for stream in stream::all()? {
        let bound = tamdao_bench::tightness::bound(&stream);
        for policy in Policy::ALL {
            // More than any rule uses; and a tenth less than even the bound.
            let run = |nodes: usize| {
                let name = format!("{} {} {nodes}", stream.name, policy.name());
                plans.checked(&name, |plan| tamdao_bench::tightness::run(&stream, policy, nodes, plan))
            };
            let elastic = run(2 * bound.peak + 8)?;
            let fixed = run((bound.peak * 9 / 10).max(1))?;
            rows.push(vec![
                stream.name.to_owned(),
                policy.name().to_owned(),
                format!("{} of {}", elastic.peak, bound.peak),
                format!("{:.4}", elastic.node_seconds as f64 / bound.node_seconds as f64),
                format!("{:.2} %", share(fixed.accepted_milli_cpus, fixed.milli_cpus)),
                format!("{:.2} %", share(fixed.accepted_milli_cpu_seconds, fixed.milli_cpu_seconds)),
                format!("{:.2} %", share(fixed.accepted as u64, fixed.vms as u64)),
            ]);
        }
    }
    let text = "Public streams of requests on nodes of 64 CPUs and 256 GiB. The bound is the least number of nodes \
        that hold all CPU and all memory in use at that moment, which no placement can beat. The fixed fleet has \
        nine tenths of the bound's peak. Every run was judged from its plan file by `check-run`.";
    Ok(Table {
        title: "Tightness".into(),
        text: text.into(),
        head: vec![
            "stream",
            "rule",
            "peak nodes, of the bound",
            "node-hours over the bound",
            "fixed fleet: CPU accepted",
            "CPU-hours accepted",
            "VMs accepted",
        ],
        rows,
    })
}

pub fn speed(kind: Kind) -> Result<Table> {
    let (title, what) = match kind {
        Kind::Plain => ("Speed of one placement", ""),
        Kind::Spread => (
            "Speed with spread and anti-affinity",
            " Each VM is in a group of 10 with required anti-affinity by node and a preferred spread over racks of 40.",
        ),
        Kind::Cells => (
            "Speed with NUMA cells",
            " Nodes have two NUMA cells; VMs of up to 8 vCPUs lie in one of them, larger ones in both.",
        ),
    };
    let mut rows = Vec::new();
    for nodes in [100, 1_000, 5_000, 10_000, 20_000] {
        for percent in [60, 80, 95] {
            let speed = tamdao_bench::speed::measure(kind, nodes, percent)?;
            rows.push(vec![
                format!("{nodes} nodes, {percent} %"),
                micros(speed.p50),
                micros(speed.p99),
                micros(speed.p999),
                format!("{:.0}", speed.per_second),
                format!("{:.2} %", share(speed.refused as u64, speed.decisions as u64)),
            ]);
        }
    }
    let text =
        "One thread, processor time, 20 VMs per node, 9 flavors. Between two decisions a random VM leaves.";
    Ok(Table {
        title: title.into(),
        text: format!("{text}{what}"),
        head: vec!["fleet", "p50 µs", "p99 µs", "p99.9 µs", "decisions/s", "refused"],
        rows,
    })
}

pub fn guarded() -> Result<Table> {
    let mut rows = Vec::new();
    for percent in [40, 60, 80] {
        let nodes = 1_000;
        let guarded = tamdao_bench::guarded::measure(nodes, percent)?;
        let speed = guarded.speed;
        let of = |count: usize| format!("{:.2} %", share(count as u64, speed.decisions as u64));
        rows.push(vec![
            format!("{nodes} nodes, {percent} %"),
            micros(speed.p50),
            micros(speed.p99),
            micros(speed.p999),
            format!("{:.0}", speed.per_second),
            of(speed.refused),
            of(guarded.unguarded),
            of(guarded.not_proven),
            guarded.left_out.to_string(),
            micros(guarded.judged),
            format!("{:.0}", guarded.judged_per_second),
            format!("{:.0}", guarded.planned.as_secs_f64() * 1e3),
        ]);
    }
    let text = "The same fleets, 25 racks of 40, all VMs protected, with the loss of any node and of any rack guarded: \
        a decision finds the node and carries on the plan of restarts of each loss, or refuses. *For the guarantee*: \
        there would have been a place without it. *Not proven*: no sum of what is free shows that there is no plan. \
        *Left out*: protected VMs for which the fleet, as it had grown, had no restart. *Judge*: the \
        independent judge of one decision and of the plans that it touches, the median of one in 50; *with it*: by \
        the mean times of both. *All plans*: the \
        time to plan every loss anew.";
    Ok(Table {
        title: "Speed with the failover guarantee".into(),
        text: text.into(),
        head: vec![
            "fleet",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "decisions/s",
            "refused",
            "for the guarantee",
            "not proven",
            "left out",
            "judge µs",
            "decisions/s with it",
            "all plans ms",
        ],
        rows,
    })
}

pub fn storm(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    for percent in [60, 80, 95] {
        let fleet = Fleet::new(Kind::Plain, 1_000, percent)?;
        let node = Loss::Node(fleet::node_id(0));
        let rack = Loss::Domain { key: "rack".into(), value: "r0".into() };
        for (name, loss) in [("one node", node), ("one rack of 40", rack)] {
            let storm = plans.checked(&format!("storm {percent} {name}"), |plan| {
                tamdao_bench::storm::measure(&fleet.view, &loss, plan)
            })?;
            rows.push(vec![
                format!("{name}, {percent} % full"),
                format!("{:.2}", storm.took.as_secs_f64() * 1e3),
                storm.restarted.to_string(),
                storm.left_out.to_string(),
                if storm.by_priority { "kept" } else { "broken" }.to_owned(),
            ]);
        }
    }
    let text = "1,000 nodes, 20 VMs each, all protected, in three priorities. The time is the whole plan's, on one \
        thread. Judged from its plan file: nothing lands on what is lost.";
    Ok(Table {
        title: "Failover storm".into(),
        text: text.into(),
        head: vec!["lost", "plan ms", "VMs restarted", "without a place", "order by priority"],
        rows,
    })
}

/// The same clusters and the same request, asked of both.
pub fn ganeti(folder: &Path) -> Result<Table> {
    let mut rows = Vec::new();
    for (nodes, checks) in [(100, false), (100, true), (1_000, false)] {
        let fleet = Fleet::new(Kind::Plain, nodes, 80)?;
        let vm = VmShape::bare(VmId(Uuid::from_u128(u128::MAX)), "new", 4, 8_192);
        let begin = now();
        ensure!(find(&fleet.view, &vm).is_some(), "the request has no place");
        let ours = now() - begin;
        let what = if checks { "with its capacity check" } else { "without its capacity check" };
        let (theirs, ratio) = if tamdao_bench::ganeti::is_installed() {
            let theirs = tamdao_bench::ganeti::allocate(
                folder,
                &tamdao_bench::ganeti::cluster(&fleet.view, "plain"),
                checks,
            )?;
            (
                format!("{:.2}", theirs.as_secs_f64()),
                format!("{:.0}", theirs.as_secs_f64() / ours.as_secs_f64()),
            )
        } else {
            ("not installed".into(), "-".into())
        };
        rows.push(vec![format!("{nodes} nodes, {what}"), theirs, micros(ours), ratio]);
    }
    let text = "One allocation of 4 vCPUs and 8 GiB on plain disks in a fleet that is 80 % full. `hail` (Debian: \
        ganeti-htools) is a process that reads the cluster from its text format, so its time holds the reading; ours \
        is one decision on a view in memory, without the failover guarantee. Processor time.";
    Ok(Table {
        title: "Beside Ganeti".into(),
        text: text.into(),
        head: vec!["fleet", "hail s", "ours µs", "ratio"],
        rows,
    })
}
