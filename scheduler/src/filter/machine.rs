//! The machine that the guest sees: firmware, TPM and CPU features must be there. The CPU model itself is chosen
//! when the VM first starts, so it is not asked for here; what a fixed one needs comes as features.

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

pub(super) fn cpu(ask: &Ask, traits: &Traits) -> Option<Reason> {
    let feature = ask.vm.cpu_features.difference(&traits.cpu_features).next()?.clone();
    Some(Reason::CpuFeatureMissing { feature })
}
