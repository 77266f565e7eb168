//! What an agent is told when only something is new.

use serde_json::json;
use tamdao_model::assignment::{Reservation, VolumeEntry};
use tamdao_model::pool::Pool;
use tamdao_store::typed::Draft;
use uuid::Uuid;

use super::*;

const NODE: NodeId = NodeId(Uuid::from_u128(1));
const VM: VmId = VmId(Uuid::from_u128(2));
const OTHER: VmId = VmId(Uuid::from_u128(3));

fn volume_of(vm: VmId) -> VolumeId {
    VolumeId(Uuid::from_u128(vm.0.as_u128() + 100))
}

/// A node with two VMs, each with a volume in one pool.
fn world(shared: bool) -> View {
    let pool = Uuid::from_u128(9);
    let meta = |id: Uuid, name: &str| json!({"id": id, "name": name, "generation": 1, "create_time": 1});
    let mut draft = Draft::new(View::default(), Uuid::from_u128(4));
    let spec = json!({"kind": "dir", "shared": shared, "path": "/p", "overcommit_percent": 100});
    draft.put(serde_json::from_value::<Pool>(json!({"meta": meta(pool, "p"), "spec": spec})).unwrap());
    let mut own = Assignment::empty(NODE);
    for (id, name) in [(VM, "web"), (OTHER, "mail")] {
        let volume = volume_of(id);
        let disk = json!({"source": {"volume": {"volume": volume, "created": true}}, "kind": "disk"});
        let vm = json!({
            "meta": meta(id.0, name), "agency": Uuid::nil(),
            "spec": {
                "vcpus": 1, "memory_mib": 512, "disks": [disk], "interfaces": [], "firmware": "bios",
                "os_type": "linux", "graphics": "none", "run": "always", "hostname": name, "power": "on",
            },
            "status": {"phase": "scheduled", "node": NODE, "incarnation": 1},
        });
        draft.put(serde_json::from_value::<Vm>(vm).unwrap());
        let node = (!shared).then_some(NODE);
        let volume_record = json!({
            "meta": meta(volume.0, name), "agency": Uuid::nil(), "spec": {"pool": pool, "size_mib": 8},
            "status": {"phase": "pending", "vm": id, "node": node},
        });
        draft.put(serde_json::from_value::<Volume>(volume_record).unwrap());
        let reservation = Reservation::default();
        own.vms
            .insert(id, VmEntry { incarnation: 1, intent: Intent::Wanted, reservation, cells: Vec::new() });
        if !shared {
            own.volumes.insert(volume, VolumeEntry::own(tamdao_model::PoolId(pool), 8));
        }
    }
    draft.put(own);
    draft.view().clone()
}

fn told(view: &View, vms: &[VmId], volumes: &[VolumeId]) -> (Vec<String>, Vec<String>) {
    let (vms, volumes) = (vms.iter().copied().collect(), volumes.iter().copied().collect());
    let told = assignment(view, NODE, Some((&vms, &volumes)), &|_| None);
    assert!(!told.complete);
    let volumes = told.volumes.into_iter().map(|volume| volume.volume_id).collect();
    (told.vms.into_iter().map(|vm| vm.vm_id).collect(), volumes)
}

#[test]
fn a_vm_is_told_with_its_volumes() {
    for shared in [false, true] {
        let expected = (vec![VM.to_string()], vec![volume_of(VM).to_string()]);
        assert_eq!(told(&world(shared), &[VM], &[]), expected, "shared: {shared}");
    }
}

#[test]
fn a_volume_is_told_alone_and_only_where_it_belongs() {
    for shared in [false, true] {
        let (here, nowhere) = (volume_of(VM), VolumeId(Uuid::from_u128(77)));
        assert_eq!(told(&world(shared), &[], &[here, nowhere]), (vec![], vec![here.to_string()]));
    }
    assert_eq!(told(&View::default(), &[VM], &[volume_of(VM)]), (vec![], vec![]));
}
