//! StackService: what stacks have applied against what is, and what would become of a plan. A preview is decided on a
//! draft that nobody commits and on a fork of the engine, by the code that would decide it in earnest. Deliberately
//! absent: manifests, which the command line reads, and who changed what, which the audit log knows.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value as Json;
use tamdao_model::agency::Agency;
use tamdao_model::applied::{self, Applied};
use tamdao_model::convert::metadata::timestamp;
use tamdao_model::convert::{Resize, read_resize, vm as read};
use tamdao_model::flavor::Flavor;
use tamdao_model::image::{Image, ImagePhase};
use tamdao_model::network::Network;
use tamdao_model::placement_group::PlacementGroup;
use tamdao_model::pool::Pool;
use tamdao_model::role_binding::RoleBinding;
use tamdao_model::vm::Vm;
use tamdao_model::volume::Volume;
use tamdao_model::{AgencyId, Kind, Name, Scope, Stored, limits};
use tamdao_proto::v1;
use tamdao_proto::v1::planned_resource::Resource as Planned;
use tamdao_proto::v1::stack_service_server::StackService;
use tamdao_scheduler::survive::guarantee::Guarantee;
use tamdao_scheduler::{By, VmShape, from_model};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::page::{self, Token};
use super::standard::{Standard, Writable, insert, replace};
use super::{Api, agency_of, find, new_in, scope_of};
use crate::access::{self, Asking};
use crate::admission::Moment;
use crate::decide::vm_power::{self, Size};
use crate::decide::{vm_create, waiting};
use crate::engine;
use crate::refusal::Refusal;

#[tonic::async_trait]
impl StackService for Api {
    async fn list_stack_resources(
        &self,
        request: Request<v1::ListStackResourcesRequest>,
    ) -> Result<Response<v1::ListStackResourcesResponse>, Status> {
        let asking = Asking::of(&request);
        let request = request.into_inner();
        let size = page::page_size(request.page_size)?;
        let (view, caller) = self.admitted(&asking).await?;
        let cluster = self.cluster_id();
        let token = Token::decode(cluster, &request.page_token)?;
        let owner = match request.agency.as_str() {
            "" => None,
            agency => Some(agency_of(&view, agency)?),
        };
        let first = token.as_ref().map_or(view.revision.0, |token| token.revision);
        let mut answer = v1::ListStackResourcesResponse::default();
        let mut last = String::new();
        for row in view.applied.iter() {
            let key = row.key();
            let asked_for = owner.is_none_or(|owner| row.agency == Some(owner))
                && (request.stack.is_empty() || row.stack.as_str() == request.stack);
            // What agencies had that are gone is on its way out.
            let orphaned = row.agency.is_some_and(|agency| view.agencies.get(agency).is_none());
            let told = token.as_ref().is_some_and(|token| key <= token.last);
            if orphaned || told || !asked_for || !caller.sees(&owners(&view, row)) {
                continue;
            }
            if answer.stack_resources.len() == size {
                answer.next_page_token = Token::after_key(cluster, first, &last).encode();
                break;
            }
            answer.stack_resources.push(compared(&view, row));
            last = key;
        }
        Ok(Response::new(answer))
    }

    async fn record_apply(
        &self,
        request: Request<v1::RecordApplyRequest>,
    ) -> Result<Response<v1::RecordApplyResponse>, Status> {
        let asking = Asking::of(&request);
        let request = request.into_inner();
        self.admitted(&asking).await?;
        let stack = Name::new(&request.name)
            .map_err(|error| Refusal::field("name", format!("the stack's {error}")))?;
        at_most(request.resources.len(), limits::APPLIED_AT_ONCE)?;
        let decided = self.shared.writer.submit(move |draft, moment| {
            asking.judge(draft.view(), moment.now)?;
            for (at, one) in request.resources.iter().enumerate() {
                let field = |name: &str| format!("resources[{at}].{name}");
                note(draft, moment, &asking, &stack, one, &field)?;
            }
            Ok(())
        });
        decided.await?;
        Ok(Response::new(v1::RecordApplyResponse {}))
    }

    async fn preview_plan(
        &self,
        request: Request<v1::PreviewPlanRequest>,
    ) -> Result<Response<v1::PreviewPlanResponse>, Status> {
        let asking = Asking::of(&request);
        // For the audit log, which tells of changes only.
        crate::audit::asked(None, true);
        let resources = request.into_inner().resources;
        at_most(resources.len(), limits::PLANNED)?;
        self.admitted(&asking).await?;
        let (_, engine) = self.shared.engine.guarded(&self.shared.cache);
        let decided = self.shared.writer.preview(|draft, moment| {
            let each = resources.iter().map(|one| {
                let before = draft.clone();
                let outcome = plan(draft, moment, &asking, one.resource.as_ref());
                if outcome.is_err() {
                    *draft = before;
                }
                outcome
            });
            Ok(each.collect::<Vec<_>>())
        });
        let (decisions, view) = decided?;
        let guarded = engine.guard.guarded().iter().map(word).collect();
        // Many VMs and many guarded losses take a while.
        let fitted = tokio::task::spawn_blocking(move || fit(engine.guarantee, &view, &decisions));
        let outcomes = fitted.await.map_err(|error| Refusal::internal(error.to_string()))?;
        Ok(Response::new(v1::PreviewPlanResponse { outcomes, guarded }))
    }
}

fn at_most(count: usize, most: usize) -> Result<(), Refusal> {
    if count <= most {
        return Ok(());
    }
    Err(Refusal::field("resources", format!("are {count}, {most} are allowed")))
}

/// Who may see what is noted of a resource: who may see the resource.
fn owners(view: &View, row: &Applied) -> Vec<AgencyId> {
    match row.kind {
        // An agency itself is its own.
        Kind::Agency => {
            let found = view.agencies.find(Scope::Cluster, row.name.as_str());
            found.map(|agency| agency.owners(view)).unwrap_or_default()
        }
        _ => row.agency.map(|agency| access::owners(view, agency)).unwrap_or_default(),
    }
}

/// What was applied, compared with what is.
fn compared(view: &View, row: &Applied) -> v1::StackResource {
    let now = shown(view, row);
    let differences = now.as_ref().map(|(id, now)| row.differences(*id, now)).unwrap_or_default();
    let state = match &now {
        _ if !row.error.is_empty() => v1::StackState::Failed,
        None => v1::StackState::Gone,
        Some(_) if differences.is_empty() => v1::StackState::InSync,
        Some(_) => v1::StackState::Drifted,
    };
    let agency = row.agency.and_then(|agency| view.agencies.get(agency));
    v1::StackResource {
        stack: row.stack.to_string(),
        kind: row.kind.word().into(),
        agency: agency.map(|agency| agency.meta.name.to_string()).unwrap_or_default(),
        name: row.name.to_string(),
        id: row.id.map(|id| id.to_string()).unwrap_or_default(),
        state: state.into(),
        differences: differences
            .into_iter()
            .map(|one| v1::FieldDifference {
                path: one.path,
                applied: one.applied.unwrap_or_default(),
                now: one.now.unwrap_or_default(),
            })
            .collect(),
        apply_time: timestamp(row.time),
        applied_by: row.principal.clone(),
        applied_revision: row.revision,
        error: row.error.clone(),
        ignored: row.ignored.iter().cloned().collect(),
    }
}

/// The resource as it is, in the contract's JSON; none when it is gone.
fn shown(view: &View, row: &Applied) -> Option<(Uuid, Json)> {
    fn of<T: Standard>(view: &View, row: &Applied) -> Option<(Uuid, Json)> {
        let found = T::rows(view).find(Scope::from(row.agency), row.name.as_str())?;
        Some((found.meta().id, serde_json::to_value(found.show(found.revision.0, view)).ok()?))
    }
    match row.kind {
        Kind::Agency => of::<Agency>(view, row),
        Kind::Flavor => of::<Flavor>(view, row),
        Kind::Image => of::<Image>(view, row),
        Kind::Network => of::<Network>(view, row),
        Kind::PlacementGroup => of::<PlacementGroup>(view, row),
        Kind::Pool => of::<Pool>(view, row),
        Kind::RoleBinding => of::<RoleBinding>(view, row),
        Kind::Vm => of::<Vm>(view, row),
        Kind::Volume => of::<Volume>(view, row),
        Kind::Node | Kind::SchedulingPolicy | Kind::Controller | Kind::Move | Kind::Token => None,
    }
}

/// Notes what an apply has come to with one resource.
fn note(
    draft: &mut Draft,
    moment: &mut Moment,
    asking: &Asking,
    stack: &Name,
    one: &v1::AppliedResource,
    field: &dyn Fn(&str) -> String,
) -> Result<(), Refusal> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.word() == one.kind);
    let kind = kind.ok_or_else(|| Refusal::field(field("kind"), "is no kind of resource"))?;
    match asking.to_apply(draft.view(), kind, &one.agency, &one.name).judge(draft.view(), moment.now) {
        // What was noted of an agency's goes with it.
        Err(refusal) if one.forget && refusal.code == Code::NotFound => return Ok(()),
        judged => judged?,
    };
    let agency = scope_of(draft.view(), &one.agency)?.agency();
    let name = Name::new(&one.name).map_err(|error| Refusal::field(field("name"), error.to_string()))?;
    let key = applied::key(agency, stack, kind, &name);
    if one.forget {
        draft.delete::<Applied>(&key);
        return Ok(());
    }
    let before = draft.view().applied.get(&key).map(|row| (*row.value).clone());
    if before.is_none() && draft.view().applied.len() >= limits::APPLIED {
        let message = format!("stacks have {} resources, and no more can be noted", limits::APPLIED);
        return Err(Refusal::new(Code::ResourceExhausted, "TooMany", message));
    }
    let bytes: usize = one.fields.iter().map(|(path, value)| path.len() + value.len()).sum();
    let ignored: usize = one.ignored.iter().map(String::len).sum();
    if bytes + ignored > limits::APPLIED_BYTES {
        let message = format!("are {} bytes, {} are allowed", bytes + ignored, limits::APPLIED_BYTES);
        return Err(Refusal::field(field("fields"), message));
    }
    let new = Applied {
        stack: stack.clone(),
        kind,
        agency,
        name,
        id: match one.id.as_str() {
            "" => None,
            id => Some(Uuid::parse_str(id).map_err(|_| Refusal::field(field("id"), "is not a UUID"))?),
        },
        revision: one.revision,
        time: moment.now,
        principal: asking.principal.to_string(),
        fields: one.fields.clone(),
        ignored: one.ignored.iter().cloned().collect::<BTreeSet<_>>(),
        error: String::new(),
    };
    let error: String = one.error.chars().take(limits::APPLIED_ERROR_CHARS).collect();
    draft.put(match before {
        // What it was like when it was applied is still what was applied.
        Some(before) if !error.is_empty() => {
            Applied { time: new.time, principal: new.principal, error, ..before }
        }
        _ => Applied { error, ..new },
    });
    Ok(())
}

/// Does one resource of a plan to a draft; a VM that is new or changed then asks for a place.
fn plan(
    draft: &mut Draft,
    moment: &mut Moment,
    asking: &Asking,
    wanted: Option<&Planned>,
) -> Result<Option<Vm>, Refusal> {
    match wanted {
        None => Err(Refusal::field("resources", "one of them is none of a known kind")),
        Some(Planned::Agency(agency)) => {
            let parent = agency.spec.as_ref().map(|spec| spec.parent.as_str()).unwrap_or_default();
            asking.to_place_under(parent).judge(draft.view(), moment.now)?;
            put::<Agency>(draft, moment, asking, agency, agency.metadata.as_ref()).map(|_| None)
        }
        Some(Planned::Flavor(flavor)) => {
            put::<Flavor>(draft, moment, asking, flavor, flavor.metadata.as_ref()).map(|_| None)
        }
        Some(Planned::Image(image)) => {
            let mut image = put::<Image>(draft, moment, asking, image, image.metadata.as_ref())?;
            // What is made of it waits until it is.
            image.status.phase = ImagePhase::Available;
            draft.put(image);
            Ok(None)
        }
        Some(Planned::Network(network)) => {
            put::<Network>(draft, moment, asking, network, network.metadata.as_ref()).map(|_| None)
        }
        Some(Planned::PlacementGroup(group)) => {
            put::<PlacementGroup>(draft, moment, asking, group, group.metadata.as_ref()).map(|_| None)
        }
        Some(Planned::Pool(pool)) => {
            put::<Pool>(draft, moment, asking, pool, pool.metadata.as_ref()).map(|_| None)
        }
        Some(Planned::Volume(volume)) => {
            put::<Volume>(draft, moment, asking, volume, volume.metadata.as_ref()).map(|_| None)
        }
        Some(Planned::Vm(vm)) => machine(draft, moment, asking, vm).map(Some),
    }
}

/// Makes or changes a resource.
fn put<T: Writable>(
    draft: &mut Draft,
    moment: &mut Moment,
    asking: &Asking,
    wanted: &T::Proto,
    metadata: Option<&v1::Metadata>,
) -> Result<T, Refusal> {
    let v1::Metadata { agency, name, .. } = metadata.cloned().unwrap_or_default();
    if T::RESOURCE != Kind::Agency {
        asking.to_apply(draft.view(), T::RESOURCE, &agency, &name).judge(draft.view(), moment.now)?;
    }
    let (scope, caller) = (scope_of(draft.view(), &agency)?, asking.principal.to_string());
    match T::rows(draft.view()).find(scope, &name).cloned() {
        Some(row) => {
            let new = row.value.update(wanted.clone(), None, draft.view())?;
            replace::<T>(draft, moment, &row.value, new, &caller)
        }
        None => {
            let new = T::create(wanted.clone(), new_in(scope, moment), draft.view())?;
            insert(draft, moment, new, &caller)
        }
    }
}

/// Makes a VM, or gives one that is there another size.
fn machine(draft: &mut Draft, moment: &mut Moment, asking: &Asking, wanted: &v1::Vm) -> Result<Vm, Refusal> {
    let v1::Metadata { agency, name, .. } = wanted.metadata.clone().unwrap_or_default();
    asking.to_apply(draft.view(), Kind::Vm, &agency, &name).judge(draft.view(), moment.now)?;
    let (owner, caller) = (agency_of(draft.view(), &agency)?, asking.principal.to_string());
    let Ok(row) = find::<Vm>(draft.view(), Scope::Agency(owner), &name).cloned() else {
        let request = read::read(wanted.clone(), owner, draft.view())?;
        return vm_create::create(draft, moment, request, owner, None, &caller);
    };
    let spec = wanted.spec.clone().unwrap_or_default();
    let (flavor, vcpus, memory_mib) = (spec.flavor, spec.vcpus, spec.memory_mib);
    let request = v1::ResizeVmRequest { agency, name, flavor, vcpus, memory_mib, ..Default::default() };
    let size = match read_resize(&request, draft.view())? {
        Resize::Flavor(flavor) => Size::of(Some(flavor), 0, 0),
        Resize::Size { vcpus, memory_mib } => Size::of(None, vcpus, memory_mib),
    };
    let size = size.resolve(draft)?;
    let mut sized = (*row.value).clone();
    (sized.spec.vcpus, sized.spec.memory_mib) = (size.vcpus, size.memory_mib);
    let reservation = engine::reservation(draft.view(), &sized)
        .map_err(|error| Refusal::precondition("Incomplete", error.to_string()))?;
    vm_power::resize(draft, moment, &row.value, &size, reservation, &caller)
}

/// Asks the engine for a place for each VM, all together, as the placer would.
fn fit(
    mut guarantee: Guarantee,
    view: &View,
    decisions: &[Result<Option<Vm>, Refusal>],
) -> Vec<v1::PlannedOutcome> {
    let groups: Vec<_> = view.placement_groups.iter().map(|group| from_model::group(group)).collect();
    for group in groups {
        if guarantee.view().group(group.id) != Some(&group) {
            guarantee.set_group(group);
        }
    }
    let waits = |reason: &str, message: String| v1::PlannedOutcome {
        admitted: true,
        fits: false,
        reason: reason.into(),
        message,
    };
    let well = || v1::PlannedOutcome { admitted: true, fits: true, ..Default::default() };
    let mut outcomes: Vec<v1::PlannedOutcome> = Vec::with_capacity(decisions.len());
    let mut asking: Vec<(usize, &Vm, Arc<VmShape>)> = Vec::new();
    for (at, decision) in decisions.iter().enumerate() {
        outcomes.push(match decision {
            Err(refusal) => v1::PlannedOutcome {
                admitted: false,
                fits: true,
                reason: refusal.reason.into(),
                message: refusal.message.clone(),
            },
            Ok(None) => well(),
            Ok(Some(vm)) => match (vm.status.node, engine::shape(view, vm)) {
                (None, Ok(shape)) => {
                    asking.push((at, vm, Arc::new(shape)));
                    well()
                }
                (None, Err(error)) => waits("Incomplete", error.to_string()),
                (Some(node), _) => {
                    let next = engine::placed(view, node, vm.id());
                    match next.map(|next| guarantee.propose_shape(&next)) {
                        Some(Err(broken)) => waits(
                            "RoomKeptForFailures",
                            format!("the room is kept for failures: with the larger size, {broken}"),
                        ),
                        _ => well(),
                    }
                }
            },
        });
    }
    let shapes: Vec<_> = asking.iter().map(|(_, _, shape)| shape.clone()).collect();
    for ((at, vm, _), answer) in asking.into_iter().zip(guarantee.admit_each(&shapes)) {
        if let Err(unfit) = answer {
            let (reason, message) = waiting::told(vm, &unfit);
            outcomes[at] = waits(reason, message);
        }
    }
    outcomes
}

fn word(by: &By) -> String {
    match by {
        By::Node => "node".to_owned(),
        By::Domain(key) => key.clone(),
    }
}
