//! How far moves are, as their sources say about once a second. It is nobody's record: a new leader hears of it anew.

use std::collections::HashMap;
use std::sync::Mutex;

use tamdao_model::{MoveId, NodeId};
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::v1::MoveProgress;
use tamdao_store::view::View;

/// What was heard last of each open move.
#[derive(Default)]
pub struct Progress(Mutex<HashMap<MoveId, MoveProgress>>);

impl Progress {
    pub fn of(&self, id: MoveId) -> Option<MoveProgress> {
        self.0.lock().expect("no holder of the lock panics").get(&id).cloned()
    }

    /// Takes what a node says of a move; only its source is believed.
    pub fn take(&self, view: &View, node: NodeId, report: agent::MoveProgressReport) {
        let Ok(id) = report.move_id.parse::<MoveId>() else { return };
        let open = |id: MoveId| view.moves.get(id).filter(|row| row.status.phase.is_open());
        if open(id).is_none_or(|row| row.spec.source != node) {
            return;
        }
        let mut heard = self.0.lock().expect("no holder of the lock panics");
        heard.retain(|id, _| open(*id).is_some());
        heard.extend(report.progress.map(|progress| (id, progress)));
    }
}
