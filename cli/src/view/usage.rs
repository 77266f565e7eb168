//! What agencies hold of what they may hold, as people read it: a tree with one line for each agency, and with a sum
//! where there are agencies below.

use std::collections::BTreeMap;

use tamdao_proto::v1::Agency;

use crate::output::{Cell, Table, Tone};
use crate::quantity::mib;
use crate::resource::Resource;

/// Measures that every table shows, and their headers.
const ALWAYS: [(&str, &str); 5] = [
    ("vms", "VMS"),
    ("vcpus", "VCPUS"),
    ("memory_mib", "MEMORY"),
    ("disk_mib", "DISK"),
    ("protected_memory_mib", "PROTECTED"),
];
/// And those of wide ones.
const MORE: [(&str, &str); 2] = [("volumes", "VOLUMES"), ("addresses", "ADDRESSES")];

/// One agency in its tree.
pub struct Line<'a> {
    pub agency: &'a Agency,
    /// Levels above it in this tree.
    depth: usize,
    /// With all below it.
    sum: BTreeMap<String, u64>,
    /// There are agencies below it.
    parent: bool,
}

/// The agencies in the order of the tree: all, or one with those below it.
pub fn tree<'a>(agencies: &'a [Agency], top: Option<&str>) -> Vec<Line<'a>> {
    let known = |name: &str| agencies.iter().any(|agency| agency.name() == name);
    let roots = agencies.iter().filter(|agency| match top {
        Some(top) => agency.name() == top,
        // One whose parent may not be seen begins a tree too.
        None => !known(above(agency)),
    });
    let mut lines = Vec::new();
    for root in roots {
        descend(agencies, root, 0, &mut lines);
    }
    lines
}

fn above(agency: &Agency) -> &str {
    agency.spec.as_ref().map_or("", |spec| &spec.parent)
}

fn descend<'a>(agencies: &'a [Agency], agency: &'a Agency, depth: usize, lines: &mut Vec<Line<'a>>) {
    let at = lines.len();
    lines.push(Line { agency, depth, sum: amounts(agency), parent: false });
    for child in agencies.iter().filter(|child| above(child) == agency.name()) {
        let below = lines.len();
        descend(agencies, child, depth + 1, lines);
        for (measure, amount) in lines[below].sum.clone() {
            *lines[at].sum.entry(measure).or_default() += amount;
        }
        lines[at].parent = true;
    }
}

/// The lines as a table: used of the limit, and below a parent's line its sum.
pub fn table(lines: &[Line<'_>], wide: bool) -> Table {
    let measures: Vec<_> = ALWAYS.iter().chain(MORE.iter().filter(|_| wide)).collect();
    let headers = ["AGENCY"].into_iter().chain(measures.iter().map(|(_, header)| *header));
    let mut rows = Vec::new();
    for line in lines {
        let indent = "  ".repeat(line.depth);
        let quota = line.agency.spec.clone().unwrap_or_default().quota;
        let own = amounts(line.agency);
        let mut row = vec![Cell::from(format!("{indent}{}", line.agency.name()))];
        row.extend(measures.iter().map(|(measure, _)| {
            let sum = line.sum.get(*measure).copied().unwrap_or(0);
            let (own, most) = (own.get(*measure).copied().unwrap_or(0), quota.get(*measure).copied());
            share(measure, own, sum, most, line.parent)
        }));
        rows.push(row);
    }
    Table { headers: headers.collect(), rows }
}

/// "4 of 16", and for a parent "4 (all 12) of 64". What is full stands out.
fn share(measure: &str, own: u64, sum: u64, most: Option<u64>, parent: bool) -> Cell {
    let mut text = amount(measure, own);
    if parent {
        text.push_str(&format!(" (all {})", amount(measure, sum)));
    }
    if let Some(most) = most {
        text.push_str(&format!(" of {}", amount(measure, most)));
    }
    Cell::toned(text, if most.is_some_and(|most| sum >= most) { Tone::Busy } else { Tone::Plain })
}

/// An amount in the unit that people read.
pub fn amount(measure: &str, amount: u64) -> String {
    if measure.ends_with("_mib") { mib(amount) } else { amount.to_string() }
}

/// What an agency holds itself, by the quota's words.
pub fn amounts(agency: &Agency) -> BTreeMap<String, u64> {
    let usage = agency.status.clone().unwrap_or_default().usage.unwrap_or_default();
    let counted = [
        ("vms", u64::from(usage.vms)),
        ("vcpus", u64::from(usage.vcpus)),
        ("memory_mib", usage.memory_mib),
        ("disk_mib", usage.disk_mib),
        ("volumes", u64::from(usage.volumes)),
        ("addresses", u64::from(usage.addresses)),
        ("protected_memory_mib", usage.protected_memory_mib),
    ];
    let classes = usage
        .flavor_classes
        .into_iter()
        .map(|(class, vms)| (format!("flavor_class/{class}"), u64::from(vms)));
    counted.map(|(measure, amount)| (measure.to_owned(), amount)).into_iter().chain(classes).collect()
}

#[cfg(test)]
mod tests {
    use tamdao_proto::v1::{AgencySpec, AgencyStatus, Metadata, Usage};

    use super::*;

    fn agency(name: &str, parent: &str, vcpus: u32, most: Option<u64>) -> Agency {
        let spec = AgencySpec {
            parent: parent.into(),
            quota: most.map(|most| ("vcpus".to_owned(), most)).into_iter().collect(),
            ..Default::default()
        };
        let usage = Usage { vcpus, memory_mib: 1_536, ..Default::default() };
        Agency {
            metadata: Some(Metadata { name: name.into(), ..Default::default() }),
            spec: Some(spec),
            status: Some(AgencyStatus { usage: Some(usage), ..Default::default() }),
        }
    }

    fn texts(lines: &[Line<'_>], column: usize) -> Vec<String> {
        table(lines, false).rows.iter().map(|row| row[column].text.clone()).collect()
    }

    #[test]
    fn agencies_stand_below_their_parents_and_are_summed_there() {
        let agencies = [
            agency("commune", "district", 1, Some(2)),
            agency("district", "health", 2, None),
            agency("health", "", 4, Some(64)),
            agency("justice", "hidden", 5, None),
        ];
        let all = tree(&agencies, None);
        assert_eq!(texts(&all, 0), ["health", "  district", "    commune", "justice"]);
        assert_eq!(texts(&all, 2), ["4 (all 7) of 64", "2 (all 3)", "1 of 2", "5"]);
        assert_eq!(texts(&all, 3)[0], "1.5 GiB (all 4.5 GiB)");
        let part = tree(&agencies, Some("district"));
        assert_eq!(texts(&part, 0), ["district", "  commune"]);
    }
}
