//! The seater: gives every controller that has enrolled its seat in the Raft group, as soon as it can be reached; on
//! etcd each takes its place itself. Seats are taken away by an admin only.

use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::ControllerId;
use tamdao_model::event::Severity;
use tamdao_store::kv::Member;

use super::Loop;
use crate::decide;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// See the module.
pub struct Seater;

#[async_trait]
impl Loop for Seater {
    fn name(&self) -> &'static str {
        "seater"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn rests_in_recovery(&self) -> bool {
        false
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let Some(membership) = &shared.membership else { return Ok(0) };
        let group = shared.kv.status();
        let (seated, wait) = (group.members, group.backend == "etcd");
        let view = shared.cache.view();
        let without_seat = view
            .controllers
            .iter()
            .filter(|_| !wait)
            .filter(|controller| !seated.iter().any(|seat| seat.id == controller.member && seat.voter));
        let without_seat: Vec<Member> = without_seat
            .map(|controller| Member {
                id: controller.member,
                name: controller.meta.name.to_string(),
                address: controller.address.clone(),
                voter: true,
            })
            .collect();
        for controller in view.controllers.iter() {
            let moved =
                seated.iter().find(|seat| seat.id == controller.member && seat.address != controller.address);
            if let Some(seat) = moved {
                move_to(shared, controller.id(), seat.address.clone()).await?;
            }
        }
        let mut left = without_seat.len() as u64;
        for member in without_seat {
            tracing::info!(controller = member.name, member = member.id, "seating controller");
            membership.add_member(member).await?;
            left -= 1;
        }
        Ok(left)
    }
}

/// Writes where a controller is now: it told the group itself when it started under another address.
async fn move_to(shared: &Shared, id: ControllerId, address: String) -> Result<(), Refusal> {
    let decided = shared.writer.submit(move |draft, moment| {
        if let Some(row) = draft.view().controllers.get(id) {
            let mut controller = (*row.value).clone();
            controller.address.clone_from(&address);
            let message = format!("is now reached at {address}");
            decide::event(draft, moment, &controller, Severity::Info, "Moved", message, "seater");
            draft.put(controller);
        }
        Ok(())
    });
    decided.await.map(|_| ())
}
