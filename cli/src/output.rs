//! The sole writer. Data goes to stdout and is all that goes there; narration, questions and errors go to stderr.
//! Everything is readable without colour; colours are added only on a terminal and never with NO_COLOR. Progress bars
//! are not here but in `progress`, which draws on the same stderr.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::args::Format;
use crate::problem::Problem;

/// Where everything is written.
#[derive(Debug, Clone)]
pub struct Output {
    pub format: Format,
    quiet: bool,
    colour_out: bool,
    colour_err: bool,
}

/// What a word says about the state of things, and so its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Busy,
    Bad,
    Faint,
}

/// One field of a table or a card.
#[derive(Debug, Clone)]
pub struct Cell {
    pub text: String,
    pub tone: Tone,
}

impl Cell {
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.to_string(), tone: Tone::Plain }
    }
}

/// Rows under headers.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub headers: Vec<&'static str>,
    pub rows: Vec<Vec<Cell>>,
}

impl Output {
    pub fn new(format: Format, quiet: bool) -> Self {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            format,
            quiet,
            colour_out: colours && io::stdout().is_terminal(),
            colour_err: colours && io::stderr().is_terminal(),
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    pub fn is_wide(&self) -> bool {
        self.format == Format::Wide
    }

    /// True where the data is for programs.
    pub fn is_machine(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// True where the data is the engine's own text.
    pub fn is_text(&self) -> bool {
        self.format == Format::Text
    }

    /// Writes one line of data.
    pub fn line(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    }

    /// Writes bytes of data as they are.
    pub fn raw(&self, bytes: &[u8]) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        Ok(out.flush()?)
    }

    /// Writes a plan; the first sign of a line is its colour.
    pub fn plan(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        for line in text.lines() {
            let tone = match line.trim_start().as_bytes().first() {
                Some(b'+') => Tone::Good,
                Some(b'~') => Tone::Busy,
                Some(b'-') => Tone::Bad,
                Some(b'#') => Tone::Faint,
                _ => Tone::Plain,
            };
            writeln!(out, "{}", paint(line, tone, self.colour_out))?;
        }
        Ok(out.flush()?)
    }

    /// Writes a message of the API as JSON or YAML, its keys sorted so that equal messages look equal.
    pub fn value(&self, message: &impl Serialize) -> Result<()> {
        let value = serde_json::to_value(message).context("the answer cannot be written as JSON")?;
        match self.format {
            Format::Json => self.line(&serde_json::to_string_pretty(&value)?),
            _ => self.raw(yaml(&value)?.as_bytes()),
        }
    }

    /// Writes one message of a stream: a line of JSON, or a YAML document.
    pub fn stream_value(&self, message: &impl Serialize) -> Result<()> {
        let value = serde_json::to_value(message).context("the answer cannot be written as JSON")?;
        match self.format {
            Format::Json => self.line(&serde_json::to_string(&value)?),
            _ => self.raw(format!("---\n{}", yaml(&value)?).as_bytes()),
        }
    }

    /// Writes a table; without rows nothing but a note.
    pub fn table(&self, table: &Table, nothing: &str) -> Result<()> {
        if table.rows.is_empty() {
            self.note(nothing);
            return Ok(());
        }
        self.raw(self.render(table, "").as_bytes())
    }

    /// Writes labelled fields under each other.
    pub fn card(&self, fields: &[(&'static str, Cell)]) -> Result<()> {
        let width = fields.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 1;
        let mut text = String::new();
        for (label, cell) in fields.iter().filter(|(_, cell)| !cell.text.is_empty()) {
            let label = format!("{label}:");
            text.push_str(&format!("{label:width$} {}\n", paint(&cell.text, cell.tone, self.colour_out)));
        }
        self.raw(text.as_bytes())
    }

    /// Writes a titled table below a card; nothing when it has no rows.
    pub fn section(&self, title: &str, table: &Table) -> Result<()> {
        if table.rows.is_empty() {
            return Ok(());
        }
        self.raw(format!("\n{title}\n{}", self.render(table, "  ")).as_bytes())
    }

    /// Writes rows without headers, each as soon as it comes.
    pub fn bare(&self, cells: &[Cell]) -> Result<()> {
        let cells = cells.iter().map(|cell| paint(&cell.text, cell.tone, self.colour_out));
        self.line(&cells.collect::<Vec<_>>().join("  "))
    }

    fn render(&self, table: &Table, indent: &str) -> String {
        let mut drawn = comfy_table::Table::new();
        drawn.load_preset(comfy_table::presets::NOTHING);
        drawn.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
        if self.colour_out {
            drawn.enforce_styling();
        } else {
            drawn.force_no_tty();
        }
        drawn.set_header(
            table
                .headers
                .iter()
                .map(|header| comfy_table::Cell::new(header).fg(comfy_table::Color::DarkGrey)),
        );
        for row in &table.rows {
            drawn.add_row(row.iter().map(|cell| {
                let text = if cell.text.is_empty() { "-" } else { &cell.text };
                let drawn = comfy_table::Cell::new(text.replace('\n', " "));
                match colour(cell.tone) {
                    Some((colour, _)) => drawn.fg(colour),
                    None => drawn,
                }
            }));
        }
        for column in drawn.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in drawn.lines() {
            text.push_str(indent);
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Tells a person something on stderr.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.stderr(text);
        }
    }

    /// Tells a person what is odd, also when quiet.
    pub fn warning(&self, text: &str) {
        self.stderr(&format!("{} {text}", paint("warning:", Tone::Busy, self.colour_err)));
    }

    /// Tells what went wrong: the sentence, the details, then the hints after an empty line.
    pub fn problem(&self, problem: &Problem) {
        let mut text = format!("{} {}", paint("error:", Tone::Bad, self.colour_err), problem.what);
        for detail in &problem.details {
            text.push_str("\n  ");
            text.push_str(&detail.replace('\n', "\n    "));
        }
        if !problem.hints.is_empty() {
            text.push('\n');
        }
        for hint in &problem.hints {
            text.push_str(&format!("\n{} {hint}", paint("hint:", Tone::Good, self.colour_err)));
        }
        self.stderr(&text);
    }

    /// Text of a person's line on stderr, with the colour of a state.
    pub fn toned(&self, text: &str, tone: Tone) -> String {
        paint(text, tone, self.colour_err)
    }

    /// True when there is a person to ask.
    pub fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Asks a question that only "y" or "yes" answers with yes.
    pub fn ask(&self, question: &str) -> Result<bool> {
        let mut err = io::stderr().lock();
        write!(err, "{question} [y/N] ")?;
        err.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    fn stderr(&self, text: &str) {
        // Nobody can be told that stderr does not work.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// The value as YAML.
pub fn yaml(value: &Value) -> Result<String> {
    serde_yaml_ng::to_string(value).context("the answer cannot be written as YAML")
}

fn colour(tone: Tone) -> Option<(comfy_table::Color, u8)> {
    Some(match tone {
        Tone::Plain => return None,
        Tone::Good => (comfy_table::Color::DarkGreen, 32),
        Tone::Busy => (comfy_table::Color::DarkYellow, 33),
        Tone::Bad => (comfy_table::Color::DarkRed, 31),
        Tone::Faint => (comfy_table::Color::DarkGrey, 90),
    })
}

fn paint(text: &str, tone: Tone, colours: bool) -> String {
    match colour(tone) {
        Some((_, code)) if colours => format!("\x1b[{code}m{text}\x1b[0m"),
        _ => text.to_owned(),
    }
}
