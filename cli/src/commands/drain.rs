//! `tamdao node drain`, `node return` and `tamdao failure-domain`: the cloud's plan is shown first, then asked for, then
//! watched until nothing runs on the nodes, or until all is back. To break the watching off changes nothing.

use std::collections::BTreeMap;

use anyhow::Result;
use tamdao_proto::v1::{
    CancelDrainRequest, DrainNodesRequest, DrainPhase, DrainPlan, DrainStep, DrainWay, ListNodesRequest,
    Node, ReturnNodesRequest,
};

use crate::app::App;
use crate::args::{DrainCommonArgs, DrainTermsArgs, FailureDomainVerb};
use crate::output::{Cell, Table, Tone};
use crate::problem::ExitStatus;
use crate::quantity::{count, duration, mib};
use crate::resource::Resource;
use crate::wait::{Goal, Verdict, until};

/// Moves that are shown, unless all are wanted.
const LINES: usize = 40;

/// Which nodes are meant.
pub struct Nodes {
    names: Vec<String>,
    failure_domain: String,
}

impl Nodes {
    pub fn named(app: &App, names: &[String]) -> Result<Self> {
        let names = names.iter().map(|name| Ok(app.place::<Node>(name, false)?.name));
        Ok(Self { names: names.collect::<Result<_>>()?, failure_domain: String::new() })
    }

    fn of(failure_domain: String) -> Self {
        Self { names: Vec::new(), failure_domain }
    }

    /// As a question names them.
    fn told(&self, nodes: &[Node]) -> String {
        let names: Vec<&str> = nodes.iter().map(Resource::name).collect();
        match self.failure_domain.as_str() {
            "" => names.join(", "),
            text => format!("{text} ({})", names.join(", ")),
        }
    }
}

pub async fn run(app: &App, verb: FailureDomainVerb) -> Result<ExitStatus> {
    match verb {
        FailureDomainVerb::List => list(app).await,
        FailureDomainVerb::Drain { failure_domain, terms } => {
            drain(app, Nodes::of(failure_domain), &terms).await
        }
        FailureDomainVerb::Return { failure_domain, common } => {
            bring_back(app, Nodes::of(failure_domain), &common).await
        }
    }
}

async fn list(app: &App) -> Result<ExitStatus> {
    let request = ListNodesRequest { page_size: 1_000, ..Default::default() };
    let nodes = app.client()?.ask(request).await?.nodes;
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in &nodes {
        for (key, of) in node.spec.iter().flat_map(|spec| &spec.failure_domains) {
            for value in &of.values {
                all.entry(format!("{key}={value}")).or_default().push(node.name().to_owned());
            }
        }
    }
    if app.output.is_machine() {
        app.output.value(&all)?;
        return Ok(ExitStatus::Done);
    }
    let rows = all
        .into_iter()
        .map(|(name, nodes)| vec![Cell::from(name), Cell::from(nodes.len()), Cell::from(nodes.join(", "))]);
    let table = Table { headers: vec!["FAILURE DOMAIN", "NODES", "NAMES"], rows: rows.collect() };
    app.output
        .table(&table, "no node says where it stands: tamdao node update NAME --failure-domain rack=r1")?;
    Ok(ExitStatus::Done)
}

pub async fn drain(app: &App, nodes: Nodes, terms: &DrainTermsArgs) -> Result<ExitStatus> {
    if terms.cancel {
        return cancel(app, nodes).await;
    }
    let common = &terms.common;
    let deadline_s = u32::try_from(terms.deadline.as_secs()).unwrap_or(u32::MAX).max(1);
    let mut request = DrainNodesRequest {
        names: nodes.names.clone(),
        failure_domain: nodes.failure_domain.clone(),
        allow_cold: terms.allow_cold,
        unguarded: common.moves.unguarded,
        reason: terms.reason.clone(),
        deadline_s,
        validate_only: true,
    };
    let seen = app.client()?.ask(request.clone()).await?;
    let question = format!("drain {}", nodes.told(&seen.nodes));
    if let Some(ended) = agree(app, &seen.plan.unwrap_or_default(), common, &question)? {
        return Ok(ended);
    }
    request.validate_only = false;
    let begun = app.client()?.ask(request).await?.nodes;
    let judge = |node: &Node| match phase(node) {
        DrainPhase::Drained => Verdict::Reached,
        DrainPhase::Draining => Verdict::Going,
        DrainPhase::Unspecified | DrainPhase::Returning => Verdict::Lost,
    };
    follow(app, begun, common, &judge, "drained: nothing runs there").await
}

pub async fn bring_back(app: &App, nodes: Nodes, common: &DrainCommonArgs) -> Result<ExitStatus> {
    let mut request = ReturnNodesRequest {
        names: nodes.names.clone(),
        failure_domain: nodes.failure_domain.clone(),
        unguarded: common.moves.unguarded,
        validate_only: true,
    };
    let seen = app.client()?.ask(request.clone()).await?;
    let question = format!("take {} into use again", nodes.told(&seen.nodes));
    if let Some(ended) = agree(app, &seen.plan.unwrap_or_default(), common, &question)? {
        return Ok(ended);
    }
    request.validate_only = false;
    let begun = app.client()?.ask(request).await?.nodes;
    let judge = |node: &Node| match phase(node) {
        DrainPhase::Unspecified => Verdict::Reached,
        DrainPhase::Returning => Verdict::Going,
        DrainPhase::Draining | DrainPhase::Drained => Verdict::Lost,
    };
    follow(app, begun, common, &judge, "in use again").await
}

async fn cancel(app: &App, nodes: Nodes) -> Result<ExitStatus> {
    let request = CancelDrainRequest { names: nodes.names, failure_domain: nodes.failure_domain };
    let nodes = app.client()?.ask(request).await?.nodes;
    if app.output.is_machine() {
        app.output.value(&nodes)?;
        return Ok(ExitStatus::Done);
    }
    for node in &nodes {
        let cordoned = node.spec.as_ref().is_some_and(|spec| spec.cordoned);
        let word = if cordoned { "given up; it stays cordoned" } else { "given up" };
        app.output.note(&format!("{}: {word}", node.name()));
    }
    Ok(ExitStatus::Done)
}

pub(super) fn phase(node: &Node) -> DrainPhase {
    let drain = node.status.as_ref().and_then(|status| status.drain.as_ref());
    drain.map_or(DrainPhase::Unspecified, |drain| drain.phase())
}

/// Watches one node after the other to its end; all go on at the same time.
async fn follow(
    app: &App,
    begun: Vec<Node>,
    common: &DrainCommonArgs,
    judge: &dyn Fn(&Node) -> Verdict,
    done: &str,
) -> Result<ExitStatus> {
    let mut last = Vec::new();
    for node in begun {
        last.push(match common.wait.no_wait {
            true => node,
            false => until(app, node, &common.wait, Goal::State(judge)).await?,
        });
    }
    if app.output.is_machine() {
        app.output.value(&last)?;
    } else if !common.wait.no_wait {
        last.iter().for_each(|node| app.output.note(&format!("{}: {done}", node.name())));
    }
    Ok(ExitStatus::Done)
}

/// The plan alone; a plan with blockers is a "no".
/// Shows the plan and asks; says how the command ends where nothing is to be done.
fn agree(
    app: &App,
    plan: &DrainPlan,
    common: &DrainCommonArgs,
    question: &str,
) -> Result<Option<ExitStatus>> {
    if common.moves.dry_run {
        return dry_run(app, plan).map(Some);
    }
    if !app.output.is_machine() {
        show(app, plan)?;
    }
    app.confirm(common.moves.yes, question)?;
    Ok(None)
}

fn dry_run(app: &App, plan: &DrainPlan) -> Result<ExitStatus> {
    if app.output.is_machine() {
        app.output.value(plan)?;
    } else {
        show(app, plan)?;
        app.output.note("dry run: nothing was changed");
    }
    let blocked = plan.steps.iter().any(|step| step.way() == DrainWay::Blocked);
    Ok(if blocked { ExitStatus::Failed } else { ExitStatus::Done })
}

fn show(app: &App, plan: &DrainPlan) -> Result<()> {
    let (moves, rest): (Vec<&DrainStep>, Vec<&DrainStep>) =
        plan.steps.iter().partition(|step| step.round > 0);
    let limit = if app.output.is_wide() { usize::MAX } else { LINES };
    let rows = moves.iter().take(limit).map(|step| {
        vec![
            Cell::from(step.round),
            Cell::from(name(step)),
            Cell::from(&step.node),
            Cell::from(&step.target),
            way(step),
            Cell::from(mib(step.copies_mib)),
            Cell::from(time(step.expected_s)),
            Cell::from(&step.why),
        ]
    });
    let headers = vec!["ROUND", "VM", "FROM", "TO", "WAY", "COPIES", "TIME", "WHY"];
    app.output.table(&Table { headers, rows: rows.collect() }, "nothing has to move")?;
    if moves.len() > limit {
        app.output.note(&format!("{} more moves are shown by -o wide", moves.len() - limit));
    }
    let rows = rest.iter().map(|step| {
        vec![
            Cell::from(name(step)),
            Cell::from(&step.node),
            way(step),
            Cell::from(&step.why),
            Cell::from(&step.lift),
        ]
    });
    let headers = vec!["VM", "NODE", "WAY", "WHY", "WOULD HELP"];
    app.output.section("What does not move", &Table { headers, rows: rows.collect() })?;
    plan.unguarded.iter().for_each(|loss| app.output.warning(&format!("meanwhile {loss}")));
    if !moves.is_empty() {
        let measured = if plan.measured { "as measured of late" } else { "assumed" };
        app.output.note(&format!(
            "{} in {}, about {} at {} MiB/s ({measured})",
            count(moves.len(), "move"),
            count(plan.rounds as usize, "round"),
            time(plan.expected_s),
            plan.mib_per_s
        ));
    }
    let blocked = rest.iter().filter(|step| step.way() == DrainWay::Blocked).count();
    if blocked > 0 {
        app.output.warning(&format!("{} blocked: it is done only when they are gone", count(blocked, "VM")));
    }
    Ok(())
}

pub(super) fn name(step: &DrainStep) -> String {
    if step.agency.is_empty() { step.vm.clone() } else { format!("{}/{}", step.agency, step.vm) }
}

pub(super) fn way(step: &DrainStep) -> Cell {
    match step.way() {
        DrainWay::Unspecified => Cell::from(""),
        DrainWay::Live => Cell::from("live"),
        DrainWay::LiveWithDisks => Cell::from("live, with disks"),
        DrainWay::Cold => Cell::from("cold"),
        DrainWay::ColdWithDisks => Cell::from("cold, with disks"),
        DrainWay::ShutDown => Cell::toned("shut down", Tone::Busy),
        DrainWay::Stays => Cell::from("stays"),
        DrainWay::Waits => Cell::toned("waits", Tone::Busy),
        DrainWay::Blocked => Cell::toned("blocked", Tone::Bad),
    }
}

pub(super) fn time(seconds: u64) -> String {
    duration(std::time::Duration::from_secs(seconds))
}
