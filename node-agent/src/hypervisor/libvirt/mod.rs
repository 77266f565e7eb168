//! The real hypervisor: libvirt and QEMU.
