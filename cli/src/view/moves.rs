//! How moves are shown.

use tamdao_proto::v1::{Move, MoveForecast, MoveSpec, MoveVerdict, MoveWay};

use super::{View, head, headers, phase, tail, told};
use crate::bar::bar;
use crate::output::Cell;
use crate::quantity::{bytes, duration};
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
        if let Some(told) = &status.forecast {
            fields.push(("Forecast", Cell::from(forecast(told))));
        }
        if status.progress.is_some() {
            fields.push(("Progress", Cell::from(progress(self))));
        }
        if let (Some(begun), Some(ended)) = (&status.send_time, &status.end_time) {
            let took_ms =
                (ended.seconds - begun.seconds) * 1_000 + i64::from(ended.nanos - begun.nanos) / 1_000_000;
            fields.push(("Took", Cell::from(time(took_ms.unsigned_abs()))));
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
        MoveWay::ColdWithDisks => "cold, with disks",
        MoveWay::Unspecified => "",
    }
}

/// What is expected of it, in one line.
pub fn forecast(told: &MoveForecast) -> String {
    let disks = match told.disk_bytes {
        0 => String::new(),
        disks => format!(" and {} of disks", bytes(disks)),
    };
    let amount = format!("{} of memory{disks}", bytes(told.memory_bytes));
    let writes = format!("the guest writes {}/s", bytes(told.dirty_bytes_per_s));
    let pace = bytes(told.bytes_per_s);
    let known = format!("{amount} at {pace}/s, {writes}");
    let end = || format!("about {}, {} of it at a standstill", time(told.time_ms), time(told.downtime_ms));
    match told.verdict() {
        MoveVerdict::Arrives => format!("{known}: {}", end()),
        MoveVerdict::ArrivesSlowed => {
            format!("{known}: {}, and the guest is slowed down by {} %", end(), told.slowed_percent)
        }
        MoveVerdict::TooLong => format!("{known}: it will not arrive within the time that a move has"),
        MoveVerdict::Never => format!("{known}: it will not arrive, and stays where it is"),
        MoveVerdict::Unknown | MoveVerdict::Unspecified => {
            format!("{amount}, {writes}; what can be sent is not known yet")
        }
    }
}

/// A time, ms, to two digits or so.
fn time(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..10_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => duration(std::time::Duration::from_secs(ms / 1_000)),
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
    fn a_forecast_says_what_is_known() {
        let told = MoveForecast {
            verdict: MoveVerdict::Arrives.into(),
            memory_bytes: 1 << 30,
            dirty_bytes_per_s: 5 << 20,
            bytes_per_s: 100 << 20,
            time_ms: 10_750,
            downtime_ms: 25,
            ..MoveForecast::default()
        };
        let text =
            "1 GiB of memory at 100 MiB/s, the guest writes 5 MiB/s: about 10s, 25 ms of it at a standstill";
        assert_eq!(forecast(&told), text);
        let slowed = MoveVerdict::ArrivesSlowed.into();
        let slowed = MoveForecast { verdict: slowed, disk_bytes: 1 << 31, slowed_percent: 40, ..told };
        let text = forecast(&slowed);
        assert!(
            text.starts_with("1 GiB of memory and 2 GiB of disks") && text.ends_with("slowed down by 40 %")
        );
        let never = MoveForecast { verdict: MoveVerdict::Never.into(), ..told };
        assert!(forecast(&never).ends_with("it will not arrive, and stays where it is"));
        let unknown = MoveForecast { verdict: MoveVerdict::Unknown.into(), bytes_per_s: 0, ..told };
        assert!(forecast(&unknown).ends_with("not known yet"));
    }

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
