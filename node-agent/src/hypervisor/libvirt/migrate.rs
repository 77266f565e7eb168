//! Live migration through libvirt, from libvirtd to libvirtd (peer to peer) over sockets of the file system.
//!
//! Invariants: the guest arrives paused, and libvirt never lets it run over there; the arriving domain's mark has its
//! own incarnation; a domain that names a file of which nobody knows the name over there is not sent.
//! Deliberately absent: what carries the sockets' bytes, and what becomes of the guest after an error.

use virt::connect::Connect;
use virt::domain::{Domain as Handle, MigrateParameters};

use super::super::migration::{Migration, MigrationProgress};
use super::super::{Domain, domain_xml};
use super::errors::Fault;
use super::{ffi, unreadable};

/// Both ends' agents decide who may run the guest afterwards. Whether a disk is shared is the cloud's knowledge, which
/// libvirt has only for file systems that it knows by name.
const FLAGS: u32 = virt_sys::VIR_MIGRATE_PEER2PEER
    | virt_sys::VIR_MIGRATE_PAUSED
    | virt_sys::VIR_MIGRATE_ABORT_ON_ERROR
    | virt_sys::VIR_MIGRATE_UNSAFE;

pub fn send(handle: &Handle, domain: &Domain, migration: &Migration) -> std::result::Result<(), Fault> {
    let document = handle.xml_desc(virt_sys::VIR_DOMAIN_XML_MIGRATABLE | virt_sys::VIR_DOMAIN_XML_SECURE)?;
    let arrival = domain_xml::arriving(&document, domain, migration).map_err(unreadable)?;
    let mut flags = FLAGS;
    // QEMU before 9.0 loses writes of an emulated guest that runs while its memory is copied (docs/decisions/0112).
    if !arrival.emulated {
        flags |= virt_sys::VIR_MIGRATE_LIVE;
        if migration.auto_converge {
            flags |= virt_sys::VIR_MIGRATE_AUTO_CONVERGE;
        }
    }
    let socket = |path: &std::path::Path| Some(format!("unix://{}", path.display()));
    let mut parameters = MigrateParameters {
        dest_xml: Some(arrival.document),
        uri: socket(&migration.memory_socket),
        ..MigrateParameters::default()
    };
    if !arrival.copies.is_empty() {
        flags |= virt_sys::VIR_MIGRATE_NON_SHARED_INC;
        parameters.migrate_disks = arrival.copies;
        parameters.disks_uri = socket(&migration.disks_socket);
    }
    Ok(handle.migrate_to_uri3(Some(&migration.destination), parameters, flags)?)
}

/// `None` while no migration is at work.
pub fn progress(connect: &Connect, vm: uuid::Uuid) -> std::result::Result<Option<MigrationProgress>, Fault> {
    let handle = connect.lookup_domain_by_uuid(vm)?;
    let Some(counters) = ffi::job(&handle)? else { return Ok(None) };
    let of = |name: &str| counters.get(name).copied().unwrap_or_default();
    let both = |name: &str| of(&format!("memory_{name}")) + of(&format!("disk_{name}"));
    let page = if of("memory_page_size") == 0 { 4096 } else { of("memory_page_size") };
    Ok(Some(MigrationProgress {
        total_bytes: both("total"),
        processed_bytes: both("processed"),
        remaining_bytes: both("remaining"),
        dirty_bytes_per_s: of("memory_dirty_rate").saturating_mul(page),
        bytes_per_s: both("bps"),
        downtime_ms: of("downtime"),
        elapsed_ms: of("time_elapsed"),
        iteration: of("memory_iteration"),
    }))
}
