//! Where the programs under test are: beside the test itself, in the directory that cargo builds into. They are not
//! built here, because cargo would wait for itself; a missing one fails the test with the command that builds it.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::Result;

/// Builds all programs as the tests want them.
const BUILD: &str = "cargo build --workspace --bins --features tamdao-node-agent/test-hooks";

/// Where the programs of the release before this version are, which `cargo xtask upgrade` builds.
const RELEASED: &str = "TAMDAO_TEST_RELEASED_DIR";

/// The version whose programs are started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Version {
    /// What is under test.
    #[default]
    Present,
    /// The newest release before it (docs/releases.md).
    Released,
}

impl Version {
    /// The program of this name.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn find(self, name: &str) -> Result<PathBuf> {
        if self == Self::Present {
            return find(name);
        }
        let directory = std::env::var_os(RELEASED)
            .with_context(|| format!("{RELEASED} is not set; run: cargo xtask upgrade"))?;
        let program = Path::new(&directory).join(name);
        if !program.is_file() {
            bail!("{} is not there; run: cargo xtask upgrade", program.display());
        }
        Ok(program)
    }
}

/// The program of this name.
///
/// # Errors
/// When it has not been built.
pub fn find(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("TAMDAO_TEST_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let test = std::env::current_exe().context("where this test is")?;
            // target/debug/deps/scenarios-0123456789abcdef, or target/release/bench-api
            let beside = test.parent().context("this test lies in no directory of cargo's")?;
            let profile = if beside.ends_with("deps") { beside.parent() } else { Some(beside) };
            profile.context("this test lies in no directory of cargo's")?.to_owned()
        }
    };
    let program = directory.join(name);
    if !program.is_file() {
        bail!("{} has not been built; run: {BUILD}", program.display());
    }
    Ok(program)
}

/// The directory `deploy` of the repository.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}
