//! `tamdao node roll`: nodes are updated in turns while their VMs run on elsewhere. Each group of nodes that can be down
//! together is drained, worked on, taken into use again and has got back what it had before the next one begins.
//!
//! Invariant: what this command knows is in the nodes' records (their drains, by the update's name, and what they run on
//! now), so that it may end at any line and be run again anywhere. The next group is asked for when its turn comes, from
//! the cloud as it is then. It touches no drain of another name and no node that somebody has cordoned. Deliberately
//! absent: a plan that is kept, and how the work on a node is done.

mod goal;
mod group;
mod shown;
mod work;

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;
use tamdao_proto::v1::{
    DrainNodesRequest, DrainPhase, DrainPlan, DrainStep, DrainWay, ListEventsRequest, Node, NodePhase,
    ReturnNodesRequest,
};

use super::drain::{name, phase};
use crate::app::App;
use crate::args::{NodeRollArgs, WaitArgs};
use crate::problem::{ExitStatus, Problem, problem_of};
use crate::quantity::count;
use crate::resource::{Place, Query, Resource};
use crate::wait::{Goal as Wanted, Verdict, until};
use goal::Goal;
use group::{Group, largest};

/// How long a drain may take before it is given up, seconds; a return takes its own time.
const DEADLINE_S: u32 = 604_800;
/// Events of a node among which the end of its return is looked for.
const EVENTS: u32 = 10;

pub async fn run(app: &App, args: &NodeRollArgs) -> Result<ExitStatus> {
    let goals = args.until.iter().map(|text| Goal::read(text)).collect::<Result<_, _>>()?;
    let roll = Roll { app, args, goals, confirmed: work::Confirmed::default() };
    let turns = roll.turns(&BTreeSet::new()).await?;
    let plan = roll.plan(turns).await?;
    if args.moves.dry_run || !app.output.is_machine() {
        plan.show(app)?;
    }
    let all_go = plan.left_out.is_empty();
    if args.moves.dry_run {
        app.output.note("dry run: nothing was changed");
        return Ok(if all_go { ExitStatus::Done } else { ExitStatus::Failed });
    }
    if plan.is_empty() {
        app.output.note("no node is to be updated");
        return Ok(if all_go { ExitStatus::Done } else { ExitStatus::Failed });
    }
    app.confirm(args.moves.yes, &format!("update {} in turns", count(plan.nodes(), "node")))?;
    roll.carry_out().await
}

struct Roll<'a> {
    app: &'a App,
    args: &'a NodeRollArgs,
    goals: Vec<Goal>,
    confirmed: work::Confirmed,
}

/// Whose turn it is.
#[derive(Default)]
struct Turns {
    /// Have what the update is for, and are in use.
    done: Vec<String>,
    /// Are drained, being drained or on their way back by this update.
    under_way: Vec<String>,
    /// Come next, the fullest first.
    waiting: Vec<String>,
    left_out: Vec<LeftOut>,
}

/// A node that has no turn, and why.
#[derive(Debug, Serialize)]
struct LeftOut {
    node: String,
    why: Vec<String>,
}

/// What is shown before anything is done.
#[derive(Serialize)]
struct Plan {
    done: Vec<String>,
    under_way: Vec<String>,
    groups: Vec<Shown>,
    left_out: Vec<LeftOut>,
}

/// A group with how it is emptied.
#[derive(Serialize)]
struct Shown {
    nodes: Vec<String>,
    plan: DrainPlan,
}

/// How it ended.
#[derive(Serialize)]
struct Report {
    /// In the order of their turns.
    updated: Vec<String>,
    /// Had what the update is for before.
    done: Vec<String>,
    left_out: Vec<LeftOut>,
}

impl Roll<'_> {
    /// One group after the other, each asked for when its turn comes.
    async fn carry_out(&self) -> Result<ExitStatus> {
        let mut updated: Vec<String> = Vec::new();
        let report = loop {
            let turns = self.turns(&updated.iter().cloned().collect()).await?;
            let nodes = match turns.under_way.as_slice() {
                [] => self.largest(&turns.waiting).await?.map(|group| group.nodes),
                under_way => Some(under_way.to_vec()),
            };
            let Some(nodes) = nodes else {
                let mut left_out = turns.left_out;
                left_out.extend(self.blocked(&turns.waiting).await?);
                break Report { updated, done: turns.done, left_out };
            };
            let (all, left) = (nodes.join(", "), turns.waiting.iter().filter(|one| !nodes.contains(one)));
            self.app.output.note(&format!("now {all}; {} after that", count(left.count(), "node")));
            if let Err(error) = self.turn(&nodes).await {
                return Err(self.stopped(problem_of(error), &nodes).await.into());
            }
            updated.extend(nodes);
        };
        let status = if report.left_out.is_empty() { ExitStatus::Done } else { ExitStatus::Failed };
        if self.app.output.is_machine() {
            self.app.output.value(&report)?;
            return Ok(status);
        }
        self.app.output.note(&format!("{} updated", count(report.updated.len(), "node")));
        for one in &report.left_out {
            self.app.output.warning(&format!("{} was left out: {}", one.node, one.why.join("; ")));
        }
        Ok(status)
    }

    /// The turn of one group, from wherever its nodes are.
    async fn turn(&self, nodes: &[String]) -> Result<()> {
        let place = |name: &String| Place { agency: String::new(), name: name.clone() };
        let mut drained = Vec::new();
        let mut leaving = Vec::new();
        for name in nodes {
            let node = Node::fetch(self.app.client()?, &place(name)).await?;
            if matches!(phase(&node), DrainPhase::Unspecified | DrainPhase::Draining) {
                leaving.push(name.clone());
            }
        }
        if !leaving.is_empty() {
            self.app.client()?.ask(self.drain(&leaving, false)).await?;
        }
        for name in nodes {
            let node = Node::fetch(self.app.client()?, &place(name)).await?;
            if phase(&node) == DrainPhase::Returning {
                continue;
            }
            let judge = |node: &Node| match phase(node) {
                DrainPhase::Drained => Verdict::Reached,
                DrainPhase::Draining => Verdict::Going,
                DrainPhase::Unspecified | DrainPhase::Returning => Verdict::Lost,
            };
            drained.push(until(self.app, node, &self.wait(), Wanted::State(&judge)).await?);
        }
        if !drained.is_empty() {
            self.work(&drained).await?;
            let names = drained.iter().map(|node| node.name().to_owned()).collect();
            let unguarded = self.args.moves.unguarded;
            let request = ReturnNodesRequest { names, unguarded, ..ReturnNodesRequest::default() };
            self.app.client()?.ask(request).await?;
        }
        for name in nodes {
            let node = Node::fetch(self.app.client()?, &place(name)).await?;
            let judge = |node: &Node| match phase(node) {
                DrainPhase::Unspecified => Verdict::Reached,
                DrainPhase::Returning => Verdict::Going,
                DrainPhase::Draining | DrainPhase::Drained => Verdict::Lost,
            };
            until(self.app, node, &self.wait(), Wanted::State(&judge)).await?;
            self.app.output.note(&format!("{name}: in use again{}", self.returned(name).await?));
        }
        Ok(())
    }

    /// What the cloud says of a return that has just ended, such as which VMs stay where they are.
    async fn returned(&self, node: &str) -> Result<String> {
        let request = ListEventsRequest {
            page_size: EVENTS,
            kind: Node::KIND.to_owned(),
            name: node.to_owned(),
            ..ListEventsRequest::default()
        };
        // The newest are the first.
        let events = self.app.client()?.ask(request).await?.events;
        let returned = events.into_iter().find(|event| event.reason == "Returned");
        Ok(returned.map(|event| format!(": {}", event.message)).unwrap_or_default())
    }

    /// What went wrong, with where the nodes of the group are now.
    async fn stopped(&self, mut problem: Problem, nodes: &[String]) -> Problem {
        let mut away = Vec::new();
        for name in nodes {
            let place = Place { agency: String::new(), name: name.clone() };
            let Ok(client) = self.app.client() else { continue };
            let told = match Node::fetch(client, &place).await {
                Err(problem) => problem.what,
                Ok(node) => match phase(&node) {
                    DrainPhase::Unspecified => "in use".to_owned(),
                    DrainPhase::Draining => "being drained, which goes on".to_owned(),
                    DrainPhase::Returning => "getting back what it had, which goes on".to_owned(),
                    DrainPhase::Drained => {
                        away.push(name.as_str());
                        "drained: nothing runs there".to_owned()
                    }
                },
            };
            problem = problem.detail(format!("{name} is {told}"));
        }
        problem = problem.hint("the same command once more goes on from here");
        match away.as_slice() {
            [] => problem,
            away => problem
                .hint(format!("or `tamdao node return {}` takes them into use as they are", away.join(" "))),
        }
    }

    fn wait(&self) -> WaitArgs {
        WaitArgs { no_wait: false, timeout: self.args.timeout }
    }

    /// Sorts the nodes that are meant, but for those that had their turn in this run.
    async fn turns(&self, updated: &BTreeSet<String>) -> Result<Turns> {
        let mut turns = Turns::default();
        let mut waiting = Vec::new();
        for node in self.meant().await? {
            let name = node.name().to_owned();
            let status = node.status.clone().unwrap_or_default();
            let drain = status.drain.as_ref();
            let cordoned = node.spec.as_ref().is_some_and(|spec| spec.cordoned);
            let why = match drain {
                Some(drain) if drain.reason == self.args.reason => {
                    turns.under_way.push(name);
                    continue;
                }
                _ if updated.contains(&name) => continue,
                _ if self.has_all(&node) => {
                    turns.done.push(name);
                    continue;
                }
                Some(drain) => {
                    let of = if drain.reason.is_empty() { &drain.asked_by } else { &drain.reason };
                    format!("its drain is not of this update ({of})")
                }
                None if cordoned => "it is cordoned; `tamdao node uncordon` lets it take part".to_owned(),
                None if status.phase() != NodePhase::Ready => {
                    format!("it is {}, and only its agent can say that it is empty", node.phase())
                }
                None => {
                    waiting.push((status.allocated.unwrap_or_default().memory_mib, name));
                    continue;
                }
            };
            turns.left_out.push(LeftOut { node: name, why: vec![why] });
        }
        waiting.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
        turns.waiting = waiting.into_iter().map(|(_, name)| name).collect();
        Ok(turns)
    }

    /// Whether it had its turn before this run. Without a word of what the update is for, none had.
    fn has_all(&self, node: &Node) -> bool {
        !self.goals.is_empty() && self.goals.iter().all(|goal| goal.lacks(node).is_none())
    }

    /// The nodes that the command line names.
    async fn meant(&self) -> Result<Vec<Node>> {
        if !self.args.names.is_empty() {
            let mut nodes = Vec::new();
            for name in &self.args.names {
                let place = self.app.place::<Node>(name, false)?;
                let node = Node::fetch(self.app.client()?, &place).await;
                let node = node.map_err(|problem| problem.about(name))?;
                // By name and by id it may have been named twice.
                if !nodes.iter().any(|known: &Node| known.name() == node.name()) {
                    nodes.push(node);
                }
            }
            return Ok(nodes);
        }
        let query = Query { labels: self.args.labels.clone().unwrap_or_default(), ..Query::default() };
        let (mut nodes, mut token) = (Vec::new(), String::new());
        loop {
            let page = Node::page(self.app.client()?, &query, 1_000, token).await?;
            nodes.extend(page.resources);
            token = page.next;
            if token.is_empty() {
                break;
            }
        }
        if let Some(text) = &self.args.failure_domain {
            let (key, value) = text.split_once('=').ok_or_else(|| {
                Problem::usage(format!("--failure-domain {text}: expected KEY=VALUE, such as rack=r1"))
            })?;
            let alone = |node: &Node| {
                let of = node.spec.as_ref().and_then(|spec| spec.failure_domains.get(key));
                of.is_some_and(|of| of.values == [value])
            };
            nodes.retain(alone);
        }
        Ok(nodes)
    }

    /// All turns as they would be if nothing else changed.
    async fn plan(&self, turns: Turns) -> Result<Plan> {
        let Turns { done, under_way, mut waiting, mut left_out } = turns;
        let mut groups = Vec::new();
        while let Some(Group { nodes, plan }) = self.largest(&waiting).await? {
            waiting.retain(|name| !nodes.contains(name));
            groups.push(Shown { nodes, plan });
        }
        left_out.extend(self.blocked(&waiting).await?);
        Ok(Plan { done, under_way, groups, left_out })
    }

    async fn largest(&self, waiting: &[String]) -> Result<Option<Group<DrainPlan>>> {
        let plan = async |nodes: &[String]| {
            let plan = self.emptied(nodes).await?;
            Ok(self.blockers(&plan, nodes).is_empty().then_some(plan))
        };
        largest(waiting, &plan).await
    }

    /// Why each of these cannot be down even alone.
    async fn blocked(&self, nodes: &[String]) -> Result<Vec<LeftOut>> {
        let mut blocked = Vec::new();
        for name in nodes {
            let alone = std::slice::from_ref(name);
            let why = self.blockers(&self.emptied(alone).await?, alone);
            blocked.push(LeftOut { node: name.clone(), why });
        }
        Ok(blocked)
    }

    /// How the cloud would empty these, all together with what is being drained already.
    async fn emptied(&self, nodes: &[String]) -> Result<DrainPlan> {
        Ok(self.app.client()?.ask(self.drain(nodes, true)).await?.plan.unwrap_or_default())
    }

    /// What of a plan keeps these nodes from being down together.
    fn blockers(&self, plan: &DrainPlan, nodes: &[String]) -> Vec<String> {
        let blocks = |step: &&DrainStep| step.way() == DrainWay::Blocked && nodes.contains(&step.node);
        let told = |step: &DrainStep| match step.lift.as_str() {
            "" => format!("{}: {}", name(step), step.why),
            lift => format!("{}: {} (would help: {lift})", name(step), step.why),
        };
        let mut blockers: Vec<String> = plan.steps.iter().filter(blocks).map(told).collect();
        if !self.args.moves.unguarded {
            blockers.extend(plan.unguarded.iter().map(|loss| format!("meanwhile {loss}")));
        }
        blockers
    }

    fn drain(&self, nodes: &[String], validate_only: bool) -> DrainNodesRequest {
        DrainNodesRequest {
            names: nodes.to_vec(),
            failure_domain: String::new(),
            allow_cold: self.args.allow_cold,
            unguarded: self.args.moves.unguarded,
            reason: self.args.reason.clone(),
            deadline_s: DEADLINE_S,
            validate_only,
        }
    }
}
