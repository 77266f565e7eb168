//! The driller: asks the BMCs of nodes that are heard, every hour, whether these could be powered off today, and switches
//! nothing. A node's own agent is the witness: a BMC that says Off meanwhile would say it at a loss too.
//!
//! Its invariant: that a BMC is right is concluded only of a node that was heard before the look began, and that it is
//! wrong only of one that was heard after it had ended. Deliberately absent: nodes that are lost, which the fencer asks.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tamdao_model::NodeId;
use tamdao_model::bmc::{self, Bmc, Drilled, Power, Wrong};
use tamdao_model::node::{Node, NodePhase};

use super::Loop;
use crate::bmc::Access;
use crate::decide::fence;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// How often a BMC is asked that was right.
const EVERY_MS: u64 = 60 * 60 * 1_000;
/// How often one is asked that was not.
const WRONG_EVERY_MS: u64 = 5 * 60 * 1_000;
/// Nodes that are drilled at the same time.
const AT_ONCE: usize = 8;
/// An agent that was not heard for so long is not heard. It says something every second.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Default)]
pub struct Driller;

#[async_trait]
impl Loop for Driller {
    fn name(&self) -> &'static str {
        "driller"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn wakes_on_change(&self) -> bool {
        false
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let view = shared.cache.view();
        let now = shared.clock.now();
        let due = |node: &Node, bmc: &Bmc| match node.drilled(&bmc.url) {
            None => true,
            Some(told) => now.since(told.time) >= if told.is_good() { EVERY_MS } else { WRONG_EVERY_MS },
        };
        let heard = view.nodes.iter().filter(|node| {
            let phase = matches!(node.status.phase, NodePhase::Ready | NodePhase::NotReady);
            phase && hears(shared, node.id())
        });
        let due: Vec<NodeId> = heard
            .filter(|node| node.spec.bmcs.iter().any(|bmc| due(node, bmc)))
            .map(|node| node.id())
            .collect();
        for some in due.chunks(AT_ONCE) {
            let drilled = join_all(some.iter().map(|node| drill(shared, *node))).await;
            drilled.into_iter().collect::<Result<Vec<Node>, Refusal>>()?;
        }
        Ok(0)
    }
}

/// Asks all BMCs of a node and records what they say.
///
/// # Errors
/// When there is no such node, or what was found out cannot be recorded.
pub async fn drill(shared: &Shared, id: NodeId) -> Result<Node, Refusal> {
    let view = shared.cache.view();
    let Some(node) = view.nodes.get(id).map(|row| row.value.clone()) else {
        return Err(Refusal::not_found(tamdao_model::Kind::Node, &id.to_string()));
    };
    let asked = node.spec.bmcs.iter().map(|bmc| ask(shared, &node, bmc));
    let found: Vec<(Bmc, Drilled)> = join_all(asked).await;
    let (node, _) =
        shared.writer.submit(move |draft, moment| fence::drilled(draft, moment, id, &found)).await?;
    Ok(node)
}

async fn ask(shared: &Shared, node: &Node, bmc: &Bmc) -> (Bmc, Drilled) {
    let before = node.drilled(&bmc.url).and_then(|drilled| drilled.said_on);
    let now = shared.clock.now();
    let (reason, message, said_on) = match look(shared, node, bmc).await {
        Ok(()) => (bmc::GOOD, "stands for this node and says On".to_owned(), Some(now)),
        // What could not be asked, or could not be judged, takes nothing back.
        Err(wrong) => {
            let taken_back = matches!(wrong.reason, "SaysOff" | "WrongMachine" | "NoIdentity");
            (wrong.reason, wrong.message, before.filter(|_| !taken_back))
        }
    };
    let drilled = Drilled { url: bmc.url.clone(), time: now, reason: reason.into(), message, said_on };
    (bmc.clone(), drilled)
}

async fn look(shared: &Shared, node: &Node, bmc: &Bmc) -> Result<(), Wrong> {
    let fault = |fault: crate::bmc::Fault| Wrong { reason: fault.reason(), message: fault.to_string() };
    let access = Access::open(&shared.key, bmc).map_err(fault)?;
    let mut heard = hears(shared, node.id());
    let seen = shared.bmc.look(&access, node.status.host_uuid).await.map_err(fault)?;
    if heard && seen.power == Power::Off {
        // Perhaps it is being switched off: what was heard has to be newer than the look.
        shared.clock.sleep(HEARD_WITHIN).await;
    }
    heard &= hears(shared, node.id());
    bmc::drill(node.status.host_uuid, heard, seen)
}

fn hears(shared: &Shared, node: NodeId) -> bool {
    let silence = shared.sessions.silence(node, shared.clock.instant());
    silence.is_some_and(|silence| silence < HEARD_WITHIN)
}
