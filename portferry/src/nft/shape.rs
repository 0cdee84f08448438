//! What a table of ours is like in the kernel, so that what another program has done to it is seen: its chains, rules and sets by
//! the numbers that the kernel has given them, which nothing that is made later has, and the elements of its sets.

use std::collections::{BTreeMap, BTreeSet};

use netlink_bindings::nftables::{Nfgenmsg, Request};
use netlink_socket2::{ReplyError, tokio::NetlinkSocket};

use super::batch::Element;
use super::reading::{attribute, attributes, number_of, text};

/// Key and value of each; of a set without values those are empty.
pub(super) type Elements = BTreeMap<String, BTreeSet<(Vec<u8>, Vec<u8>)>>;

/// A table at one moment. The dumps that it is made of are several: what somebody changes meanwhile is in some of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Shape {
    /// The table, its chains, rules and sets, in the kernel's order.
    parts: Vec<Part>,
    /// By set.
    pub(super) elements: Elements,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Part {
    what: What,
    /// The kernel's number of it.
    handle: Vec<u8>,
    /// What can be changed without another number: a table's flags, a chain's policy.
    may_change: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    Table,
    Chain,
    Rule,
    Set,
}

impl Shape {
    /// Reads the table of this family (`NFPROTO_*`) and name; `None`: there is none.
    pub(super) async fn read(
        socket: &mut NetlinkSocket,
        (family, table): (u8, &str),
    ) -> Result<Option<Self>, ReplyError> {
        let mut header = Nfgenmsg::new();
        header.nfgen_family = family;
        let mut shape = Self::default();
        let mut replies = socket.request(&Request::new().op_gettable_dump(&header)).await?;
        while let Some(reply) = replies.recv().await {
            // Its own name is a table's first attribute, and the table's that of all others.
            shape.take(What::Table, table, reply?.1.get_buf(), 4, 2);
        }
        if shape.parts.is_empty() {
            return Ok(None);
        }
        let mut replies = socket.request(&Request::new().op_getchain_dump(&header)).await?;
        while let Some(reply) = replies.recv().await {
            shape.take(What::Chain, table, reply?.1.get_buf(), 2, 5);
        }
        let mut request = Request::new().op_getrule_dump(&header);
        let _ = request.encode().push_table_bytes(table.as_bytes());
        let mut replies = socket.request(&request).await?;
        while let Some(reply) = replies.recv().await {
            shape.take(What::Rule, table, reply?.1.get_buf(), 3, 0);
        }
        let mut sets = Vec::new();
        let mut request = Request::new().op_getset_dump(&header);
        let _ = request.encode().push_table_bytes(table.as_bytes());
        let mut replies = socket.request(&request).await?;
        while let Some(reply) = replies.recv().await {
            let attrs = reply?.1.get_buf();
            if shape.take(What::Set, table, attrs, 16, 0) {
                sets.push(text(attrs, 2));
            }
        }
        for set in sets {
            let mut request = Request::new().op_getsetelem_dump(&header);
            let _ = request.encode().push_table_bytes(table.as_bytes()).push_set_bytes(set.as_bytes());
            let mut elements = BTreeSet::new();
            let mut replies = socket.request(&request).await?;
            while let Some(reply) = replies.recv().await {
                elements.extend(elements_of(reply?.1.get_buf()));
            }
            shape.elements.insert(set, elements);
        }
        Ok(Some(shape))
    }

    /// Whether it is of that table; attributes of the kinds `handle` and `may_change` (0: none) are remembered then.
    fn take(&mut self, what: What, table: &str, attrs: &[u8], handle: u16, may_change: u16) -> bool {
        const NAME_OF_TABLE: u16 = 1;
        let is_there = text(attrs, NAME_OF_TABLE) == table;
        if is_there {
            let handle = attribute(attrs, handle).unwrap_or_default().to_vec();
            self.parts.push(Part { what, handle, may_change: number_of(attrs, may_change) });
        }
        is_there
    }

    /// Whether the table is still as it was when `self` was read; of the elements of some sets, `wanted` is what counts now.
    pub(super) fn is_still(&self, now: &Self, wanted: Elements) -> bool {
        let elements = self.elements.clone().into_iter().chain(wanted).collect::<Elements>();
        self.parts == now.parts && elements == now.elements
    }
}

/// What belongs into the sets that are listed, those without an element included; `of` is their elements.
pub(super) fn wanted<'a>(
    shape: &Shape,
    sets: &[&str],
    of: impl IntoIterator<Item = (&'a str, Element)>,
) -> Elements {
    let there = sets.iter().filter(|set| shape.elements.contains_key(**set));
    let mut all: Elements = there.map(|set| ((*set).to_owned(), BTreeSet::new())).collect();
    for (set, Element { key, value }) in of {
        all.entry(set.to_owned()).or_default().insert((key, value));
    }
    all
}

/// Of a message of NFTA_SET_ELEM_LIST_*.
fn elements_of(list: &[u8]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const VALUE: u16 = 1;
    let value = |element: &[u8], kind| {
        attribute(element, kind).and_then(|data| attribute(data, VALUE)).unwrap_or_default().to_vec()
    };
    attributes(attribute(list, ELEMENTS).unwrap_or_default())
        .map(move |(_, element)| (value(element, KEY), value(element, DATA)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(value.len() + 4).unwrap();
        let mut octets = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        octets.extend(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    /// A table with a chain of this policy, rules with these numbers, and a set with these keys.
    fn shape(policy: u8, rules: &[u8], keys: &[u8]) -> Shape {
        let mut shape = Shape::default();
        let of = |more: &[&[u8]]| [&attr(1, b"ours\0"), &more.concat()[..]].concat();
        shape.take(What::Table, "ours", &of(&[&attr(4, &[0, 1]), &attr(2, &[0])]), 4, 2);
        shape.take(What::Chain, "ours", &of(&[&attr(2, &[2]), &attr(5, &[policy])]), 2, 5);
        for rule in rules {
            assert!(shape.take(What::Rule, "ours", &of(&[&attr(3, &[*rule])]), 3, 0));
        }
        assert!(!shape.take(What::Rule, "ours", &attr(1, b"theirs\0"), 3, 0));
        let element = |key: &u8| attr(1, &[attr(1, &attr(1, &[*key])), attr(2, &attr(1, &[7]))].concat());
        let list: Vec<u8> = keys.iter().flat_map(element).collect();
        shape.elements.insert("some".to_owned(), elements_of(&attr(3, &list)).collect());
        shape
    }

    #[test]
    fn every_change_is_seen() {
        let whole = shape(1, &[3, 4], &[5, 6]);
        assert!(whole.is_still(&whole, Elements::new()));
        for (other, what) in [
            (shape(0, &[3, 4], &[5, 6]), "another policy"),
            (shape(1, &[3], &[5, 6]), "a rule is gone"),
            (shape(1, &[4, 3], &[5, 6]), "in another order"),
            (shape(1, &[3, 4, 9], &[5, 6]), "one more"),
            (shape(1, &[3, 9], &[5, 6]), "another one"),
            (shape(1, &[3, 4], &[5]), "an element is gone"),
            (shape(1, &[3, 4], &[5, 6, 7]), "one more element"),
            (Shape::default(), "nothing is there"),
        ] {
            assert!(!whole.is_still(&other, Elements::new()), "{what}");
        }
        // What comes and goes by us is not what it was at the beginning.
        let element = |key| ("some", Element { key: vec![key], value: vec![7] });
        let only = wanted(&whole, &["some", "other"], [element(5)]);
        assert!(whole.is_still(&shape(1, &[3, 4], &[5]), only.clone()));
        assert!(!whole.is_still(&whole, only));
        assert!(whole.is_still(&shape(1, &[3, 4], &[]), wanted(&whole, &["some"], [])));
        // Whatever the kernel says, nothing panics.
        let list = attr(3, &attr(1, &attr(1, &attr(1, &[1]))));
        for end in 0..list.len() {
            let _ = elements_of(&list[..end]).count();
        }
    }
}
