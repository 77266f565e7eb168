//! A small XML tree: enough to write a domain and to read what libvirt answers.
//!
//! Invariant: whatever text goes in comes out as text, never as markup, and the result is well-formed: characters
//! that XML cannot carry at all are replaced. Deliberately absent: mixed content, processing instructions and
//! namespaces beyond the prefixed name, which libvirt's documents do not need.

use quick_xml::Reader;
use quick_xml::events::Event;

/// How deep a document may nest; libvirt's own nest less than ten.
const MAX_DEPTH: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    #[error("the document is not well-formed: {0}")]
    Malformed(String),
    #[error("the document has no {0}")]
    Missing(String),
}

/// An element: attributes and children in order; an element has children or text, not both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Element {
    pub name: String,
    pub attributes: Vec<(String, String)>,
    pub children: Vec<Element>,
    pub text: String,
}

/// An element of this name, to be filled by chained calls.
pub fn element(name: &str) -> Element {
    Element { name: name.to_owned(), ..Element::default() }
}

impl Element {
    pub fn with(mut self, attribute: &str, value: impl ToString) -> Self {
        self.attributes.push((attribute.to_owned(), value.to_string()));
        self
    }

    pub fn text(mut self, text: impl ToString) -> Self {
        self.text = text.to_string();
        self
    }

    pub fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    pub fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    /// The first element at a path of child names, such as `devices/console/target`.
    pub fn find(&self, path: &str) -> Option<&Element> {
        path.split('/').try_fold(self, |at, name| at.children.iter().find(|child| child.name == name))
    }

    /// All elements at a path: every branch of it is followed.
    pub fn all(&self, path: &str) -> Vec<&Element> {
        path.split('/').fold(vec![self], |at, name| {
            at.into_iter().flat_map(|e| e.children.iter()).filter(|child| child.name == name).collect()
        })
    }

    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The document, indented by two blanks.
    pub fn print(&self) -> String {
        let mut out = String::new();
        self.print_at(&mut out, 0);
        out
    }

    fn print_at(&self, out: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        out.push_str(&indent);
        out.push('<');
        out.push_str(&self.name);
        for (name, value) in &self.attributes {
            out.push(' ');
            out.push_str(name);
            out.push_str("='");
            escape(value, out);
            out.push('\'');
        }
        if self.children.is_empty() && self.text.is_empty() {
            out.push_str("/>\n");
            return;
        }
        out.push('>');
        if self.children.is_empty() {
            escape(&self.text, out);
        } else {
            out.push('\n');
            for child in &self.children {
                child.print_at(out, depth + 1);
            }
            out.push_str(&indent);
        }
        out.push_str("</");
        out.push_str(&self.name);
        out.push_str(">\n");
    }

    /// Reads a document.
    pub fn parse(document: &str) -> Result<Element, XmlError> {
        let malformed = |error: &dyn std::fmt::Display| XmlError::Malformed(error.to_string());
        let mut reader = Reader::from_str(document);
        // The bottom of the stack is a nameless parent of the root.
        let mut open = vec![Element::default()];
        loop {
            match reader.read_event().map_err(|error| malformed(&error))? {
                Event::Start(start) => {
                    if open.len() > MAX_DEPTH {
                        return Err(malformed(&"nested too deep"));
                    }
                    open.push(opened(&start)?);
                }
                Event::Empty(start) => {
                    let child = opened(&start)?;
                    parent(&mut open)?.children.push(child);
                }
                Event::End(_) => {
                    let child = open.pop().ok_or_else(|| malformed(&"an end too many"))?;
                    parent(&mut open)?.children.push(child);
                }
                Event::Text(text) => {
                    parent(&mut open)?.text.push_str(&text.decode().map_err(|error| malformed(&error))?)
                }
                Event::CData(text) => {
                    parent(&mut open)?.text.push_str(&text.decode().map_err(|error| malformed(&error))?)
                }
                Event::GeneralRef(name) => {
                    let character = match name.resolve_char_ref().map_err(|error| malformed(&error))? {
                        Some(character) => character.to_string(),
                        None => {
                            let name = name.decode().map_err(|error| malformed(&error))?;
                            quick_xml::escape::resolve_predefined_entity(&name)
                                .ok_or_else(|| malformed(&"an unknown entity"))?
                                .to_owned()
                        }
                    };
                    parent(&mut open)?.text.push_str(&character);
                }
                Event::Eof => break,
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
        match (open.pop(), open.is_empty()) {
            (Some(mut bottom), true) if bottom.children.len() == 1 => Ok(bottom.children.remove(0)),
            _ => Err(malformed(&"not one closed element")),
        }
    }
}

fn parent(open: &mut [Element]) -> Result<&mut Element, XmlError> {
    open.last_mut().ok_or_else(|| XmlError::Malformed("an end too many".to_owned()))
}

fn opened(start: &quick_xml::events::BytesStart<'_>) -> Result<Element, XmlError> {
    let malformed = |error: &dyn std::fmt::Display| XmlError::Malformed(error.to_string());
    let mut element = element(&String::from_utf8_lossy(start.name().as_ref()));
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| malformed(&error))?;
        let value = attribute.unescape_value().map_err(|error| malformed(&error))?;
        element = element.with(&String::from_utf8_lossy(attribute.key.as_ref()), value);
    }
    Ok(element)
}

/// Line breaks and tabs are written as references, because a parser would turn them into blanks in attributes.
fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\t' => out.push_str("&#9;"),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let tree = element("a")
            .with("quote", "it's \"<&>\"\n\ttwo lines")
            .child(element("b").text("x < y && z > 'q'\r\n"))
            .children([element("c").with("n", 1), element("c").with("n", 2)]);
        let read = Element::parse(&tree.print()).unwrap();
        assert_eq!(read.attribute("quote"), Some("it's \"<&>\"\n\ttwo lines"));
        assert_eq!(read.find("b").unwrap().text, "x < y && z > 'q'\r\n");
        assert_eq!(read.all("c").len(), 2);
    }

    #[test]
    fn text_never_becomes_markup() {
        let printed = element("title").text("</title><devices><disk/></devices>\u{0}\u{1b}[31m").print();
        let read = Element::parse(&printed).unwrap();
        assert!(read.children.is_empty());
        assert_eq!(read.text, "</title><devices><disk/></devices>\u{fffd}\u{fffd}[31m");
    }

    #[test]
    fn bad_documents_are_errors() {
        for document in ["", "<a>", "<a></b>", "<a/><b/>", "<a>&x;</a>", "plain", "</a>"] {
            assert!(Element::parse(document).is_err(), "{document}");
        }
        assert!(Element::parse(&"<a>".repeat(1000)).is_err());
    }
}
