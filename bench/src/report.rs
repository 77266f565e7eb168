//! What was measured, as tables that are written three ways: to the terminal, into docs/performance.md and as JSON.
//! Deliberately absent: measuring.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// The heading under which the docs hold these tables.
pub const HEADING: &str = "## The scheduler: `cargo xtask bench scheduler [--json FILE]`";

/// One table with what has to be known to read it.
#[derive(Debug, Clone)]
pub struct Table {
    pub title: String,
    pub text: String,
    pub head: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// As Markdown, which reads well on a terminal too.
    pub fn markdown(&self) -> String {
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            cells.chain([self.head[at].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded = cells.zip(&widths).enumerate().map(|(at, (cell, width))| match at {
                0 => format!(" {cell:width$} "),
                _ => format!(" {cell:>width$} "),
            });
            format!("|{}|\n", padded.collect::<Vec<_>>().join("|"))
        };
        let mut text = format!("### {}\n\n{}\n\n", self.title, self.text);
        text.push_str(&line(&mut self.head.iter().copied()));
        let rules: Vec<String> = widths.iter().enumerate().map(|(at, width)| rule(at, *width)).collect();
        let _ = writeln!(text, "|{}|", rules.join("|"));
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
        }
        text
    }

    pub fn json(&self) -> Value {
        let row = |row: &Vec<String>| {
            let cells = self.head.iter().zip(row).map(|(head, cell)| ((*head).to_owned(), json!(cell)));
            Value::Object(cells.collect())
        };
        json!({ "title": self.title, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}

/// Columns of figures stand to the right.
fn rule(at: usize, width: usize) -> String {
    match at {
        0 => "-".repeat(width + 2),
        _ => format!("{}:", "-".repeat(width + 1)),
    }
}

/// A document in which the section of the scheduler holds these tables and nothing else.
pub fn into_docs(docs: &str, tables: &[Table]) -> String {
    let section: Vec<String> = tables.iter().map(Table::markdown).collect();
    let section = format!("{HEADING}\n\n{}", section.join("\n"));
    let Some(begin) = docs.find(HEADING) else { return format!("{}\n\n{section}", docs.trim_end()) };
    let rest = &docs[begin + HEADING.len()..];
    let after = rest.find("\n## ").map_or("", |end| &rest[end + 1..]);
    let gap = if after.is_empty() { "" } else { "\n" };
    format!("{}{section}{gap}{after}", &docs[..begin])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_section_changes() {
        let table = |cell: &str| Table {
            title: "Speed".into(),
            text: "Fast.".into(),
            head: vec!["nodes", "rate"],
            rows: vec![vec!["100".into(), cell.into()]],
        };
        let first = into_docs("# All\n\n## Other\n\nkept\n", &[table("1")]);
        let with_more = format!("{first}\n## Last\n\nkept too\n");
        let second = into_docs(&with_more, &[table("2,000")]);
        assert!(second.starts_with("# All\n\n## Other\n\nkept\n\n## The scheduler"), "{second}");
        assert!(second.ends_with("| 100   | 2,000 |\n\n## Last\n\nkept too\n"), "{second}");
        assert!(!second.contains("| 1 |"), "{second}");
    }
}
