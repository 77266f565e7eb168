//! Streams of requests: VMs that come and go, in the order of time, from public traces in `bench/data`. An adapter
//! for each trace says what it made of what is published. Equal data gives an equal stream on every run.
//! Deliberately absent: where a VM goes.

mod azure;
mod huawei;
mod openb;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What a VM needs. CPU is in thousandths, because some traces cut it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    pub milli_cpus: u32,
    pub memory_mib: u64,
}

/// The node of all streams: 64 CPUs and 256 GiB.
pub const NODE: Size = Size { milli_cpus: 64_000, memory_mib: 256 * 1_024 };

/// One event. VMs are numbered from 0 in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Come { at_s: u64, vm: usize, size: Size },
    Go { at_s: u64, vm: usize },
}

/// A stream whose VMs all fit on an empty [`NODE`].
#[derive(Debug, Clone)]
pub struct Stream {
    pub name: &'static str,
    /// In the order of time; at the same second those that go are before those that come.
    pub events: Vec<Event>,
    /// Requests left out because they are larger than a node.
    pub too_large: usize,
}

/// All streams.
pub fn all() -> Result<Vec<Stream>> {
    Ok(vec![azure::train()?, azure::dev()?, openb::default_pods()?, huawei::prefix()?])
}

impl Stream {
    /// Of (comes, lasts, size); a VM without a length stays until the end. All times are seconds.
    pub(crate) fn new(name: &'static str, lives: impl IntoIterator<Item = (u64, Option<u64>, Size)>) -> Self {
        let mut lives: Vec<_> = lives.into_iter().collect();
        let all = lives.len();
        lives.retain(|(_, _, size)| size.milli_cpus <= NODE.milli_cpus && size.memory_mib <= NODE.memory_mib);
        let too_large = all - lives.len();
        lives.sort_by_key(|(comes, _, _)| *comes);
        let mut events = BTreeMap::new();
        for (vm, (at_s, lasts, size)) in lives.into_iter().enumerate() {
            events.insert((at_s, true, vm), Event::Come { at_s, vm, size });
            if let Some(lasts) = lasts {
                // A VM that comes and goes within a second still comes first.
                let at_s = at_s + lasts.max(1);
                events.insert((at_s, false, vm), Event::Go { at_s, vm });
            }
        }
        Self { name, events: events.into_values().collect(), too_large }
    }

    pub fn vms(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Come { .. })).count()
    }
}

impl Event {
    pub fn at_s(&self) -> u64 {
        match self {
            Self::Come { at_s, .. } | Self::Go { at_s, .. } => *at_s,
        }
    }
}

/// The text of a file under `bench/data`, unpacked if its name ends in `.gz`.
pub(crate) fn data(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(path);
    read(&path).with_context(|| format!("{} cannot be read", path.display()))
}

fn read(path: &PathBuf) -> Result<String> {
    let mut file = File::open(path)?;
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text)?;
    } else {
        file.read_to_string(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trace_gives_what_its_source_says() {
        let streams = all().unwrap();
        let counts: Vec<_> =
            streams.iter().map(|stream| (stream.name, stream.vms(), stream.too_large)).collect();
        let expected = [
            ("azure-v1 train", 1_200_998, 0),
            ("azure-v1 dev", 259_159, 0),
            ("openb default", 8_108, 44),
            ("huawei-east-1", 1_564, 0),
        ];
        assert_eq!(counts, expected);
        for stream in streams {
            assert!(stream.events.is_sorted_by_key(Event::at_s), "{}", stream.name);
        }
    }
}
