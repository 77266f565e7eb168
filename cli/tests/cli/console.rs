//! The console: through pipes, and on a real terminal that must come back as it was.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use insta::assert_snapshot;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::fake::*;
use crate::run::Tamdao;

#[tokio::test]
async fn pipes_work_and_end_after_silence() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let story = tamdao.story_with_input("vm console web --idle-timeout 500ms", b"uname -a\n").await;
    assert_snapshot!(story, @r#"
    exit code: 0
    ----- stdout -----
    login on web: UNAME -A
    "#);
}

#[tokio::test]
async fn the_other_side_may_close_it() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    assert_snapshot!(tamdao.story_with_input("vm console web --idle-timeout 1h", b"bye").await, @r#"
    exit code: 0
    ----- stdout -----
    login on web: ----- stderr -----
    the console of web was closed from the other side
    "#);
}

#[tokio::test]
async fn the_terminal_is_raw_meanwhile_and_put_back() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let (mut terminal, other) = terminal();
    let before = tcgetattr(&other).unwrap().local_modes;
    assert!(before.contains(LocalModes::ICANON | LocalModes::ECHO));

    let mut command = tamdao.command("vm console web");
    command
        .stdin(other.try_clone().unwrap())
        .stdout(other.try_clone().unwrap())
        .stderr(other.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let typing = tokio::task::spawn_blocking(move || {
        let mut seen = String::new();
        read_until(&mut terminal, &mut seen, "100x30");
        terminal.write_all(b"whoami\r").unwrap();
        read_until(&mut terminal, &mut seen, "WHOAMI");
        terminal.write_all(b"\x1d.").unwrap();
        read_until(&mut terminal, &mut seen, "left the console");
        (terminal, seen)
    });
    let status = child.wait().await.unwrap();
    let (_terminal, seen) = typing.await.unwrap();
    assert!(status.success());
    assert!(seen.contains("login on web: "), "{seen}");
    assert!(!seen.contains("whoami"), "a raw terminal does not echo: {seen}");
    assert_eq!(tcgetattr(&other).unwrap().local_modes, before);
}

#[tokio::test]
async fn a_person_is_joined_again_when_the_controller_goes_away() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let (mut terminal, other) = terminal();
    let mut command = tamdao.command("vm console web");
    command.stdin(other.try_clone().unwrap()).stdout(other.try_clone().unwrap()).stderr(other);
    let mut child = command.spawn().unwrap();
    drop(command);
    let typing = tokio::task::spawn_blocking(move || {
        let mut seen = String::new();
        read_until(&mut terminal, &mut seen, "100x30");
        terminal.write_all(b"die\r").unwrap();
        read_until(&mut terminal, &mut seen, "the controller went away; joining again");
        read_until(&mut terminal, &mut seen, "joined again");
        terminal.write_all(b"whoami\r").unwrap();
        read_until(&mut terminal, &mut seen, "WHOAMI");
        terminal.write_all(b"\x1d.").unwrap();
        read_until(&mut terminal, &mut seen, "left the console");
        terminal
    });
    let _terminal = typing.await.unwrap();
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_pipe_is_not_joined_again() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    assert_snapshot!(tamdao.story_with_input("vm console web --idle-timeout 1h", b"die").await, @r#"
    exit code: 1
    ----- stdout -----
    login on web: ----- stderr -----
    error: web: stopping

    hint: join it again with `tamdao vm console web`, and --force if somebody else has it open
    "#);
}

#[tokio::test]
async fn on_a_terminal_a_removal_is_asked_about() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    for (answer, code) in [("n\n", 1), ("y\n", 0)] {
        fake.world().vms = vec![running("web", "n2")];
        let (mut terminal, other) = terminal();
        let mut command = tamdao.command("vm delete web --no-wait");
        command.stdin(other.try_clone().unwrap()).stdout(other.try_clone().unwrap()).stderr(other);
        let mut child = command.spawn().unwrap();
        drop(command);
        let typing = tokio::task::spawn_blocking(move || {
            let mut seen = String::new();
            read_until(&mut terminal, &mut seen, "delete vm health/web with its disks? [y/N] ");
            terminal.write_all(answer.as_bytes()).unwrap();
            terminal
        });
        let _terminal = typing.await.unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(code));
    }
    let sent: Vec<_> = fake.world().asked.iter().map(|(method, _)| *method).collect();
    assert_eq!(sent, ["delete_vm"]);
}

/// Both ends of a terminal of 100 columns and 30 rows.
fn terminal() -> (std::fs::File, OwnedFd) {
    let controlling = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controlling).unwrap();
    unlockpt(&controlling).unwrap();
    let name = ptsname(&controlling, Vec::new()).unwrap();
    let other = rustix::fs::open(
        name,
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY,
        rustix::fs::Mode::empty(),
    );
    tcsetwinsize(&controlling, Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (std::fs::File::from(controlling), other.unwrap())
}

fn read_until(terminal: &mut std::fs::File, seen: &mut String, text: &str) {
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        let length = terminal.read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}
