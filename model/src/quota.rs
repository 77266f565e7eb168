//! What is counted of an agency and limited by its quota: one list of measures, and amounts of them. Deliberately
//! absent: whose quota is asked, and what a limit leaves free; both need the other agencies.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::vm::{OnNodeLoss, Vm};
use crate::volume::Volume;
use crate::{Name, NameError};

/// Something that is counted. Its word is its name in records, in the contract and on the command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Measure {
    Vms,
    Vcpus,
    MemoryMib,
    DiskMib,
    Volumes,
    Addresses,
    /// Memory of VMs that are to be restarted elsewhere when their node is lost: the cluster keeps room for it.
    ProtectedMemoryMib,
    /// VMs of flavors of this class.
    FlavorClass(Name),
}

/// A text that is no measure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoMeasure {
    #[error("{0:?} is not counted; one of {words} is, or {FLAVOR_CLASS}NAME", words = words())]
    Unknown(String),
    #[error("the class {0:?} {1}")]
    Class(String, NameError),
}

/// Begins the word of a flavor class.
const FLAVOR_CLASS: &str = "flavor_class/";

const PLAIN: [Measure; 7] = [
    Measure::Vms,
    Measure::Vcpus,
    Measure::MemoryMib,
    Measure::DiskMib,
    Measure::Volumes,
    Measure::Addresses,
    Measure::ProtectedMemoryMib,
];

fn words() -> String {
    PLAIN.map(|measure| measure.to_string()).join(", ")
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vms => "vms",
            Self::Vcpus => "vcpus",
            Self::MemoryMib => "memory_mib",
            Self::DiskMib => "disk_mib",
            Self::Volumes => "volumes",
            Self::Addresses => "addresses",
            Self::ProtectedMemoryMib => "protected_memory_mib",
            Self::FlavorClass(class) => return write!(f, "{FLAVOR_CLASS}{class}"),
        })
    }
}

impl FromStr for Measure {
    type Err = NoMeasure;

    fn from_str(text: &str) -> Result<Self, NoMeasure> {
        if let Some(class) = text.strip_prefix(FLAVOR_CLASS) {
            let name = Name::new(class).map_err(|error| NoMeasure::Class(class.to_owned(), error))?;
            return Ok(Self::FlavorClass(name));
        }
        let known = PLAIN.into_iter().find(|measure| measure.to_string() == text);
        known.ok_or_else(|| NoMeasure::Unknown(text.to_owned()))
    }
}

impl TryFrom<String> for Measure {
    type Error = NoMeasure;

    fn try_from(text: String) -> Result<Self, NoMeasure> {
        text.parse()
    }
}

impl From<Measure> for String {
    fn from(measure: Measure) -> Self {
        measure.to_string()
    }
}

/// The most that an agency and its children may hold; a measure that is absent is not limited.
pub type Quota = BTreeMap<Measure, u64>;

/// How much of each measure; one that is absent is zero, and none is held as zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<Measure, u64>", into = "BTreeMap<Measure, u64>")]
pub struct Amounts(BTreeMap<Measure, u64>);

impl From<BTreeMap<Measure, u64>> for Amounts {
    fn from(amounts: BTreeMap<Measure, u64>) -> Self {
        amounts.into_iter().collect()
    }
}

impl From<Amounts> for BTreeMap<Measure, u64> {
    fn from(amounts: Amounts) -> Self {
        amounts.0
    }
}

impl FromIterator<(Measure, u64)> for Amounts {
    /// Sums what comes several times.
    fn from_iter<I: IntoIterator<Item = (Measure, u64)>>(pairs: I) -> Self {
        let mut amounts = Self::default();
        for (measure, amount) in pairs {
            amounts.set(measure.clone(), amounts.of(&measure).saturating_add(amount));
        }
        amounts
    }
}

impl Amounts {
    pub fn of(&self, measure: &Measure) -> u64 {
        self.0.get(measure).copied().unwrap_or(0)
    }

    fn set(&mut self, measure: Measure, amount: u64) {
        match amount {
            0 => drop(self.0.remove(&measure)),
            amount => drop(self.0.insert(measure, amount)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Measure, u64)> {
        self.0.iter().map(|(measure, amount)| (measure, *amount))
    }

    #[must_use]
    pub fn plus(self, more: &Self) -> Self {
        self.0.into_iter().chain(more.0.clone()).collect()
    }

    /// What is left without `less`; nothing goes below zero.
    #[must_use]
    pub fn minus(&self, less: &Self) -> Self {
        self.iter()
            .map(|(measure, amount)| (measure.clone(), amount.saturating_sub(less.of(measure))))
            .collect()
    }
}

impl Vm {
    /// What the VM counts as from its creation until it is gone, whatever its power. Its volumes count by themselves.
    pub fn amounts(&self) -> Amounts {
        let addresses = self.spec.interfaces.iter().map(|interface| interface.addresses.len() as u64).sum();
        let protected = match self.spec.on_node_loss {
            OnNodeLoss::Evacuate => u64::from(self.spec.memory_mib),
            OnNodeLoss::Stay => 0,
        };
        let class = self.spec.flavor_class.clone().map(|class| (Measure::FlavorClass(class), 1));
        let counted = [
            (Measure::Vms, 1),
            (Measure::Vcpus, u64::from(self.spec.vcpus)),
            (Measure::MemoryMib, u64::from(self.spec.memory_mib)),
            (Measure::Addresses, addresses),
            (Measure::ProtectedMemoryMib, protected),
        ];
        counted.into_iter().chain(class).collect()
    }
}

impl Volume {
    /// What the volume counts as until its file is gone.
    pub fn amounts(&self) -> Amounts {
        [(Measure::Volumes, 1), (Measure::DiskMib, u64::from(self.spec.size_mib))].into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_read_back() {
        let class = Measure::FlavorClass(Name::new("gpu").unwrap());
        for measure in PLAIN.into_iter().chain([class]) {
            assert_eq!(measure.to_string().parse(), Ok(measure));
        }
        for wrong in ["", "cpu", "flavor_class/", "flavor_class/GPU", "flavor_class"] {
            assert!(wrong.parse::<Measure>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn amounts_hold_no_zeros_and_nothing_below() {
        let of = |pairs: &[(Measure, u64)]| pairs.iter().cloned().collect::<Amounts>();
        let (a, b) =
            (of(&[(Measure::Vms, 2), (Measure::Vcpus, 4)]), of(&[(Measure::Vms, 2), (Measure::Vcpus, 5)]));
        assert_eq!(a.minus(&b), Amounts::default());
        assert_eq!(a.clone().plus(&b).minus(&b), a);
        assert_eq!(of(&[(Measure::Vms, 0)]), Amounts::default());
        assert_eq!(of(&[(Measure::Vms, u64::MAX), (Measure::Vms, 1)]).of(&Measure::Vms), u64::MAX);
    }
}
