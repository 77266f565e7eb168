//! Moves in the contract. They are only shown: a move is made by a verb of its VM. How far the copying is lies in the
//! leader's memory, so `status.progress` is the caller's to fill.

use tamdao_proto::v1;

use super::held::show as show_id;
use super::{Shown, Twin, metadata};
use crate::Kind;
use crate::forecast::Forecast;
use crate::lookup::Lookup;
use crate::moves::{Move, MoveSpec, Way};

impl Shown for Move {
    type Proto = v1::Move;
    const MESSAGE: &'static str = "tamdao.v1.Move";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Move {
        let (spec, status) = (&self.spec, &self.status);
        let cause = status.cause.as_ref();
        let message = match cause {
            Some(cause) if status.message.is_empty() => cause.message.clone(),
            _ => status.message.clone(),
        };
        v1::Move {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::MoveSpec {
                vm: show_id(lookup, Kind::Vm, spec.vm),
                source_node: show_id(lookup, Kind::Node, spec.source),
                target_node: show_id(lookup, Kind::Node, spec.target),
                way: show_way(spec),
                reason: spec.reason.clone(),
                asked_by: spec.asked_by.clone(),
                auto_converge: spec.auto_converge,
                incarnation_from: spec.incarnation_from,
                incarnation_to: spec.incarnation_to,
            }),
            status: Some(v1::MoveStatus {
                phase: self.phase_number(),
                conditions: Vec::new(),
                observed_generation: self.meta.generation,
                reason: cause.map(|cause| cause.reason.clone()).unwrap_or_default(),
                message,
                deadline: status.deadline.and_then(metadata::timestamp),
                end_time: status.end_time.and_then(metadata::timestamp),
                progress: None,
                forecast: status.forecast.as_ref().map(show_forecast),
                send_time: status.send_time.and_then(metadata::timestamp),
            }),
        }
    }

    fn phase_number(&self) -> i32 {
        self.status.phase.number()
    }
}

/// The way of a move as contract and agents have it. That disks are carried has a word of its own there: an agent that
/// does not know it keeps its guest, and does not let it go without its disks.
#[must_use]
pub fn show_way(spec: &MoveSpec) -> i32 {
    let way = match spec.way {
        Way::Live => v1::MoveWay::Live,
        Way::LiveWithDisks => v1::MoveWay::LiveWithDisks,
        Way::Cold if spec.copies.is_empty() => v1::MoveWay::Cold,
        Way::Cold => v1::MoveWay::ColdWithDisks,
    };
    way.into()
}

/// A forecast as the contract has it.
#[must_use]
pub fn show_forecast(forecast: &Forecast) -> v1::MoveForecast {
    v1::MoveForecast {
        verdict: forecast.verdict.number(),
        memory_bytes: forecast.memory_bytes,
        disk_bytes: forecast.disk_bytes,
        dirty_bytes_per_s: forecast.dirty_bytes_per_s,
        bytes_per_s: forecast.bytes_per_s,
        time_ms: forecast.time_ms,
        downtime_ms: forecast.downtime_ms,
        slowed_percent: forecast.slowed_percent,
    }
}
