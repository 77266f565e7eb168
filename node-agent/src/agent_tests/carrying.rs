//! A VM that is off moves with its local disk between two agents: each end is killed at every step, and whatever comes
//! of it, one node has the whole disk and starts it, and nothing is left on the other.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tamdao_proto::agent::v1::*;
use tamdao_proto::v1::{MoveWay, Power};
use uuid::Uuid;

use super::bed::{Bed, Running, VM, VOLUME, vm, volume};
use super::controller::{Ca, Controller};
use crate::checkpoint::hang;
use crate::hypervisor::Hypervisor;
use crate::hypervisor::migration::Migration;
use crate::volume::file_path;

const SOURCE: Uuid = Uuid::from_u128(0x501);
const TARGET: Uuid = Uuid::from_u128(0x502);

/// One node with a controller of its own, so that each end is told its part.
struct End {
    controller: Controller,
    bed: Bed,
    agent: Option<Running>,
    image: String,
}

impl End {
    async fn start(ca: &Arc<Ca>, node: Uuid, image: &[u8]) -> Self {
        let controller = Controller::start(ca, 5).await;
        let image = controller.add_image(image.to_vec());
        let bed = Bed::joined_as(ca, &controller, node);
        let agent = Some(bed.start());
        controller.wait("its session", |p| p.up && p.hello.moves_port != 0).await;
        Self { controller, bed, agent, image }
    }

    async fn told(&self, entry: AssignedVm, intent: VolumeIntent, copy: u64) {
        let disk = AssignedVolume { image: self.image.clone(), copy, ..volume(intent) };
        let (pools, volumes) = (vec![self.bed.pool()], vec![disk]);
        self.controller
            .assign(Assignment { complete: true, pools, volumes, vms: vec![entry], ..Assignment::default() })
            .await;
    }

    async fn says(&self, what: &str, test: impl Fn(&VmReport) -> bool) -> VmReport {
        let id = VM.to_string();
        self.controller.wait(what, |p| p.vms.get(&id).is_some_and(&test)).await.vms[&id].clone()
    }

    async fn says_of_the_move(&self, state: MoveState) -> VmReport {
        self.says(&format!("{state:?}"), |vm| vm.r#move.as_ref().is_some_and(|told| told.state() == state))
            .await
    }

    /// Kills the agent and starts another on what it left.
    async fn dies(&mut self) {
        self.agent.take().unwrap().kill().await;
        let sessions = self.controller.now().sessions;
        // What the old session said is not what the new one says.
        self.controller.forget();
        self.agent = Some(self.bed.start());
        self.controller.wait("a new session", |p| p.sessions > sessions && p.up).await;
    }

    fn file(&self) -> PathBuf {
        file_path(&self.bed.pool_path(), VOLUME)
    }

    fn files(&self) -> Vec<String> {
        self.bed.volume_files()
    }
}

/// A command of QEMU's; false if it says no.
fn qemu_io(file: &std::path::Path, command: &str) -> bool {
    let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success() && !said.contains("failed") && !said.contains("error")
}

/// What is on the disk: the image's own part, and what was written on it, more than one piece.
const WRITTEN: [&str; 2] = ["read -P 0x11 0 1M", "read -P 0x5a 2M 3M"];

fn assert_whole(end: &End) {
    for read in WRITTEN {
        assert!(qemu_io(&end.file(), read), "{read} of {}", end.file().display());
    }
}

struct Pair {
    source: End,
    target: End,
    moving: AssignedMove,
}

impl Pair {
    /// Two nodes: on one a VM that is off, with something on its disk, the other ready for it.
    async fn ready() -> Self {
        let ca = Ca::new();
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        assert!(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&image)
                .arg("8M")
                .status()
                .unwrap()
                .success()
        );
        assert!(qemu_io(&image, "write -P 0x11 0 1M"));
        let image = std::fs::read(image).unwrap();
        let (source, target) = tokio::join!(End::start(&ca, SOURCE, &image), End::start(&ca, TARGET, &image));
        assert!(source.controller.now().hello.carries_files);
        source.told(off(1), VolumeIntent::Make, 0).await;
        let made = |p: &super::controller::Picture| {
            p.volumes.get(&VOLUME.to_string()).is_some_and(|volume| volume.state() == VolumeState::Made)
        };
        source.controller.wait("its disk", made).await;
        assert!(qemu_io(&source.file(), "write -P 0x5a 2M 3M"));
        let port = target.controller.now().hello.moves_port;
        let moving = AssignedMove {
            move_id: Uuid::new_v4().to_string(),
            peer_node: TARGET.to_string(),
            peer_address: format!("127.0.0.1:{port}"),
            incarnation_from: 1,
            incarnation_to: 2,
            way: MoveWay::ColdWithDisks.into(),
            ..AssignedMove::default()
        };
        let pair = Self { source, target, moving };
        pair.target.told(pair.incoming(), VolumeIntent::Receive, 2).await;
        pair.target.says_of_the_move(MoveState::Ready).await;
        pair
    }

    fn incoming(&self) -> AssignedVm {
        let moving = AssignedMove { peer_node: SOURCE.to_string(), ..self.moving.clone() };
        AssignedVm { intent: Intent::Incoming.into(), r#move: Some(moving), ..off(2) }
    }

    fn outgoing(&self, recall: bool) -> AssignedVm {
        let moving = AssignedMove { recall, ..self.moving.clone() };
        AssignedVm { intent: Intent::Outgoing.into(), r#move: Some(moving), ..off(1) }
    }

    async fn send(&self) {
        self.source.told(self.outgoing(false), VolumeIntent::Keep, 0).await;
    }

    /// The source has kept it: the target clears, and the source runs it from the disk that it has.
    async fn stays(&self) {
        self.source.says_of_the_move(MoveState::Kept).await;
        let stale = AssignedVm { intent: Intent::Stale.into(), ..off(2) };
        self.target.told(stale, VolumeIntent::Delete, 2).await;
        self.target.says("cleared", |vm| vm.gone).await;
        let deleted = |p: &super::controller::Picture| {
            p.volumes.get(&VOLUME.to_string()).is_some_and(|volume| volume.state() == VolumeState::Deleted)
        };
        self.target.controller.wait("its files are removed", deleted).await;
        assert!(self.target.files().is_empty(), "{:?}", self.target.files());
        assert_whole(&self.source);
        self.source.told(vm(1), VolumeIntent::Keep, 0).await;
        self.source.controller.wait_vm(VM, GuestState::Running).await;
        assert!(self.target.bed.hypervisor.observe().await.unwrap().ours.is_empty());
    }

    /// The source has let go of it: the target runs it from the disk that has come, and the source clears.
    async fn goes(&self) {
        self.source.says_of_the_move(MoveState::Gone).await;
        assert_whole(&self.target);
        let stale = AssignedVm { intent: Intent::Stale.into(), ..off(1) };
        self.source.told(stale, VolumeIntent::Delete, 0).await;
        self.source.says("cleared", |vm| vm.gone).await;
        self.target.told(vm(2), VolumeIntent::Keep, 2).await;
        self.target.controller.wait_vm(VM, GuestState::Running).await;
        assert_eq!(self.target.files(), [format!("{VOLUME}.qcow2")]);
        assert_whole(&self.target);
        assert!(self.source.bed.hypervisor.observe().await.unwrap().ours.is_empty());
    }
}

/// It is wanted there, and off.
fn off(incarnation: u64) -> AssignedVm {
    AssignedVm { power: Power::Off.into(), ..vm(incarnation) }
}

async fn reached(heard: tokio::sync::oneshot::Receiver<()>, step: &str) {
    tokio::time::timeout(std::time::Duration::from_secs(30), heard).await.expect(step).unwrap();
}

#[tokio::test]
async fn a_disk_goes_along_and_lies_on_the_image_of_its_new_node() {
    let pair = Pair::ready().await;
    let sum = |end: &End| hex::encode(Sha256::digest(std::fs::read(end.file()).unwrap()));
    assert_ne!(sum(&pair.source), sum(&pair.target), "what is made ready there is another disk");
    pair.send().await;
    // The source's agent tells the target itself.
    pair.target.says_of_the_move(MoveState::Runs).await;
    let told = Command::new("qemu-img").args(["info", "-U"]).arg(pair.target.file()).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let cache = pair.target.bed.dir.path().to_str().unwrap();
    assert!(told.lines().any(|line| line.starts_with("backing file:") && line.contains(cache)), "{told}");
    pair.goes().await;
}

#[tokio::test]
async fn a_carrying_that_is_recalled_ends_where_it_is() {
    let pair = Pair::ready().await;
    let heard = hang::at("move-piece");
    pair.send().await;
    reached(heard, "move-piece").await;
    pair.source.told(pair.outgoing(true), VolumeIntent::Keep, 0).await;
    let said = pair.source.says_of_the_move(MoveState::Kept).await;
    let why = said.r#move.unwrap().problem.unwrap().message;
    assert!(why.contains("recalled"), "{why}");
    pair.stays().await;
}

#[tokio::test]
async fn an_end_of_an_earlier_life_does_not_make_it_gone() {
    // It left this node by a live move once, and has come back without ever running here since.
    let mut pair = Pair::ready().await;
    pair.source.told(vm(1), VolumeIntent::Keep, 0).await;
    pair.source.controller.wait_vm(VM, GuestState::Running).await;
    pair.source.bed.world.host("elsewhere").reachable_at("elsewhere");
    let migration = Migration {
        destination: "elsewhere".into(),
        memory_socket: PathBuf::new(),
        disks_socket: PathBuf::new(),
        incarnation_to: 2,
        files: std::collections::BTreeMap::new(),
        copies: Vec::new(),
        auto_converge: false,
    };
    pair.source.bed.hypervisor.migrate(VM, 1, &migration).await.unwrap();
    let back = |entry: AssignedVm| AssignedVm { incarnation: 3, ..entry };
    pair.source.told(back(off(3)), VolumeIntent::Keep, 0).await;
    pair.source.says("off", |vm| vm.incarnation == 3 && vm.state() == GuestState::Stopped).await;
    pair.moving.incarnation_from = 3;
    let heard = hang::at("move-piece");
    pair.source.told(back(pair.outgoing(false)), VolumeIntent::Keep, 0).await;
    reached(heard, "move-piece").await;
    pair.source.dies().await;
    pair.source.says_of_the_move(MoveState::Kept).await;
}

#[tokio::test]
async fn a_guest_that_had_shut_itself_down_stays_off() {
    let mut pair = Pair::ready().await;
    pair.moving.stays_off = true;
    pair.moving.move_id = Uuid::new_v4().to_string();
    let entry = |entry: AssignedVm| AssignedVm { power: Power::On.into(), incarnation: 3, ..entry };
    pair.moving.incarnation_to = 3;
    // It is told anew, as the move of a guest that is off although it is wanted on.
    pair.target.told(entry(pair.incoming()), VolumeIntent::Receive, 2).await;
    let id = pair.moving.move_id.clone();
    let ready = |vm: &VmReport| {
        vm.r#move.as_ref().is_some_and(|told| told.move_id == id && told.state() == MoveState::Ready)
    };
    pair.target.says("ready for it", ready).await;
    pair.send().await;
    pair.target.says_of_the_move(MoveState::Runs).await;
    pair.target.told(entry(vm(3)), VolumeIntent::Keep, 2).await;
    let off = |vm: &VmReport| vm.r#move.is_none() && vm.incarnation == 3 && vm.generation == 1;
    let said = pair.target.says("that it is its own", off).await;
    assert_eq!((said.state(), said.exit()), (GuestState::Stopped, GuestExit::ByItself));
    assert!(pair.target.bed.hypervisor.observe().await.unwrap().ours.is_empty());
    pair.target.told(AssignedVm { generation: 2, ..entry(vm(3)) }, VolumeIntent::Keep, 2).await;
    pair.target.controller.wait_vm(VM, GuestState::Running).await;
}

async fn source_killed_at(step: &'static str, goes: bool) {
    let mut pair = Pair::ready().await;
    let heard = hang::at(step);
    pair.send().await;
    reached(heard, step).await;
    pair.source.dies().await;
    if goes { pair.goes().await } else { pair.stays().await }
}

async fn target_killed_at(step: &'static str, goes: bool) {
    let mut pair = Pair::ready().await;
    let heard = hang::at(step);
    pair.send().await;
    reached(heard, step).await;
    pair.target.dies().await;
    if goes { pair.goes().await } else { pair.stays().await }
}

macro_rules! killed {
    ($end:ident: $($name:ident $step:literal $goes:literal),* $(,)?) => {
        $(#[tokio::test]
        async fn $name() {
            $end($step, $goes).await;
        })*
    };
}

killed! { source_killed_at:
    source_with_nothing_recorded "move-loaded" true,
    source_with_nothing_sent "move-sending" false,
    source_in_the_middle_of_a_file "move-piece" false,
    source_with_all_files_sent "move-sent" false,
    source_with_its_word_written_down "move-gone" true,
    source_with_its_word_said "move-said" true,
}

killed! { target_killed_at:
    target_in_the_middle_of_a_file "disk-piece" false,
    target_with_the_file_aside "disk-aside" false,
    target_with_the_file_in_its_place "disk-placed" false,
    target_with_the_word_heard "move-heard" true,
}
