//! `cargo xtask upgrade`: builds the programs of the newest release (docs/releases.md) and upgrades clouds from them to
//! this version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::ci::{HOOKS, command, install_nextest, nextest};
use crate::output::say;
use crate::root;

const PROGRAMS: [&str; 3] = ["tamdao-controller", "tamdao-node-agent", "tamdao-cli"];

/// Builds both versions, then runs the tests of upgrades.
pub fn run() -> Result<()> {
    let released = build()?;
    command("cargo", &["build", "--workspace", "--bins", "--features", HOOKS])?;
    install_nextest()?;
    nextest(
        &["--workspace", "--profile", "upgrade", "--features", HOOKS],
        &[("TAMDAO_TEST_RELEASED_DIR", path(&released)?)],
    )
}

/// The directory with the release's programs.
fn build() -> Result<PathBuf> {
    let releases = std::fs::read_to_string(root().join("docs/releases.md")).context("docs/releases.md")?;
    let (version, commit) = newest(&releases).context("docs/releases.md lists no release")?;
    let home = root().join("target/released").join(version);
    let (source, built) = (home.join("source"), home.join("target"));
    if !source.join("Cargo.toml").is_file() {
        say(&format!("unpacking {version}, which is {commit}"));
        unpack(commit, &source)?;
    }
    let manifest = source.join("Cargo.toml");
    let mut build =
        vec!["build", "--quiet", "--manifest-path", path(&manifest)?, "--target-dir", path(&built)?];
    build.extend(PROGRAMS.iter().flat_map(|package| ["-p", package]));
    say(&format!("building {version}"));
    command("cargo", &build)?;
    Ok(built.join("debug"))
}

/// Version and commit in the last row of the table of releases.
fn newest(releases: &str) -> Option<(&str, &str)> {
    releases.lines().rev().find_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let (version, commit) = (cells.next()?, cells.nth(1)?);
        let is = |text: &str, what: fn(char) -> bool| !text.is_empty() && text.chars().all(what);
        let found = is(version, |c| c.is_ascii_digit() || c == '.') && is(commit, |c| c.is_ascii_hexdigit());
        found.then_some((version, commit))
    })
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no plain path", path.display()))
}

/// The tree of a commit, without its history.
fn unpack(commit: &str, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    let mut archive = Command::new("git");
    archive.args(["archive", commit]).current_dir(root()).stdout(Stdio::piped());
    let mut archive = archive.spawn().context("git cannot be started")?;
    let tar = Command::new("tar")
        .args(["-x", "-C", path(to)?])
        .stdin(archive.stdout.take().context("what git writes")?)
        .status();
    let (archived, unpacked) = (archive.wait()?, tar.context("tar cannot be started")?);
    if !archived.success() || !unpacked.success() {
        std::fs::remove_dir_all(to)?;
        bail!("commit {commit} cannot be unpacked: fetch the whole history (git fetch --unshallow)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_newest_release_is_the_last_row() {
        let table = "| version | date | commit |\n|---|---|---|\n| 0.1.0 | d | 5e42 | 1 |\n| 0.2.0 | d | 77ab | 1 |\n\nFor 0.1.0";
        assert_eq!(super::newest(table), Some(("0.2.0", "77ab")));
        assert_eq!(super::newest("| version | date | commit |\n|---|---|---|\n"), None);
    }
}
