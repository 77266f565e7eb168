//! `cargo xtask bench`: figures for docs/performance.md. What is measured is built for release, and shares this machine
//! with what measures it.

use std::path::PathBuf;

use anyhow::Result;

use crate::ci::command;
use crate::root;

/// Measures the API.
pub fn api(json: Option<PathBuf>) -> Result<()> {
    command(
        "cargo",
        &[
            "build",
            "--release",
            "-p",
            "tamdao-controller",
            "-p",
            "tamdao-cli",
            "-p",
            "tamdao-tests",
            "--bins",
        ],
    )?;
    let program = root().join("target/release/bench-api");
    let file = json.map(std::path::absolute).transpose()?;
    let mut arguments = Vec::new();
    if let Some(file) = &file {
        arguments.extend(["--json", file.to_str().unwrap_or_default()]);
    }
    command(program.to_str().unwrap_or_default(), &arguments)
}

/// Measures the scheduler, and writes what it found into docs/performance.md.
pub fn scheduler(json: Option<PathBuf>, only: &[String]) -> Result<()> {
    command("cargo", &["build", "--release", "-p", "tamdao-bench", "--bins"])?;
    let program = root().join("target/release/bench-scheduler");
    let mut arguments: Vec<String> = Vec::new();
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
