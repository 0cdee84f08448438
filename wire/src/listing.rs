//! The document in `NewPortListing`, the answer of `GetListOfPortMappings` (IGD:2 `WANIPConnection`).
//!
//! [`encode`] makes the document as such; wrapping it up for the SOAP answer is `soap`'s part.

use std::fmt::Write;

use crate::codec::Malformed;
use crate::services::Value;
use crate::xml::{Document, element_into};

/// The namespace of the document.
const NAMESPACE: &str = "urn:schemas-upnp-org:gw:WANIPConnection";
/// Where its schema is.
const SCHEMA: &str = "http://www.upnp.org/schemas/gw/WANIPConnection-v2.xsd";
/// The specification's limit.
const MAX_ENTRIES: usize = 65_535;

/// One mapping of a listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListingEntry {
    /// "" for anyone.
    pub remote_host: String,
    /// The external port.
    pub external_port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The internal port.
    pub internal_port: u16,
    /// Where the mapping leads.
    pub internal_client: String,
    /// Whether it is in force.
    pub enabled: bool,
    /// What its owner calls it.
    pub description: String,
    /// Seconds left.
    pub lease: u32,
}

/// The document, without XML declaration. Entries past the 65,535th are left out.
#[must_use]
pub fn encode(entries: &[ListingEntry]) -> String {
    let mut out = format!(
        "<p:PortMappingList xmlns:p=\"{NAMESPACE}\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
         xsi:schemaLocation=\"{NAMESPACE} {SCHEMA}\">"
    );
    for entry in entries.iter().take(MAX_ENTRIES) {
        out.push_str("<p:PortMappingEntry>");
        element_into(&mut out, "p:NewRemoteHost", &entry.remote_host);
        let _ = write!(out, "<p:NewExternalPort>{}</p:NewExternalPort>", entry.external_port);
        element_into(&mut out, "p:NewProtocol", &entry.protocol);
        let _ = write!(out, "<p:NewInternalPort>{}</p:NewInternalPort>", entry.internal_port);
        element_into(&mut out, "p:NewInternalClient", &entry.internal_client);
        let _ = write!(out, "<p:NewEnabled>{}</p:NewEnabled>", Value::Boolean(entry.enabled));
        element_into(&mut out, "p:NewDescription", &entry.description);
        let _ = write!(out, "<p:NewLeaseTime>{}</p:NewLeaseTime>", entry.lease);
        out.push_str("</p:PortMappingEntry>");
    }
    out.push_str("</p:PortMappingList>");
    out
}

/// Reads such a document.
///
/// # Errors
/// It is not well-formed, not a listing, or an entry lacks a port or has a number that is none.
pub fn decode(text: &str) -> Result<Vec<ListingEntry>, Malformed> {
    let document = Document::parse(text.as_bytes(), 1 + 16 * MAX_ENTRIES)?;
    let root = document.root();
    if root.name() != "PortMappingList" {
        return Err(Malformed);
    }
    let entries = root.children().filter(|child| child.name() == "PortMappingEntry").map(|entry| {
        let port = |name| entry.child_text(name).parse::<u16>().map_err(|_| Malformed);
        Ok(ListingEntry {
            remote_host: entry.child_text("NewRemoteHost").to_owned(),
            external_port: port("NewExternalPort")?,
            protocol: entry.child_text("NewProtocol").to_owned(),
            internal_port: port("NewInternalPort")?,
            internal_client: entry.child_text("NewInternalClient").to_owned(),
            enabled: entry.child_text("NewEnabled") != "0",
            description: entry.child("NewDescription").map_or("", |child| child.text()).to_owned(),
            lease: entry.child_text("NewLeaseTime").parse().map_err(|_| Malformed)?,
        })
    });
    entries.take(MAX_ENTRIES).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(description: &str) -> ListingEntry {
        ListingEntry {
            remote_host: String::new(),
            external_port: 6881,
            protocol: "TCP".to_owned(),
            internal_port: 6882,
            internal_client: "192.168.1.2".to_owned(),
            enabled: true,
            description: description.to_owned(),
            lease: 3600,
        }
    }

    /// Element names and order of igd.md 4.
    #[test]
    fn the_document_is_the_specifications() {
        let text = encode(&[entry("a<b>]]>&")]);
        let inside = "<p:PortMappingEntry><p:NewRemoteHost></p:NewRemoteHost><p:NewExternalPort>6881\
            </p:NewExternalPort><p:NewProtocol>TCP</p:NewProtocol><p:NewInternalPort>6882</p:NewInternalPort>\
            <p:NewInternalClient>192.168.1.2</p:NewInternalClient><p:NewEnabled>1</p:NewEnabled>\
            <p:NewDescription>a&lt;b&gt;]]&gt;&amp;</p:NewDescription><p:NewLeaseTime>3600</p:NewLeaseTime>\
            </p:PortMappingEntry></p:PortMappingList>";
        assert!(text.starts_with("<p:PortMappingList xmlns:p=\"urn:schemas-upnp-org:gw:WANIPConnection\""));
        assert!(text.ends_with(inside), "{text}");
    }

    #[test]
    fn listings_are_read_back() {
        assert_eq!(decode(&encode(&[])), Ok(vec![]));
        let many: Vec<ListingEntry> = (0..3000).map(|n| entry(&format!("mapping {n}"))).collect();
        assert_eq!(decode(&encode(&many)), Ok(many));
        let foreign = "<?xml version='1.0'?><PortMappingList/>";
        assert_eq!(decode(foreign), Ok(vec![]));
        for refused in ["", "<a/>", "<PortMappingList><PortMappingEntry/></PortMappingList>"] {
            assert_eq!(decode(refused), Err(Malformed), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            let _ = decode(&text);
        }

        #[test]
        fn every_prefix_is_refused(at in any::<prop::sample::Index>(), description in "\\PC{0,40}") {
            let text = encode(&[entry(&description)]);
            let text = text.trim_end();
            let cut = text.floor_char_boundary(at.index(text.len()));
            prop_assert_eq!(decode(&text[..cut]), Err(Malformed));
        }

        #[test]
        fn printable_descriptions_come_back(description in "\\PC{0,40}") {
            prop_assert_eq!(decode(&encode(&[entry(&description)])), Ok(vec![entry(&description)]));
        }
    }
}
