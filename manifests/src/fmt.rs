//! `tamdao fmt`: lines are indented by two for each bracket that is open, and the equals signs of attributes on
//! neighbouring lines stand below one another. Comments and the inside of strings and heredocs stay as they are. What is
//! written is read again and must mean the same; nothing else is touched.

use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::{Expression, Object, ObjectKey};
use hcl_edit::structure::Attribute;
use hcl_edit::visit::{self, Visit};

use crate::source::{At, Fault, File};

/// How often a text is formatted until it stays as it is. Twice does for what people write.
const ROUNDS: usize = 4;

/// The text of a file in its normal form, which is its own normal form.
///
/// # Errors
/// When the file cannot be parsed.
pub fn format(file: &File) -> Result<String, Fault> {
    let found = parsed(&file.text).map_err(|(offset, message)| {
        let offset = offset.min(file.text.len());
        Fault::new(At { file: 0, start: offset, end: offset }, message)
    })?;
    let meaning = bare(&file.text, &found);
    let (mut text, mut found) = (file.text.clone(), found);
    for _ in 0..ROUNDS {
        let written = lines(&text, &found);
        if written == text {
            return Ok(text);
        }
        found = match parsed(&written) {
            Ok(again) if bare(&written, &again) == meaning => again,
            // Better ugly than another meaning.
            _ => break,
        };
        text = written;
    }
    Ok(file.text.clone())
}

fn parsed(text: &str) -> Result<Found, (usize, String)> {
    let body = hcl_edit::parser::parse_body(text);
    let body = body.map_err(|error| (error.location().offset(), error.message().to_owned()))?;
    let mut found = Found::default();
    found.visit_body(&body);
    found.texts.sort_by_key(|range| range.start);
    Ok(found)
}

/// A text without the blanks that stand outside of its strings.
fn bare(text: &str, found: &Found) -> String {
    let (mut bare, mut at) = (String::with_capacity(text.len()), 0);
    for range in &found.texts {
        if range.start >= at {
            bare.extend(text[at..range.start].chars().filter(|c| !c.is_whitespace()));
            bare.push_str(&text[range.clone()]);
            at = range.end;
        }
    }
    bare.extend(text[at..].chars().filter(|c| !c.is_whitespace()));
    bare
}

/// What must be known of the text beside its brackets.
#[derive(Default)]
struct Found {
    /// Strings, templates and heredocs.
    texts: Vec<Range<usize>>,
    /// Names and values of attributes.
    pairs: Vec<(Range<usize>, Range<usize>)>,
}

impl Visit for Found {
    fn visit_expr(&mut self, expression: &Expression) {
        match expression {
            Expression::String(_) | Expression::StringTemplate(_) | Expression::HeredocTemplate(_) => {
                self.texts.extend(expression.span());
            }
            _ => visit::visit_expr(self, expression),
        }
    }

    fn visit_attr(&mut self, attribute: &Attribute) {
        self.pairs.extend(attribute.key.span().zip(attribute.value.span()));
        visit::visit_attr(self, attribute);
    }

    fn visit_object(&mut self, object: &Object) {
        for (key, value) in object.iter() {
            if let ObjectKey::Expression(expression) = key {
                self.texts.extend(expression.as_str().and(expression.span()));
            }
            self.pairs.extend(key.span().zip(value.expr().span()));
        }
        visit::visit_object(self, object);
    }

    fn visit_string(&mut self, string: &hcl_edit::Decorated<String>) {
        self.texts.extend(string.span());
    }
}

/// One line of the file.
struct Line<'a> {
    start: usize,
    text: &'a str,
    /// It begins inside a string or heredoc, and stays as it is.
    inside: bool,
    depth: usize,
    /// Where its attribute's name ends and where its value begins, if it has one that ends on this line.
    pair: Option<(usize, usize)>,
}

fn lines(text: &str, found: &Found) -> String {
    let mut lines = measured(text, found);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < lines.len() {
        // A group is what lies on neighbouring lines with attributes at one depth.
        let depth = lines[at].depth;
        let group = lines[at..].iter().take_while(|line| line.pair.is_some() && line.depth == depth).count();
        if group == 0 {
            plain(&lines[at], &mut out);
            at += 1;
            continue;
        }
        let name = |line: &Line<'_>| {
            let (end, _) = line.pair.unwrap_or_default();
            line.text[..end - line.start].trim().to_owned()
        };
        let width = lines[at..at + group].iter().map(|line| name(line).chars().count()).max().unwrap_or(0);
        for line in &mut lines[at..at + group] {
            let (name, (_, value)) = (name(line), line.pair.unwrap_or_default());
            let value = line.text[value - line.start..].trim_end();
            out.push_str(&format!("{:1$}{name:width$} = {value}\n", "", line.depth * 2));
        }
        at += group;
    }
    let ended = out.trim_end_matches('\n').len();
    out.truncate(ended);
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

fn plain(line: &Line<'_>, out: &mut String) {
    if line.inside {
        out.push_str(line.text);
        out.push('\n');
        return;
    }
    let bare = line.text.trim();
    // Two empty lines are one.
    if bare.is_empty() && (out.is_empty() || out.ends_with("\n\n")) {
        return;
    }
    if !bare.is_empty() {
        out.push_str(&" ".repeat(line.depth * 2));
        // What ends in a string that goes on keeps its end.
        out.push_str(line.text.trim_start());
        let kept = out.trim_end_matches([' ', '\t', '\r']).len();
        out.truncate(kept);
    }
    out.push('\n');
}

/// The lines with their depths: brackets are counted outside of strings and comments.
fn measured<'a>(text: &'a str, found: &Found) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    let (mut depth, mut comment, mut start) = (0usize, false, 0);
    let mut texts = found.texts.iter().peekable();
    let mut pairs: Vec<(usize, Range<usize>)> =
        found.pairs.iter().map(|(name, value)| (name.end, value.clone())).collect();
    pairs.sort_by_key(|(end, _)| *end);
    let mut pairs = pairs.into_iter().peekable();
    for whole in text.split_inclusive('\n') {
        let line = whole.trim_end_matches(['\n', '\r']);
        let end = start + line.len();
        while texts.next_if(|range| range.end <= start).is_some() {}
        let inside = comment || texts.peek().is_some_and(|range| range.start < start);
        let mut mine = Vec::new();
        while let Some(pair) = pairs.next_if(|(name_end, _)| *name_end <= end) {
            if pair.0 >= start {
                mine.push(pair);
            }
        }
        let (mut closed_first, mut opened, mut at) = (0, false, start);
        let before = depth;
        while at < end {
            if let Some(range) = texts.peek().filter(|range| range.start <= at) {
                at = range.end;
                if at <= end {
                    texts.next();
                }
                opened = true;
                continue;
            }
            let rest = &text[at..end];
            if comment {
                match rest.find("*/") {
                    Some(found) => {
                        comment = false;
                        at += found + 2;
                    }
                    None => at = end,
                }
                continue;
            }
            if rest.starts_with('#') || rest.starts_with("//") {
                break;
            }
            let c = rest.chars().next().unwrap_or_default();
            match c {
                '/' if rest.starts_with("/*") => comment = true,
                '{' | '[' | '(' => {
                    depth += 1;
                    opened = true;
                }
                '}' | ']' | ')' => {
                    depth = depth.saturating_sub(1);
                    if !opened {
                        closed_first += 1;
                    }
                }
                c if !c.is_whitespace() => opened = true,
                _ => {}
            }
            at += c.len_utf8();
        }
        // Several brackets that open on one line indent once for each that is still open.
        let shown = before.saturating_sub(closed_first);
        let single = mine.len() == 1 && !line.trim_start().starts_with(['{', '[', '}', ']', '/']);
        let pair = mine.first().filter(|(name_end, value)| {
            single && !inside && value.end <= end && text[*name_end..value.start].trim() == "="
        });
        let pair = pair.map(|(name_end, value)| (*name_end, value.start));
        // The name must be all that stands before the sign.
        let pair = pair.filter(|(name_end, _)| !text[start..*name_end].trim().contains(['{', '(', '/', '#']));
        lines.push(Line { start, text: line, inside, depth: shown, pair });
        start += whole.len();
    }
    lines
}
