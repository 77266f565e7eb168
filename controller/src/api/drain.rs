//! The verbs of NodeService that empty nodes and bring back what left them. The plan that is shown is the drainer's own,
//! made from the newest records, with all nodes that are being drained already; nothing of it is kept.

use std::collections::{BTreeMap, BTreeSet};

use tamdao_model::node::{DrainPhase, Node};
use tamdao_model::{NodeId, Scope, limits};
use tamdao_proto::v1;
use tamdao_scheduler::plan::Why;
use tamdao_store::view::View;

use super::{Api, find};
use crate::access::Asking;
use crate::decide::drain::{self, Ask};
use crate::reconcile::drainer::plan::{self, Go, Leave, Plan, Rest, What};
use crate::reconcile::drainer::{draining, speed};
use crate::refusal::Refusal;

/// Nodes of one request: each writes itself and an event, in one transaction.
const NODES: usize = 60;
/// How long a drain may take, seconds, if nobody said, and at most.
const DEADLINE_S: u32 = 86_400;
const DEADLINE_MAX_S: u32 = 604_800;
/// What a move is believed to send while none has been measured, MiB/s: a link of 1 Gbit/s.
const ASSUMED_MIB_PER_S: u64 = 110;

impl Api {
    pub(super) async fn drain(
        &self,
        asking: Asking,
        request: v1::DrainNodesRequest,
    ) -> Result<v1::DrainNodesResponse, Refusal> {
        let now = self.shared.clock.now();
        asking.judge(&*self.fresh().await?, now)?;
        let reason = &request.reason;
        if reason.chars().count() > limits::MOVE_REASON_CHARS || reason.chars().any(char::is_control) {
            let message = format!("takes {} characters at most, and one line", limits::MOVE_REASON_CHARS);
            return Err(Refusal::field("reason", message));
        }
        let time_s = match request.deadline_s {
            0 => DEADLINE_S,
            time_s @ 1..=DEADLINE_MAX_S => time_s,
            _ => return Err(Refusal::field("deadline_s", format!("is more than {DEADLINE_MAX_S}"))),
        };
        let (view, engine) = self.shared.engine.guarded(&self.shared.cache);
        let nodes = meant(&view, &request.names, &request.failure_domain)?;
        let mut leaves = draining(&view, DrainPhase::Draining);
        let leave = Leave { since: now, allow_cold: request.allow_cold, unguarded: request.unguarded };
        leaves.extend(nodes.iter().map(|node| (*node, leave)));
        let plan = plan::leaving(&view, &engine, &leaves, now);
        let plan = Some(show(&view, &plan));
        if request.validate_only {
            return Ok(v1::DrainNodesResponse { nodes: self.shown(&view, &nodes), plan });
        }
        let ask = Ask {
            by: asking.principal.to_string(),
            reason: request.reason,
            allow_cold: request.allow_cold,
            unguarded: request.unguarded,
            time_ms: u64::from(time_s) * 1_000,
        };
        let begun = nodes.clone();
        let decided = self.shared.writer.submit(move |draft, moment| {
            asking.judge(draft.view(), moment.now)?;
            begun.iter().try_for_each(|node| drain::begin(draft, moment, *node, &ask))
        });
        let view = self.shared.cache.at_least(decided.await?.1).await?;
        Ok(v1::DrainNodesResponse { nodes: self.shown(&view, &nodes), plan })
    }

    pub(super) async fn cancel_drains(
        &self,
        asking: Asking,
        request: &v1::CancelDrainRequest,
    ) -> Result<v1::CancelDrainResponse, Refusal> {
        let view = self.fresh().await?;
        asking.judge(&view, self.shared.clock.now())?;
        let nodes = meant(&view, &request.names, &request.failure_domain)?;
        let many = nodes.len() > 1;
        // One by one, since each may give up a move or two.
        for node in nodes.iter().copied() {
            let asking = asking.clone();
            let decided = self.shared.writer.submit(move |draft, moment| {
                asking.judge(draft.view(), moment.now)?;
                Ok(drain::cancel(draft, moment, node, &asking.principal.to_string()))
            });
            let decided = decided.await?;
            // Of several nodes some may be done already.
            match decided.0 {
                Err(refusal) if !many => return Err(refusal),
                Err(_) | Ok(()) => {}
            }
        }
        let view = self.fresh().await?;
        Ok(v1::CancelDrainResponse { nodes: self.shown(&view, &nodes) })
    }

    pub(super) async fn bring_back(
        &self,
        asking: Asking,
        request: v1::ReturnNodesRequest,
    ) -> Result<v1::ReturnNodesResponse, Refusal> {
        asking.judge(&*self.fresh().await?, self.shared.clock.now())?;
        let (view, engine) = self.shared.engine.guarded(&self.shared.cache);
        let nodes = meant(&view, &request.names, &request.failure_domain)?;
        let now = self.shared.clock.now();
        let leave = Leave { since: now, allow_cold: false, unguarded: request.unguarded };
        let leaves: BTreeMap<NodeId, Leave> = nodes.iter().map(|node| (*node, leave)).collect();
        let plan = plan::returning(&view, &engine, &leaves, now);
        let plan = Some(show(&view, &plan));
        if request.validate_only {
            return Ok(v1::ReturnNodesResponse { nodes: self.shown(&view, &nodes), plan });
        }
        for node in nodes.iter().copied() {
            let asking = asking.clone();
            let decided = self.shared.writer.submit(move |draft, moment| {
                asking.judge(draft.view(), moment.now)?;
                let by = asking.principal.to_string();
                drain::begin_return(draft, moment, node, &by, request.unguarded)
            });
            decided.await?;
        }
        let view = self.fresh().await?;
        Ok(v1::ReturnNodesResponse { nodes: self.shown(&view, &nodes), plan })
    }

    fn shown(&self, view: &View, nodes: &BTreeSet<NodeId>) -> Vec<v1::Node> {
        let rows = nodes.iter().filter_map(|id| view.nodes.get(*id));
        let mut nodes: Vec<v1::Node> = rows.map(|row| self.show::<Node>(row, view)).collect();
        nodes.sort_by_key(|node| node.metadata.as_ref().map(|metadata| metadata.name.clone()));
        nodes
    }
}

/// The nodes that a request names.
fn meant(view: &View, names: &[String], failure_domain: &str) -> Result<BTreeSet<NodeId>, Refusal> {
    let nodes = match (names, failure_domain) {
        ([], "") => return Err(Refusal::field("names", "is empty; name nodes, or a failure domain")),
        ([_, ..], "") => {
            let ids = names.iter().map(|name| Ok(find::<Node>(view, Scope::Cluster, name)?.id()));
            ids.collect::<Result<BTreeSet<_>, Refusal>>()?
        }
        ([], text) => {
            let wrong = || Refusal::field("failure_domain", "is not KEY=VALUE, such as rack=r2");
            let (key, value) = text.split_once('=').ok_or_else(wrong)?;
            let alone = BTreeSet::from([value.to_owned()]);
            let there = view.nodes.iter().filter(|row| row.spec.failure_domains.get(key) == Some(&alone));
            there.map(|row| row.id()).collect()
        }
        ([_, ..], _) => return Err(Refusal::field("names", "is given beside a failure domain")),
    };
    if nodes.is_empty() {
        let message = "no node stands in it, or each in another one of its key too";
        return Err(Refusal::field("failure_domain", message));
    }
    if nodes.len() > NODES {
        return Err(Refusal::field("names", format!("are {} nodes, {NODES} at once", nodes.len())));
    }
    Ok(nodes)
}

fn show(view: &View, plan: &Plan) -> v1::DrainPlan {
    let measured = speed(view);
    let speed = measured.unwrap_or(ASSUMED_MIB_PER_S);
    let time = |mib: u64| mib.div_ceil(speed);
    let rounds = plan.rounds.iter().enumerate();
    let moves = rounds.flat_map(|(at, round)| round.iter().map(move |go| (at + 1, go)));
    let mut steps: Vec<v1::DrainStep> = moves
        .map(|(round, go)| v1::DrainStep {
            round: u32::try_from(round).unwrap_or(u32::MAX),
            expected_s: time(go.copies_mib),
            ..show_move(view, go)
        })
        .collect();
    steps.extend(plan.rest.iter().map(|rest| show_rest(view, rest)));
    let longest = |round: &Vec<Go>| round.iter().map(|go| time(go.copies_mib)).max().unwrap_or_default();
    v1::DrainPlan {
        steps,
        rounds: u32::try_from(plan.rounds.len()).unwrap_or(u32::MAX),
        expected_s: plan.rounds.iter().map(longest).sum(),
        mib_per_s: u32::try_from(speed).unwrap_or(u32::MAX),
        measured: measured.is_some(),
        unguarded: plan.unguarded.clone(),
    }
}

fn show_move(view: &View, go: &Go) -> v1::DrainStep {
    use tamdao_model::moves::Way;
    let way = match go.way {
        Way::Live => v1::DrainWay::Live,
        Way::LiveWithDisks => v1::DrainWay::LiveWithDisks,
        // What is off has no memory to send.
        Way::Cold if go.copies_mib > 0 => v1::DrainWay::ColdWithDisks,
        Way::Cold => v1::DrainWay::Cold,
    };
    let why = match go.why {
        Why::RoomFor(vm) => format!("makes room for {}", named(view, vm).1),
        Why::With(vm) => format!("goes with {}", named(view, vm).1),
        Why::Empty | Why::Even | Why::Join | Why::Wished => String::new(),
    };
    let (agency, vm) = named(view, go.vm);
    v1::DrainStep {
        agency,
        vm,
        node: node_name(view, go.from),
        target: node_name(view, go.to),
        way: way.into(),
        copies_mib: go.copies_mib,
        why,
        ..Default::default()
    }
}

fn show_rest(view: &View, rest: &Rest) -> v1::DrainStep {
    let way = match rest.what {
        What::Blocked | What::Rests => v1::DrainWay::Blocked,
        What::ShutDown => v1::DrainWay::ShutDown,
        What::Waits => v1::DrainWay::Waits,
        What::Stays => v1::DrainWay::Stays,
    };
    let (agency, vm) = named(view, rest.vm);
    v1::DrainStep {
        agency,
        vm,
        node: node_name(view, rest.node),
        way: way.into(),
        why: rest.why.clone(),
        lift: rest.lift.clone(),
        ..Default::default()
    }
}

/// A VM's agency and name.
fn named(view: &View, id: tamdao_model::VmId) -> (String, String) {
    let Some(vm) = view.vms.get(id) else { return (String::new(), id.to_string()) };
    let agency = view.agencies.get(vm.agency).map(|agency| agency.meta.name.to_string());
    (agency.unwrap_or_default(), vm.meta.name.to_string())
}

fn node_name(view: &View, id: NodeId) -> String {
    view.nodes.get(id).map_or_else(|| id.to_string(), |node| node.meta.name.to_string())
}
