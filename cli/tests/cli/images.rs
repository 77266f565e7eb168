//! Images: the upload of a file in chunks, also after an import that broke off.

use insta::assert_snapshot;
use tamdao_proto::v1::*;
use tonic::Status;

use crate::fake::*;
use crate::run::Tamdao;

#[tokio::test]
async fn a_file_arrives_whole() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let content: Vec<u8> = (0..3_000_001_u32).map(|at| (at % 251) as u8).collect();
    tamdao.file("disk.raw", &content);
    assert_snapshot!(tamdao.story("image import debian --file disk.raw").await, @r#"
    exit code: 0
    ----- stderr -----
    debian: sending disk.raw, 2.9 MiB
    debian: Available
    "#);
    assert!(fake.world().uploaded == content);
    let target = fake.world().asked.iter().find(|(method, _)| *method == "target").unwrap().1.clone();
    assert!(target.contains("size_bytes: 3000001, gzip: false"), "{target}");
}

#[tokio::test]
async fn gzip_is_told_by_its_first_bytes() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    tamdao.file("disk", b"\x1f\x8b rest");
    tamdao.output("image import debian --file disk --private").await;
    tamdao.output("image import vmlinuz --file disk --kind kernel").await;
    let targets = fake.world().asked.clone();
    let targets: Vec<_> = targets.iter().filter(|(method, _)| *method == "target").collect();
    assert!(
        targets[0].1.contains("agency: \"health\"") && targets[0].1.contains("gzip: true"),
        "{targets:?}"
    );
    assert!(targets[1].1.contains("agency: \"\"") && targets[1].1.contains("gzip: false"), "{targets:?}");
}

#[tokio::test]
async fn an_import_that_broke_off_goes_on() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    tamdao.file("disk.raw", b"content");
    let pending = Image {
        metadata: metadata("", "debian"),
        status: Some(ImageStatus { phase: ImagePhase::Pending.into(), ..Default::default() }),
        ..Default::default()
    };
    fake.world().images = vec![pending];
    fake.world().refusals.push_back(("", Status::already_exists("an image named \"debian\" exists already")));
    assert_snapshot!(tamdao.story("image import debian --file disk.raw").await, @r#"
    exit code: 0
    ----- stderr -----
    debian: was made before and still waits for its bytes
    debian: sending disk.raw, 7 B
    debian: Available
    "#);
    fake.world().images[0].status.as_mut().unwrap().set_phase(ImagePhase::Available);
    fake.world().refusals.push_back(("", Status::already_exists("an image named \"debian\" exists already")));
    assert_snapshot!(tamdao.story("image import debian --file disk.raw").await, @r#"
    exit code: 1
    ----- stderr -----
    error: an image named "debian" exists already

    hint: take another name, or change what exists with `update`
    hint: remove it first with `tamdao image delete debian`
    "#);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_makes_nothing() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    assert_snapshot!(tamdao.story("image import debian --file missing.qcow2").await, @r#"
    exit code: 2
    ----- stderr -----
    error: cannot read missing.qcow2: No such file or directory (os error 2)
    "#);
    assert!(fake.world().asked.is_empty());
}
