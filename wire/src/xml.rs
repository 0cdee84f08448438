//! XML as UPnP needs it: a whole document read into a flat list of elements, and text made safe for output.
//!
//! Reading is strict about well-formedness and refuses what no control point has use for: document type
//! declarations, processing instructions, entities of its own, more than [`MAX_DEPTH`] levels. It is liberal
//! about namespaces: an undeclared prefix is no error. Nothing here recurses over the depth of the input,
//! and nothing is handed out before the whole document has been checked.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::codec::Malformed;

/// How deep elements may be nested.
pub const MAX_DEPTH: usize = 16;
/// How many attributes one element may have, namespace declarations included.
pub const MAX_ATTRIBUTES: usize = 32;
/// How many namespace declarations may be in force at once.
const MAX_BINDINGS: usize = 64;

/// A well-formed document, its elements in document order.
#[derive(Clone, Debug)]
pub struct Document<'a> {
    nodes: Vec<Node<'a>>,
    namespaces: Vec<Cow<'a, str>>,
}

#[derive(Clone, Debug)]
struct Node<'a> {
    name: &'a str,
    /// Index into `Document::namespaces`.
    namespace: Option<usize>,
    /// The character data directly inside, in one piece.
    text: Cow<'a, str>,
    /// The index after the last descendant.
    end: usize,
}

/// One element of a [`Document`].
#[derive(Clone, Copy, Debug)]
pub struct Element<'d, 'a> {
    document: &'d Document<'a>,
    index: usize,
}

impl<'a> Document<'a> {
    /// Reads UTF-8, with or without byte order mark and XML declaration. The encoding that a declaration
    /// names is not believed: some control points write `utf-16` and send UTF-8.
    ///
    /// # Errors
    /// The document is not well-formed, uses a construct refused here, or has more than `max_elements`.
    pub fn parse(bytes: &'a [u8], max_elements: usize) -> Result<Self, Malformed> {
        let text = str::from_utf8(bytes).map_err(|_| Malformed)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_start_matches(is_blank);
        if !is_text(text) {
            return Err(Malformed);
        }
        let mut parser = Parser {
            document: Self { nodes: Vec::new(), namespaces: Vec::new() },
            open: Vec::new(),
            bindings: Vec::new(),
            max_elements,
        };
        let mut reader = Reader::from_str(text);
        reader.config_mut().enable_all_checks(true);
        let mut first = true;
        loop {
            match reader.read_event().map_err(|_| Malformed)? {
                Event::Decl(declaration) if first => {
                    declaration.version().map_err(|_| Malformed)?;
                }
                Event::Decl(_) | Event::DocType(_) | Event::PI(_) => return Err(Malformed),
                Event::Start(start) => parser.start(tag(text, &reader, &start, ">")?)?,
                Event::Empty(start) => {
                    parser.start(tag(text, &reader, &start, "/>")?)?;
                    parser.end()?;
                }
                Event::End(_) => parser.end()?,
                Event::Text(content) => {
                    if content.contains("]]>") {
                        return Err(Malformed);
                    }
                    let content = content.xml10_content();
                    if parser.open.is_empty() {
                        if !content.chars().all(is_blank) {
                            return Err(Malformed);
                        }
                    } else {
                        parser.append(content)?;
                    }
                }
                Event::CData(content) => parser.append(content.xml10_content())?,
                Event::GeneralRef(reference) => {
                    let character = resolve(&reference).ok_or(Malformed)?;
                    parser.append(Cow::Owned(character.to_string()))?;
                }
                Event::Comment(_) => {}
                Event::Eof => break,
            }
            first = false;
        }
        if parser.open.is_empty() && !parser.document.nodes.is_empty() {
            Ok(parser.document)
        } else {
            Err(Malformed)
        }
    }

    /// The root element.
    #[must_use]
    pub fn root(&self) -> Element<'_, 'a> {
        Element { document: self, index: 0 }
    }
}

/// What stands between the brackets of the tag that was read last, out of the input itself: the event lends
/// it for its own, shorter life.
fn tag<'a>(
    text: &'a str,
    reader: &Reader<&[u8]>,
    start: &BytesStart<'_>,
    close: &str,
) -> Result<&'a str, Malformed> {
    let position = usize::try_from(reader.buffer_position()).map_err(|_| Malformed)?;
    let end = position.checked_sub(close.len()).ok_or(Malformed)?;
    let begin = end.checked_sub(start.len()).ok_or(Malformed)?;
    text.get(begin..end).filter(|slice| **slice == **start).ok_or(Malformed)
}

struct Parser<'a> {
    document: Document<'a>,
    /// Indices of the elements not closed yet, outermost first.
    open: Vec<usize>,
    /// Namespace declarations in force: depth, prefix ("" for the default), index of the name.
    bindings: Vec<(usize, &'a str, usize)>,
    max_elements: usize,
}

impl<'a> Parser<'a> {
    /// `tag` is `name attribute="value" …`.
    fn start(&mut self, tag: &'a str) -> Result<(), Malformed> {
        let nodes = &self.document.nodes;
        let second_root = self.open.is_empty() && !nodes.is_empty();
        if second_root || nodes.len() >= self.max_elements || self.open.len() >= MAX_DEPTH {
            return Err(Malformed);
        }
        let (qualified, attributes) = tag.split_at(tag.find(is_blank).unwrap_or(tag.len()));
        if !is_name(qualified) {
            return Err(Malformed);
        }
        self.declarations(attributes)?;
        let (prefix, name) = qualified.split_once(':').unwrap_or(("", qualified));
        // Namespaces in XML, §4: what is behind the prefix is a name of its own.
        if !is_name(name) || name.contains(':') {
            return Err(Malformed);
        }
        let namespace =
            self.bindings.iter().rev().find(|binding| binding.1 == prefix).map(|binding| binding.2);
        let index = self.document.nodes.len();
        self.open.push(index);
        self.document.nodes.push(Node { name, namespace, text: Cow::Borrowed(""), end: index + 1 });
        Ok(())
    }

    /// Checks all attributes and keeps the namespace declarations; UPnP has no other attribute we need.
    fn declarations(&mut self, mut rest: &'a str) -> Result<(), Malformed> {
        let mut names: Vec<&str> = Vec::new();
        loop {
            let trimmed = rest.trim_start_matches(is_blank);
            if trimmed.is_empty() {
                return Ok(());
            }
            if trimmed.len() == rest.len() || names.len() >= MAX_ATTRIBUTES {
                return Err(Malformed); // no blank before this attribute
            }
            let (name, after) = trimmed.split_once('=').ok_or(Malformed)?;
            let name = name.trim_end_matches(is_blank);
            let after = after.trim_start_matches(is_blank);
            let quote = after.chars().next().filter(|quote| matches!(quote, '"' | '\'')).ok_or(Malformed)?;
            let (value, after) = after[1..].split_once(quote).ok_or(Malformed)?;
            if !is_name(name) || names.contains(&name) {
                return Err(Malformed);
            }
            let value = unescape(value)?;
            names.push(name);
            rest = after;
            let declared = if name == "xmlns" { Some("") } else { name.strip_prefix("xmlns:") };
            if let Some(prefix) = declared {
                if self.bindings.len() >= MAX_BINDINGS {
                    return Err(Malformed);
                }
                let namespaces = &mut self.document.namespaces;
                // The few names of a document repeat; an adversary's many do not make this list long either.
                let known = namespaces.iter().rev().take(MAX_BINDINGS).position(|known| *known == value);
                let index = known.map_or(namespaces.len(), |back| namespaces.len() - 1 - back);
                if known.is_none() {
                    namespaces.push(value);
                }
                self.bindings.push((self.open.len(), prefix, index));
            }
        }
    }

    fn end(&mut self) -> Result<(), Malformed> {
        let index = self.open.pop().ok_or(Malformed)?;
        self.document.nodes[index].end = self.document.nodes.len();
        let depth = self.open.len();
        self.bindings.retain(|binding| binding.0 < depth);
        Ok(())
    }

    fn append(&mut self, content: Cow<'a, str>) -> Result<(), Malformed> {
        let index = *self.open.last().ok_or(Malformed)?;
        let text = &mut self.document.nodes[index].text;
        if text.is_empty() {
            *text = content;
        } else {
            text.to_mut().push_str(&content);
        }
        Ok(())
    }
}

impl<'d, 'a> Element<'d, 'a> {
    fn node(&self) -> &'d Node<'a> {
        &self.document.nodes[self.index]
    }

    /// The name without its prefix.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.node().name
    }

    /// The namespace of the name; `None` also where the prefix is not declared.
    #[must_use]
    pub fn namespace(&self) -> Option<&'d str> {
        self.node().namespace.map(|index| &*self.document.namespaces[index])
    }

    /// The character data directly inside, references resolved, blanks kept.
    #[must_use]
    pub fn text(&self) -> &'d str {
        &self.node().text
    }

    /// The elements directly inside, in document order.
    pub fn children(&self) -> impl Iterator<Item = Element<'d, 'a>> + use<'d, 'a> {
        let (document, end) = (self.document, self.node().end);
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            let child = (index < end).then_some(Element { document, index })?;
            index = child.node().end;
            Some(child)
        })
    }

    /// The first element of that name directly inside.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<Element<'d, 'a>> {
        self.children().find(|child| child.name() == name)
    }

    /// All elements inside, at any depth, in document order.
    pub fn descendants(&self) -> impl Iterator<Item = Element<'d, 'a>> + use<'d, 'a> {
        let document = self.document;
        (self.index + 1..self.node().end).map(move |index| Element { document, index })
    }

    /// The trimmed text of the first element of that name directly inside; "" without one.
    #[must_use]
    pub fn child_text(&self, name: &str) -> &'d str {
        self.child(name).map_or("", |child| child.text().trim())
    }
}

/// Appends `text` as character data or attribute value. Characters that XML has no way to write become
/// spaces; a carriage return is written as a reference, or reading would turn it into a line feed.
pub fn escape_into(out: &mut String, text: &str) {
    let is_special =
        |character: char| matches!(character, '&' | '<' | '>' | '"' | '\'' | '\r') || !is_xml_char(character);
    let mut rest = text;
    while let Some(at) = rest.find(is_special) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let mut characters = special.chars();
        out.push_str(match characters.next() {
            Some('&') => "&amp;",
            Some('<') => "&lt;",
            Some('>') => "&gt;",
            Some('"') => "&quot;",
            Some('\'') => "&apos;",
            Some('\r') => "&#13;",
            _ => " ",
        });
        rest = characters.as_str();
    }
    out.push_str(rest);
}

/// `text` as [`escape_into`] writes it.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    escape_into(&mut out, text);
    out
}

/// Appends `<name>text</name>`, the text escaped.
pub(crate) fn element_into(out: &mut String, name: &str, text: &str) {
    out.push('<');
    out.push_str(name);
    out.push('>');
    escape_into(out, text);
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

/// Appends `text` as a CDATA section; a `]]>` in it is divided between two sections.
pub(crate) fn cdata_into(out: &mut String, text: &str) {
    out.push_str("<![CDATA[");
    let safe: String = text.chars().map(|c| if is_xml_char(c) { c } else { ' ' }).collect();
    out.push_str(&safe.replace("]]>", "]]]]><![CDATA[>"));
    out.push_str("]]>");
}

/// An attribute value with its references resolved.
fn unescape(value: &str) -> Result<Cow<'_, str>, Malformed> {
    if value.contains('<') {
        return Err(Malformed);
    }
    if !value.contains('&') {
        return Ok(Cow::Borrowed(value));
    }
    let mut out = String::with_capacity(value.len());
    let mut parts = value.split('&');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (reference, text) = part.split_once(';').ok_or(Malformed)?;
        out.push(resolve(reference).ok_or(Malformed)?);
        out.push_str(text);
    }
    Ok(Cow::Owned(out))
}

/// What `&reference;` stands for: the five names and numbers of characters that XML allows.
fn resolve(reference: &str) -> Option<char> {
    let number = match reference {
        "amp" => return Some('&'),
        "lt" => return Some('<'),
        "gt" => return Some('>'),
        "quot" => return Some('"'),
        "apos" => return Some('\''),
        _ => reference.strip_prefix('#')?,
    };
    let (digits, radix) = number.strip_prefix('x').map_or((number, 10), |hex| (hex, 16));
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None; // `from_str_radix` would take a sign
    }
    let code = u32::from_str_radix(digits, radix).ok()?;
    char::from_u32(code).filter(|character| is_xml_char(*character))
}

/// White space of XML 1.0.
fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

/// The `Char` production of XML 1.0.
fn is_xml_char(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Whether XML has a way to write all of it. Most is ASCII, which is seen octet by octet.
fn is_text(text: &str) -> bool {
    let plain = |octet: u8| matches!(octet, b' '..=0x7f | b'\t' | b'\n' | b'\r');
    text.bytes().all(plain) || text.chars().all(is_xml_char)
}

/// A name as UPnP documents have them. Beyond ASCII every letter is taken; that is more than XML 1.0 allows,
/// and harmless because such a name is never one of ours.
fn is_name(name: &str) -> bool {
    let starts = |octet: &u8| octet.is_ascii_alphabetic() || matches!(octet, b'_' | b':');
    let goes_on = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b':' | b'-' | b'.');
    if name.is_ascii() {
        return name.as_bytes().first().is_some_and(starts) && name.as_bytes().iter().all(goes_on);
    }
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_alphabetic() || matches!(first, '_' | ':'))
        && characters
            .all(|other| other.is_alphanumeric() || matches!(other, '_' | ':' | '-' | '.' | '\u{b7}'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepts(text: &str) -> bool {
        Document::parse(text.as_bytes(), 64).is_ok()
    }

    #[test]
    fn well_formed_documents_are_read() {
        let text = "\u{feff}\n<?xml version='1.0' encoding=\"utf-16\"?><!-- hi --><a:r xmlns:a='urn:x&amp;y' xmlns=\"d\">\
                    <b k = 'v' >one&amp;<![CDATA[<two>]]>&#x33;\r\n</b><c/><a:d>x</a:d >\n</a:r >\n<!-- bye -->\n";
        let document = Document::parse(text.as_bytes(), 64).unwrap();
        let root = document.root();
        assert_eq!((root.name(), root.namespace()), ("r", Some("urn:x&y")));
        let children: Vec<_> = root.children().map(|c| (c.name(), c.namespace(), c.text())).collect();
        let expected =
            vec![("b", Some("d"), "one&<two>3\n"), ("c", Some("d"), ""), ("d", Some("urn:x&y"), "x")];
        assert_eq!(children, expected);
        assert_eq!(root.child_text("b"), "one&<two>3");
        assert_eq!(root.child_text("none"), "");
        assert_eq!(root.descendants().count(), 3);
    }

    #[test]
    fn namespaces_end_with_their_element_and_undeclared_prefixes_are_none() {
        let document = Document::parse(b"<r><a xmlns='1'><b xmlns='2'/><c/></a><d/><e:f/></r>", 64).unwrap();
        let spaces: Vec<_> = document.root().descendants().map(|e| (e.name(), e.namespace())).collect();
        let expected = vec![("a", Some("1")), ("b", Some("2")), ("c", Some("1")), ("d", None), ("f", None)];
        assert_eq!(spaces, expected);
    }

    /// The security policy's XML row, one sample a line.
    #[test]
    fn ill_formed_and_hostile_documents_are_refused() {
        let deep = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
        assert!(accepts(&deep(MAX_DEPTH)));
        assert!(!accepts(&deep(MAX_DEPTH + 1)));
        assert!(!accepts(&deep(20_000)));
        assert!(!accepts(&format!("<r>{}</r>", "<a/>".repeat(64))), "too many elements");
        let attributes: String = (0..=MAX_ATTRIBUTES).map(|n| format!(" a{n}=''")).collect();
        assert!(!accepts(&format!("<r{attributes}/>")), "too many attributes");
        for refused in [
            "",
            "   ",
            "text",
            "<!-- only -->",
            "<?xml version='1.0'?>",
            "<!DOCTYPE r><r/>",
            "<!doctype r><r/>",
            "<!DOCTYPE r [<!ENTITY a 'b'>]><r>&a;</r>",
            "<r>&a;</r>",
            "<r>&nbsp;</r>",
            "<r>&;</r>",
            "<r>&#;</r>",
            "<r>&#x;</r>",
            "<r>&#0;</r>",
            "<r>&#1;</r>",
            "<r>&#+65;</r>",
            "<r>&#xd800;</r>",
            "<r>&#xffffffff;</r>",
            "<r>&amp</r>",
            "<r>a & b</r>",
            "<?php x?><r/>",
            "<r><?pi?></r>",
            "<r/><?pi?>",
            "<r/><?xml version='1.0'?>",
            "<!-- a --><?xml version='1.0'?><r/>",
            "<?xml?><r/>",
            "<r>",
            "<r><a></r>",
            "<r><a></r></a>",
            "<r></s>",
            "<r></R>",
            "<a:8r/>",
            "<a:/>",
            "<a:b:c/>",
            "</r>",
            "<r/></r>",
            "<r/><r/>",
            "<r></r><s></s>",
            "<r/>x",
            "x<r/>",
            "<r/>&amp;",
            "<r/><![CDATA[ ]]>",
            "<r>]]></r>",
            "<r>\0</r>",
            "<r/>\0",
            "<r>\u{1}</r>",
            "<r>\u{ffff}</r>",
            "<r><!-- a -- b --></r>",
            "<r><!-- a</r>",
            "<r><![CDATA[ a</r>",
            "<r a='1' a='2'/>",
            "<r a='1'b='2'/>",
            "<r a=1/>",
            "<r a/>",
            "<r a='<'/>",
            "<r a='&b;'/>",
            "<r a='&lt'/>",
            "<r a='1/>",
            "<1/>",
            "< r/>",
            "<r/ >",
            "<a/b></a/b>",
            "<a<b></a<b>",
            "<>",
            "</>",
            "<r",
            "<",
        ] {
            assert!(!accepts(refused), "{refused:?} was accepted");
        }
        assert_eq!(Document::parse(b"<r>\xff</r>", 64).err(), Some(Malformed));
        assert_eq!(Document::parse(b"\xff\xfe<\0r\0/\0>\0", 64).err(), Some(Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Document::parse(&bytes, 64);
        }

        #[test]
        fn markup_like_text_is_survived(text in "[<>/!?&;:#x'\"= a-c\\[\\]CDATA-]{0,80}") {
            let _ = Document::parse(text.as_bytes(), 64);
        }

        #[test]
        fn escaped_text_comes_back(text in any::<String>()) {
            let expected: String = text.chars().map(|c| if is_xml_char(c) { c } else { ' ' }).collect();
            let xml = format!("<r>{}</r>", escape(&text));
            let document = Document::parse(xml.as_bytes(), 1).unwrap();
            prop_assert_eq!(document.root().text(), &expected);
            let mut xml = String::from("<r>");
            cdata_into(&mut xml, &text);
            xml.push_str("</r>");
            let expected = expected.replace("\r\n", "\n").replace('\r', "\n");
            let document = Document::parse(xml.as_bytes(), 1).unwrap();
            prop_assert_eq!(document.root().text(), &expected);
        }
    }
}
