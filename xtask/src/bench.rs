//! `cargo xtask bench`: figures for docs/performance.md. What is measured is built for release, and shares this machine
//! with what measures it.

use std::path::PathBuf;

use anyhow::Result;

use crate::ci::command;
use crate::root;

/// Measures the API.
pub fn api(json: Option<PathBuf>) -> Result<()> {
    run("bench-api", json)
}

/// Measures how long a VM takes from its accept to its guest's start.
pub fn start(json: Option<PathBuf>) -> Result<()> {
    run("bench-start", json)
}

/// Measures what maintenance and losses of nodes cost.
pub fn availability(json: Option<PathBuf>, only: &[String], lease_ms: u64) -> Result<()> {
    let lease_ms = lease_ms.to_string();
    let cases = only.iter().flat_map(|case| ["--only", case]);
    let more: Vec<&str> = ["--lease-ms", &lease_ms].into_iter().chain(cases).collect();
    run_with("bench-availability", json, &more)
}

/// Measures plans and applies of manifests.
pub fn manifests(json: Option<PathBuf>) -> Result<()> {
    run("bench-manifests", json)
}

/// Builds what is measured and what measures, and runs the latter.
fn run(bench: &str, json: Option<PathBuf>) -> Result<()> {
    run_with(bench, json, &[])
}

fn run_with(bench: &str, json: Option<PathBuf>, more: &[&str]) -> Result<()> {
    let packages = ["tamdao-controller", "tamdao-node-agent", "tamdao-keeper", "tamdao-cli", "tamdao-tests"];
    let mut build = vec!["build", "--release", "--bins"];
    build.extend(packages.iter().flat_map(|package| ["-p", package]));
    command("cargo", &build)?;
    let program = root().join("target/release").join(bench);
    let file = json.map(std::path::absolute).transpose()?;
    let mut arguments = more.to_vec();
    if let Some(file) = &file {
        arguments.extend(["--json", file.to_str().unwrap_or_default()]);
    }
    command(program.to_str().unwrap_or_default(), &arguments)
}

/// Measures the scheduler, and writes what it found into docs/performance.md.
pub fn scheduler(json: Option<PathBuf>, only: &[String], rebalance_seconds: u64) -> Result<()> {
    command("cargo", &["build", "--release", "-p", "tamdao-bench", "--bins"])?;
    let program = root().join("target/release/bench-scheduler");
    let mut arguments = vec!["--rebalance-seconds".to_owned(), rebalance_seconds.to_string()];
    if let Some(file) = json.map(std::path::absolute).transpose()? {
        arguments.extend(["--json".into(), file.to_string_lossy().into_owned()]);
    }
    let docs = root().join("docs/performance.md");
    arguments.extend(["--docs".into(), docs.to_string_lossy().into_owned()]);
    for case in only {
        arguments.extend(["--only".into(), case.clone()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    command(program.to_str().unwrap_or_default(), &arguments)
}
