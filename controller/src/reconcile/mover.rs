//! The mover: lets moves take their turn, ends those whose time is up, and forgets old ones. What the two ends say is
//! taken with their reports (`decide::move_step`), so a move goes on from the records under any leader.

use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::moves::{Cause, Move, MoveEvent};

use super::Loop;
use crate::decide::move_step::{self, Due, Turns};
use crate::refusal::Refusal;
use crate::shared::Shared;

/// Two streams fill a link.
const TURNS: Turns = Turns { per_node: 2, in_all: 32 };

/// See the module.
#[derive(Default)]
pub struct Mover;

#[async_trait]
impl Loop for Mover {
    fn name(&self) -> &'static str {
        "mover"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let view = shared.cache.view();
        let due = move_step::due(&view, shared.clock.now(), TURNS);
        let handed_in: Vec<_> = due
            .into_iter()
            .map(|due| {
                shared.writer.submit(move |draft, moment| {
                    // Each is judged anew by the phase that it is in now.
                    match due {
                        Due::Send(id) => move_step::happens(draft, moment, id, MoveEvent::TargetReady, None),
                        Due::GiveUp(id) => {
                            let message = "its time was up".to_owned();
                            let cause = Cause { reason: "TimeUp".into(), message, cancelled: false };
                            move_step::happens(draft, moment, id, MoveEvent::GiveUp, Some(cause));
                        }
                        Due::Forget(id) => draft.remove::<Move>(id.0),
                    }
                    Ok(())
                })
            })
            .collect();
        futures::future::try_join_all(handed_in).await?;
        let open = view.moves.iter().filter(|row| row.status.phase.is_open()).count();
        Ok(u64::try_from(open).unwrap_or(u64::MAX))
    }
}
