//! Images on their way to the node.

use tamdao_proto::agent::v1::*;

use super::bed::{Bed, VM, vm, volume};
use super::controller::{Ca, Controller, Giving, Picture};

/// A raw image that is no other format, of 3 MiB.
fn bytes() -> Vec<u8> {
    (0..3 << 20).map(|n: u32| (n / 7 % 251) as u8).collect()
}

fn with_image(bed: &Bed, digest: &str) -> Assignment {
    let volume = AssignedVolume { image: digest.to_owned(), ..volume(VolumeIntent::Make) };
    Assignment { volumes: vec![volume], vms: vec![vm(1)], ..bed.whole() }
}

fn problem(picture: &Picture) -> Option<&Problem> {
    picture.vms.get(&VM.to_string()).and_then(|vm| vm.problem.as_ref())
}

#[tokio::test]
async fn an_image_that_breaks_off_goes_on_where_it_stopped() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let digest = controller.add_image(bytes());
    *controller.giving.lock().unwrap() = Giving::Half;
    let _agent = bed.start();
    controller.assign(with_image(&bed, &digest)).await;
    let told = |p: &Picture| problem(p).is_some_and(|problem| problem.reason == "ImageUnavailable");
    let picture = controller.wait("told", told).await;
    assert_eq!(picture.vms[&VM.to_string()].state(), GuestState::Preparing);
    *controller.giving.lock().unwrap() = Giving::Whole;
    controller.wait_vm(VM, GuestState::Running).await;
    let asked = controller.asked.lock().unwrap().clone();
    assert!(asked.iter().any(|from| *from > 0), "resumed: {asked:?}");
    assert_eq!(controller.now().cached, std::slice::from_ref(&digest));
    let cached = std::fs::read(bed.config.data_dir.join("images").join(&digest)).unwrap();
    assert_eq!(cached, bytes());
}

#[tokio::test]
async fn a_wrong_checksum_is_thrown_away_and_told() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let digest = controller.add_image(bytes());
    *controller.giving.lock().unwrap() = Giving::Wrong;
    let _agent = bed.start();
    controller.assign(with_image(&bed, &digest)).await;
    controller.wait("told", |p| problem(p).is_some_and(|problem| problem.reason == "ImageChecksum")).await;
    assert!(!bed.config.data_dir.join("images").join(&digest).exists());
    *controller.giving.lock().unwrap() = Giving::Whole;
    let report = controller.wait_vm(VM, GuestState::Running).await;
    assert_eq!(report.problem, None);
}

#[tokio::test]
async fn an_image_that_nobody_has_is_told_with_every_reason() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    controller.assign(with_image(&bed, &"0f".repeat(32))).await;
    let picture = controller.wait("told", |p| problem(p).is_some()).await;
    let problem = problem(&picture).unwrap();
    assert!(problem.reason == "ImageUnavailable" && problem.message.contains("404"), "{problem:?}");
    assert!(!problem.permanent);
}
