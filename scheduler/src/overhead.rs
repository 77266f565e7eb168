//! What a guest costs its host beyond its own memory. The figure is counted into the reservation, so that a node
//! that is full by our books is not over-full by the kernel's. Deliberately absent: overcommit and host reserve,
//! which are the node's.

/// QEMU's own memory for one guest, MiB.
///
/// Derived from measurement and structure, rounded up to whole MiB:
/// - 96: QEMU itself, its libraries, firmware and heap. An idle 96 to 256 MiB guest under emulation with a small
///   translation cache had a resident size of its memory plus 92 to 108 MiB.
/// - 8 for each virtual CPU: thread stack, vcpu state, kernel structures of KVM.
/// - memory / 512: the second-level page tables, 8 bytes for each page of 4 KiB.
/// - 4 for each device (disk, interface, display): queues, buffers in flight, I/O threads' stacks.
/// - under emulation 200: the translation cache, which the agent caps at 128, and its bookkeeping. A 512 MiB guest
///   with a real system had 197 MiB above its touched memory with that cap; unbounded it had over 580.
///
/// So a guest of 1 to 4 virtual CPUs and up to 16 GiB costs 110 to 200 MiB by KVM, about 330 emulated.
pub fn overhead_mib(vcpus: u32, memory_mib: u64, emulation: bool, devices: u32) -> u64 {
    let tables = memory_mib.div_ceil(512);
    let base = 96 + 8 * u64::from(vcpus) + tables + 4 * u64::from(devices);
    if emulation { base + emulation_overhead_mib() } else { base }
}

/// The part of [`overhead_mib`] that only a node that emulates needs, MiB.
pub const fn emulation_overhead_mib() -> u64 {
    200
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_covers_what_was_measured() {
        assert_eq!(overhead_mib(1, 128, false, 3), 117);
        assert_eq!(overhead_mib(4, 16_384, false, 4), 176);
        assert_eq!(overhead_mib(2, 512, true, 4), 329);
    }
}
