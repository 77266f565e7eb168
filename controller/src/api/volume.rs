//! VolumeService.

use tamdao_model::assignment::VolumeEntry;
use tamdao_model::event::Severity;
use tamdao_model::node::NodePhase;
use tamdao_model::quota::Amounts;
use tamdao_model::volume::{Volume, VolumePhase};
use tamdao_model::{NodeId, VolumeId};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use tonic::Code;

use super::standard::{Standard, Writable, service};
use crate::admission::Moment;
use crate::decide::{self, quota, vm_create, vm_delete};
use crate::refusal::Refusal;

impl Standard for Volume {}

impl Writable for Volume {
    fn check_new(&self, view: &View) -> Result<(), Refusal> {
        vm_create::check_volume(view, self)
    }

    fn added(&self, draft: &mut Draft) -> Result<(), Refusal> {
        quota::count(draft, self.agency, &Amounts::default(), &self.amounts())
    }

    fn check_changed(&self, before: &Self, view: &View) -> Result<(), Refusal> {
        if self.spec.deleting {
            return Err(Refusal::precondition(
                "Deleting",
                format!("volume {:?} is being deleted", self.meta.name.as_str()),
            ));
        }
        let more = u64::from(self.spec.size_mib.saturating_sub(before.spec.size_mib));
        let Some(node) = self.status.node.filter(|_| more > 0) else { return Ok(()) };
        let (Some(host), Some(pool)) = (view.nodes.get(node), view.pools.get(self.spec.pool)) else {
            return Ok(());
        };
        let promised = view.assignment(node).promised_mib(pool.id());
        let allocatable = host.pool_allocatable_mib(pool);
        if promised + more > allocatable {
            let message = format!(
                "pool {:?} on its node has {} MiB free, {more} more are needed",
                pool.meta.name.as_str(),
                allocatable.saturating_sub(promised)
            );
            return Err(Refusal::new(Code::ResourceExhausted, "NoRoom", message));
        }
        Ok(())
    }

    fn changed(&self, before: &Self, draft: &mut Draft) -> Result<(), Refusal> {
        if self.spec.size_mib <= before.spec.size_mib {
            return Ok(());
        }
        quota::count(draft, self.agency, &before.amounts(), &self.amounts())?;
        if let Some(node) = self.status.node {
            let mut assignment = draft.view().assignment(node);
            if let Some(entry) = assignment.volumes.get_mut(&self.id()) {
                entry.size_mib = self.spec.size_mib;
                draft.put(assignment);
            }
        }
        Ok(())
    }

    fn check_unused(&self, view: &View) -> Result<(), Refusal> {
        let Some(vm) = self.status.vm.and_then(|vm| view.vms.get(vm)) else { return Ok(()) };
        let (name, vm) = (self.meta.name.as_str(), vm.meta.name.as_str());
        Err(Refusal::precondition("InUse", format!("volume {name:?} is held by vm {vm:?}"))
            .hint("delete that first"))
    }

    fn drop_from(&self, draft: &mut Draft, moment: &mut Moment, caller: &str) -> Result<Self, Refusal> {
        self.check_unused(draft.view())?;
        if self.spec.deleting {
            return Ok(self.clone());
        }
        let mut volume = self.clone();
        let Some(node) = holder(draft.view(), self)? else {
            // Its file was never made.
            decide::event(draft, moment, self, Severity::Info, "Deleted", "deleted", caller);
            vm_delete::drop_volume(draft, self);
            return Ok(volume);
        };
        volume.spec.deleting = true;
        volume.status.phase = VolumePhase::Deleting;
        volume.status.node = Some(node);
        volume.meta.generation += 1;
        take_to(draft, node, volume.id(), &volume);
        decide::event(draft, moment, self, Severity::Info, "Deleting", "deletion was asked for", caller);
        draft.put(volume.clone());
        Ok(volume)
    }
}

/// The node that can remove a volume's file; none when there is no file.
fn holder(view: &View, volume: &Volume) -> Result<Option<NodeId>, Refusal> {
    if volume.status.node.is_some() {
        return Ok(volume.status.node);
    }
    let shared = view.pools.get(volume.spec.pool).filter(|pool| pool.spec.shared);
    let Some(pool) = shared.filter(|_| volume.status.made) else { return Ok(None) };
    let mut nodes = view.nodes.iter().filter(|node| node.status.phase == NodePhase::Ready);
    let ready = nodes.find(|node| node.status.pools.get(&pool.id()).is_some_and(|seen| seen.ready));
    ready.map(|node| Some(node.id())).ok_or_else(|| {
        Refusal::precondition("NoNode", format!("no node sees pool {:?} now", pool.meta.name.as_str()))
    })
}

/// Puts a volume under a node's care.
fn take_to(draft: &mut Draft, node: NodeId, id: VolumeId, volume: &Volume) {
    let mut assignment = draft.view().assignment(node);
    assignment.volumes.insert(id, VolumeEntry::own(volume.spec.pool, volume.spec.size_mib));
    draft.put(assignment);
}

service! {
    volume_service_server::VolumeService, Volume, volume, volumes, agency, phase,
    get get_volume(GetVolumeRequest) list list_volumes(ListVolumesRequest -> ListVolumesResponse)
    watch watch_volumes(WatchVolumesRequest -> WatchVolumesResponse as WatchVolumesStream)
    create create_volume(CreateVolumeRequest)
    update update_volume(UpdateVolumeRequest)
    delete delete_volume(DeleteVolumeRequest)
    extra {}
}
