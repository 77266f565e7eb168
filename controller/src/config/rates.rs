//! The table `[limits]`: how often somebody may ask one controller.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use crate::rate::{Allowance, Allowances};

const MOST: u64 = 1_000_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RatesFile {
    caller_per_second: u32,
    caller_burst: u32,
    agency_per_second: u32,
    agency_burst: u32,
}

impl Default for RatesFile {
    /// A manifest of a whole province, 776 resources, is applied within the burst.
    fn default() -> Self {
        Self { caller_per_second: 100, caller_burst: 2_000, agency_per_second: 200, agency_burst: 4_000 }
    }
}

impl RatesFile {
    /// `within` refuses what lies outside of a range.
    pub fn check(&self, within: &mut impl FnMut(&'static str, u64, u64, u64) -> Duration) -> Allowances {
        let mut number = |key, value: u32| {
            within(key, value.into(), 1, MOST);
            NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN)
        };
        Allowances {
            caller: Allowance {
                per_second: number("limits.caller_per_second", self.caller_per_second),
                burst: number("limits.caller_burst", self.caller_burst),
            },
            agency: Allowance {
                per_second: number("limits.agency_per_second", self.agency_per_second),
                burst: number("limits.agency_burst", self.agency_burst),
            },
        }
    }
}
