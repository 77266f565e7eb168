//! What users ask for, at random: VMs made, moved, resized, stopped, started and deleted, and nodes drained, each by the
//! product's own decision through the leader's own queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use tamdao_controller::decide::move_start::{self, Wish};
use tamdao_controller::decide::vm_power::{self, Size, Verb};
use tamdao_controller::decide::{drain, vm_create, vm_delete};
use tamdao_controller::engine;
use tamdao_controller::refusal::Refusal;
use tamdao_model::convert::vm::{DiskRequest, InterfaceRequest, VmRequest, WantedDisk};
use tamdao_model::vm::{
    DiskKind, Firmware, Graphics, MaintenancePolicy, OnNodeLoss, OsType, RunPolicy, StopMode, Vm,
};
use tamdao_model::{Name, NodeId, VmId};
use tamdao_store::typed::Draft;

use crate::world::{Event, World, node_id};
use crate::{AGENCY, LOCAL, NETWORK, SHARED, short};

/// What a user can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    Create,
    Move,
    Delete,
    Resize,
    Switch,
    Drain,
}

/// How often each is asked for where a seed draws nothing else.
pub const ASKS: [(Ask, u64); 6] =
    [(Ask::Create, 5), (Ask::Move, 4), (Ask::Delete, 1), (Ask::Resize, 1), (Ask::Switch, 1), (Ask::Drain, 1)];

/// VMs at a time, at most.
const VMS: usize = 10;

/// What came of what was asked.
enum Answer {
    Created(Result<VmId, Refusal>),
    Other,
}

#[derive(Default)]
pub struct Work {
    answers: Arc<Mutex<Vec<Answer>>>,
    asked: u64,
}

fn request(at: u64, shared: bool, memory_mib: u32, vcpus: u32, maintenance: MaintenancePolicy) -> VmRequest {
    let name = Name::new(&format!("vm-{at}")).expect("letters and a number are a name");
    let pool = Some(if shared { SHARED } else { LOCAL });
    let source = DiskRequest::Create { size_mib: 64, image: None, pool, keep_on_delete: false };
    VmRequest {
        name: name.clone(),
        display_name: String::new(),
        labels: BTreeMap::new(),
        flavor: None,
        vcpus,
        memory_mib,
        disks: vec![WantedDisk { source, kind: DiskKind::Disk, boot_order: 0 }],
        interfaces: vec![InterfaceRequest { network: NETWORK, wanted: Vec::new(), mac: None }],
        firmware: Firmware::Bios,
        os_type: OsType::Linux,
        graphics: Graphics::None,
        secure_boot: false,
        tpm: false,
        direct_boot: None,
        ssh_keys: Vec::new(),
        user_data: None,
        run: RunPolicy::OnFailure,
        delete_protection: false,
        hostname: name,
        pin: None,
        node_labels: BTreeMap::new(),
        forbidden_node_labels: BTreeMap::new(),
        priority: 0,
        isolation_class: None,
        placement_groups: Vec::new(),
        on_node_loss: OnNodeLoss::Evacuate,
        numa_cells: 0,
        maintenance,
    }
}

fn find(draft: &Draft, id: VmId) -> Result<Vm, Refusal> {
    let row = draft.view().vms.get(id).ok_or_else(|| Refusal::not_found(tamdao_model::Kind::Vm, "it"))?;
    Ok((*row.value).clone())
}

impl World {
    /// Asks for something, and takes the answers that have come.
    pub fn ask(&mut self) {
        let answers = std::mem::take(&mut *self.work.answers.lock().expect("no holder of the lock panics"));
        for answer in answers {
            if let Answer::Created(Ok(vm)) = answer {
                self.checks.acknowledged.created.insert(vm);
            }
        }
        let delay = self.chance.between(200, 2_500);
        self.plan(delay, Event::Work);
        let leaders: Vec<usize> = (0..3)
            .filter(|at| self.controllers[*at].runs(self.now_ms) && self.controllers[*at].leads())
            .collect();
        let Some(leader) = self.chance.pick(&leaders) else { return };
        let view = self.truth.view();
        if !self.troubled {
            // Whoever has drained nodes brings them back.
            let drained = view.nodes.iter().find(|node| node.spec.cordoned).map(|node| node.id());
            return drained.into_iter().for_each(|node| self.bring_back(leader, node));
        }
        self.work.asked += 1;
        let vms: Vec<VmId> = view.vms.iter().filter(|vm| !vm.spec.deleting).map(|vm| vm.id()).collect();
        let some = self.chance.pick(&vms);
        match (self.chance.weigh(&self.swarm.asks), some) {
            (Some(Ask::Create), _) | (_, None) if vms.len() < VMS => self.create(leader),
            (Some(Ask::Move), Some(vm)) => self.ask_move(leader, vm),
            (Some(Ask::Delete), Some(vm)) => self.delete(leader, vm),
            (Some(Ask::Resize), Some(vm)) => self.resize(leader, vm),
            (Some(Ask::Switch), Some(vm)) => self.switch(leader, vm),
            (Some(Ask::Drain), Some(_)) => self.drain(leader),
            (Some(Ask::Create) | None, _) | (_, None) => {}
        }
    }

    fn submit<T: Send + 'static>(
        &mut self,
        leader: usize,
        decide: impl FnMut(&mut Draft, &mut tamdao_controller::admission::Moment) -> Result<T, Refusal>
        + Send
        + 'static,
        answer: impl FnOnce(Result<T, Refusal>) -> Answer + Send + 'static,
    ) {
        let answers = self.work.answers.clone();
        let Some(process) = &mut self.controllers[leader].process else { return };
        let decided = process.shared.writer.submit(decide);
        process.tasks.spawn(decided.map(move |outcome| {
            let answer = answer(outcome.map(|(value, _)| value));
            answers.lock().expect("no holder of the lock panics").push(answer);
        }));
    }

    fn create(&mut self, leader: usize) {
        let (at, shared) = (self.work.asked, !self.chance.one_in(3));
        let memory_mib = 256 * u32::try_from(self.chance.between(1, 6)).unwrap_or(1);
        let vcpus = u32::try_from(self.chance.between(1, 2)).unwrap_or(1);
        self.tell(|| format!("a user asks for vm-{at}, {}", if shared { "shared" } else { "local" }));
        let maintenance = match self.chance.below(8) {
            0 => MaintenancePolicy::ShutDown,
            1 => MaintenancePolicy::Block,
            _ => MaintenancePolicy::Migrate,
        };
        let request = request(at, shared, memory_mib, vcpus, maintenance);
        self.submit(
            leader,
            move |draft, moment| vm_create::create(draft, moment, request.clone(), AGENCY, None, "user"),
            |outcome| Answer::Created(outcome.map(|vm| vm.id())),
        );
    }

    /// A node is emptied, or gets back what left it, or its drain is given up.
    fn drain(&mut self, leader: usize) {
        let at = self.chance.index(self.nodes.len());
        let node = node_id(at);
        let cordoned = self.truth.view().nodes.get(node).is_some_and(|row| row.spec.cordoned);
        if cordoned && self.chance.one_in(2) {
            return self.bring_back(leader, node);
        }
        if cordoned {
            self.tell(|| format!("a user gives up the drain of n{at}"));
            return self.submit(
                leader,
                move |draft, moment| drain::cancel(draft, moment, node, "user"),
                |_| Answer::Other,
            );
        }
        let ask = drain::Ask {
            by: "user".into(),
            reason: String::new(),
            allow_cold: self.chance.one_in(2),
            unguarded: self.chance.one_in(2),
            time_ms: self.chance.between(5_000, 120_000),
        };
        self.tell(|| format!("a user drains n{at}"));
        self.submit(leader, move |draft, moment| drain::begin(draft, moment, node, &ask), |_| Answer::Other);
    }

    fn bring_back(&mut self, leader: usize, node: NodeId) {
        self.tell(|| "a user brings a drained node back".to_owned());
        self.submit(
            leader,
            move |draft, moment| drain::begin_return(draft, moment, node, "user", true),
            |_| Answer::Other,
        );
    }

    fn delete(&mut self, leader: usize, id: VmId) {
        let force = self.chance.one_in(3);
        self.tell(|| format!("a user deletes vm {}", short(id.0)));
        self.checks.acknowledged.doomed.insert(id);
        self.submit(
            leader,
            move |draft, moment| {
                let vm = find(draft, id)?;
                vm_delete::want(draft, moment, &vm, force, "user")
            },
            |_| Answer::Other,
        );
    }

    fn ask_move(&mut self, leader: usize, id: VmId) {
        let target = self.chance.index(self.nodes.len());
        let allow_cold = self.chance.one_in(2);
        self.tell(|| format!("a user moves vm {} to n{target}", short(id.0)));
        self.submit(
            leader,
            move |draft, moment| {
                let vm = find(draft, id)?;
                let shape =
                    engine::shape(draft.view(), &vm).map_err(|error| Refusal::internal(error.to_string()))?;
                let wish = Wish {
                    vm: id,
                    target: node_id(target),
                    reservation: shape.reservation_on(false),
                    cells: Vec::new(),
                    allow_cold,
                    auto_converge: false,
                    reason: String::new(),
                };
                move_start::start(draft, moment, &wish, "user")
            },
            |_| Answer::Other,
        );
    }

    fn resize(&mut self, leader: usize, id: VmId) {
        let memory_mib = 256 * u32::try_from(self.chance.between(1, 24)).unwrap_or(1);
        let vcpus = u32::try_from(self.chance.between(1, 6)).unwrap_or(1);
        self.tell(|| format!("a user wants vm {} with {vcpus} vCPUs and {memory_mib} MiB", short(id.0)));
        self.submit(
            leader,
            move |draft, moment| {
                let vm = find(draft, id)?;
                let mut larger = vm.clone();
                (larger.spec.vcpus, larger.spec.memory_mib) = (vcpus, memory_mib);
                let shape = engine::shape(draft.view(), &larger)
                    .map_err(|error| Refusal::internal(error.to_string()))?;
                let size = Size { flavor: None, class: None, vcpus, memory_mib };
                vm_power::resize(draft, moment, &vm, &size, shape.reservation_on(false), "user")
            },
            |_| Answer::Other,
        );
    }

    fn switch(&mut self, leader: usize, id: VmId) {
        let force = self.chance.one_in(2);
        self.tell(|| format!("a user switches vm {} off or on", short(id.0)));
        self.submit(
            leader,
            move |draft, moment| {
                let vm = find(draft, id)?;
                let verb = match vm.wants_on() {
                    true => Verb::Stop(StopMode { force, deadline_s: 5 }),
                    false => Verb::Start,
                };
                vm_power::act(draft, moment, &vm, &verb, "user")
            },
            |_| Answer::Other,
        );
    }
}
