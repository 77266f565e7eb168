//! What libvirt's errors mean to us: one table from its codes and words to [`HypervisorError`].
//!
//! Invariant: libvirt's own words always reach the user; the table only adds a reason and says whether the cause
//! can pass. Where it does not know, the cause can pass. Deliberately absent: retries.

use uuid::Uuid;
use virt::error::{Error, ErrorDomain, ErrorNumber};

use super::super::HypervisorError;

/// A failed call: libvirt's answer, or ours.
#[derive(Debug)]
pub enum Fault {
    Libvirt(Error),
    Ours(HypervisorError),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Libvirt(error)
    }
}

impl From<HypervisorError> for Fault {
    fn from(error: HypervisorError) -> Self {
        Self::Ours(error)
    }
}

impl Fault {
    /// libvirt says that there is no such domain, or none any more.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Libvirt(error) => {
                let code = error.code();
                code == ErrorNumber::NoDomain.into()
                    || (code == ErrorNumber::OperationInvalid.into()
                        && error.message().contains("domain is not running"))
            }
            Self::Ours(error) => matches!(error, HypervisorError::NotFound { .. }),
        }
    }

    /// `connected` says whether the connection still stood after the call.
    pub fn explain(self, vm: Option<Uuid>, connected: bool) -> HypervisorError {
        let absent = self.is_absent();
        match (self, vm) {
            (Self::Ours(error), _) => error,
            (Self::Libvirt(_), Some(vm)) if absent => HypervisorError::NotFound { vm },
            (Self::Libvirt(error), _) => explain(&error, connected),
        }
    }
}

/// Libvirt still clears up after an earlier life of the domain, which it lists no more.
pub const BEING_REMOVED: &str = "BeingRemoved";

/// One line of the table: words that libvirt's or QEMU's message contains, all in lower case.
struct Words {
    all: &'static [&'static str],
    reason: &'static str,
    permanent: bool,
}

const fn words(all: &'static [&'static str], reason: &'static str, permanent: bool) -> Words {
    Words { all, reason, permanent }
}

/// The first line that matches counts.
const TABLE: &[Words] = &[
    words(&["cannot allocate memory"], "NotEnoughMemory", false),
    words(&["no space left on device"], "NoSpace", false),
    words(&["image is not in", "format"], "ImageDamaged", true),
    words(&["backing", "format", "not specified"], "ImageDamaged", true),
    words(&["format of backing image"], "ImageDamaged", true),
    words(&["cannot open log file", "busy"], "LogBusy", false),
    words(&["active console session exists"], "ConsoleBusy", false),
    words(&["failed to terminate process"], "ProcessStuck", false),
    words(&["already exists with uuid"], "NameTaken", false),
    words(&["domain is already active"], "NameTaken", false),
    words(&["is already being removed"], BEING_REMOVED, false),
    words(&["cannot acquire state change lock"], "DomainBusy", false),
    words(&["kvm kernel module"], "NoKvm", false),
    words(&["failed to initialize kvm"], "NoKvm", false),
    words(&["domain type kvm", "supported"], "NoKvm", false),
    words(&["unknown cpu model"], "CpuIncompatible", true),
    words(&["bridge", "no such device"], "BridgeMissing", false),
    words(&["cannot get interface mtu", "no such device"], "BridgeMissing", false),
    words(&["interface already exists"], "TapTaken", false),
    words(&["tap", "device or resource busy"], "TapTaken", false),
    words(&["efi", "firmware"], "FirmwareMissing", false),
    words(&["swtpm"], "TpmMissing", false),
    words(&["tpm", "not supported"], "TpmMissing", false),
    words(&["no such file or directory"], "FileMissing", false),
    words(&["permission denied"], "PermissionDenied", false),
    words(&["input/output error"], "DiskFailed", false),
];

fn explain(error: &Error, connected: bool) -> HypervisorError {
    let message = error.message().to_owned();
    let text = message.to_lowercase();
    if !connected || is_connection_loss(error) {
        return HypervisorError::Disconnected { message };
    }
    if (text.contains("failed to get") && text.contains("lock"))
        || (text.contains("lockspace resource") && text.contains("locked"))
    {
        return HypervisorError::ImageLocked { message };
    }
    let (reason, permanent) = TABLE
        .iter()
        .find(|line| line.all.iter().all(|word| text.contains(word)))
        .map(|line| (line.reason, line.permanent))
        .unwrap_or_else(|| by_code(error, &text));
    HypervisorError::Refused { reason, message, permanent }
}

/// Errors that the client's side of the connection itself raises.
fn is_connection_loss(error: &Error) -> bool {
    error.domain() == ErrorDomain::Rpc.into()
        || error.domain() == ErrorDomain::Remote.into()
        || error.code() == ErrorNumber::NoConnect.into()
        || error.code() == ErrorNumber::InvalidConn.into()
}

fn by_code(error: &Error, text: &str) -> (&'static str, bool) {
    let is = |codes: &[ErrorNumber]| codes.iter().any(|code| error.code() == (*code).into());
    if is(&[ErrorNumber::CpuIncompatible]) {
        return ("CpuIncompatible", true);
    }
    if is(&[
        ErrorNumber::XmlError,
        ErrorNumber::XmlDetail,
        ErrorNumber::XmlInvalidSchema,
        ErrorNumber::InvalidMac,
    ]) {
        return ("InvalidMachine", true);
    }
    if is(&[
        ErrorNumber::ConfigUnsupported,
        ErrorNumber::NoSupport,
        ErrorNumber::ArgumentUnsupported,
        ErrorNumber::OperationUnsupported,
    ]) {
        return ("Unsupported", true);
    }
    if text.contains("monitor") || text.contains("qemu") {
        return ("QemuFailed", false);
    }
    ("LibvirtFailed", false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages that libvirt 9.0 and QEMU 7.2 really said, and what they are taken for.
    #[test]
    fn messages_are_understood() {
        let text = |message: &str| {
            let text = message.to_lowercase();
            TABLE
                .iter()
                .find(|line| line.all.iter().all(|word| text.contains(word)))
                .map(|line| (line.reason, line.permanent))
        };
        for (message, reason, permanent) in [
            (
                "internal error: process exited while connecting to monitor: qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory",
                "NotEnoughMemory",
                false,
            ),
            (
                "Cannot access storage file '/pools/a/disk.qcow2': No such file or directory",
                "FileMissing",
                false,
            ),
            ("Cannot get interface MTU on 'br-none': No such device", "BridgeMissing", false),
            (
                "operation failed: domain 'tamdao-x' already exists with uuid 9c1f6e1a-0000-4000-8000-000000000001",
                "NameTaken",
                false,
            ),
            (
                "operation failed: Unable to find 'efi' firmware that is compatible with the current configuration",
                "FirmwareMissing",
                false,
            ),
            ("operation failed: domain 'tamdao-x' is already being removed", BEING_REMOVED, false),
            ("operation failed: Active console session exists for this domain", "ConsoleBusy", false),
            (
                "internal error: qemu unexpectedly closed the monitor: Could not open '/a': Image is not in qcow2 format",
                "ImageDamaged",
                true,
            ),
        ] {
            assert_eq!(text(message), Some((reason, permanent)), "{message}");
        }
    }
}
