//! Consoles and serial logs.

use prost::Message as _;
use tamdao_proto::agent::v1::session_response::Message as Heard;
use tamdao_proto::agent::v1::*;
use uuid::Uuid;

use super::bed::{Bed, bare_vm};
use super::controller::{Ca, Controller};

async fn running() -> (Controller, Bed, super::bed::Running) {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let agent = bed.start();
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    controller.wait_vm(Uuid::from_u128(1), GuestState::Running).await;
    (controller, bed, agent)
}

fn open(id: &str, purpose: open_tunnel::Purpose) -> Heard {
    Heard::OpenTunnel(OpenTunnel { tunnel_id: id.into(), purpose: Some(purpose) })
}

#[tokio::test]
async fn a_log_is_read_from_its_end_and_followed() {
    let (controller, bed, _agent) = running().await;
    let vm = Uuid::from_u128(1);
    let path = crate::operate::serial_log(&bed.config.data_dir, vm);
    std::fs::write(&path, b"early late").unwrap();
    let log = |follow| SerialLogTunnel { vm_id: vm.to_string(), tail_bytes: 4, follow };
    controller.send(open("once", open_tunnel::Purpose::SerialLog(log(false)))).await;
    let picture = controller.wait("the end", |p| p.tunnels.get("once").is_some_and(|t| t.ended)).await;
    assert_eq!(picture.tunnels["once"].data, b"late");
    controller.send(open("follow", open_tunnel::Purpose::SerialLog(log(true)))).await;
    controller.wait("the tail", |p| p.tunnels.get("follow").is_some_and(|t| t.data == b"late")).await;
    use std::io::Write;
    std::fs::File::options().append(true).open(&path).unwrap().write_all(b"r on").unwrap();
    controller.wait("what came later", |p| p.tunnels["follow"].data == b"later on").await;
}

#[tokio::test]
async fn a_console_that_cannot_be_joined_says_why() {
    let (controller, _bed, _agent) = running().await;
    let console = ConsoleTunnel { vm_id: Uuid::from_u128(99).to_string(), force: false };
    controller.send(open("t", open_tunnel::Purpose::Console(console))).await;
    let picture = controller.wait("why", |p| p.tunnels.get("t").is_some_and(|t| t.ended)).await;
    assert!(picture.tunnels["t"].error.as_ref().is_some_and(|error| error.contains("no domain")));
}

#[tokio::test]
async fn a_console_is_one_holder_s_at_a_time() {
    let (controller, _bed, _agent) = running().await;
    let console = |force| ConsoleTunnel { vm_id: Uuid::from_u128(1).to_string(), force };
    controller.send(open("first", open_tunnel::Purpose::Console(console(false)))).await;
    controller.wait("first", |p| p.tunnels.contains_key("first")).await;
    controller.type_into("first", b"hello\n").await;
    controller.send(open("second", open_tunnel::Purpose::Console(console(true)))).await;
    controller.wait("taken away", |p| p.tunnels.get("first").is_some_and(|t| t.ended)).await;
}

#[tokio::test]
async fn a_guest_is_measured_for_the_forecast_of_its_move() {
    let (controller, bed, _agent) = running().await;
    let measure = |n| open_tunnel::Purpose::Measure(MeasureTunnel { vm_id: Uuid::from_u128(n).to_string() });
    bed.hypervisor.dirties(Uuid::from_u128(1), 5 << 20);
    controller.send(open("one", measure(1))).await;
    let picture = controller.wait("the answer", |p| p.tunnels.get("one").is_some_and(|t| t.ended)).await;
    let told = Measurement::decode(&*picture.tunnels["one"].data).unwrap();
    assert_eq!((told.memory_bytes, told.dirty_bytes_per_s), (128 << 20, 5 << 20));
    assert_eq!(
        (told.limit_bytes_per_s, told.pace_bytes_per_s),
        (u64::from(bed.config.moves_bandwidth_mib) << 20, 0),
        "nothing was sent yet"
    );
    controller.send(open("none", measure(99))).await;
    let picture = controller.wait("why not", |p| p.tunnels.get("none").is_some_and(|t| t.ended)).await;
    assert!(picture.tunnels["none"].error.as_ref().is_some_and(|error| error.contains("no domain")));
}
