//! Properties of every decision, over generated nodes that need not make sense.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tamdao_proto::v1::{Power, RunPolicy};

use super::fixture::{Node, domain, id, wanted_vm};
use super::world::World;
use crate::desired::{
    ActionKind, Intent, VolumeIntent, WantedAction, WantedMove, WantedPool, WantedVm, WantedVolume, Way,
};
use crate::hypervisor::{DomainState, Exit, PauseReason};
use crate::keeper::Lease;
use crate::ledger::{End, Incoming, Life, Outgoing, Stop, VmRecord, VolumeRecord, Word};
use crate::reconcile::{FileFact, Go, PoolFact, Step, may_run_arrived};

fn wanted() -> impl Strategy<Value = WantedVm> {
    let action = proptest::option::of((1..3u128, any::<bool>()));
    let intent = prop_oneof![
        4 => Just(Intent::Wanted), 1 => Just(Intent::Stop), 1 => Just(Intent::Stale),
        1 => Just(Intent::Incoming), 1 => Just(Intent::Outgoing),
    ];
    let power = prop_oneof![3 => Just(Power::On), 1 => Just(Power::Off), 1 => Just(Power::Paused)];
    let run = prop_oneof![Just(RunPolicy::Always), Just(RunPolicy::OnFailure), Just(RunPolicy::Stopped)];
    let numbers = (1..4u64, 1..4u64, any::<bool>(), any::<bool>());
    (numbers, intent, power, run, action, proptest::collection::btree_set(1..3u128, 0..2)).prop_map(
        |((incarnation, generation, stop_force, fresh), intent, power, run, action, volumes)| WantedVm {
            incarnation,
            generation,
            intent,
            power,
            run,
            stop_force,
            fresh,
            action: action.map(|(n, reboot)| WantedAction {
                id: id(n),
                kind: if reboot { ActionKind::Reboot } else { ActionKind::Reset },
                deadline_ms: 60_000,
            }),
            volumes: volumes.into_iter().map(|n| (id(n), id(1))).collect(),
            moving: matches!(intent, Intent::Incoming | Intent::Outgoing).then(|| WantedMove {
                id: id(7),
                peer: id(99),
                address: "peer:7444".into(),
                from: 1,
                to: 2,
                way: match generation {
                    2 => Way::Cold,
                    3 => Way::ColdWithDisks,
                    _ => Way::Live,
                },
                recall: stop_force,
                auto_converge: true,
                stays_off: false,
            }),
            ..wanted_vm()
        },
    )
}

fn state() -> impl Strategy<Value = DomainState> {
    use DomainState::{Crashed, Paused, Running, ShuttingDown};
    prop_oneof![
        4 => Just(Running),
        1 => Just(ShuttingDown),
        1 => Just(Crashed),
        1 => Just(Paused(PauseReason::NotYetRun)),
        1 => Just(Paused(PauseReason::OnDemand)),
        1 => Just(Paused(PauseReason::IoError)),
        1 => Just(Paused(PauseReason::Migration)),
        1 => Just(Paused(PauseReason::Other)),
    ]
}

fn record() -> impl Strategy<Value = VmRecord> {
    let life = prop_oneof![Just(Life::New), Just(Life::Starting), Just(Life::Running), Just(Life::Ended)];
    let end = proptest::option::of(prop_oneof![
        Just(End::ByItself),
        Just(End::OnOrder),
        Just(End::Failed),
        Just(End::Migrated)
    ]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let word = prop_oneof![Just(Word::Sending), Just(Word::Kept), Just(Word::Gone)];
    let outgoing = proptest::option::weighted(0.3, (6..8u128, word));
    let incoming = proptest::option::weighted(0.3, (6..8u128, any::<bool>()));
    let moving = (outgoing, incoming);
    let numbers = (1..4u64, proptest::option::of(10..12u64));
    (numbers, life, end, flags, proptest::option::of(0..400_000u64), proptest::option::of(1..3u128), moving)
        .prop_map(
            |(
                (incarnation, under),
                life,
                end,
                (old_boot, reboot, paused, untidy),
                stop,
                action,
                (outgoing, incoming),
            )| VmRecord {
                incarnation,
                generation: 1,
                life,
                end: end.filter(|_| life == Life::Ended),
                boot_id: if old_boot { "b0" } else { "b1" }.into(),
                stop: stop.map(|deadline_ms| Stop { deadline_ms, asked_ms: 50_000 }),
                reboot,
                paused,
                untidy,
                action: action.map(id),
                ended_ms: 90_000,
                leases: under.map(|since| (id(1), since)).into_iter().collect(),
                outgoing: outgoing.map(|(n, word)| Outgoing {
                    id: id(n),
                    word,
                    reason: String::new(),
                    files: false,
                }),
                incoming: incoming.map(|(n, go)| Incoming { id: id(n), go }),
                ..VmRecord::default()
            },
        )
}

fn volume() -> impl Strategy<Value = (WantedVolume, Option<VolumeRecord>, bool)> {
    let intent = prop_oneof![2 => Just(VolumeIntent::Make), 2 => Just(VolumeIntent::Keep), 1 => Just(VolumeIntent::Delete)];
    let record = proptest::option::of((any::<bool>(), any::<bool>(), 50..200u32));
    (intent, any::<bool>(), record, any::<bool>()).prop_map(|(intent, fresh, record, exists)| {
        let wanted = WantedVolume { pool: id(1), intent, size_mib: 100, image: None, copy: 0, fresh };
        let record = record.map(|(made, deleted, size_mib)| VolumeRecord {
            pool: id(1),
            made: made && !deleted,
            deleted,
            size_mib,
            image: None,
            copy: 0,
        });
        (wanted, record, exists)
    })
}

prop_compose! {
    fn node()(
        wanted in proptest::collection::btree_map(1..4u128, wanted(), 0..3),
        domains in proptest::collection::btree_map(1..4u128, (1..4u64, state()), 0..3),
        records in proptest::collection::btree_map(1..4u128, record(), 0..3),
        volumes in proptest::collection::btree_map(1..3u128, volume(), 0..2),
        exits in proptest::collection::btree_map(1..4u128, prop_oneof![Just(Exit::Shutdown), Just(Exit::Crashed), Just(Exit::Migrated)], 0..3),
        away in proptest::bool::weighted(0.1),
        free in prop_oneof![Just(10u64), Just(500u64)],
        ready in proptest::bool::weighted(0.9),
        complete in any::<bool>(),
        shared in any::<bool>(),
        lease in proptest::option::of(10..12u64),
        answered_ms in proptest::option::of(10..13u64),
    ) -> Node {
        let mut node = Node { answered_ms, now_ms: 100_000, boot_id: "b1".into(), away: away.then(|| "away".into()), ..Node::default() };
        node.desired.complete = complete;
        node.desired.vms = wanted.into_iter().map(|(n, wanted)| (id(n), wanted)).collect();
        node.domains = domains.into_iter().map(|(n, (i, state))| (id(n), domain(id(n), i, 1, state))).collect();
        node.ledger.vms = records.into_iter().map(|(n, record)| (id(n), record)).collect();
        node.exits = exits.into_iter().map(|(n, exit)| (id(n), exit)).collect();
        node.desired.pools.insert(id(1), WantedPool { name: "p".into(), path: "/p".into(), shared });
        let lease = lease.map(|held_since_ms| (id(1), Lease { lease_ms: 60_000, held_since_ms }));
        node.keeper.leases.extend(lease);
        node.pools.insert(id(1), PoolFact { ready, capacity_mib: 1000, used_mib: 1000 - free, message: String::new() });
        for (n, (wanted, record, exists)) in volumes {
            node.desired.volumes.insert(id(n), wanted);
            node.ledger.volumes.extend(record.map(|record| (id(n), record)));
            node.files.insert(id(n), FileFact { exists, used_mib: 1 });
        }
        node
    }
}

fn shared(node: &Node, vm: &uuid::Uuid) -> bool {
    node.desired.vms[vm].shared_pools(&node.desired.pools).next().is_some()
}

fn check_step(node: &Node, step: &Step) -> Result<(), TestCaseError> {
    let entry = |vm| node.desired.vms.get(vm);
    let known = |vm| {
        let record = node.ledger.vms.get(vm).map_or(0, |record| record.incarnation);
        record.max(node.domains.get(vm).map_or(0, |domain| domain.incarnation))
    };
    match step {
        Step::RecordEnd { .. } | Step::Recognise { .. } | Step::Tidy { .. } => {}
        Step::Guard { vm } => prop_assert!(shared(node, vm) && !node.keeper.guests.contains_key(vm)),
        Step::Start { vm, .. } => {
            let wanted = entry(vm).expect("a start without an entry");
            prop_assert!(!node.domains.contains_key(vm), "a second domain");
            prop_assert!(wanted.intent == Intent::Wanted && wanted.power == Power::On);
            prop_assert!(wanted.incarnation >= known(vm), "an older incarnation");
            let again = node.ledger.vms.get(vm).is_some_and(|record| {
                record.boot_id == node.boot_id
                    && record.incarnation == wanted.incarnation
                    && record.life == Life::Ended
            });
            prop_assert!(wanted.fresh || again, "the start rule");
            if shared(node, vm) && !wanted.volumes.is_empty() {
                let held = node.keeper.leases.get(&id(1)).map(|lease| lease.held_since_ms);
                prop_assert!(held.is_some(), "without a lease");
                let under = node.ledger.vms.get(vm).and_then(|record| record.leases.get(&id(1)).copied());
                let stood = wanted.fresh && held < node.answered_ms;
                prop_assert!(stood || held == under, "the lease lapsed in between");
            }
            for (volume, _) in &wanted.volumes {
                let record = node.ledger.volumes.get(volume);
                prop_assert!(record.is_some_and(|record| record.made) && node.files[volume].exists);
            }
        }
        Step::Resume { vm, why } => {
            let (record, here) = (&node.ledger.vms[vm], &node.domains[vm]);
            match why {
                Go::FirstTime => {
                    prop_assert_eq!(here.state, DomainState::Paused(PauseReason::NotYetRun));
                    let wanted = entry(vm).expect("an order");
                    let arrived = may_run_arrived(record, here.incarnation, id(7));
                    let may = if wanted.intent == Intent::Incoming { arrived } else { wanted.fresh };
                    prop_assert!(may);
                    let held = node.keeper.leases.get(&id(1)).map(|lease| lease.held_since_ms);
                    let stood = held.is_some() && held < node.answered_ms;
                    let unbroken = held.is_some() && held == record.leases.get(&id(1)).copied();
                    let under = if wanted.intent == Intent::Incoming { unbroken } else { stood };
                    prop_assert!(!shared(node, vm) || under);
                }
                Go::Kept => {
                    prop_assert!(record.outgoing.is_some() && !record.paused);
                    prop_assert!(
                        entry(vm).is_some_and(|wanted| wanted.fresh && wanted.intent == Intent::Wanted)
                    );
                }
                Go::OnOrder => prop_assert!(record.paused && entry(vm).is_some_and(|wanted| wanted.fresh)),
                Go::Room => prop_assert_eq!(here.state, DomainState::Paused(PauseReason::IoError)),
            }
        }
        Step::Pause { vm }
        | Step::Shutdown { vm, .. }
        | Step::Reboot { vm, .. }
        | Step::Reset { vm, .. }
        | Step::Update { vm }
        | Step::Destroy { vm, .. } => {
            let wanted = entry(vm).expect("an order without an entry: absence is never a command");
            prop_assert!(wanted.fresh, "cut off, and acting");
            prop_assert!(node.domains[vm].incarnation <= wanted.incarnation, "a newer guest is touched");
        }
        Step::Send { vm } => {
            let wanted = entry(vm).expect("an order");
            prop_assert!(wanted.fresh && wanted.intent == Intent::Outgoing);
            let moving = wanted.moving.as_ref().expect("a move");
            prop_assert!(!moving.recall && moving.way != Way::Cold);
            let state = node.domains.get(vm).map(|domain| domain.state);
            let off = moving.way == Way::ColdWithDisks;
            prop_assert_eq!(state, (!off).then_some(DomainState::Running));
            let said = node.ledger.vms.get(vm).and_then(|record| record.outgoing.as_ref());
            prop_assert!(said.is_none_or(|said| said.id != id(7)), "a word is for ever");
        }
        Step::Keep { vm, .. } | Step::LetGo { vm } => {
            let wanted = entry(vm).expect("an order");
            prop_assert!(wanted.fresh && wanted.intent == Intent::Outgoing);
            let said = node.ledger.vms.get(vm).and_then(|record| record.outgoing.as_ref());
            prop_assert!(said.is_none_or(|said| said.id != id(7)), "a word is for ever");
            if matches!(step, Step::LetGo { .. }) {
                prop_assert!(!node.domains.contains_key(vm));
                prop_assert!(wanted.local_volumes(&node.desired.pools).is_empty(), "its disks stay behind");
            }
        }
        Step::Recall { .. } => {}
        Step::Settle { vm } => {
            let word = node.ledger.vms[vm].outgoing.as_ref().map(|outgoing| outgoing.word);
            prop_assert_eq!(word, Some(Word::Sending));
        }
        Step::Receive { vm } => {
            let wanted = entry(vm).expect("an order");
            prop_assert!(wanted.fresh && wanted.intent == Intent::Incoming && !node.domains.contains_key(vm));
            prop_assert!(wanted.incarnation >= known(vm), "an older incarnation");
        }
        Step::MakeVolume { volume } => {
            let record = node.ledger.volumes.get(volume);
            prop_assert!(!record.is_some_and(|record| record.made || record.deleted), "made again");
            prop_assert!(!node.files[volume].exists, "made over a file");
            prop_assert_eq!(node.desired.volumes[volume].intent, VolumeIntent::Make);
            prop_assert!(node.desired.volumes[volume].fresh);
        }
        Step::DeleteVolume { volume } => {
            prop_assert_eq!(node.desired.volumes[volume].intent, VolumeIntent::Delete);
            let used = node.desired.vms.iter().any(|(vm, wanted)| {
                node.domains.contains_key(vm) && wanted.volumes.iter().any(|(id, _)| id == volume)
            });
            prop_assert!(!used && node.desired.volumes[volume].fresh);
        }
        Step::GrowVolume { volume, size_mib } => {
            prop_assert!(node.ledger.volumes[volume].size_mib < *size_mib);
        }
        Step::FetchImage { .. } | Step::RecogniseVolume { .. } => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_step_is_allowed(node in node()) {
        let decision = node.decide();
        let subjects: BTreeSet<_> = decision.steps.iter().map(Step::subject).collect();
        prop_assert_eq!(subjects.len(), decision.steps.len(), "one step at a time for each subject");
        prop_assert_eq!(&decision, &node.decide(), "equal input, equal output");
        for step in &decision.steps {
            check_step(&node, step)?;
        }
        if node.away.is_some() {
            let touches = |step: &Step| matches!(step.subject(), crate::reconcile::Subject::Vm(_));
            prop_assert!(!decision.steps.iter().any(touches));
        }
        for (vm, _) in node.domains.iter().filter(|(vm, _)| !node.desired.vms.contains_key(*vm)) {
            let said = decision.report.vms.iter().find(|report| report.vm_id == vm.to_string());
            prop_assert!(said.is_some_and(|said| said.unknown == node.desired.complete), "unknown, and said");
        }
        for report in &decision.report.vms {
            let vm = uuid::Uuid::try_parse(&report.vm_id).unwrap();
            if report.gone {
                let here = node.domains.get(&vm);
                prop_assert!(here.is_none_or(|here| here.incarnation > node.desired.vms[&vm].incarnation));
            }
        }
    }

    #[test]
    fn a_node_comes_to_rest(node in node(), deaf in any::<bool>()) {
        let mut world = World { node, deaf, ..World::default() };
        // Guests of these would wait for a state that the model does not bring.
        world.node.domains.retain(|_, here| !matches!(here.state, DomainState::ShuttingDown));
        prop_assert!(world.settle(), "still at work: {:?}", world.node.decide().steps);
        prop_assert!(world.makings.values().all(|times| *times <= 1), "a volume is made once");
        for (vm, wanted) in &world.node.desired.vms {
            let ends = matches!(wanted.intent, Intent::Stop | Intent::Stale);
            if wanted.fresh && ends && world.node.away.is_none() {
                let here = world.node.domains.get(vm);
                let refused = world.node.ledger.vms.get(vm).is_some_and(|record| {
                    wanted.intent == Intent::Stop && record.incarnation > wanted.incarnation
                });
                let gone = here.is_none_or(|here| here.incarnation > wanted.incarnation);
                prop_assert!(gone || refused, "it stayed");
            }
        }
    }
}
