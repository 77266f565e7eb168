//! The verbs of VmService, and why a VM is where it is.

use tamdao_model::convert::{Resize, read_deadline, read_resize};
use tamdao_model::vm::{StopMode, Vm, VmPhase};
use tamdao_model::{Name, Scope};
use tamdao_proto::v1;
use tamdao_scheduler::explain::{self, Outcome};
use tamdao_scheduler::from_model::{self, Stays};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use tonic::Code;

use super::{Api, Asked, agency_of, check_revision, find};
use crate::access::Asking;
use crate::admission::Moment;
use crate::decide::vm_power::{self, Size, Verb};
use crate::decide::waiting;
use crate::decide::{self, fence, hand_over};
use crate::engine;
use crate::refusal::Refusal;

/// Reads how to stop.
pub(super) fn stop(force: bool, deadline_s: u32) -> Result<Verb, Refusal> {
    Ok(Verb::Stop(StopMode { force, deadline_s: read_deadline(deadline_s)? }))
}

/// Reads how to reboot.
pub(super) fn reboot(deadline_s: u32) -> Result<Verb, Refusal> {
    Ok(Verb::Reboot { deadline_s: read_deadline(deadline_s)? })
}

impl Api {
    pub(super) async fn act(
        &self,
        asked: Asked,
        agency: String,
        name: String,
        verb: Verb,
    ) -> Result<v1::Vm, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let scope = Scope::Agency(agency_of(draft.view(), &agency)?);
            let vm = find::<Vm>(draft.view(), scope, &name)?.value.clone();
            vm_power::act(draft, moment, &vm, &verb, &asked.caller)
        })
        .await
    }

    pub(super) async fn hand_over(
        &self,
        asked: Asked,
        request: v1::HandOverVmRequest,
    ) -> Result<v1::Vm, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            if request.to_agency.is_empty() {
                return Err(Refusal::field("to_agency", "must be given"));
            }
            asked.asking.to_take_over(&request.to_agency).judge(draft.view(), moment.now)?;
            let scope = Scope::Agency(agency_of(draft.view(), &request.agency)?);
            let to = agency_of(draft.view(), &request.to_agency)?;
            let row = find::<Vm>(draft.view(), scope, &request.name)?.clone();
            check_revision(&row, request.revision)?;
            let name = match request.new_name.as_str() {
                "" => row.meta.name.clone(),
                name => Name::new(name).map_err(|why| Refusal::field("new_name", why.to_string()))?,
            };
            hand_over::hand_over(draft, moment, &row.value, to, name, &asked.caller)
        })
        .await
    }

    pub(super) async fn resize(&self, asked: Asked, request: v1::ResizeVmRequest) -> Result<v1::Vm, Refusal> {
        // What follows looks at the VM before the change is handed in.
        asked.asking.judge(&self.shared.cache.view(), self.shared.clock.now())?;
        let caller = asked.caller.clone();
        let decide = move |draft: &mut Draft, moment: &mut Moment| {
            let scope = Scope::Agency(agency_of(draft.view(), &request.agency)?);
            let row = find::<Vm>(draft.view(), scope, &request.name)?.clone();
            check_revision(&row, request.revision)?;
            let size = match read_resize(&request, draft.view())? {
                Resize::Flavor(flavor) => Size::of(Some(flavor), 0, 0),
                Resize::Size { vcpus, memory_mib } => Size::of(None, vcpus, memory_mib),
            };
            let size = size.resolve(draft)?;
            let mut wanted = (*row.value).clone();
            (wanted.spec.vcpus, wanted.spec.memory_mib) = (size.vcpus, size.memory_mib);
            let reservation = engine::reservation(draft.view(), &wanted)
                .map_err(|error| Refusal::internal(error.to_string()))?;
            vm_power::resize(draft, moment, &row.value, &size, reservation, &caller)
        };
        // What is refused here is refused below, and told there.
        if let Ok((vm, after)) = self.shared.writer.preview(decide.clone()) {
            self.keeps_guarantee(&vm, &after)?;
        }
        self.change(asked, decide).await
    }

    /// Whether room is left for every guarded failure once a placed VM is what it will be. Asked of the picture before
    /// the change is handed in: what is placed between the two is not seen.
    fn keeps_guarantee(&self, vm: &Vm, after: &View) -> Result<(), Refusal> {
        let Some(node) = vm.status.node else { return Ok(()) };
        let (_, mut engine) = self.shared.engine.guarded(&self.shared.cache);
        let now = engine.picture().vms_on(node).iter().find(|held| held.id == vm.id()).cloned();
        let Some((now, next)) = now.zip(engine::placed(after, node, vm.id())) else { return Ok(()) };
        let (held, wanted) = (now.reservation, next.reservation);
        if wanted.vcpus <= held.vcpus && wanted.memory_mib <= held.memory_mib {
            return Ok(());
        }
        engine.guarantee.propose_shape(&next).map_err(|broken| {
            let message = format!("the room is kept for failures: with the larger size, {broken}");
            Refusal::new(Code::ResourceExhausted, "RoomKeptForFailures", message)
                .fact("failure_domain", &broken.name)
                .hint("a smaller size may fit; or move other VMs away first")
        })
    }

    pub(super) async fn explain(
        &self,
        asking: &Asking,
        request: v1::ExplainVmRequest,
    ) -> Result<v1::ExplainVmResponse, Refusal> {
        let (view, _) = self.admitted(asking).await?;
        let scope = Scope::Agency(agency_of(&view, &request.agency)?);
        let vm = find::<Vm>(&view, scope, &request.name)?.value.clone();
        let node = vm.status.node.and_then(|node| view.nodes.get(node));
        let mut response = v1::ExplainVmResponse {
            summary: summary(&vm, &view),
            placed_on: node.map(|node| node.meta.name.to_string()).unwrap_or_default(),
            ..v1::ExplainVmResponse::default()
        };
        if node.is_some() {
            response.on_node_loss = on_node_loss(&vm, &view);
            response.movable = super::moves::movable(&view, &vm);
        }
        if vm.status.phase == VmPhase::Failed {
            response.hints.push("change its spec, or cure the cause and start it again".into());
        }
        if let Some(node) = node.filter(|_| vm.spec.deleting)
            && !decide::is_reachable(&view, vm.status.node)
        {
            let name = &node.meta.name;
            response.hints.push(format!(
                "its deletion goes on when {name} is back, or proven not to run it; an operator who knows that {name} is \
                 gone says so: tamdao node attest-gone {name}"
            ));
        }
        if vm.status.node.is_none() && !vm.spec.deleting {
            let shape = engine::shape(&view, &vm).map_err(|error| Refusal::internal(error.to_string()))?;
            let (_, engine) = self.shared.engine.newest(&self.shared.cache);
            let explanation = explain::explain(engine.picture(), &shape);
            if !explanation.fits() {
                let (_, message) = waiting::tell(&vm, &explanation.histogram);
                response.summary = format!("{} waits for a node: {message}", vm.meta.name);
            }
            tell(&mut response, &explanation);
        }
        Ok(response)
    }
}

/// Why the phase is what it is, in one sentence.
fn summary(vm: &Vm, view: &View) -> String {
    let name = vm.meta.name.as_str();
    let node = vm.status.node.and_then(|node| view.nodes.get(node));
    let node = node.map_or_else(|| "its node".into(), |node| node.meta.name.to_string());
    let because = |kind: &str| {
        let condition = vm.status.conditions.get(kind).filter(|condition| !condition.message.is_empty());
        condition.map(|condition| format!(": {}", condition.message)).unwrap_or_default()
    };
    match vm.status.phase {
        VmPhase::Pending => format!("{name} waits for a node{}", because("Placed")),
        VmPhase::Scheduled => format!("{name} is being made ready on {node}{}", because("Healthy")),
        VmPhase::Starting => format!("{name} is starting on {node}{}", because("Healthy")),
        VmPhase::Running => format!("{name} runs on {node}"),
        VmPhase::Paused => format!("{name} is paused on {node}{}", because("Healthy")),
        VmPhase::Stopping => format!("{name} is shutting down on {node}"),
        VmPhase::Stopped => format!("{name} is off and keeps its place on {node}"),
        VmPhase::Deleting => format!("{name} is being deleted; {node} has yet to confirm that it is gone"),
        VmPhase::Failed => format!("{name} cannot run on {node}{}", because("Healthy")),
        VmPhase::Unknown => format!("{node} is not heard; {name} is left alone and most likely runs on"),
    }
}

/// What becomes of a VM when its node is lost, in one sentence.
fn on_node_loss(vm: &Vm, view: &View) -> String {
    let volume = |id| view.volumes.get(id).map(|row| &*row.value);
    let pool = |id| view.pools.get(id).map(|row| &*row.value);
    let stays = "stays down until its node is back";
    match from_model::stays(vm, volume, pool) {
        None => match fence::protection(view, vm) {
            Ok(()) => "is restarted on another node once its node is proven to be gone".to_owned(),
            Err(why) => format!("{stays}, or a person says that the node is gone: {}", why.message),
        },
        Some(Stays::Asked) => format!("{stays}, as its on_node_loss asks"),
        Some(Stays::Pinned) => format!("{stays}, because it is pinned to its node"),
        Some(Stays::Local(id)) => {
            let volume = view.volumes.get(id);
            let pool = volume.and_then(|volume| view.pools.get(volume.spec.pool));
            let name =
                |name: Option<&tamdao_model::Name>| name.map_or_else(|| id.to_string(), ToString::to_string);
            let (volume, pool) = (name(volume.map(|v| &v.meta.name)), name(pool.map(|p| &p.meta.name)));
            format!("{stays}, because its volume {volume} lies in {pool}, which is local to each node")
        }
    }
}

/// What the engine says, in the contract's words.
fn tell(response: &mut v1::ExplainVmResponse, explanation: &explain::Explanation) {
    response.hints.extend(explanation.fixes.iter().take(5).map(ToString::to_string));
    response.candidates = explanation
        .verdicts
        .iter()
        .map(|verdict| {
            let (fits, score, reason) = match &verdict.outcome {
                Outcome::Fits { score, .. } => (true, *score as f64, String::new()),
                Outcome::Unfit { reasons } => {
                    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                    (false, 0.0, reasons.join("; "))
                }
            };
            v1::NodeVerdict { node: verdict.name.to_string(), fits, score, reason }
        })
        .collect();
    let rejections = explanation.histogram.by_reason.iter();
    response.rejections = rejections
        .map(|(kind, tally)| v1::RejectionCount {
            reason: format!("{kind:?}"),
            nodes: tally.nodes,
            message: format!("nearest {}: {}", tally.nearest_name, tally.reason),
        })
        .collect();
}
