//! `cargo xtask tidy`: the rules that the compiler does not know. The table of imports is the architecture: a new
//! edge between crates is made here first, or not at all.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::output::say;
use crate::root;

/// Which crates of ours a crate may import (docs/ARCHITECTURE.md).
const IMPORTS: &[(&str, &[&str])] = &[
    ("tamdao-seams", &[]),
    ("tamdao-proto", &[]),
    ("tamdao-model", &["tamdao-proto", "tamdao-seams"]),
    ("tamdao-scheduler", &["tamdao-model"]),
    ("tamdao-store", &["tamdao-model", "tamdao-proto", "tamdao-seams"]),
    ("tamdao-backup", &["tamdao-model", "tamdao-proto"]),
    (
        "tamdao-controller",
        &[
            "tamdao-backup",
            "tamdao-model",
            "tamdao-proto",
            "tamdao-scheduler",
            "tamdao-seams",
            "tamdao-store",
        ],
    ),
    ("tamdao-keeper", &["tamdao-seams"]),
    ("tamdao-node-agent", &["tamdao-keeper", "tamdao-model", "tamdao-proto", "tamdao-seams"]),
    ("tamdao-manifests", &["tamdao-model", "tamdao-proto"]),
    (
        "tamdao-cli",
        &["tamdao-backup", "tamdao-manifests", "tamdao-model", "tamdao-proto", "tamdao-scheduler"],
    ),
    ("tamdao-bench", &["tamdao-model", "tamdao-scheduler"]),
];

/// Crates that are pure: they compile without any of these, however far away the import.
const PURE: &[&str] = &["tamdao-manifests", "tamdao-model", "tamdao-scheduler"];
const IMPURE: &[&str] = &["tokio", "tonic", "hyper", "reqwest", "rand"];

/// Lines of one file; beyond this a file is two.
const LINES: usize = 600;

/// Words that name nothing.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "manager", "helper", "helpers", "misc"];

/// Checks all rules and lists every breach.
pub fn run() -> Result<()> {
    let mut breaches = imports()?;
    breaches.extend(purity()?);
    breaches.extend(files()?);
    for breach in &breaches {
        say(breach);
    }
    match breaches.len() {
        0 => Ok(()),
        count => bail!("{count} breaches of the project's rules"),
    }
}

fn imports() -> Result<Vec<String>> {
    let metadata = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .context("cargo metadata cannot be started")?;
    let metadata: Value =
        serde_json::from_slice(&metadata.stdout).context("cargo metadata is not readable")?;
    let mut breaches = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let used = package["dependencies"].as_array().into_iter().flatten();
        // Tests may use what they like; what ships may not.
        let used: BTreeSet<&str> =
            used.filter(|d| d["kind"].as_str() != Some("dev")).filter_map(|d| d["name"].as_str()).collect();
        let arms = package["dependencies"].as_array().into_iter().flatten().any(|d| {
            d["name"].as_str() == Some("tamdao-seams")
                && d["kind"].as_str() != Some("dev")
                && d["features"].as_array().is_some_and(|f| !f.is_empty())
        });
        if arms && name != "tamdao-sim" {
            breaches
                .push(format!("{name} asks for deliberate bugs, which only the simulation and tests may"));
        }
        if let Some((_, allowed)) = IMPORTS.iter().find(|(of, _)| *of == name) {
            let ours = used.iter().filter(|used| used.starts_with("tamdao-"));
            breaches.extend(
                ours.filter(|used| !allowed.contains(used))
                    .map(|used| format!("{name} imports {used}, which the table of imports does not allow")),
            );
        }
    }
    Ok(breaches)
}

/// What ships with a pure crate, with the features that it asks for itself.
fn purity() -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    for name in PURE {
        let tree = Command::new("cargo")
            .args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--package", name])
            .current_dir(root())
            .output()
            .context("cargo tree cannot be started")?;
        if !tree.status.success() {
            bail!("cargo tree --package {name}: {}", String::from_utf8_lossy(&tree.stderr));
        }
        let tree = String::from_utf8(tree.stdout)?;
        let reached: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        let impure = IMPURE.iter().filter(|impure| reached.contains(**impure));
        breaches.extend(impure.map(|impure| {
            format!("{name} is pure and must not reach {impure} (cargo tree -p {name} -i {impure})")
        }));
    }
    Ok(breaches)
}

fn files() -> Result<Vec<String>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let mut breaches = Vec::new();
    for path in listed.lines() {
        let Ok(text) = fs::read_to_string(root().join(path)) else { continue };
        if !text.starts_with("//!") {
            breaches.push(format!("{path}: its first line does not say what it is for (//! …)"));
        }
        let lines = text.lines().count();
        if lines > LINES {
            breaches.push(format!("{path}: {lines} lines, {LINES} are allowed"));
        }
        let stem = path.rsplit('/').next().and_then(|file| file.strip_suffix(".rs")).unwrap_or_default();
        if EMPTY_NAMES.contains(&stem) {
            breaches.push(format!("{path}: its name says nothing"));
        }
        let ignored = ["#[", "ignore"].concat();
        if text.lines().any(|line| line.trim_start().starts_with(&ignored)) {
            breaches.push(format!("{path}: a test that does not run is no test"));
        }
    }
    Ok(breaches)
}
