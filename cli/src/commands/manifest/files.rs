//! The files of a manifest, and the values for its variables. Only regular files below the manifest's own directory are
//! read for `file(...)`, so that a manifest from elsewhere cannot carry a user's other files into the cloud.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tamdao_manifests::{File, Given, limits};

use crate::args::ManifestArgs;
use crate::problem::Problem;

/// What the names of manifests' files end in.
const ENDING: &str = "tf";
/// What variables of the environment begin with.
const VARIABLE: &str = "TAMDAO_VAR_";

/// The files of one directory, by name.
pub fn of(folder: &Path, dir: &str) -> Result<Vec<File>, String> {
    let path = folder.join(dir);
    let shown = path.display();
    let mut files = Vec::new();
    for name in names(&path).map_err(|error| format!("cannot read {shown}: {error}"))? {
        let full = path.join(&name);
        let name = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        files.push(one(&full, name)?);
    }
    if files.is_empty() { Err(format!("there are no *.{ENDING} files in {shown}")) } else { Ok(files) }
}

/// One file, as it is called in faults.
pub fn one(path: &Path, name: String) -> Result<File, String> {
    let wrong = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    if std::fs::metadata(path).map_err(wrong)?.len() > limits::FILE_BYTES as u64 {
        return Err(format!("{} is larger than {} bytes", path.display(), limits::FILE_BYTES));
    }
    Ok(File { name, text: std::fs::read_to_string(path).map_err(wrong)? })
}

/// The directory of a manifest, and its one file if it is in the API's own form.
pub fn of_what(path: &Path) -> (PathBuf, Option<PathBuf>) {
    if !tamdao_manifests::is_document(&path.to_string_lossy()) || path.is_dir() {
        return (path.to_owned(), None);
    }
    (path.parent().unwrap_or(Path::new("")).to_owned(), Some(path.to_owned()))
}

fn names(path: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().extension().is_some_and(|ending| ending == ENDING) && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The files that are meant by paths.
pub fn below(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if path.is_dir() {
            let wrong = |error| Problem::usage(format!("cannot read {}: {error}", path.display()));
            all.extend(names(path).map_err(wrong)?.into_iter().map(|name| path.join(name)));
        } else {
            all.push(path.clone());
        }
    }
    Ok(all)
}

/// A file beside the manifest.
pub fn beside(folder: &Path, path: &str) -> Result<String, String> {
    let wrong = |error: std::io::Error| format!("cannot read {path}: {error}");
    let (root, full) =
        (folder.canonicalize().map_err(wrong)?, folder.join(path).canonicalize().map_err(wrong)?);
    if !full.starts_with(&root) {
        return Err(format!("{path} does not lie below the manifest's directory"));
    }
    let size = std::fs::metadata(&full).map_err(wrong)?.len();
    if size > limits::FILE_BYTES as u64 {
        return Err(format!("{path} is larger than {} bytes", limits::FILE_BYTES));
    }
    std::fs::read_to_string(&full).map_err(wrong)
}

/// The values for variables: of the environment, then of files, then of flags; the last one counts.
pub fn given(args: &ManifestArgs) -> Result<BTreeMap<String, Given>> {
    let mut given = BTreeMap::new();
    for (name, value) in std::env::vars_os() {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
        if let Some(variable) = name.strip_prefix(VARIABLE) {
            let value = Given { value: Err(value.to_owned()), origin: name.to_owned(), must_exist: false };
            given.insert(variable.to_owned(), value);
        }
    }
    for path in &args.var_files {
        let file = File { name: path.display().to_string(), text: crate::given::text(path)? };
        let values = tamdao_manifests::values(&file)
            .map_err(|faults| super::faults_told(std::slice::from_ref(&file), &faults))?;
        for (name, value) in values {
            given.insert(name, Given { value: Ok(value), origin: file.name.clone(), must_exist: true });
        }
    }
    for pair in &args.vars {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Problem::usage(format!("--var {pair}: expected NAME=VALUE")).into());
        };
        let value = Given { value: Err(value.to_owned()), origin: "--var".to_owned(), must_exist: true };
        given.insert(name.to_owned(), value);
    }
    Ok(given)
}
