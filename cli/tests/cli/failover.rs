//! Failover: a dead or unavailable controller is passed over, nothing is made twice, watches go on elsewhere, and TLS
//! trusts the cloud's own CA only.

use insta::assert_snapshot;
use tamdao_proto::v1::*;
use tokio::net::TcpSocket;
use tonic::Status;
use tonic::transport::Identity;
use tonic_types::{ErrorDetails, StatusExt};

use crate::fake::*;
use crate::run::Tamdao;

/// An endpoint at which nothing listens, held so that nobody else comes to listen there.
fn dead() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    (socket, endpoint)
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let fake = Fake::default();
    let alive = fake.serve().await;
    let (_held, dead) = dead();
    let tamdao = Tamdao::new(&[&dead, &alive]);
    assert_snapshot!(tamdao.story("vm list").await, @r#"
    exit code: 0
    ----- stderr -----
    there are no vms in agency health
    "#);
}

#[tokio::test]
async fn the_next_run_begins_where_this_one_was_answered() {
    let (first, second) = (Fake::default(), Fake::default());
    let tamdao = Tamdao::new(&[&first.serve().await, &second.serve().await]);
    first.world().refusals.push_back(("", Status::unavailable("stopping")));
    for _ in 0..2 {
        assert!(tamdao.output("vm list").await.status.success());
    }
    assert_eq!((first.world().asked.len(), second.world().asked.len()), (1, 2));
    // And goes on from there when that one is gone too.
    second.world().refusals.push_back(("", Status::unavailable("stopping")));
    for _ in 0..2 {
        assert!(tamdao.output("vm list").await.status.success());
    }
    assert_eq!((first.world().asked.len(), second.world().asked.len()), (3, 3));
    // What is spoiled, or names an endpoint that is no longer there, is no obstacle.
    for spoiled in ["[[[", "test = \"https://gone.example:1\""] {
        tamdao.file("last-endpoints.toml", spoiled.as_bytes());
        assert!(tamdao.output("vm list").await.status.success());
    }
    assert_eq!(first.world().asked.len(), 5);
}

#[tokio::test]
async fn dead_endpoints_are_listed() {
    let (first, second) = (dead(), dead());
    let tamdao = Tamdao::new(&[&first.1, &second.1]);
    assert_snapshot!(tamdao.story("vm list --retry-for 0s").await, @r#"
    exit code: 1
    ----- stderr -----
    error: no controller could be reached
      [controller 1]: nothing listens there
      [controller 2]: nothing listens there

    hint: check that a controller runs there, and that `tamdao context show` names the right endpoints
    "#);
}

#[tokio::test]
async fn an_unavailable_controller_keeps_the_request_id() {
    let (first, second) = (Fake::default(), Fake::default());
    let tamdao = Tamdao::new(&[&first.serve().await, &second.serve().await]);
    first.world().refusals.push_back(("", Status::unavailable("there is no leader")));
    let output = tamdao.output("vm create web --flavor small --image debian-12 --no-wait").await;
    assert!(output.status.success());
    let (first, second) = (first.world().request_ids.clone(), second.world().request_ids.clone());
    assert_eq!(first.len(), 1);
    assert_eq!(first, second);
}

#[tokio::test]
async fn an_unknown_outcome_is_asked_for_again() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let details = ErrorDetails::with_error_info(
        "OutcomeUnknown",
        "tamdao",
        std::collections::HashMap::<String, String>::new(),
    );
    let status =
        Status::with_error_details(tonic::Code::Aborted, "the outcome of the change is unknown", details);
    fake.world().refusals.push_back(("", status));
    let output = tamdao.output("vm create web --flavor small --image debian-12 --no-wait").await;
    assert!(output.status.success());
    let ids = fake.world().request_ids.clone();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn no_quorum_is_told_apart_from_no_controller() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    fake.world().refusals.extend((0..99).map(|_| ("", Status::unavailable("there is no leader"))));
    assert_snapshot!(tamdao.story("vm list --retry-for 0s").await, @r#"
    exit code: 1
    ----- stderr -----
    error: no controller could serve the request
      [controller 1]: answers "there is no leader"

    hint: the controllers are up but cannot decide; see their logs, and whether a majority of them runs
    "#);
}

#[tokio::test]
async fn a_watch_goes_on_at_another_controller_from_its_cursor() {
    let (first, second) = (Fake::default(), Fake::default());
    let tamdao = Tamdao::new(&[&first.serve().await, &second.serve().await]);
    let scheduled = vec![put(vm("web", VmPhase::Scheduled), "cursor-7")];
    first.world().watches.push_back(Script::Breaks(scheduled, Status::unavailable("stopping")));
    second.world().watches.push_back(Script::Stays(vec![put(running("web", "n2"), "cursor-8")]));
    assert_snapshot!(tamdao.story("vm create web --flavor small --image debian-12").await, @r#"
    exit code: 0
    ----- stderr -----
    web: Pending
    web: Scheduled
    web: Running on n2, 10.20.0.5
    "#);
    let asked = second.world().asked.clone();
    assert!(asked[0].1.contains("cursor: \"cursor-7\""), "{asked:?}");
}

#[tokio::test]
async fn a_cursor_that_is_too_old_begins_with_the_present_state() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let scheduled = vec![put(vm("web", VmPhase::Scheduled), "cursor-7")];
    let compacted = Status::out_of_range("the cursor is older than the kept history");
    fake.world().watches.push_back(Script::Breaks(scheduled, compacted));
    fake.world().watches.push_back(Script::Stays(vec![put(running("web", "n2"), "cursor-99")]));
    let output = tamdao.output("vm create web --flavor small --image debian-12").await;
    assert!(output.status.success());
    let cursors: Vec<_> =
        fake.world().asked.iter().filter(|(method, _)| *method == "watch_vms").cloned().collect();
    assert_eq!(cursors.len(), 2);
    assert!(cursors.iter().all(|(_, request)| request.contains("cursor: \"\"")), "{cursors:?}");
}

#[tokio::test]
async fn only_the_clouds_own_ca_is_trusted() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (ours, identity) = authority();
    let (others, _) = authority();
    let fake = Fake::default();
    fake.world().vms = vec![running("web", "n2")];
    let endpoint = fake.serve_with(Some(identity)).await;
    let tamdao = Tamdao::new(&[&endpoint]);
    tamdao.file("ca.pem", ours.as_bytes());
    tamdao.file("other.pem", others.as_bytes());
    assert_snapshot!(tamdao.story("vm list --ca ca.pem").await, @r#"
    exit code: 0
    ----- stdout -----
    NAME  AGENCY  PHASE    NODE  VCPUS  MEMORY  ADDRESS    AGE
    web   health  Running  n2    2      2 GiB   10.20.0.5  3h
    "#);
    assert_snapshot!(tamdao.story("vm list --ca other.pem").await, @r#"
    exit code: 1
    ----- stderr -----
    error: no controller could be reached
      [controller 1]: its certificate is not from this cloud's CA, or not for this address

    hint: check that a controller runs there, and that `tamdao context show` names the right endpoints
    "#);
    assert_snapshot!(tamdao.story("vm list").await, @r#"
    exit code: 2
    ----- stderr -----
    error: there is no CA to know the controllers by

    hint: give the CA's certificate with --ca FILE, or in the context
    "#);
}

/// A CA's certificate, and a controller's identity from it.
fn authority() -> (String, Identity) {
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    (ca.pem(), Identity::from_pem(leaf.pem(), key.serialize_pem()))
}
