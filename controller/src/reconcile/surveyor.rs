//! The surveyor: looks whether placed VMs still keep what was asked of their places, and says so in the condition
//! PlaceFits. Rules can break after a placement: a VM joins a group or a class, a group gets another rule, a node other
//! labels. Deliberately absent: moves; who wants the rule kept again moves the VM.

use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::condition::ConditionStatus;
use tamdao_model::vm::Vm;
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler as scheduler;
use tamdao_scheduler::explain::broken_where_it_is;
use tamdao_store::kv::Revision;
use tamdao_store::view::View;

use super::Loop;
use crate::decide::place::{Fit, tell_fit};
use crate::decide::waiting;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// VMs of one decision: each writes itself and an event.
const PER_DECISION: usize = 32;

/// See the module.
#[derive(Default)]
pub struct Surveyor {
    /// The view that was looked at last.
    looked: Revision,
}

#[async_trait]
impl Loop for Surveyor {
    fn name(&self) -> &'static str {
        "surveyor"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(3)
    }

    /// Nothing waits for it, so that many changes are looked at once.
    fn wakes_on_change(&self) -> bool {
        false
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let view = shared.cache.view();
        if view.revision == self.looked {
            return Ok(0);
        }
        self.looked = view.revision;
        // A cloud that asks for nothing pays for no picture.
        if !view.vms.iter().any(|vm| concerns(vm)) {
            return Ok(0);
        }
        let (view, engine) = shared.engine.newest(&shared.cache);
        let news = news(&view, engine.picture());
        for chunk in news.chunks(PER_DECISION) {
            let chunk = chunk.to_vec();
            let told = shared.writer.submit(move |draft, moment| {
                for (vm, node, fit) in &chunk {
                    tell_fit(draft, moment, *vm, *node, fit);
                }
                Ok(())
            });
            told.await?;
        }
        Ok(0)
    }
}

/// Whether a VM asks something of its place, or did and still says so.
fn concerns(vm: &Vm) -> bool {
    asks(vm) || vm.status.conditions.get(Fit::CONDITION).is_some()
}

fn asks(vm: &Vm) -> bool {
    let spec = &vm.spec;
    !spec.placement_groups.is_empty()
        || spec.isolation_class.is_some()
        || !spec.node_labels.is_empty()
        || !spec.forbidden_node_labels.is_empty()
}

/// The placed VMs whose condition does not say what is.
fn news(view: &View, picture: &scheduler::View) -> Vec<(VmId, NodeId, Fit)> {
    let placed = view.vms.iter().filter(|vm| concerns(vm) && !vm.spec.deleting);
    let told = placed.filter_map(|vm| {
        let node = vm.status.node?;
        let fit = fit(vm, node, picture)?;
        (!is_told(vm, &fit)).then_some((vm.id(), node, fit))
    });
    told.collect()
}

/// None while the picture and the records are not in step.
fn fit(vm: &Vm, node: NodeId, picture: &scheduler::View) -> Option<Fit> {
    if !asks(vm) {
        return Some(Fit::AsksNothing);
    }
    let shape = picture.vms_on(node).iter().find(|shape| shape.id == vm.id())?;
    let broken = broken_where_it_is(picture, node, shape);
    Some(match broken.first() {
        None => Fit::Keeps,
        Some(first) => Fit::Breaks { reason: first.kind().code(), message: waiting::broken(vm, &broken) },
    })
}

fn is_told(vm: &Vm, fit: &Fit) -> bool {
    let told = vm.status.conditions.get(Fit::CONDITION);
    // Who waits for an answer to a change waits for its generation.
    if told.is_some_and(|told| told.observed_generation != vm.meta.generation) {
        return false;
    }
    match (told, fit) {
        (None, Fit::AsksNothing) => true,
        (Some(told), Fit::Keeps) => told.status == ConditionStatus::True,
        (Some(told), Fit::Breaks { reason, message }) => {
            told.status == ConditionStatus::False && told.reason == *reason && told.message == *message
        }
        (None, Fit::Keeps | Fit::Breaks { .. }) | (Some(_), Fit::AsksNothing) => false,
    }
}
