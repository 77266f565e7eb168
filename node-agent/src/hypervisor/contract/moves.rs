//! What concerns a guest that moves: it is measured before, sent, and received.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::super::migration::Migration;
use super::super::{Change, DomainSpec, DomainState, Exit, HypervisorError, PauseReason};
use super::{Fixture, Guest, end, find, run, wait_for_agent, wait_for_change};

pub(super) async fn what_a_guest_dirties_is_measured(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = fixture.spec(Guest::Obedient).await;
    hypervisor.start(&spec).await.expect("start");
    let still = hypervisor.dirtying(spec.vm).await.expect("a guest that stands still is measured");
    assert_eq!(still.bytes_per_s, 0, "nothing changes");
    hypervisor.resume(spec.vm, 1).await.expect("resume");
    let told = hypervisor.dirtying(spec.vm).await.expect("a guest that runs is measured");
    let memory = u64::from(spec.machine.memory_mib) << 20;
    assert!(told.memory_bytes > 0 && told.memory_bytes <= memory, "{told:?}");
    let own = find(hypervisor, spec.vm).await.expect("its domain");
    assert_eq!(own.state, DomainState::Running, "it is not disturbed");
    end(hypervisor, &spec).await;
    let absent = Uuid::new_v4();
    assert_eq!(hypervisor.dirtying(absent).await, Err(HypervisorError::NotFound { vm: absent }));
}

/// What sends a guest of this spec to the other host, where its log has another name.
fn migration(fixture: &dyn Fixture, spec: &DomainSpec) -> Migration {
    let (destination, sockets) = fixture.route();
    let same = spec.disks.iter().filter_map(|disk| disk.path.clone());
    let same = same.chain(spec.kernel.clone()).chain(spec.initrd.clone()).chain([spec.nvram.clone()]);
    let mut files: BTreeMap<_, _> = same.map(|path| (path.clone(), path)).collect();
    files.insert(spec.serial_log.clone(), spec.serial_log.with_extension("arrived"));
    Migration {
        destination,
        memory_socket: sockets.join(format!("{}.memory", spec.vm)),
        disks_socket: sockets.join(format!("{}.disks", spec.vm)),
        incarnation_to: 2,
        files,
        copies: Vec::new(),
        auto_converge: true,
    }
}

pub(super) async fn a_guest_arrives_paused_and_runs_when_told(fixture: &dyn Fixture) {
    let (hypervisor, other) = (fixture.hypervisor(), fixture.other());
    let spec = run(fixture, Guest::Obedient).await;
    let before = find(hypervisor, spec.vm).await.expect("it runs");
    let mut events = hypervisor.events();
    hypervisor.migrate(spec.vm, 1, &migration(fixture, &spec)).await.expect("migrate");
    assert_eq!(find(hypervisor, spec.vm).await, None, "it is gone from here");
    wait_for_change(&mut events, spec.vm, Change::Stopped(Exit::Migrated)).await;
    assert_eq!(hypervisor.last_exit(spec.vm).await, Ok(Some(Exit::Migrated)));
    assert_eq!(hypervisor.migration(spec.vm).await, Ok(None));

    let arrived = find(other, spec.vm).await.expect("it is there");
    assert_eq!(arrived.state, DomainState::Paused(PauseReason::NotYetRun), "until it is told");
    assert_eq!((arrived.incarnation, arrived.generation), (2, before.generation));
    assert_eq!(
        (arrived.platform, arrived.started),
        (before.platform, before.started),
        "it is the same guest"
    );
    other.resume(spec.vm, 2).await.expect("resume");
    assert_eq!(find(other, spec.vm).await.expect("it is there").state, DomainState::Running);
    wait_for_agent(other, spec.vm).await;
    other.destroy(spec.vm, 2).await.expect("destroy");
    assert_eq!(find(other, spec.vm).await, None);
}

pub(super) async fn a_guest_that_cannot_be_sent_runs_on(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = run(fixture, Guest::Obedient).await;
    let good = migration(fixture, &spec);
    let nowhere = Migration { destination: "qemu+unix:///system?socket=/nowhere".to_owned(), ..good.clone() };
    hypervisor.migrate(spec.vm, 1, &nowhere).await.expect_err("there is nobody");
    let stale = hypervisor.migrate(spec.vm, 2, &good).await;
    assert_eq!(stale, Err(HypervisorError::Stale { vm: spec.vm, asked: 2, running: 1 }));
    assert_eq!(hypervisor.migration(spec.vm).await, Ok(None));
    assert!(matches!(hypervisor.abort_migration(spec.vm, 1).await, Err(HypervisorError::Refused { .. })));
    assert_eq!(find(hypervisor, spec.vm).await.expect("it is here").state, DomainState::Running);
    assert_eq!(find(fixture.other(), spec.vm).await, None, "nothing of it is there");
    let absent = Uuid::new_v4();
    let not_found = HypervisorError::NotFound { vm: absent };
    assert_eq!(hypervisor.migrate(absent, 1, &good).await, Err(not_found.clone()));
    assert_eq!(hypervisor.abort_migration(absent, 1).await, Err(not_found));
    assert_eq!(hypervisor.migration(absent).await, Ok(None));
    end(hypervisor, &spec).await;
}
