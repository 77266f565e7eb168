//! MoveService, and the verb of VmService that begins a move. Where a VM can go is the engine's answer, asked of the
//! picture without the VM in it; the decision then holds the room under the guards of both nodes.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tamdao_model::Scope;
use tamdao_model::assignment::Intent;
use tamdao_model::convert::moves::show_forecast;
use tamdao_model::forecast::Forecast;
use tamdao_model::moves::{Cause, Move, MoveEvent, Way};
use tamdao_model::node::Node;
use tamdao_model::vm::Vm;
use tamdao_model::{Kind, MoveId, NodeId, limits};
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::v1;
use tamdao_scheduler::VmShape;
use tamdao_scheduler::check::Step;
use tamdao_scheduler::explain::{self, Outcome, Verdict};
use tamdao_scheduler::survive::guarantee::{Broken, Guarantee};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use tonic::{Code, Request, Response, Status};

use super::standard::{Standard, service};
use super::{Api, Asked, agency_of, find};
use crate::admission::Moment;
use crate::decide::move_start::{self, Wish};
use crate::decide::{move_forecast, move_step};
use crate::engine::{self, judged, judged_plans};
use crate::refusal::Refusal;
use crate::sessions::tunnel::FromNode;
use crate::shared::Shared;

impl Standard for Move {
    fn complete(proto: &mut v1::Move, row: &Self, _: &View, shared: &Shared) {
        if row.status.phase.is_open() {
            proto.status.get_or_insert_default().progress = shared.sessions.progress(row.id());
        }
    }
}

impl Api {
    pub(super) async fn migrate(
        &self,
        asked: Asked,
        request: v1::MigrateVmRequest,
    ) -> Result<v1::Move, Refusal> {
        if request.reason.chars().count() > limits::MOVE_REASON_CHARS {
            let message = format!("has more than {} characters", limits::MOVE_REASON_CHARS);
            return Err(Refusal::field("reason", message));
        }
        let view = self.fresh().await?;
        // A repeated request must find its move, whatever can be said of the VM by now: so a refusal waits.
        let wish = self.wish(&view, &request);
        let (chosen, dry) = (wish.clone().ok(), asked.validate_only);
        let mut told = self
            .change(asked.clone(), move |draft, moment| {
                let wish = wish.clone()?;
                move_start::start(draft, moment, &wish, &asked.caller)
            })
            .await?;
        let live = told
            .spec
            .as_ref()
            .is_some_and(|spec| matches!(spec.way(), v1::MoveWay::Live | v1::MoveWay::LiveWithDisks));
        if let Some(wish) = chosen.filter(|_| live) {
            match told.metadata.as_ref().and_then(|metadata| metadata.id.parse::<MoveId>().ok()) {
                // A move is not kept waiting for what is expected of it.
                Some(id) if !dry => drop(tokio::spawn(note_forecast(self.shared.clone(), view, wish, id))),
                _ => {
                    let status = told.status.get_or_insert_default();
                    match forecast(&self.shared, &view, &wish).await {
                        Ok(forecast) => status.forecast = Some(show_forecast(&forecast)),
                        Err(refusal) => status.message = format!("no forecast: {}", refusal.message),
                    }
                }
            }
        }
        Ok(told)
    }

    fn wish(&self, view: &View, request: &v1::MigrateVmRequest) -> Result<Wish, Refusal> {
        let scope = Scope::Agency(agency_of(view, &request.agency)?);
        let vm = find::<Vm>(view, scope, &request.name)?.value.clone();
        let way = move_start::way(view, &vm, request.allow_cold)?;
        let mut shape = engine::shape(view, &vm).map_err(|error| Refusal::internal(error.to_string()))?;
        // Its files are made anew over there.
        shape.pin = vm.spec.pin;
        shape.disks.iter_mut().for_each(|disk| disk.on = None);
        let (_, engine) = self.shared.engine.guarded(&self.shared.cache);
        let mut picture = engine.picture().clone();
        let source = vm.status.node.ok_or_else(|| Refusal::internal("a VM that can move has a node"))?;
        picture.release(source, vm.id());
        let explained = explain::explain(&picture, &shape);
        let wanted = match request.target_node.as_str() {
            "" => None,
            name => Some(find::<Node>(view, Scope::Cluster, name)?.id()),
        };
        let shape = Arc::new(shape);
        let keeps = |to| keeps(&engine.guarantee, &shape, source, to);
        let target = choose(view, &vm, way, source, wanted, &explained.verdicts, keeps)?;
        Ok(Wish {
            vm: vm.id(),
            target: target.id(),
            reservation: shape.reservation_on(target.status.inventory.acceleration == "qemu"),
            cells: engine::cell_numbers(view, target.id(), picture.cells_for(target.id(), &shape)),
            allow_cold: request.allow_cold,
            auto_converge: !request.no_auto_converge,
            reason: request.reason.clone(),
        })
    }

    async fn cancel_move(&self, asked: Asked, request: v1::CancelMoveRequest) -> Result<v1::Move, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let scope = Scope::Agency(agency_of(draft.view(), &request.agency)?);
            let row = find::<Move>(draft.view(), scope, &request.name)?.clone();
            if !row.status.phase.is_open() {
                let message = format!("move {:?} is over", row.meta.name.as_str());
                return Err(Refusal::precondition("MoveOver", message));
            }
            let message = format!("{} asked for it", asked.caller);
            let cause = Cause { reason: "Cancelled".into(), message, cancelled: true };
            move_step::happens(draft, moment, row.id(), MoveEvent::GiveUp, Some(cause));
            let row = draft.view().moves.get(row.id());
            row.map(|row| (*row.value).clone())
                .ok_or_else(|| Refusal::internal("a move that was cancelled stays"))
        })
        .await
    }
}

/// How long a node may take to measure a guest, which it does for a second.
const MEASURING: Duration = Duration::from_secs(5);

/// What is expected of a live move: its node is asked to measure the guest.
async fn forecast(shared: &Shared, view: &View, wish: &Wish) -> Result<Forecast, Refusal> {
    let vm = view.vms.get(wish.vm).ok_or_else(|| Refusal::not_found(Kind::Vm, &wish.vm.to_string()))?;
    let node = vm.status.node.and_then(|id| view.nodes.get(id));
    let node = node.ok_or_else(|| Refusal::internal("a VM that can move has a node"))?;
    let purpose = agent::open_tunnel::Purpose::Measure(agent::MeasureTunnel { vm_id: vm.id().to_string() });
    let mut tunnel = shared.sessions.open_tunnel(node.id(), purpose)?;
    let no = |why: String| Refusal::unavailable(format!("{} has not measured it: {why}", node.meta.name));
    let told = match tokio::time::timeout(MEASURING, tunnel.from_node.recv()).await {
        Ok(Some(FromNode::Data(data))) => {
            agent::Measurement::decode(data).map_err(|error| no(error.to_string()))?
        }
        Ok(Some(FromNode::Failed(why))) => return Err(no(why)),
        Ok(None) => return Err(no("it has ended the conversation".to_owned())),
        Err(_) => return Err(no(format!("it was not heard for {MEASURING:?}"))),
    };
    let copies = move_start::local_volumes(view, vm);
    Ok(move_forecast::expect(view, vm, node, &copies, wish.auto_converge, &told))
}

/// Puts the forecast of a move that has begun into its record, if there is one.
async fn note_forecast(shared: Arc<Shared>, view: Arc<View>, wish: Wish, id: MoveId) {
    let noted = async {
        let forecast = forecast(&shared, &view, &wish).await?;
        let note = move |draft: &mut Draft, _: &mut Moment| {
            move_forecast::note(draft, id, forecast);
            Ok(())
        };
        shared.writer.submit(note).await
    };
    if let Err(error) = noted.await {
        tracing::debug!(vm = %wish.vm, %error, "no forecast of a move");
    }
}

/// Whether room stays for every guarded failure once the VM has moved there: proposed in a fork, and judged.
fn keeps(guarantee: &Guarantee, vm: &Arc<VmShape>, from: NodeId, to: NodeId) -> Result<Kept, Refusal> {
    let mut alone = guarantee.view().clone();
    alone.release(from, vm.id);
    let cells = alone.cells_for(to, vm);
    let mut after = guarantee.clone();
    let proposed = after.propose(|fork| {
        if fork.assign_to(to, cells, vm.clone()).is_ok() {
            fork.release(from, vm.id);
        }
    });
    if let Err(broken) = proposed {
        return Ok(Err(broken));
    }
    judged(&alone, &[Step::Assign { vm: vm.clone(), node: to, cells }])?;
    judged_plans(guarantee, &after, &[Step::Move { vm: vm.id, from, to, cells }])?;
    Ok(Ok(()))
}

/// What a move does to the guarantee.
type Kept = Result<(), Box<Broken>>;

/// Nodes whose guarantee is looked at for one move; planning anew what a move breaks takes a while.
const ASKED: usize = 16;

/// The wanted node if it will do, or else the best one that will.
fn choose<'a>(
    view: &'a View,
    vm: &Vm,
    way: Way,
    source: NodeId,
    wanted: Option<NodeId>,
    verdicts: &[Verdict],
    keeps: impl Fn(NodeId) -> Result<Kept, Refusal>,
) -> Result<&'a Node, Refusal> {
    let here = view.nodes.get(source).ok_or_else(|| Refusal::internal("a placed VM's node is known"))?;
    let no_room = |message: String| Refusal::new(Code::ResourceExhausted, "NoTarget", message);
    let fits_on = |verdict: &Verdict| -> Result<&'a Node, String> {
        let node = view.nodes.get(verdict.node).map(|row| &*row.value).ok_or_else(|| "is gone".to_owned())?;
        if let Outcome::Unfit { reasons } = &verdict.outcome {
            return Err(reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        }
        move_start::unfit(view, vm, way, here, node).map_or(Ok(node), |(_, why)| Err(why))
    };
    if let Some(wanted) = wanted {
        if wanted == source {
            let message = format!("vm {:?} is on {} already", vm.meta.name.as_str(), here.meta.name);
            return Err(Refusal::precondition("SameNode", message));
        }
        let left =
            view.assignment(wanted).vms.get(&vm.id()).is_some_and(|entry| entry.intent == Intent::Stale);
        if let Some(node) = view.nodes.get(wanted).filter(|_| left) {
            let name = vm.meta.name.as_str();
            let message =
                format!("{} still clears away what vm {name:?} left there when it moved", node.meta.name);
            return Err(Refusal::precondition("StillLeaving", message)
                .hint("ask again in a moment; the node has to be heard for it"));
        }
        let verdict = verdicts.iter().find(|verdict| verdict.node == wanted);
        let verdict = verdict.ok_or_else(|| Refusal::not_found(Kind::Node, &wanted.to_string()))?;
        let node =
            fits_on(verdict).map_err(|why| no_room(format!("{} cannot take it: {why}", verdict.name)))?;
        return keeps(wanted)?.map(|()| node).map_err(|broken| {
            let message = format!("the room is kept for failures: with it on {}, {broken}", verdict.name);
            Refusal::new(Code::ResourceExhausted, "RoomKeptForFailures", message)
                .fact("failure_domain", &broken.name)
        });
    }
    let (mut why_not, mut asked) = (Vec::new(), 0);
    for verdict in verdicts.iter().filter(|verdict| verdict.node != source) {
        let fits = match fits_on(verdict) {
            Ok(node) if asked < ASKED => {
                asked += 1;
                keeps(verdict.node)?.map(|()| node).map_err(|broken| broken.to_string())
            }
            Ok(_) => Err("was not asked any more".to_owned()),
            Err(why) => Err(why),
        };
        match fits {
            Ok(node) => return Ok(node),
            Err(why) => why_not.push(format!("{}: {why}", verdict.name)),
        }
    }
    let message = match why_not.len() {
        0 => "there is no other node".to_owned(),
        _ => format!("no other node can take it: {}", why_not[..why_not.len().min(3)].join("; ")),
    };
    Err(no_room(message).hint("tamdao vm explain NAME tells of each node"))
}

/// Whether a VM can move while it runs, in one sentence.
pub(super) fn movable(view: &View, vm: &Vm) -> String {
    match move_start::way(view, vm, false) {
        Ok(Way::Live) => "can move while it runs".to_owned(),
        Ok(Way::LiveWithDisks) => "can move while it runs, with its local disks copied along".to_owned(),
        Ok(Way::Cold) if !move_start::local_volumes(view, vm).is_empty() => {
            "is off, and can be given to another node, where its local disks are carried".to_owned()
        }
        Ok(Way::Cold) => "is off, and can be given to another node".to_owned(),
        Err(refusal) => format!("cannot move: {}", refusal.message),
    }
}

service! {
    move_service_server::MoveService, Move, r#move, moves, agency, phase,
    get get_move(GetMoveRequest) list list_moves(ListMovesRequest -> ListMovesResponse)
    watch watch_moves(WatchMovesRequest -> WatchMovesResponse as WatchMovesStream)
    extra {
        async fn cancel_move(&self, request: Request<v1::CancelMoveRequest>) -> Result<Response<v1::Move>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.cancel_move(asked, request.into_inner()).await?))
        }
    }
}

#[cfg(test)]
mod tests {
    use tamdao_scheduler::By;
    use tamdao_scheduler::text::Cluster;

    use super::*;

    #[test]
    fn a_move_that_takes_the_room_of_a_restart_is_refused_with_the_failure_named() {
        let text = "tamdao-cluster 1\nnode n1 vcpus=8 memory=8192\nnode n2 vcpus=8 memory=8192\n\
            node n3 vcpus=8 memory=4096\nvm x on=n1 vcpus=1 memory=6144 protected\n\
            vm y on=n3 vcpus=1 memory=3072 protected\n";
        let cluster = Cluster::parse(text).unwrap();
        let guarantee = Guarantee::new(cluster.view().unwrap(), &[By::Node]);
        assert!(guarantee.holds());
        let [n1, n2, n3] = [0, 1, 2].map(|at: usize| cluster.nodes[at].id);
        let y = guarantee.view().vms_on(n3)[0].clone();
        let broken = keeps(&guarantee, &y, n3, n2).unwrap().unwrap_err();
        assert_eq!((broken.name.as_str(), broken.vm), ("node n1", guarantee.view().vms_on(n1)[0].id));
        let open = Guarantee::new(cluster.view().unwrap(), &[]);
        assert_eq!(keeps(&open, &y, n3, n2).unwrap(), Ok(()));
    }
}
