//! libvirt's counters, made ours. Pure: from records to [`DomainStats`].
//!
//! Deliberately absent: rates and sums, which are the reader's.

use super::super::{DiskStats, DomainStats, PortStats, vm_of_domain_name};
use super::ffi::Record;

/// `None` for a foreign domain.
pub fn read(record: &Record) -> Option<DomainStats> {
    let vm = vm_of_domain_name(&record.domain)?;
    let counter = |name: &str| {
        record.counters.iter().find(|(key, _)| key == name).map(|(_, value)| *value).unwrap_or(0)
    };
    let name = |key: &str| {
        record.names.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let disks = (0..counter("block.count"))
        .map(|n| DiskStats {
            device: name(&format!("block.{n}.name")),
            read_bytes: counter(&format!("block.{n}.rd.bytes")),
            read_requests: counter(&format!("block.{n}.rd.reqs")),
            write_bytes: counter(&format!("block.{n}.wr.bytes")),
            write_requests: counter(&format!("block.{n}.wr.reqs")),
        })
        .collect();
    // libvirt counts as the guest sees it, although the counters are those of the host's end.
    let ports = (0..counter("net.count"))
        .map(|n| PortStats {
            tap: name(&format!("net.{n}.name")),
            received_bytes: counter(&format!("net.{n}.rx.bytes")),
            received_packets: counter(&format!("net.{n}.rx.pkts")),
            sent_bytes: counter(&format!("net.{n}.tx.bytes")),
            sent_packets: counter(&format!("net.{n}.tx.pkts")),
        })
        .collect();
    Some(DomainStats {
        vm,
        cpu_ns: counter("cpu.time"),
        memory_rss_kib: counter("balloon.rss"),
        memory_kib: counter("balloon.current"),
        disks,
        ports,
    })
}
