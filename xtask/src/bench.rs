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
