//! The seater: gives every controller that has enrolled its seat in the Raft group, as soon as it can be reached.
//! Seats are taken away by an admin only.

use std::time::Duration;

use async_trait::async_trait;
use tamdao_store::kv::Member;

use super::Loop;
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

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let Some(membership) = &shared.membership else { return Ok(0) };
        let seated = shared.kv.status().members;
        let view = shared.cache.view();
        let without_seat = view
            .controllers
            .iter()
            .filter(|controller| !seated.iter().any(|seat| seat.id == controller.member && seat.voter));
        let without_seat: Vec<Member> = without_seat
            .map(|controller| Member {
                id: controller.member,
                name: controller.meta.name.to_string(),
                address: controller.address.clone(),
                voter: true,
            })
            .collect();
        let mut left = without_seat.len() as u64;
        for member in without_seat {
            tracing::info!(controller = member.name, member = member.id, "seating controller");
            membership.add_member(member).await?;
            left -= 1;
        }
        Ok(left)
    }
}
