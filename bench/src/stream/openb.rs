//! Pods of Alibaba's cluster trace of 2023, the default list, by CPU and memory only (GPUs are passed over); see
//! `bench/data/openb/SOURCE.txt`.

use anyhow::{Context, Result};

use super::{Size, Stream, data};

/// 149 days.
pub(super) fn default_pods() -> Result<Stream> {
    let text = data("openb/openb_pod_list_default.csv.gz")?;
    let mut lives = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |at: usize| fields.get(at).with_context(|| format!("field {at} is not in {line}"));
        let size = Size { milli_cpus: field(1)?.parse()?, memory_mib: field(2)?.parse()? };
        let (comes, goes): (u64, u64) = (field(8)?.parse()?, field(9)?.parse()?);
        lives.push((comes, Some(goes.saturating_sub(comes)), size));
    }
    Ok(Stream::new("openb default", lives))
}
