//! What was measured, line by line: told to whoever watches, and kept for the file.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tamdao_tests::figures::{at, ms, say};

/// All rows of one run.
#[derive(Default)]
pub struct Report {
    rows: Vec<Value>,
}

impl Report {
    pub fn row(&mut self, name: &str, value: f64, unit: &str) {
        let digits = if unit == "x" { 3 } else { 1 };
        say(&format!("{name:<84} {value:>8.digits$} {unit}"));
        self.rows.push(json!({ "name": name, "value": value, "unit": unit }));
    }

    pub fn seconds(&mut self, name: &str, value: Duration) {
        self.row(name, value.as_secs_f64(), "s");
    }

    /// The median and the worst, in seconds.
    pub fn spread_s(&mut self, name: &str, mut took: Vec<Duration>) {
        took.sort_unstable();
        self.seconds(&format!("{name}, median of {}", took.len()), at(&took, 0.5));
        self.seconds(&format!("{name}, worst"), at(&took, 1.0));
    }

    /// The same in milliseconds.
    pub fn spread_ms(&mut self, name: &str, mut took: Vec<Duration>) {
        took.sort_unstable();
        self.row(&format!("{name}, median of {}", took.len()), ms(at(&took, 0.5)), "ms");
        self.row(&format!("{name}, worst"), ms(at(&took, 1.0)), "ms");
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let report = json!({ "bench": "availability", "rows": self.rows });
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| file.display().to_string())
    }
}
