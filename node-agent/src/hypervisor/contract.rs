//! The suite that every hypervisor passes, fake or real.
