//! The hypervisor contract on the fake and on real libvirt. One binary, because each links everything.

mod fake;
mod libvirt;
