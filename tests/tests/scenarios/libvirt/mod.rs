//! Scenarios with real libvirt, real QEMU and the tiny guest.

mod life;
