//! Quotas over random histories of a tree of agencies: what is used is what is there, and no limit is ever exceeded,
//! whoever sets it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use proptest::prelude::*;
use tamdao_model::agency::{Agency, AgencySpec, AgencyState};
use tamdao_model::quota::{Amounts, Measure};
use tamdao_model::vm::{DiskSource, OnNodeLoss, Vm};
use tamdao_model::{AgencyId, Name, Resource, Scope, TimeMs};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use uuid::Uuid;

use super::tests::{meta, request, world};
use super::vm_power::Size;
use super::{hand_over, quota, vm_create, vm_delete, vm_power};
use crate::admission::Moment;
use crate::engine;
use crate::refusal::Refusal;

const AGENCIES: u8 = 5;

fn id(at: u8) -> AgencyId {
    AgencyId(Uuid::from_u128(0x100 + u128::from(at)))
}

/// The first is above the second and third, the third above the fourth; the fifth stands alone.
fn tree() -> View {
    let mut draft = Draft::new(world(), Uuid::from_u128(9));
    for (at, parent) in [None, Some(0), Some(0), Some(2), None].into_iter().enumerate() {
        let at = at as u8;
        let spec = AgencySpec { parent: parent.map(id), ..AgencySpec::default() };
        draft.create(Agency { meta: meta(id(at), &format!("a{at}")), spec });
    }
    draft.view().clone()
}

#[derive(Debug, Clone)]
enum Step {
    Create { agency: u8, at: u8, vcpus: u32, disk_mib: u32 },
    Resize { agency: u8, at: u8, vcpus: u32 },
    Stay { agency: u8, at: u8 },
    Delete { agency: u8, at: u8 },
    HandOver { agency: u8, at: u8, to: u8 },
    Rename { agency: u8, name: u8 },
    Limit { agency: u8, measure: Measure, most: Option<u64> },
    Move { agency: u8, parent: Option<u8> },
    State { agency: u8, state: AgencyState },
}

fn step() -> impl Strategy<Value = Step> {
    let (agency, at) = (0..AGENCIES, 0u8..4);
    let measure = prop_oneof![
        Just(Measure::Vms),
        Just(Measure::Vcpus),
        Just(Measure::DiskMib),
        Just(Measure::ProtectedMemoryMib)
    ];
    let state = prop_oneof![3 => Just(AgencyState::Active), 1 => Just(AgencyState::Frozen), 1 => Just(AgencyState::Archived)];
    prop_oneof![
        6 => (agency.clone(), at.clone(), 1u32..6, 1u32..50)
            .prop_map(|(agency, at, vcpus, disk_mib)| Step::Create { agency, at, vcpus, disk_mib }),
        2 => (agency.clone(), at.clone(), 1u32..9).prop_map(|(agency, at, vcpus)| Step::Resize { agency, at, vcpus }),
        1 => (agency.clone(), at.clone()).prop_map(|(agency, at)| Step::Stay { agency, at }),
        2 => (agency.clone(), at.clone()).prop_map(|(agency, at)| Step::Delete { agency, at }),
        3 => (agency.clone(), at, agency.clone())
            .prop_map(|(agency, at, to)| Step::HandOver { agency, at, to }),
        1 => (agency.clone(), 0u8..8).prop_map(|(agency, name)| Step::Rename { agency, name }),
        6 => (agency.clone(), measure, proptest::option::weighted(0.9, 0u64..40))
            .prop_map(|(agency, measure, most)| Step::Limit { agency, measure, most }),
        1 => (agency.clone(), proptest::option::of(0..AGENCIES))
            .prop_map(|(agency, parent)| Step::Move { agency, parent }),
        1 => (agency, state).prop_map(|(agency, state)| Step::State { agency, state }),
    ]
}

fn vm(view: &View, agency: u8, at: u8) -> Option<Vm> {
    view.vms.find(Scope::Agency(id(agency)), &format!("vm-{at}")).map(|row| (*row.value).clone())
}

fn set(draft: &mut Draft, agency: u8, change: impl FnOnce(&mut AgencySpec)) -> Result<(), Refusal> {
    let mut new = (*draft.view().agencies.get(id(agency)).unwrap().value).clone();
    change(&mut new.spec);
    quota::check_agency(draft.view(), &new)?;
    draft.put(new);
    Ok(())
}

fn apply(draft: &mut Draft, moment: &mut Moment, step: &Step) -> Result<(), Refusal> {
    let view = draft.view().clone();
    match step {
        Step::Create { agency, at, vcpus, disk_mib } => {
            let mut request = request(*at, *vcpus, 64, *disk_mib);
            // The one network is smaller than what is tried here.
            request.interfaces.clear();
            vm_create::create(draft, moment, request, id(*agency), None, "test").map(drop)
        }
        Step::Resize { agency, at, vcpus } => {
            let Some(vm) = vm(&view, *agency, *at) else { return Ok(()) };
            let reservation = engine::reservation(&view, &vm).unwrap();
            vm_power::resize(draft, moment, &vm, &Size::of(None, *vcpus, 64), reservation, "test").map(drop)
        }
        Step::Stay { agency, at } => {
            let Some(mut vm) = vm(&view, *agency, *at) else { return Ok(()) };
            let before = vm.amounts();
            vm.spec.on_node_loss = match vm.spec.on_node_loss {
                OnNodeLoss::Stay => OnNodeLoss::Evacuate,
                OnNodeLoss::Evacuate => OnNodeLoss::Stay,
            };
            quota::count(draft, vm.agency, &before, &vm.amounts())?;
            draft.put(vm);
            Ok(())
        }
        Step::Delete { agency, at } => {
            let Some(vm) = vm(&view, *agency, *at) else { return Ok(()) };
            vm_delete::want(draft, moment, &vm, false, "test").map(drop)
        }
        Step::HandOver { agency, at, to } => {
            let Some(vm) = vm(&view, *agency, *at) else { return Ok(()) };
            let name = vm.meta.name.clone();
            hand_over::hand_over(draft, moment, &vm, id(*to), name, "test").map(drop)
        }
        Step::Rename { agency, name } => {
            let name = Name::new(&format!("a{name}")).unwrap();
            if view.agencies.id_of(Scope::Cluster, &name).is_none() {
                let mut new = (*view.agencies.get(id(*agency)).unwrap().value).clone();
                new.meta.name = name;
                draft.rename(new);
            }
            Ok(())
        }
        Step::Limit { agency, measure, most } => set(draft, *agency, |spec| match most {
            Some(most) => drop(spec.quota.insert(measure.clone(), *most)),
            None => drop(spec.quota.remove(measure)),
        }),
        Step::Move { agency, parent } => set(draft, *agency, |spec| spec.parent = parent.map(id)),
        Step::State { agency, state } => set(draft, *agency, |spec| spec.state = *state),
    }
}

fn check(view: &View) {
    for vm in view.vms.iter() {
        let scope = Scope::Agency(vm.agency);
        assert_eq!(view.vms.id_of(scope, &vm.meta.name), Some(vm.meta.id), "its name is its own");
        for disk in &vm.spec.disks {
            let DiskSource::Volume { volume, .. } = disk.source else { continue };
            let volume = view.volumes.get(volume).unwrap();
            assert_eq!((volume.agency, volume.status.vm), (vm.agency, Some(vm.id())));
            assert_eq!(view.volumes.id_of(scope, &volume.meta.name), Some(volume.meta.id));
        }
    }
    assert_eq!(view.vms.names(None, None).count(), view.vms.len());
    assert_eq!(view.agencies.names(None, None).count(), view.agencies.len());
    for agency in view.agencies.iter() {
        let mut used: Vec<(Measure, u64)> = Vec::new();
        for vm in view.vms.iter().filter(|vm| vm.agency == agency.id()) {
            used.extend([(Measure::Vms, 1), (Measure::Vcpus, vm.spec.vcpus.into())]);
            used.push((Measure::MemoryMib, vm.spec.memory_mib.into()));
            if vm.spec.on_node_loss == OnNodeLoss::Evacuate {
                used.push((Measure::ProtectedMemoryMib, vm.spec.memory_mib.into()));
            }
        }
        for volume in view.volumes.iter().filter(|volume| volume.agency == agency.id()) {
            used.extend([(Measure::Volumes, 1), (Measure::DiskMib, volume.spec.size_mib.into())]);
        }
        let used: Amounts = used.into_iter().collect();
        let name = agency.meta.name.as_str();
        assert_eq!(view.usage(agency.id()).amounts, used, "{name}");
        for (measure, most) in &agency.spec.quota {
            let mut held = used.of(measure);
            for child in view.agencies.iter().filter(|child| child.spec.parent == Some(agency.id())) {
                held += child.spec.quota.get(measure).expect("a child of a limited agency has a limit");
            }
            assert!(held <= *most, "{name} has {held} of {most} {measure}");
        }
    }
}

proptest! {
    #[test]
    fn no_limit_is_ever_exceeded(steps in proptest::collection::vec(step(), 1..80)) {
        let (mut view, mut moment) = (tree(), Moment { now: TimeMs(1_000) });
        for step in &steps {
            let mut draft = Draft::new(view.clone(), Uuid::from_u128(2));
            let more = |view: &View| view.vms.len() + view.volumes.len();
            if apply(&mut draft, &mut moment, step).is_ok() {
                if let Step::Create { agency, .. } = step {
                    prop_assert!(more(draft.view()) > more(&view));
                    prop_assert!(quota::check_open(&view, id(*agency)).is_ok());
                }
                view = draft.view().clone();
            }
            check(&view);
        }
    }
}

#[test]
fn a_refusal_says_which_limit_of_which_agency_leaves_how_much() {
    let (view, mut moment) = (tree(), Moment { now: TimeMs(1_000) });
    let mut draft = Draft::new(view, Uuid::from_u128(2));
    let limit = |agency, most| Step::Limit { agency, measure: Measure::Vcpus, most: Some(most) };
    let refused = apply(&mut draft, &mut moment, &limit(0, 10)).unwrap_err();
    assert!(refused.message.contains("\"a1\"") && refused.hint.contains("a1 --quota vcpus="), "{refused:?}");
    for (agency, most) in [(1, 2), (3, 1), (2, 3), (0, 10)] {
        apply(&mut draft, &mut moment, &limit(agency, most)).unwrap();
    }
    apply(&mut draft, &mut moment, &Step::Create { agency: 0, at: 0, vcpus: 3, disk_mib: 1 }).unwrap();
    let more = Step::Create { agency: 0, at: 1, vcpus: 3, disk_mib: 1 };
    let refused = apply(&mut draft, &mut moment, &more).unwrap_err();
    assert_eq!(
        refused.message,
        "agency \"a0\" may have 10 vcpus: 3 used, 5 given to agencies below, 2 free, 3 asked for"
    );
    let facts: Vec<&str> = refused.facts.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(facts, ["a0", "vcpus", "10", "3", "5", "2", "3"]);
    // A child's share is refused in the words of the agency above, which has too little left.
    let refused = apply(&mut draft, &mut moment, &limit(1, 5)).unwrap_err();
    assert_eq!(
        refused.message,
        "agency \"a0\" may have 10 vcpus: 3 used, 3 given to agencies below, 4 free, 5 asked for"
    );
    // Below what is used nothing can be set, and what stood alone needs a limit to come under one.
    assert!(
        apply(&mut draft, &mut moment, &limit(0, 7)).unwrap_err().message.contains("3 are used and 5 given")
    );
    let moved = Step::Move { agency: 4, parent: Some(0) };
    assert!(apply(&mut draft, &mut moment, &moved).unwrap_err().message.contains("must have vcpus"));
    let around = Step::Move { agency: 0, parent: Some(3) };
    assert!(apply(&mut draft, &mut moment, &around).unwrap_err().message.contains("or one below it"));
}

#[test]
fn what_is_frozen_above_is_frozen_below() {
    let (view, mut moment) = (tree(), Moment { now: TimeMs(1_000) });
    let mut draft = Draft::new(view, Uuid::from_u128(2));
    apply(&mut draft, &mut moment, &Step::Create { agency: 3, at: 0, vcpus: 2, disk_mib: 1 }).unwrap();
    apply(&mut draft, &mut moment, &Step::State { agency: 0, state: AgencyState::Frozen }).unwrap();
    let create = Step::Create { agency: 3, at: 1, vcpus: 1, disk_mib: 1 };
    let refused = apply(&mut draft, &mut moment, &create).unwrap_err();
    assert_eq!((refused.reason, refused.message.contains("\"a0\"")), ("AgencyFrozen", true));
    let larger = Step::Resize { agency: 3, at: 0, vcpus: 3 };
    assert_eq!(apply(&mut draft, &mut moment, &larger).unwrap_err().reason, "AgencyFrozen");
    // Less is always allowed, and what is there may be started.
    apply(&mut draft, &mut moment, &Step::Resize { agency: 3, at: 0, vcpus: 1 }).unwrap();
    let started = |draft: &mut Draft, moment: &mut Moment| {
        let vm = vm(draft.view(), 3, 0).unwrap();
        vm_power::act(draft, moment, &vm, &vm_power::Verb::Start, "test").map(drop)
    };
    started(&mut draft, &mut moment).unwrap();
    apply(&mut draft, &mut moment, &Step::State { agency: 0, state: AgencyState::Archived }).unwrap();
    assert_eq!(started(&mut draft, &mut moment).unwrap_err().reason, "AgencyArchived");
    apply(&mut draft, &mut moment, &Step::Delete { agency: 3, at: 0 }).unwrap();
}

#[test]
fn a_vm_of_a_class_counts_in_its_class() {
    let mut vm = {
        let (view, mut moment) = (tree(), Moment { now: TimeMs(1_000) });
        let mut draft = Draft::new(view, Uuid::from_u128(2));
        apply(&mut draft, &mut moment, &Step::Create { agency: 4, at: 0, vcpus: 2, disk_mib: 1 }).unwrap();
        vm(draft.view(), 4, 0).unwrap()
    };
    let gpu = Measure::FlavorClass(Name::new("gpu").unwrap());
    assert_eq!(vm.amounts().of(&gpu), 0);
    vm.spec.flavor_class = Some(Name::new("gpu").unwrap());
    assert_eq!((vm.amounts().of(&gpu), vm.meta().generation), (1, 1));
}
