//! The public beginning of a trace of Huawei Cloud's east region; see `bench/data/huawei-east-1/SOURCE.txt`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Size, Stream, data};

/// 3.9 days.
pub(super) fn prefix() -> Result<Stream> {
    let text = data("huawei-east-1/events.csv.gz")?;
    let mut lives: Vec<(u64, Option<u64>, Size)> = Vec::new();
    let mut alive: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let field =
            |at: usize| fields.get(at).copied().with_context(|| format!("field {at} is not in {line}"));
        let at_s = field(3)?.parse::<f64>()? as u64;
        if field(4)? == "0" {
            let size = Size {
                milli_cpus: field(1)?.parse::<u32>()? * 1_000,
                memory_mib: field(2)?.parse::<u64>()? * 1_024,
            };
            alive.insert(field(0)?, lives.len());
            lives.push((at_s, None, size));
        } else if let Some(n) = alive.remove(field(0)?) {
            lives[n].1 = Some(at_s - lives[n].0);
        }
    }
    Ok(Stream::new("huawei-east-1", lives))
}
