//! Asks the guest agents of running guests, beside the loop: an answer may take seconds.
//!
//! Invariant: a guest that is not asked has no answer in the map. Deliberately absent: anything that changes a
//! guest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tamdao_proto::v1::GuestStatus;
use tokio::sync::watch;
use uuid::Uuid;

use crate::hypervisor::Hypervisor;

/// How often each guest is asked.
const PERIOD: Duration = Duration::from_secs(10);
/// How many are asked at once.
const AT_ONCE: usize = 8;

/// Asks the guests in `asked`, now and then and whenever the set is touched, until nobody listens.
pub async fn ask(
    hypervisor: Arc<dyn Hypervisor>,
    mut asked: watch::Receiver<BTreeSet<Uuid>>,
    answers: watch::Sender<BTreeMap<Uuid, GuestStatus>>,
) {
    loop {
        let vms = asked.borrow_and_update().clone();
        let each = futures::stream::iter(vms).map(|vm| {
            let hypervisor = hypervisor.clone();
            async move { (vm, hypervisor.guest(vm).await.ok().flatten()) }
        });
        let all: Vec<_> = each.buffer_unordered(AT_ONCE).collect().await;
        let new: BTreeMap<_, _> =
            all.into_iter().filter_map(|(vm, answer)| answer.map(|answer| (vm, answer))).collect();
        answers.send_if_modified(|old| {
            let news = *old != new;
            *old = new;
            news
        });
        tokio::select! {
            changed = asked.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}
