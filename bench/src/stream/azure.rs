//! Arrivals of Azure's first public trace, as cut and published for forecasting (`bench/data/azure-v1/SOURCE.txt`):
//! flavors by 5-minute bins, for *dev* also how long each VM ran, as bins of length.
//!
//! A VM that was seen for the length of its bin leaves five minutes later, since it was seen in both; within a wide
//! bin the length is taken evenly, the next VM the next of seven parts. *Train* has no lengths in what is published
//! here, so each VM takes the next length of its flavor in *dev*, round and round. A length that is cut off by the
//! end of dev takes the next longer one of its flavor instead (Efron 1967, redistribution to the right); in dev
//! itself such a VM stays to the end.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Size, Stream, data};

/// A length as published: its bin, and whether the end of the trace cut it off.
#[derive(Debug, Clone, Copy)]
struct Length {
    bin: usize,
    cut: bool,
}

/// 3.5 days.
pub(super) fn dev() -> Result<Stream> {
    let bins = bins()?;
    let (vms, lengths) = (flavors("v1.dev.txt.gz")?, lengths()?);
    let start = vms.first().map_or(0, |(at_s, _, _)| *at_s);
    let lives = vms.iter().zip(&lengths).enumerate().map(|(n, ((at_s, _, size), length))| {
        let lasts = (!length.cut).then(|| seconds(&bins, length.bin, n));
        (at_s - start, lasts, *size)
    });
    Ok(Stream::new("azure-v1 dev", lives))
}

/// 20.8 days.
pub(super) fn train() -> Result<Stream> {
    let bins = bins()?;
    let mut of_flavor: BTreeMap<String, Vec<Length>> = BTreeMap::new();
    for ((_, flavor, _), length) in flavors("v1.dev.txt.gz")?.into_iter().zip(lengths()?) {
        of_flavor.entry(flavor).or_default().push(length);
    }
    let of_flavor: BTreeMap<String, Vec<Option<usize>>> =
        of_flavor.into_iter().map(|(flavor, lengths)| (flavor, redistributed(&lengths))).collect();
    let mut next: BTreeMap<String, usize> = BTreeMap::new();
    let lives = flavors("v1.train.txt.gz")?.into_iter().enumerate().map(|(n, (at_s, flavor, size))| {
        let lengths = of_flavor.get(&flavor).map_or(&[][..], Vec::as_slice);
        let turn = next.entry(flavor).or_default();
        *turn += 1;
        let bin = lengths.get((*turn - 1) % lengths.len().max(1)).copied().flatten();
        (at_s, bin.map(|bin| seconds(&bins, bin, n)), size)
    });
    Ok(Stream::new("azure-v1 train", lives))
}

/// Bins with those that are cut off replaced by the next longer one, around the end; none if there is none.
fn redistributed(lengths: &[Length]) -> Vec<Option<usize>> {
    // The bins that are longer than all before them, seen from here; the nearest is the last.
    let mut longer: Vec<usize> = Vec::new();
    let mut bins = vec![None; lengths.len()];
    for at in (0..2 * lengths.len()).rev() {
        let Length { bin, cut } = lengths[at % lengths.len()];
        if cut {
            let nearest = longer.partition_point(|other| *other > bin).checked_sub(1);
            bins[at % lengths.len()] = nearest.map(|nearest| longer[nearest]);
        } else {
            longer.truncate(longer.partition_point(|other| *other > bin));
            longer.push(bin);
            bins[at % lengths.len()] = Some(bin);
        }
    }
    bins
}

/// (first, last) second of each bin of lengths.
fn bins() -> Result<Vec<(u64, u64)>> {
    let mut bins: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for line in data("azure-v1/v1.interval_map.txt")?.lines() {
        let (seconds, bin) = line.split_once(' ').context("a line of the bins is not two numbers")?;
        let (seconds, bin) = (seconds.parse()?, bin.parse()?);
        bins.entry(bin).or_insert((seconds, seconds)).1 = seconds;
    }
    Ok(bins.into_values().collect())
}

fn seconds(bins: &[(u64, u64)], bin: usize, n: usize) -> u64 {
    let (first, last) = bins.get(bin).copied().unwrap_or((1_728_000, 1_728_000));
    300 + first + (last - first) * (n as u64 % 7) / 7
}

/// (time, letter, size) of each VM.
fn flavors(file: &str) -> Result<Vec<(u64, String, Size)>> {
    let map = data("azure-v1/flav_map.txt")?;
    let mut sizes = BTreeMap::new();
    for line in map.lines() {
        let (size, letter) = line.split_once(' ').context("a flavor is not a size and a letter")?;
        let (cpus, gib) = size.split_once(',').context("a size is not two numbers")?;
        let memory_mib = (gib.parse::<f64>()? * 1_024.0) as u64;
        sizes.insert(letter.to_owned(), Size { milli_cpus: cpus.parse::<u32>()? * 1_000, memory_mib });
    }
    let mut vms = Vec::new();
    for (at_s, word) in words(&data(&format!("azure-v1/{file}"))?)? {
        let size = *sizes.get(&word).with_context(|| format!("flavor {word} is not in the map"))?;
        vms.push((at_s, word, size));
    }
    Ok(vms)
}

fn lengths() -> Result<Vec<Length>> {
    let text = data("azure-v1/v1.dev.c2100000.txt.gz")?;
    let length = |(_, word): (u64, String)| {
        let (kind, bin) = word.split_at_checked(1).context("a length is empty")?;
        Ok(Length { bin: bin.parse()?, cut: kind == "C" })
    };
    words(&text)?.into_iter().map(length).collect()
}

/// All words of a trace with the time of their line; batches are not told apart.
fn words(text: &str) -> Result<Vec<(u64, String)>> {
    let mut words = Vec::new();
    for line in text.lines() {
        let (at_s, rest) = line.split_once(' ').unwrap_or((line, ""));
        let at_s = at_s.parse()?;
        let of_line = rest.split(',').map(str::trim).filter(|word| !word.is_empty() && *word != "|");
        words.extend(of_line.map(|word| (at_s, word.to_owned())));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_is_cut_takes_the_next_longer() {
        let lengths =
            [(3, false), (2, true), (1, false), (5, false), (4, true), (5, true), (7, true), (6, false)];
        let lengths: Vec<Length> = lengths.into_iter().map(|(bin, cut)| Length { bin, cut }).collect();
        let expected = [Some(3), Some(5), Some(1), Some(5), Some(6), Some(6), None, Some(6)];
        assert_eq!(redistributed(&lengths), expected);
    }
}
