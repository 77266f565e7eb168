//! The machine that the guest sees: firmware, TPM and platform must be there. The platform is chosen when the VM first
//! starts and asked for from then on, whether it moves, is restarted elsewhere or starts again.

use super::Ask;
use crate::reason::Reason;
use crate::traits::Traits;

pub(super) fn firmware(ask: &Ask, traits: &Traits) -> Option<Reason> {
    let firmware = ask.vm.firmware.difference(&traits.firmware).next()?.clone();
    Some(Reason::FirmwareMissing { firmware })
}

pub(super) fn tpm(ask: &Ask, traits: &Traits) -> Option<Reason> {
    (ask.vm.tpm && !traits.tpm).then_some(Reason::TpmMissing)
}

pub(super) fn platform(ask: &Ask, traits: &Traits) -> Option<Reason> {
    let platform = ask.vm.platform.as_ref().filter(|platform| !traits.platforms.contains(*platform))?.clone();
    Some(Reason::PlatformMissing { platform })
}
