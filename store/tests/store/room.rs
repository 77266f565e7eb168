//! A member on a small real file system, which fills up and is emptied again.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use tamdao_store::contract::within;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::linear::process::{Answer, Ask, Process};

/// A process that keeps a file system of 48 MiB on a folder, which only it and those that join it see.
async fn small_files(folder: &std::path::Path) -> Child {
    let mount = "mount -t tmpfs -o size=48m none \"$0\" && echo mounted && exec cat";
    let mut keeper = Command::new("unshare");
    keeper.args(["--map-root-user", "--mount", "sh", "-c", mount]).arg(folder);
    keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut keeper = keeper.spawn().unwrap();
    let mut said = BufReader::new(keeper.stdout.take().unwrap()).lines();
    assert_eq!(within("a mount", said.next_line()).await.unwrap().as_deref(), Some("mounted"));
    keeper
}

/// Fills what is free, and returns the file that did it.
fn fill(folder: PathBuf) -> PathBuf {
    let path = folder.join("fill");
    let mut file = std::fs::File::create(&path).unwrap();
    let full = loop {
        if let Err(error) = file.write_all(&[1; 4_096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_is_full_stops_and_ends_when_there_is_room() {
    let scratch = tempfile::tempdir().unwrap();
    let keeper = small_files(scratch.path()).await;
    let pid = keeper.id().unwrap();
    let start = || Process::start_with_files(pid, scratch.path(), "a");
    let put = |value: u64| Ask::Put { key: format!("/{value}"), value, guard: None };

    let member = start();
    let founded = member.ask(Ask::Init(Uuid::new_v4()));
    assert_eq!(within("a founding", founded).await, Some(Answer::Done));
    let seen = PathBuf::from(format!("/proc/{pid}/root")).join(scratch.path().strip_prefix("/").unwrap());
    let mut acknowledged = Vec::new();
    let mut filled = None;
    let why = loop {
        let value = acknowledged.len() as u64;
        match within("an answer", member.ask(put(value))).await {
            Some(Answer::Done) => acknowledged.push(value),
            _ => {
                if let Some(Answer::Stopped(Some(why))) = member.ask(Ask::Stopped).await {
                    break why;
                }
            }
        }
        if acknowledged.len() == 5 && filled.is_none() {
            filled = Some(fill(seen.clone()));
        }
    };
    assert!(why.contains("No space left"), "{why}");
    assert_ne!(within("an answer", member.ask(put(1_000_000))).await, Some(Answer::Done));

    std::fs::remove_file(filled.unwrap()).unwrap();
    within("its end", member.gone()).await;
    let member = start();
    for value in acknowledged {
        let found = within("a read", member.ask(Ask::Get { key: format!("/{value}") })).await;
        assert!(
            matches!(found, Some(Answer::Found(Some((number, _)))) if number == value),
            "{value}: {found:?}"
        );
    }
    assert_eq!(within("a write", member.ask(put(2_000_000))).await, Some(Answer::Done));
    drop(keeper);
}
