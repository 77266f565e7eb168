//! BMCs: by what a host's power is switched and looked at, and what is known of each.
//!
//! Invariants: a password is here only sealed; a BMC speaks of a node only if the machine that it stands for has the
//! node's own UUID, and it is believed only if it has said On while that node's agent was heard: who has never been
//! known to say the opposite proves nothing. Deliberately absent: Redfish, and when anything is asked.

use serde::{Deserialize, Serialize};
use tamdao_seams::{Mutant, has};
use uuid::Uuid;

use crate::TimeMs;
use crate::node::Node;
use crate::sealed::Sealed;

/// One way to a host's power.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bmc {
    pub url: String,
    pub username: String,
    pub password: Sealed,
    pub trust: Trust,
}

/// By what a BMC's own certificate is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// These CAs, PEM.
    Ca(String),
    /// The SHA-256 of the certificate itself, lower-case hex.
    Fingerprint(String),
    /// Whoever answers, even without TLS.
    Unverified,
}

/// What was last found out about a BMC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    pub url: String,
    pub time: TimeMs,
    /// One CamelCase word; [`GOOD`] if nothing is wrong.
    pub reason: String,
    pub message: String,
    /// When it last said On of the right machine while the agent there was heard. None before, and after it said Off of a
    /// node that was heard.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub said_on: Option<TimeMs>,
}

/// The reason of a drill that found nothing wrong.
pub const GOOD: &str = "Good";
/// The type of the node's condition that says whether it could be powered off today.
pub const CONDITION: &str = "Fenceable";

impl Drilled {
    pub fn is_good(&self) -> bool {
        self.reason == GOOD
    }
}

impl Node {
    /// What was last found out about one of its BMCs.
    pub fn drilled(&self, url: &str) -> Option<&Drilled> {
        self.status.fence_drill.iter().find(|drilled| drilled.url == url)
    }

    /// Whether it could be powered off today, with proof.
    pub fn is_fenceable(&self) -> bool {
        self.spec.bmcs.iter().any(|bmc| self.drilled(&bmc.url).is_some_and(Drilled::is_good))
    }
}

/// Whether the power of a host is on, as its BMC says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    On,
    Off,
    /// On its way from one to the other, or nothing that Redfish knows.
    Between,
}

/// What a BMC says of the machine that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub system_uuid: Uuid,
    pub power: Power,
}

/// UUIDs that many machines have: nothing, everything, and what a maker's tool leaves where nobody sets one.
const OF_MANY: [Uuid; 3] =
    [Uuid::nil(), Uuid::max(), Uuid::from_u128(0x0300_0200_0400_0500_0006_0007_0008_0009)];

/// Whether a host's UUID tells it from every other host.
pub fn identifies(host: Uuid) -> bool {
    !OF_MANY.contains(&host)
}

/// Whether a BMC's machine is this host. Firmware older than SMBIOS 2.6 writes the first three parts of a UUID in the
/// other byte order than its readers expect; no two machines' UUIDs differ by that alone.
pub fn is_same_machine(host: Uuid, told: Uuid) -> bool {
    let same = told == host || Uuid::from_bytes_le(told.into_bytes()) == host;
    (identifies(host) && same) || has(Mutant::WrongMachineBelieved)
}

/// What is wrong with a BMC: a reason for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub reason: &'static str,
    pub message: String,
}

/// What one look says of a BMC; `heard` if the node's agent was heard before it began and after it had ended.
///
/// # Errors
/// Why it would not be believed.
pub fn drill(host: Uuid, heard: bool, seen: Seen) -> Result<(), Wrong> {
    check_machine(host, seen.system_uuid)?;
    let wrong = |reason, message: &str| Err(Wrong { reason, message: message.to_owned() });
    match (seen.power, heard) {
        (Power::On, true) => Ok(()),
        (Power::Off, true) => {
            wrong("SaysOff", "says Off of a node whose agent is heard, so that its Off proves nothing")
        }
        (Power::On, false) => {
            wrong("NotHeard", "says On; whether it is right cannot be told while the agent is not heard")
        }
        (Power::Off, false) => {
            wrong("NotHeard", "says Off; whether it is right cannot be told while the agent is not heard")
        }
        (Power::Between, _) => wrong("NoPowerState", "says neither On nor Off"),
    }
}

/// Whether a BMC stands for this host.
///
/// # Errors
/// Why it is not believed to.
pub fn check_machine(host: Uuid, told: Uuid) -> Result<(), Wrong> {
    if !identifies(host) && !has(Mutant::WrongMachineBelieved) {
        let message = format!(
            "cannot be told to be this node's: the host's UUID {host} is one that many machines have"
        );
        return Err(Wrong { reason: "NoIdentity", message });
    }
    if !is_same_machine(host, told) {
        let message = format!("stands for the machine {told}, and this node is {host}");
        return Err(Wrong { reason: "WrongMachine", message });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Uuid = Uuid::from_u128(0x4c4c_4544_0042_3010_8052_b4c0_4f4a_3232);

    #[test]
    fn a_machine_is_known_by_its_uuid_in_either_byte_order_and_by_no_uuid_of_many() {
        let swapped = Uuid::from_u128(0x4445_4c4c_4200_1030_8052_b4c0_4f4a_3232);
        assert!(
            is_same_machine(HOST, HOST) && is_same_machine(HOST, swapped) && is_same_machine(swapped, HOST)
        );
        assert!(!is_same_machine(HOST, Uuid::from_u128(HOST.as_u128() + 1)));
        for many in OF_MANY {
            assert!(!is_same_machine(many, many), "{many}");
            assert_eq!(check_machine(many, many).unwrap_err().reason, "NoIdentity");
        }
    }

    #[test]
    fn only_on_of_the_right_machine_while_its_agent_is_heard_is_good() {
        let seen = |system_uuid, power| Seen { system_uuid, power };
        assert_eq!(drill(HOST, true, seen(HOST, Power::On)), Ok(()));
        let other = Uuid::from_u128(7);
        for (uuid, power, heard, reason) in [
            (HOST, Power::Off, true, "SaysOff"),
            (HOST, Power::Between, true, "NoPowerState"),
            (HOST, Power::On, false, "NotHeard"),
            (HOST, Power::Off, false, "NotHeard"),
            (other, Power::On, true, "WrongMachine"),
        ] {
            assert_eq!(drill(HOST, heard, seen(uuid, power)).unwrap_err().reason, reason);
        }
    }
}
