//! Scenes: a fixture each, with the decision beneath it.

use super::fixture::{Node, show};

/// Runs every scene of a text (separated by `== title` lines) and puts the decision under each.
fn play(text: &str) -> String {
    let mut out = String::new();
    for scene in text.split("== ").filter(|scene| !scene.trim().is_empty()) {
        let (title, body) = scene.split_once('\n').unwrap();
        let body: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let decision = Node::parse(&body.join("\n")).decide();
        out += &format!("== {title}\n{}\n=>\n{}\n\n", body.join("\n"), show(&decision));
    }
    out
}

#[test]
fn creating() {
    insta::assert_snapshot!(play(include_str!("creating.txt")));
}

#[test]
fn start_rule() {
    insta::assert_snapshot!(play(include_str!("start_rule.txt")));
}

#[test]
fn keeper() {
    insta::assert_snapshot!(play(include_str!("keeper.txt")));
}

#[test]
fn stopping() {
    insta::assert_snapshot!(play(include_str!("stopping.txt")));
}

#[test]
fn run_policy() {
    insta::assert_snapshot!(play(include_str!("run_policy.txt")));
}

#[test]
fn pauses() {
    insta::assert_snapshot!(play(include_str!("pauses.txt")));
}

#[test]
fn actions() {
    insta::assert_snapshot!(play(include_str!("actions.txt")));
}

#[test]
fn moves() {
    insta::assert_snapshot!(play(include_str!("moves.txt")));
}

#[test]
fn volumes() {
    insta::assert_snapshot!(play(include_str!("volumes.txt")));
}
