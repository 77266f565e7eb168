//! The forecast of a live move: from what its source's agent has measured and what the records say, and into the move's
//! record. Deliberately absent: the arithmetic (`model/src/forecast.rs`), and asking the agent (`api/moves.rs`).

use tamdao_model::forecast::{Forecast, Measured, forecast};
use tamdao_model::moves::MovePhase;
use tamdao_model::node::Node;
use tamdao_model::vm::Vm;
use tamdao_model::{MoveId, VolumeId};
use tamdao_proto::agent::v1::Measurement;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::move_step::{disks_mib, send_limit_ms};

/// What is expected if this VM leaves its node now, with these volumes copied along.
pub fn expect(
    view: &View,
    vm: &Vm,
    source: &Node,
    copies: &[VolumeId],
    auto_converge: bool,
    told: &Measurement,
) -> Forecast {
    let disks_mib = disks_mib(view, copies);
    let known = [told.limit_bytes_per_s, told.pace_bytes_per_s].into_iter().filter(|pace| *pace > 0).min();
    // Moves that send from the same node share what it can send.
    let others = view.moves.iter().filter(|row| {
        row.status.phase == MovePhase::Sending && row.spec.source == source.id() && row.spec.vm != vm.id()
    });
    let sharing = 1 + others.count() as u64;
    forecast(&Measured {
        memory_bytes: told.memory_bytes,
        disk_bytes: disks_mib << 20,
        dirty_bytes_per_s: told.dirty_bytes_per_s,
        bytes_per_s: known.map_or(0, |pace| (pace / sharing).max(1)),
        emulated: source.status.inventory.acceleration == "qemu",
        auto_converge,
        limit_ms: send_limit_ms(u64::from(vm.spec.memory_mib) + disks_mib),
    })
}

/// Puts a forecast into the record of an open move that has none.
pub fn note(draft: &mut Draft, id: MoveId, forecast: Forecast) {
    let Some(row) = draft.view().moves.get(id) else { return };
    if row.status.phase.is_open() && row.status.forecast.is_none() {
        let mut one = (*row.value).clone();
        one.status.forecast = Some(forecast);
        draft.put(one);
    }
}
