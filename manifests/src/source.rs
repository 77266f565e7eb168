//! Where things stand in the files, and what is wrong there. A [`Fault`] points at its bytes; [`tell`] draws it as
//! people know it from compilers: file, line, column, the excerpt, what was expected.

use std::ops::Range;

use codespan_reporting::diagnostic::{Diagnostic, Label};
use codespan_reporting::files::SimpleFiles;
use codespan_reporting::term;
use hcl_edit::Span;

use crate::limits;

/// One file of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// As it is shown to people, such as `web/main.tf`.
    pub name: String,
    pub text: String,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct At {
    /// The place of the file in the manifest's list.
    pub file: usize,
    pub start: usize,
    pub end: usize,
}

impl At {
    /// Where a parsed thing stands.
    pub fn of(file: usize, parsed: &impl Span) -> Self {
        let span: Range<usize> = parsed.span().unwrap_or_default();
        Self { file, start: span.start, end: span.end }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// One sentence without a full stop.
    pub message: String,
    pub at: Option<At>,
    /// What stands below the excerpt, such as the closest known name.
    pub hints: Vec<String>,
}

impl Fault {
    pub fn new(at: At, message: impl Into<String>) -> Self {
        Self { message: message.into(), at: Some(at), hints: Vec::new() }
    }

    /// One that stands in no file.
    pub fn nowhere(message: impl Into<String>) -> Self {
        Self { message: message.into(), at: None, hints: Vec::new() }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds the known name that is most like the wrong one, or all of them when they are few.
    pub fn closest<'a>(self, wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let like = known.iter().map(|name| (strsim::damerau_levenshtein(wrong, name), *name)).min();
        match like {
            Some((distance, name)) if distance <= 1 + wrong.chars().count() / 3 => {
                self.hint(format!("did you mean {name:?}?"))
            }
            Some(_) if known.len() <= 30 => self.hint(format!("known are {}", known.join(", "))),
            _ => self,
        }
    }
}

/// Where a fault stands, as FILE:LINE:COLUMN, counted from 1.
pub fn place(files: &[File], at: At) -> String {
    let Some(file) = files.get(at.file) else { return String::new() };
    let before = file.text.get(..at.start).unwrap_or(&file.text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{}:{line}:{column}", file.name)
}

/// The faults as they stand in the files, each once: a block that is counted is read for each of its instances.
pub fn in_order(faults: &[Fault]) -> Vec<Fault> {
    let mut faults = faults.to_vec();
    faults.sort_by(|a, b| (a.at, &a.message).cmp(&(b.at, &b.message)));
    faults.dedup();
    faults
}

/// The faults as text for people, each with its excerpt.
pub fn tell(files: &[File], faults: &[Fault]) -> String {
    let mut known = SimpleFiles::new();
    for file in files {
        known.add(file.name.as_str(), file.text.as_str());
    }
    let config = term::Config::default();
    let mut told = String::new();
    for fault in faults.iter().take(limits::FAULTS) {
        let mut picture = Diagnostic::error().with_message(&fault.message);
        if let Some(at) = fault.at.filter(|at| at.file < files.len()) {
            picture = picture.with_label(Label::primary(at.file, at.start..at.end.max(at.start)));
        }
        picture = picture.with_notes(fault.hints.iter().map(|hint| format!("hint: {hint}")).collect());
        match term::emit_into_string(&config, &known, &picture) {
            Ok(text) => told.push_str(&text),
            // A picture that cannot be drawn must not hide what is wrong.
            Err(_) => told.push_str(&format!("error: {}\n", fault.message)),
        }
    }
    if faults.len() > limits::FAULTS {
        told.push_str(&format!("and {} more\n", faults.len() - limits::FAULTS));
    }
    told
}
