//! The office: while this controller leads the store, it holds the office, and the deciding loops run. When it is
//! lost they stop, and the sessions end with it.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tamdao_store::kv::{Election, Leadership};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::reconcile::archivist::Archivist;
use crate::reconcile::drainer::Drainer;
use crate::reconcile::driller::Driller;
use crate::reconcile::drive;
use crate::reconcile::evacuator::Evacuator;
use crate::reconcile::fencer::Fencer;
use crate::reconcile::liveness::Liveness;
use crate::reconcile::mover::Mover;
use crate::reconcile::placer::Placer;
use crate::reconcile::reaper::Reaper;
use crate::reconcile::rescuer::Rescuer;
use crate::reconcile::seater::Seater;
use crate::reconcile::surveyor::Surveyor;
use crate::shared::Shared;

/// Stands for office again and again until it is stopped.
pub async fn run(
    shared: Arc<Shared>,
    election: Arc<dyn Election>,
    office: watch::Sender<Option<Leadership>>,
    stop: CancellationToken,
) {
    loop {
        let leadership = tokio::select! {
            () = stop.cancelled() => break,
            leadership = election.campaign() => leadership,
        };
        match leadership {
            Ok(leadership) => {
                tracing::info!(epoch = %leadership.epoch, "took office");
                hold(&shared, &leadership, &office, &stop).await;
                tracing::info!(epoch = %leadership.epoch, "left office");
            }
            Err(error) => {
                tracing::error!(%error, "cannot stand for office");
                break;
            }
        }
    }
}

async fn hold(
    shared: &Arc<Shared>,
    leadership: &Leadership,
    office: &watch::Sender<Option<Leadership>>,
    stop: &CancellationToken,
) {
    // Decisions stand on the cache, so it must hold all that came before this office.
    tokio::select! {
        caught_up = shared.cache.at_least(leadership.epoch) => {
            if caught_up.is_err() {
                return;
            }
        }
        () = leadership.lost() => return,
        () = stop.cancelled() => return,
    }
    office.send_replace(Some(leadership.clone()));
    let mut loops = JoinSet::new();
    for one in duties(shared, leadership) {
        loops.spawn(one);
    }
    tokio::select! {
        () = leadership.lost() => {}
        () = stop.cancelled() => {}
    }
    office.send_replace(None);
    shared.sessions.end_all();
    loops.shutdown().await;
}

/// What a leader does, each for as long as the office is held. It begins to accept sessions now.
pub fn duties(shared: &Arc<Shared>, leadership: &Leadership) -> Vec<BoxFuture<'static, ()>> {
    let since = shared.clock.instant();
    let (shared, office) = (|| shared.clone(), || Some(leadership.clone()));
    let mut duties = vec![
        drive(Placer::default(), shared(), office()).boxed(),
        drive(Liveness::new(since), shared(), office()).boxed(),
        drive(Mover, shared(), office()).boxed(),
        drive(Drainer::default(), shared(), office()).boxed(),
        drive(Fencer::new(since), shared(), office()).boxed(),
        drive(Driller, shared(), office()).boxed(),
        drive(Evacuator::default(), shared(), office()).boxed(),
        drive(Rescuer, shared(), office()).boxed(),
        drive(Reaper::default(), shared(), office()).boxed(),
        drive(Seater, shared(), office()).boxed(),
        drive(Surveyor::default(), shared(), office()).boxed(),
        dispatch(shared(), leadership.clone()).boxed(),
    ];
    if let Some(settings) = &shared().backups.settings {
        duties.push(drive(Archivist::new(settings.every), shared(), office()).boxed());
    }
    duties
}

/// Tells the sessions what concerns them, as it is committed.
async fn dispatch(shared: Arc<Shared>, leadership: Leadership) {
    let mut changes = shared.cache.changes();
    let mut at = changes.borrow_and_update().revision;
    loop {
        match shared.cache.after(at) {
            Ok(commits) if commits.is_empty() => {
                tokio::select! {
                    biased;
                    changed = changes.changed() => {
                        if changed.is_err() {
                            return;
                        }
                    }
                    () = leadership.lost() => return,
                }
            }
            Ok(commits) => {
                shared.sessions.note(&commits, &shared.cache.view());
                at = commits.last().map_or(at, |commit| commit.revision);
            }
            // The history was cut under us: agents are told everything anew.
            Err(_) => {
                shared.sessions.end_all();
                at = shared.cache.view().revision;
            }
        }
    }
}
