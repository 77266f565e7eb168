//! libvirt's counters, made ours. Pure: from records to [`DomainStats`].
//!
//! Deliberately absent: rates and sums, which are the reader's.

use super::super::migration::Dirtying;
use super::super::{DiskStats, DomainStats, PortStats, vm_of_domain_name};
use super::ffi::Record;

/// `None` for a foreign domain.
pub fn read(record: &Record) -> Option<DomainStats> {
    let vm = vm_of_domain_name(&record.domain)?;
    let counter = |name: &str| counter(record, name).unwrap_or(0);
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

/// What a measurement of a guest's writing has found; `None` while it is under way.
pub fn dirtying(record: &Record) -> Option<Dirtying> {
    let done = u64::from(virt_sys::VIR_DOMAIN_DIRTYRATE_MEASURED);
    if counter(record, "dirtyrate.calc_status") != Some(done) {
        return None;
    }
    let mib_per_s = counter(record, "dirtyrate.megabytes_per_second")?;
    let memory_kib = counter(record, "balloon.current")?;
    // What the guest never touched is not sent; QEMU's own memory is counted in, so this is not less than what is.
    let used_kib = counter(record, "balloon.rss").filter(|kib| *kib > 0).unwrap_or(memory_kib);
    Some(Dirtying { memory_bytes: memory_kib.min(used_kib) << 10, bytes_per_s: mib_per_s << 20 })
}

fn counter(record: &Record, name: &str) -> Option<u64> {
    record.counters.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_read_when_it_is_done() {
        let of = |status: u64, rss: u64| Record {
            domain: String::new(),
            counters: [
                ("dirtyrate.calc_status", status),
                ("dirtyrate.megabytes_per_second", 3),
                ("balloon.current", 1 << 20),
                ("balloon.rss", rss),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec(),
            names: Vec::new(),
        };
        assert_eq!(dirtying(&of(1, 1 << 19)), None);
        assert_eq!(dirtying(&of(2, 1 << 19)), Some(Dirtying { memory_bytes: 1 << 29, bytes_per_s: 3 << 20 }));
        assert_eq!(dirtying(&of(2, 1 << 21)).map(|told| told.memory_bytes), Some(1 << 30));
    }
}
