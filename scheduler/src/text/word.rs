//! Lines and words of the text format. A word is KEY or KEY=VALUE; what a key or value could not hold plainly
//! stands in double quotes, with \" and \\ inside. Writing and reading live together here, because they must be
//! inverse.

use std::fmt::{self, Display, Write as _};

use uuid::Uuid;

use super::parse::{ParseError, Problem};

/// A line that is being written.
pub(super) struct Line(String);

impl Line {
    pub(super) fn new(kind: &str) -> Self {
        Self(kind.to_owned())
    }

    /// The id is written only where it is not the one that the reader would give.
    pub(super) fn named(kind: &str, name: &str, id: Uuid, ordinal: Uuid) -> Self {
        let mut line = Self::new(kind);
        line.0.push(' ');
        line.push(name);
        if id != ordinal {
            line.value("id", id);
        }
        line
    }

    pub(super) fn value(&mut self, key: &str, value: impl Display) {
        self.0.push(' ');
        self.push(key);
        self.0.push('=');
        self.push(&value.to_string());
    }

    /// Writes an amount unless it is 0.
    pub(super) fn some(&mut self, key: &str, amount: u64) {
        if amount > 0 {
            self.value(key, amount);
        }
    }

    pub(super) fn flag(&mut self, key: &str, set: bool) {
        if set {
            self.0.push(' ');
            self.push(key);
        }
    }

    fn push(&mut self, text: &str) {
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '\\' | '=' | '#');
        if !text.is_empty() && text.chars().all(plain) {
            self.0.push_str(text);
            return;
        }
        self.0.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                '\n' => self.0.push_str("\\n"),
                '\r' => self.0.push_str("\\r"),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A word that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) line: usize,
    /// In characters, from 1.
    pub(super) column: usize,
    pub(super) key: String,
    pub(super) value: Option<String>,
}

impl Word {
    pub(super) fn error(&self, problem: Problem) -> ParseError {
        ParseError { line: self.line, column: self.column, problem }
    }

    /// The word as it would be written, for messages.
    pub(super) fn show(&self) -> String {
        let mut shown = self.key.clone();
        if let Some(value) = &self.value {
            write!(shown, "={value}").expect("a string takes everything");
        }
        shown
    }
}

/// Cuts one line into words; a # outside quotes begins a comment.
pub(super) fn words(number: usize, line: &str) -> Result<Vec<Word>, ParseError> {
    let mut words: Vec<Word> = Vec::new();
    let mut within = false;
    let mut chars = line.chars().enumerate().map(|(at, c)| (at + 1, c));
    while let Some((column, c)) = chars.next() {
        if c == '#' {
            break;
        }
        if c.is_whitespace() {
            within = false;
            continue;
        }
        if !within {
            words.push(Word { line: number, column, key: String::new(), value: None });
            within = true;
        }
        let Some(word) = words.last_mut() else { break };
        match (c, &mut word.value) {
            ('=', value @ None) => *value = Some(String::new()),
            ('"', value) => quoted(number, column, &mut chars, value.as_mut().unwrap_or(&mut word.key))?,
            (c, Some(value)) => value.push(c),
            (c, None) => word.key.push(c),
        }
    }
    Ok(words)
}

fn quoted(
    line: usize,
    column: usize,
    chars: &mut impl Iterator<Item = (usize, char)>,
    into: &mut String,
) -> Result<(), ParseError> {
    while let Some((_, c)) = chars.next() {
        match c {
            '"' => return Ok(()),
            '\\' => match chars.next() {
                Some((_, 'n')) => into.push('\n'),
                Some((_, 'r')) => into.push('\r'),
                Some((_, c)) => into.push(c),
                None => break,
            },
            c => into.push(c),
        }
    }
    Err(ParseError { line, column, problem: Problem::QuoteOpen })
}
