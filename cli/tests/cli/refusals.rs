//! What the user is told when something is refused: by the server with its details, by the command line itself.

use std::time::Duration;

use insta::assert_snapshot;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::fake::*;
use crate::run::Tamdao;

async fn refused(status: Status, line: &str) -> String {
    let fake = Fake::default();
    let endpoint = fake.serve().await;
    fake.world().refusals.push_back(("", status));
    Tamdao::new(&[&endpoint]).story(line).await
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation("vm.spec.memory_mib", "is 1, 64 to 4194304 are allowed");
    details.add_bad_request_violation("vm.spec.disks[0].create.size_mib", "is too small for image debian-12");
    let status = Status::with_error_details(Code::InvalidArgument, "the vm is not valid", details);
    assert_snapshot!(refused(status, "vm create web --vcpus 1 --memory 1M --image debian-12").await, @r#"
    exit code: 1
    ----- stderr -----
    error: web: the vm is not valid
      vm.spec.memory_mib: is 1, 64 to 4194304 are allowed
      vm.spec.disks[0].create.size_mib: is too small for image debian-12
    "#);
}

#[tokio::test]
async fn one_wrong_field_is_said_once() {
    let mut details = ErrorDetails::with_error_info(
        "InvalidArgument",
        "tamdao",
        std::collections::HashMap::<String, String>::new(),
    );
    details.add_bad_request_violation("name", "must not end in a hyphen");
    let status = Status::with_error_details(Code::InvalidArgument, "name: must not end in a hyphen", details);
    assert_snapshot!(refused(status, "node list").await, @r#"
    exit code: 1
    ----- stderr -----
    error: name: must not end in a hyphen
    "#);
}

#[tokio::test]
async fn the_servers_hint_and_facts_are_shown() {
    let facts = [("hint", "free memory on n1, or add a node"), ("NotEnoughMemory", "3 nodes")];
    let facts = facts.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut details =
        ErrorDetails::with_error_info("NoRoom", "tamdao", std::collections::HashMap::from(facts));
    details.set_retry_info(Some(Duration::from_secs(30)));
    let status = Status::with_error_details(Code::ResourceExhausted, "no node has 8192 MiB free", details);
    assert_snapshot!(refused(status, "vm create web --flavor huge --image debian-12").await, @r#"
    exit code: 1
    ----- stderr -----
    error: web: no node has 8192 MiB free
      NotEnoughMemory: 3 nodes

    hint: free memory on n1, or add a node
    hint: try again in 30s
    "#);
}

#[tokio::test]
async fn codes_without_details_have_a_hint_of_ours() {
    assert_snapshot!(refused(Status::unauthenticated(""), "vm list").await, @r#"
    exit code: 1
    ----- stderr -----
    error: the controller does not know you

    hint: give a valid token with `tamdao context set NAME --token-stdin` or --token-file
    "#);
    assert_snapshot!(refused(Status::not_found("there is no vm named \"web\""), "vm get web").await, @r#"
    exit code: 1
    ----- stderr -----
    error: there is no vm named "web"

    hint: see what there is with `list`, and which agency is meant (-a)
    "#);
    assert_snapshot!(refused(Status::internal("index out of bounds"), "node list").await, @r#"
    exit code: 2
    ----- stderr -----
    error: index out of bounds

    hint: see the controllers' logs
    "#);
}

#[tokio::test]
async fn wrong_usage_is_told_before_anything_is_sent() {
    let fake = Fake::default();
    let endpoint = fake.serve().await;
    let tamdao = Tamdao::new(&[&endpoint]);
    assert_snapshot!(tamdao.story("vm create web --image debian-12").await, @r#"
    exit code: 2
    ----- stderr -----
    error: vm web has no size

    hint: give --flavor NAME (see `tamdao flavor list`), or --vcpus N and --memory SIZE
    "#);
    assert_snapshot!(tamdao.story("vm create web --flavor small").await, @r#"
    exit code: 2
    ----- stderr -----
    error: vm web has nothing to boot from

    hint: give --image NAME (see `tamdao image list`), --volume, --iso or --kernel
    "#);
    assert_snapshot!(tamdao.story("vm create web --memory 2048").await, @r#"
    exit code: 2
    ----- stderr -----
    error: invalid value '2048' for '--memory <SIZE>': say the unit: 2048M or 2048G

    For more information, try '--help'.
    "#);
    assert_snapshot!(tamdao.story("vm create web --flavor small --image d --disk size=5G,colour=red").await, @r#"
    exit code: 2
    ----- stderr -----
    error: --disk size=5G,colour=red: colour=red is not a part of a disk

    hint: --disk 10G, or --disk size=10G,image=NAME,pool=NAME,keep
    "#);
    assert_snapshot!(tamdao.story("node get health/n1").await, @r#"
    exit code: 2
    ----- stderr -----
    error: node health/n1: belongs to no agency

    hint: write n1
    "#);
    assert_snapshot!(tamdao.story("vm list --phase sleeping").await, @r#"
    exit code: 2
    ----- stderr -----
    error: --phase sleeping: a vm has no such phase
    "#);
    assert_snapshot!(tamdao.story("vm update web").await, @r#"
    exit code: 1
    ----- stderr -----
    error: there is nothing named "web"

    hint: see what there is with `list`, and which agency is meant (-a)
    "#);
    tamdao.file("id", b"-----BEGIN OPENSSH PRIVATE KEY-----\n");
    assert_snapshot!(tamdao.story("vm create web --flavor small --image d --ssh-key id").await, @r#"
    exit code: 2
    ----- stderr -----
    error: id is a private key

    hint: give the public one: id.pub
    "#);
    let sent: Vec<_> = fake.world().asked.iter().map(|(method, _)| *method).collect();
    assert_eq!(sent, ["get_vm"]);
}
