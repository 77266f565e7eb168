//! Networks: what interfaces are attached to, with the addresses that may be given out.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::record::resource;
use crate::{AgencyId, Meta, NetworkId, Scope};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub meta: Meta,
    /// None for a network of the cluster.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub agency: Option<AgencyId>,
    pub spec: NetworkSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    pub provider: Provider,
    /// At most one of each family.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub subnets: Vec<Subnet>,
    /// Bytes.
    pub mtu: u32,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub dns_servers: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// A bridge device of the node.
    Bridge { bridge: String },
    /// A tagged VLAN on a bridge device of the node.
    Vlan { bridge: String, tag: u16 },
}

impl Provider {
    pub fn bridge(&self) -> &str {
        match self {
            Self::Bridge { bridge } | Self::Vlan { bridge, .. } => bridge,
        }
    }

    /// The bridge device that guests are attached to: that of VLAN 30 on `br0` is `br0.30`, which the node has.
    pub fn device(&self) -> String {
        match self {
            Self::Bridge { bridge } => bridge.clone(),
            Self::Vlan { bridge, tag } => format!("{bridge}.{tag}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub cidr: IpNet,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub gateway: Option<IpAddr>,
    /// Never empty: the default is the whole prefix.
    pub ranges: Vec<AddressRange>,
}

/// A closed range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRange {
    pub first: IpAddr,
    pub last: IpAddr,
}

resource!(Network, Network, |n| Scope::from(n.agency));

impl Network {
    pub fn id(&self) -> NetworkId {
        NetworkId(self.meta.id)
    }
}
