//! `tamdao simulate fit`: how many more of a size fit, by placing them one after the other, and what stops the next; with
//! `--guarded` also how many while every loss of one value of the keys is still survived, the new VMs among the protected;
//! with `--by` and `--agencies` the same by failure domain and by agency.

use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use tamdao_model::quota::{Amounts, Measure};
use tamdao_scheduler::capacity::{Flavor, fit};
use tamdao_scheduler::place::Rejection;
use tamdao_scheduler::survive::guarantee::{Guarantee, Refusal};
use tamdao_scheduler::{By, DiskNeed, VmShape};
use uuid::Uuid;

use super::fork::{self, Fork};
use super::headroom::{self, InDomain, OfAgency};
use super::what_if::unknown;
use super::{moves, no_text, survive, verdict};
use crate::app::App;
use crate::args::FitArgs;
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};
use crate::quantity::mib;

#[derive(Serialize)]
pub struct Row {
    pub flavor: String,
    vcpus: u32,
    memory_mib: u64,
    pub fit: u32,
    /// Why the next one does not fit; absent where the counting was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guarded: Option<Guarded>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<InDomain>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agencies: Vec<OfAgency>,
}

/// How many fit with the guarantee of failover.
#[derive(Serialize)]
pub struct Guarded {
    keys: Vec<String>,
    pub fit: u32,
    /// The loss that one more would not survive.
    #[serde(skip_serializing_if = "Option::is_none")]
    broken_by: Option<String>,
}

pub async fn run(app: &App, args: &FitArgs) -> Result<ExitStatus> {
    if app.output.is_text() {
        return Err(no_text("fit").into());
    }
    let fork = fork::load(app, &args.fork).await?;
    if args.agencies && fork.agencies.is_empty() {
        let problem = Problem::usage("the cluster names no agency");
        return Err(problem.hint("add a line such as: agency health free.vcpus=64").into());
    }
    let mut rows = Vec::new();
    for flavor in sizes(&fork, args)? {
        rows.push(row(&fork, &flavor, args)?);
    }
    if app.output.is_machine() {
        app.output.value(&rows)?;
    } else {
        show(app, &rows, args)?;
    }
    Ok(verdict(rows.iter().all(|row| row.fit > 0 && row.guarded.as_ref().is_none_or(|one| one.fit > 0))))
}

/// What is counted, each as a VM that the cluster does not have.
fn sizes(fork: &Fork, args: &FitArgs) -> Result<Vec<Flavor>, Problem> {
    let usage = |error: super::what_if::WhatIfError| Problem::usage(error.to_string());
    let mut sizes: Vec<Flavor> = match &args.like {
        Some(name) => vec![Flavor::new(Arc::new(copy(fork, name).map_err(usage)?))],
        None if args.flavors.is_empty() => fork.flavors.clone(),
        None => {
            let named = args.flavors.iter().map(|name| fork.flavor(name).cloned());
            named.collect::<Result<_, _>>().map_err(usage)?
        }
    };
    if sizes.is_empty() {
        let problem = Problem::usage("the cluster names no flavor");
        return Err(problem
            .hint("add a line such as: flavor m vcpus=2 memory=4246")
            .hint("or take --like VM"));
    }
    for (pool, size) in &args.disks {
        let found = fork.view.pools().find(|known| *known.name == **pool);
        let found = found.ok_or_else(|| usage(unknown("pool", pool, fork.view.pools().map(|p| &*p.name))))?;
        let disk = DiskNeed { pool: found.id, size_mib: u64::from(*size), on: None };
        let volume: Amounts =
            [(Measure::Volumes, 1), (Measure::DiskMib, disk.size_mib)].into_iter().collect();
        for flavor in &mut sizes {
            Arc::make_mut(&mut flavor.shape).disks.push(disk);
            flavor.counts = std::mem::take(&mut flavor.counts).plus(&volume);
        }
    }
    for flavor in &mut sizes {
        let shape = Arc::make_mut(&mut flavor.shape);
        shape.id = Uuid::from_u128(1).into();
        shape.protected = shape.protected || !args.guarded.is_empty();
    }
    Ok(sizes)
}

/// The shape of a VM without what ties it to where it is.
fn copy(fork: &Fork, name: &str) -> Result<VmShape, super::what_if::WhatIfError> {
    let placed = fork.view.nodes().flat_map(|node| fork.view.vms_on(node.id));
    let mut all = placed.chain(&fork.wants);
    let Some(vm) = all.find(|vm| &*vm.name == name || vm.id.to_string() == name) else {
        let known = fork.view.nodes().flat_map(|node| fork.view.vms_on(node.id)).map(|vm| &*vm.name);
        return Err(unknown("VM", name, known));
    };
    let mut shape = (**vm).clone();
    shape.disks.iter_mut().for_each(|disk| disk.on = None);
    Ok(shape)
}

fn row(fork: &Fork, flavor: &Flavor, args: &FitArgs) -> Result<Row, Problem> {
    let shape = &*flavor.shape;
    let plain = fit(&fork.view, shape, args.at_most);
    let guarded = match args.guarded.is_empty() {
        true => None,
        false => Some(guarded(fork, shape, &args.guarded, plain.count)?),
    };
    let mut row = Row {
        flavor: shape.name.to_string(),
        vcpus: shape.reservation.vcpus,
        memory_mib: shape.reservation.memory_mib,
        fit: plain.count,
        stopped_by: plain.stopped_by.as_ref().map(runs_out),
        guarded,
        domains: headroom::by_domain(fork, flavor, args)?,
        agencies: Vec::new(),
    };
    if args.agencies {
        row.agencies = headroom::by_agency(fork, flavor, &row);
    }
    Ok(row)
}

/// Copies are admitted one after the other, as the controllers admit VMs under the guarantee, until one is refused.
fn guarded(fork: &Fork, shape: &VmShape, keys: &[String], at_most: u32) -> Result<Guarded, Problem> {
    let guard = moves::guard(fork, keys)?.unwrap_or_default();
    let nodes = guard.nodes.then_some(By::Node);
    let bys: Vec<By> = nodes.into_iter().chain(guard.keys.into_iter().map(By::Domain)).collect();
    let mut guarantee = Guarantee::new(fork.view.clone(), &bys);
    let mut answer = Guarded { keys: keys.to_vec(), fit: 0, broken_by: None };
    if let Some((loss, _)) = guarantee.broken().next() {
        return Ok(Guarded { broken_by: Some(survive::name(fork, loss)), ..answer });
    }
    let unused = (1..).map(Uuid::from_u128).filter(|id| fork.view.homes((*id).into()).next().is_none());
    for id in unused.take(at_most as usize) {
        match guarantee.admit(&Arc::new(VmShape { id: id.into(), ..shape.clone() })) {
            Ok(_) => answer.fit += 1,
            Err(Refusal::NoPlace(_)) => break,
            Err(Refusal::Unguarded { broken, .. }) => {
                answer.broken_by = Some(survive::name(fork, &broken.loss));
                break;
            }
        }
    }
    Ok(answer)
}

/// The reasons, the one that rules out most nodes first: what runs out.
pub fn runs_out(rejection: &Rejection) -> String {
    if let Some(reason) = &rejection.cluster {
        return reason.to_string();
    }
    let mut reasons: Vec<_> = rejection.by_reason.iter().collect();
    reasons.sort_by_key(|(kind, tally)| (std::cmp::Reverse(tally.nodes), **kind));
    let words = reasons.iter().map(|(kind, tally)| format!("{} on {}", kind.words(), tally.nodes));
    format!("{} of {} nodes", words.collect::<Vec<_>>().join(", "), rejection.nodes)
}

fn show(app: &App, rows: &[Row], args: &FitArgs) -> Result<()> {
    let counted =
        |count: u32| Cell::toned(count.to_string(), if count == 0 { Tone::Bad } else { Tone::Good });
    let guarded = !args.guarded.is_empty();
    let mut headers = vec!["FLAVOR", "VCPUS", "MEMORY", "FIT", "THEN"];
    if guarded {
        headers.extend(["GUARDED", "THEN"]);
    }
    let lines = rows.iter().map(|row| {
        let then = row.stopped_by.clone().unwrap_or_else(|| "not counted further".to_owned());
        let mut cells = vec![Cell::from(&row.flavor), Cell::from(row.vcpus), Cell::from(mib(row.memory_mib))];
        cells.extend([counted(row.fit), Cell::from(then)]);
        if let Some(guarded) = &row.guarded {
            let then = match &guarded.broken_by {
                Some(loss) if guarded.fit == 0 => format!("the loss of {loss} is not survived"),
                Some(loss) => format!("the loss of {loss} would not be survived"),
                None => "no more fit at all".to_owned(),
            };
            cells.extend([counted(guarded.fit), Cell::from(then)]);
        }
        cells
    });
    app.output.table(&Table { headers, rows: lines.collect() }, "")?;
    if guarded {
        app.output.note(&format!("guarded: while any one {} may be lost", args.guarded.join(" or ")));
    }
    headroom::show(app, rows)
}
