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

/// The document with these tables in the section of the scheduler, each in the place of an older one of its title.
pub fn into_docs(docs: &str, tables: &[Table]) -> String {
    let (before, rest) = docs.split_once(HEADING).unwrap_or((docs, ""));
    let (section, after) = rest.find("\n## ").map_or((rest, ""), |end| (&rest[..end], &rest[end + 1..]));
    let mut parts: Vec<String> = section.split("\n### ").map(|part| part.trim().to_owned()).collect();
    for table in tables {
        let new = table.markdown().trim_start_matches("### ").trim().to_owned();
        let old = parts.iter_mut().skip(1).find(|part| part.lines().next() == Some(table.title.as_str()));
        match old {
            Some(old) => *old = new,
            None => parts.push(new),
        }
    }
    let section: String = parts[1..].iter().map(|part| format!("\n### {part}\n")).collect();
    let intro = if parts[0].is_empty() { String::new() } else { format!("\n{}\n", parts[0]) };
    let after = if after.is_empty() { String::new() } else { format!("\n{after}") };
    format!("{}\n\n{HEADING}\n{intro}{section}{after}", before.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_its_older_self_only() {
        let table = |title: &str, cell: &str| Table {
            title: title.into(),
            text: "Fast.".into(),
            head: vec!["nodes", "rate"],
            rows: vec![vec!["100".into(), cell.into()]],
        };
        let first = into_docs("# All\n\n## Other\n\nkept\n", &[table("Speed", "1"), table("Storm", "7")]);
        let edited = first.replace(HEADING, &format!("{HEADING}\n\nOn two cores."));
        let second = into_docs(&format!("{edited}\n## Last\n\nkept too\n"), &[table("Speed", "2,000")]);
        let begin =
            format!("# All\n\n## Other\n\nkept\n\n{HEADING}\n\nOn two cores.\n\n### Speed\n\nFast.\n");
        assert!(second.starts_with(&begin), "{second}");
        let end = "| 100   | 2,000 |\n\n### Storm\n\nFast.\n\n| nodes | rate |\n|-------|-----:|\n| 100   |    7 |\n\n## Last\n\nkept too\n";
        assert!(second.ends_with(end), "{second}");
    }
}
