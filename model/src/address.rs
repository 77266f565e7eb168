//! Addresses: one record each, so that giving one out is one guard on its absence.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::record::Stored;
use crate::{NetworkId, TimeMs, VmId};

/// One address that is held, or that rests after it was held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub network: NetworkId,
    pub address: IpAddr,
    pub holder: Holder,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// An interface of a VM.
    Vm { vm: VmId, interface: u32 },
    /// Nobody may have it before this time: machines may still remember its last holder.
    Resting { until: TimeMs },
}

impl Stored for Address {
    const KIND: &'static str = "address";
    fn key(&self) -> String {
        format!("{}/{}", self.network, self.address)
    }
}
