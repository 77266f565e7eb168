//! How moves are shown.

use tamdao_proto::v1::{Move, MoveSpec, MoveWay};

use super::{View, head, headers, phase, tail, told};
use crate::bar::bar;
use crate::output::Cell;
use crate::quantity::bytes;
use crate::resource::Resource;

impl View for Move {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(&["PHASE", "VM", "FROM", "TO", "WAY"], &["ASKED BY", "REASON"], wide)
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let spec = self.spec.clone().unwrap_or_default();
        let mut cells = head(self);
        cells.push(phase(&self.phase()));
        cells.push(Cell::from(&spec.vm));
        cells.push(Cell::from(&spec.source_node));
        cells.push(Cell::from(&spec.target_node));
        cells.push(Cell::from(way(&spec)));
        if wide {
            cells.push(Cell::from(&spec.asked_by));
            cells.push(Cell::from(&spec.reason));
        }
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let mut fields = vec![
            ("VM", Cell::from(&spec.vm)),
            ("From", Cell::from(&spec.source_node)),
            ("To", Cell::from(&spec.target_node)),
            ("Way", Cell::from(way(&spec))),
            ("Asked by", Cell::from(&spec.asked_by)),
            ("Reason", Cell::from(&spec.reason)),
            ("Message", Cell::from(&status.message)),
        ];
        if status.progress.is_some() {
            fields.push(("Progress", Cell::from(progress(self))));
        }
        fields
    }

    fn story(&self) -> String {
        let status = self.status.clone().unwrap_or_default();
        let message = Some(status.message.as_str()).filter(|message| !message.is_empty());
        told(&self.phase(), message)
    }
}

/// How it moves, as people say it.
pub fn way(spec: &MoveSpec) -> &'static str {
    match spec.way() {
        MoveWay::Live => "live",
        MoveWay::LiveWithDisks => "live, with disks",
        MoveWay::Cold => "cold",
        MoveWay::Unspecified => "",
    }
}

/// How far it is: a bar with speed, remaining time and expected downtime as far as they are known.
pub fn progress(one: &Move) -> String {
    let status = one.status.clone().unwrap_or_default();
    let Some(now) = status.progress else { return one.story() };
    let done = now.total_bytes.saturating_sub(now.remaining_bytes);
    let mut text = format!("{} {}", one.phase(), bar(done, done, now.total_bytes));
    if now.bytes_per_s > 0 {
        text += &format!(", {}/s", bytes(now.bytes_per_s));
        match now.bytes_per_s.checked_sub(now.dirty_bytes_per_s).filter(|gain| *gain > 0) {
            Some(gain) => text += &format!(", {} s left", now.remaining_bytes.div_ceil(gain)),
            None => text += ", the guest writes faster than it is copied",
        }
    }
    if now.downtime_ms > 0 {
        text += &format!(", {} ms of standstill expected", now.downtime_ms);
    }
    text
}

#[cfg(test)]
mod tests {
    use tamdao_proto::v1::{MovePhase, MoveProgress, MoveStatus};

    use super::*;

    #[test]
    fn progress_says_what_is_known() {
        let of = |progress| Move {
            status: Some(MoveStatus { phase: MovePhase::Sending.into(), progress, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(progress(&of(None)), "Sending");
        let known = MoveProgress { total_bytes: 1_000, remaining_bytes: 500, ..Default::default() };
        assert_eq!(progress(&of(Some(known))), "Sending [##########..........]  50 %");
        let quick = MoveProgress { bytes_per_s: 300, dirty_bytes_per_s: 50, downtime_ms: 20, ..known };
        let text = progress(&of(Some(quick)));
        assert!(text.ends_with("2 s left, 20 ms of standstill expected"), "{text}");
        let slow = MoveProgress { bytes_per_s: 50, dirty_bytes_per_s: 50, ..known };
        assert!(progress(&of(Some(slow))).contains("faster than it is copied"));
    }
}
