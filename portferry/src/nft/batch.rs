//! One nfnetlink transaction as octets. It knows nothing of NAT: it frames messages and tells the socket which of
//! them the kernel acknowledges.
//!
//! Written by hand instead of `nftables::Chained` for two reasons: that type asks for an acknowledgement of every
//! message and recognises the two that have none by comparing function addresses, which Rust does not keep unique;
//! and one acknowledgement for the whole batch can't overflow the receive buffer, so a success is never lost to
//! ENOBUFS.

use netlink_bindings::{
    nftables::{Nfgenmsg, PROTONUM, PushSetelemListAttrs, SetElemFlags},
    traits::NetlinkChained,
};

/// Address family `inet`: IPv4 and IPv6 in one table (`NFPROTO_INET`).
pub(super) const NFPROTO_INET: u8 = 1;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const HEADER_LEN: usize = 16;

/// `NLM_F_CREATE`: the object may be new.
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: a rule goes to the end of its chain.
pub(super) const APPEND: u16 = 0x800;

/// nf_tables message types (`NFT_MSG_*`).
#[derive(Clone, Copy, Debug)]
#[repr(u16)]
pub(super) enum Kind {
    NewTable = 0,
    DelTable = 2,
    NewChain = 3,
    NewRule = 6,
    DelRule = 8,
    NewSet = 9,
    NewElement = 12,
    DelElement = 14,
}

/// Elements a message carries at most. An error echoes the whole message, which must fit the 8 KiB receive buffer of
/// `netlink-socket2`, else the error's code is lost: 128 elements of at most 56 octets do.
const ELEMENTS_PER_MESSAGE: usize = 128;

/// One element of a set or map: key, and value if it is a map (unused when deleting). Each field of a concatenation
/// is padded to four octets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Messages between BATCH_BEGIN and BATCH_END, carried out as a whole or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    octets: Vec<u8>,
    /// Where the last message starts.
    last: usize,
    messages: u32,
    first_seq: u32,
    /// Of the tables that it is about.
    family: u8,
}

impl Batch {
    /// `first_seq` is the sequence number of the first message; the others count up from it.
    pub(super) fn new(first_seq: u32, family: u8) -> Self {
        let mut batch = Self { octets: Vec::new(), last: 0, messages: 0, first_seq, family };
        batch.frame(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        batch
    }

    /// Appends one nf_tables message about a table of family inet; `fill` writes its attributes.
    pub(super) fn message(&mut self, kind: Kind, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        self.message_of(self.family, kind, flags, fill);
    }

    /// The same of another family.
    pub(super) fn message_of(&mut self, family: u8, kind: Kind, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        self.frame((NFNL_SUBSYS_NFTABLES << 8) | kind as u16, flags, family, 0, fill);
    }

    /// Adds or deletes `elements` of a set, in as many messages as they need.
    pub(super) fn elements(&mut self, kind: Kind, table: &str, set: &str, elements: &[Element]) {
        let flags = if matches!(kind, Kind::NewElement) { CREATE } else { 0 };
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(kind, flags, |octets| {
                let mut list = PushSetelemListAttrs::new(octets)
                    .push_table_bytes(table.as_bytes())
                    .push_set_bytes(set.as_bytes())
                    .nested_elements();
                for element in chunk {
                    let mut one = list.nested_elem().nested_key().push_value(&element.key).end_nested();
                    if flags == CREATE && !element.value.is_empty() {
                        one = one.nested_data().push_value(&element.value).end_nested();
                    }
                    list = one.end_nested();
                }
            });
        }
    }

    /// Adds intervals to a set or map of them: first key, and the one after the last unless the last is the highest.
    /// They must not overlap.
    pub(super) fn intervals(&mut self, table: &str, set: &str, intervals: &[(Element, Option<Vec<u8>>)]) {
        for chunk in intervals.chunks(ELEMENTS_PER_MESSAGE / 2) {
            self.message(Kind::NewElement, CREATE, |octets| {
                let mut list = PushSetelemListAttrs::new(octets)
                    .push_table_bytes(table.as_bytes())
                    .push_set_bytes(set.as_bytes())
                    .nested_elements();
                for (first, end) in chunk {
                    let mut one = list.nested_elem().nested_key().push_value(&first.key).end_nested();
                    if !first.value.is_empty() {
                        one = one.nested_data().push_value(&first.value).end_nested();
                    }
                    list = one.end_nested();
                    if let Some(end) = end {
                        let one = list.nested_elem().nested_key().push_value(end).end_nested();
                        list = one.push_flags(&(SetElemFlags::IntervalEnd as u32).to_be_bytes()).end_nested();
                    }
                }
            });
        }
    }

    /// Octets so far.
    pub(super) fn len(&self) -> usize {
        self.octets.len()
    }

    /// Closes the batch and asks for one acknowledgement, of its last message.
    pub(super) fn finish(mut self) -> Finished {
        let flags = self.last + 6;
        let ack =
            (u16::from_ne_bytes([self.octets[flags], self.octets[flags + 1]]) | NLM_F_ACK).to_ne_bytes();
        self.octets[flags..flags + 2].copy_from_slice(&ack);
        let acknowledged = self.messages - 1;
        self.frame(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        Finished { octets: self.octets, first_seq: self.first_seq, messages: self.messages, acknowledged }
    }

    fn frame(&mut self, kind: u16, flags: u16, family: u8, res_id: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        self.last = self.octets.len();
        let seq = self.first_seq.wrapping_add(self.messages);
        self.octets.extend([0; 4]);
        self.octets.extend(kind.to_ne_bytes());
        self.octets.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.octets.extend(seq.to_ne_bytes());
        self.octets.extend([0; 4]);
        debug_assert_eq!(self.octets.len(), self.last + HEADER_LEN);
        let mut header = Nfgenmsg::new();
        header.nfgen_family = family;
        header.set_res_id(res_id);
        self.octets.extend(header.as_slice());
        fill(&mut self.octets);
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
        let len = u32::try_from(self.octets.len() - self.last).expect("a message is far below 4 GiB");
        self.octets[self.last..self.last + 4].copy_from_slice(&len.to_ne_bytes());
        self.messages += 1;
    }
}

/// A closed batch, ready to be sent in one piece.
#[derive(Debug)]
pub(super) struct Finished {
    octets: Vec<u8>,
    first_seq: u32,
    messages: u32,
    acknowledged: u32,
}

impl NetlinkChained for Finished {
    fn protonum(&self) -> u16 {
        PROTONUM
    }
    fn payload(&self) -> &[u8] {
        &self.octets
    }
    fn chain_len(&self) -> usize {
        self.messages as usize
    }
    fn get_index(&self, seq: u32) -> Option<usize> {
        let index = seq.wrapping_sub(self.first_seq);
        (index < self.messages).then_some(index as usize)
    }
    fn name(&self, _index: usize) -> &'static str {
        "nf_tables batch"
    }
    /// Errors of other messages, and of the batch as a whole, arrive before the acknowledgement and end the wait.
    fn supports_ack(&self, index: usize) -> Option<bool> {
        (index < self.messages as usize).then_some(index == self.acknowledged as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Message types, flags, sequence numbers and lengths of a batch, read back.
    fn headers(octets: &[u8]) -> Vec<(u16, u16, u32, usize)> {
        let (mut at, mut all) = (0, Vec::new());
        while at < octets.len() {
            let u16_at = |i: usize| u16::from_ne_bytes(octets[at + i..at + i + 2].try_into().unwrap());
            let u32_at = |i: usize| u32::from_ne_bytes(octets[at + i..at + i + 4].try_into().unwrap());
            all.push((u16_at(4), u16_at(6), u32_at(8), u32_at(0) as usize));
            at += u32_at(0) as usize;
        }
        all
    }

    #[test]
    fn frames_and_asks_for_one_acknowledgement() {
        let mut batch = Batch::new(u32::MAX, NFPROTO_INET);
        batch.elements(
            Kind::NewElement,
            "t",
            "s",
            &vec![Element { key: vec![0; 44], value: Vec::new() }; ELEMENTS_PER_MESSAGE + 1],
        );
        let batch = batch.finish();
        let read = headers(&batch.octets);
        let shape: Vec<_> = read.iter().map(|h| (h.0, h.1, h.2)).collect();
        assert_eq!(
            shape,
            [
                (0x10, NLM_F_REQUEST, u32::MAX),
                (0xa0c, NLM_F_REQUEST | CREATE, 0),
                (0xa0c, NLM_F_REQUEST | CREATE | NLM_F_ACK, 1),
                (0x11, NLM_F_REQUEST, 2),
            ]
        );
        assert!(read.iter().all(|h| h.3 < 8192 - 64), "an echoed message fits the receive buffer");
        assert_eq!(batch.get_index(u32::MAX), Some(0));
        assert_eq!(batch.get_index(2), Some(3));
        assert_eq!(batch.get_index(3), None);
        let acks: Vec<_> = (0..5).map(|i| batch.supports_ack(i)).collect();
        assert_eq!(acks, [Some(false), Some(false), Some(true), Some(false), None]);
    }
}
