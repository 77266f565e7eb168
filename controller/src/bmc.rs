//! The seam to hosts' power: what a BMC can be asked.
//!
//! Invariants: every call ends within its deadline; an answer is what the BMC said, whole and understood, or a fault;
//! nothing but the machine that was asked for is ever powered off. Deliberately absent: what an answer proves
//! (`tamdao_model::fence`), when anything is asked (`reconcile`), and powering on, which is people's business.

mod redfish;
mod trust;

use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::bmc::{self, Seen, Trust};
use tamdao_model::sealed::Unsealed;
use uuid::Uuid;

use crate::pki::{ClusterKey, PkiError};

pub use redfish::Redfish;

/// A look ends within this time: several small requests to a slow processor.
pub const LOOK_WITHIN: Duration = Duration::from_secs(8);
/// So does a command, whose answer some BMCs hold back until the power is off.
pub const COMMAND_WITHIN: Duration = Duration::from_secs(20);

/// What a BMC can be asked.
#[async_trait]
pub trait Bmc: Send + Sync + 'static {
    /// Looks at the machine of this UUID; if the BMC has none, at the one that it has.
    async fn look(&self, access: &Access, host: Uuid) -> Result<Seen, Fault>;

    /// Asks for the machine of this UUID to be powered off at once. Whether it is, only looks can tell.
    async fn force_off(&self, access: &Access, host: Uuid) -> Result<(), Fault>;
}

/// How one BMC is reached.
#[derive(Debug, Clone)]
pub struct Access {
    pub url: String,
    pub username: String,
    pub password: Unsealed,
    pub trust: Trust,
}

/// The context that passwords are sealed in.
const PASSWORD: &str = "node.bmc.password";

impl Access {
    /// Opens the seal.
    ///
    /// # Errors
    /// When the password was sealed with another key.
    pub fn open(key: &ClusterKey, bmc: &bmc::Bmc) -> Result<Self, Fault> {
        let password = key.open(PASSWORD, &bmc.password).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let password = Unsealed(password.ok_or(Fault::Sealed)?);
        Ok(Self { url: bmc.url.clone(), username: bmc.username.clone(), password, trust: bmc.trust.clone() })
    }
}

/// Seals a BMC's password.
///
/// # Errors
/// When the system gives no random numbers.
pub fn seal(key: &ClusterKey, password: &str) -> Result<tamdao_model::sealed::Sealed, PkiError> {
    key.seal(PASSWORD, password.as_bytes())
}

/// Why there is no answer to build on. What a BMC says goes no further than here: it may be anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("did not answer within {} s", .0.as_secs())]
    TooSlow(Duration),
    #[error("cannot be believed: {0}")]
    Untrusted(String),
    #[error("refuses the account or its password (status {0})")]
    Denied(u16),
    #[error("sends elsewhere (status {0}), which is not followed")]
    Redirected(u16),
    #[error("answers with status {0}")]
    Status(u16),
    #[error("answers what cannot be understood: {0}")]
    Malformed(&'static str),
    #[error("stands for the machine {0}, which is not the node's; nothing was switched")]
    WrongMachine(Uuid),
    #[error("has no way to power its machine off at once")]
    NoForceOff,
    #[error("has a password that was sealed with another key: set it again")]
    Sealed,
}

impl Fault {
    /// One word for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "Unreachable",
            Self::TooSlow(_) => "TooSlow",
            Self::Untrusted(_) => "Untrusted",
            Self::Denied(_) => "Denied",
            Self::Redirected(_) => "Redirected",
            Self::Status(_) => "Failed",
            Self::Malformed(_) => "Malformed",
            Self::WrongMachine(_) => "WrongMachine",
            Self::NoForceOff => "NoForceOff",
            Self::Sealed => "Sealed",
        }
    }
}
