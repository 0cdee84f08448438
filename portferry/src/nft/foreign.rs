//! One rule of ours in a chain of somebody else's table: looked for, put at its head, taken out again. It is known by its comment,
//! so that the next life finds what a killed one has left; nothing else of such a table is ever changed. And the ways of tidying
//! up after an earlier life, and of hearing that somebody has changed rules.

use std::io::{self, ErrorKind};
use std::time::Duration;

use netlink_bindings::nftables::{Nfgenmsg, PROTONUM, PushRuleAttrs, PushTableAttrs, Request, VerdictCode};
use netlink_socket2::tokio::MulticastSocketRaw;
use tokio::time::{Instant, timeout_at};

use super::batch::{Batch, Kind, NFPROTO_INET};
use super::link::Link;
use super::reading::{attribute, attributes, number_of, text};
use super::rule::{NFPROTO_IPV4, NFPROTO_IPV6, Rule, unnamed_interfaces};

/// What our rule is known by, among nobody knows how many others.
pub(crate) const COMMENT: &str = "portferry";

/// Whose packets a table sees.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    Ip,
    Ip6,
    Inet,
}

impl Family {
    /// As nft writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Inet => "inet",
        }
    }

    fn number(self) -> u8 {
        match self {
            Family::Ip => NFPROTO_IPV4,
            Family::Ip6 => NFPROTO_IPV6,
            Family::Inet => NFPROTO_INET,
        }
    }

    fn header(self) -> Nfgenmsg {
        let mut header = Nfgenmsg::new();
        header.nfgen_family = self.number();
        header
    }
}

/// A chain of somebody else's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) family: Family,
    pub(crate) table: &'static str,
    pub(crate) chain: &'static str,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "table {} {}, chain {}", self.family.name(), self.table, self.chain)
    }
}

/// What there is of ours in a chain.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Seen {
    /// The kernel's numbers of our rules.
    pub(crate) rules: Vec<u64>,
    /// The table belongs to a program that is running, and nobody else may change it.
    pub(crate) owned: bool,
}

/// The way to the kernel.
#[derive(Default)]
pub(crate) struct Tables(Link);

impl Tables {
    /// What is ours in that chain; `None`: there is no such chain.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; [`ErrorKind::TimedOut`] without an answer within 5 s.
    pub(crate) async fn look(&mut self, place: Place) -> io::Result<Option<Seen>> {
        let header = place.family.header();
        self.0
            .ask("looking at a firewall's chain", async |socket| {
                let mut there = false;
                let mut replies = socket.request(&Request::new().op_getchain_dump(&header)).await?;
                while let Some(reply) = replies.recv().await {
                    let attrs = reply?.1.get_buf();
                    there |= text(attrs, 1) == place.table && text(attrs, 3) == place.chain;
                }
                if !there {
                    return Ok(None);
                }
                let mut seen = Seen::default();
                let mut replies = socket.request(&Request::new().op_gettable_dump(&header)).await?;
                while let Some(reply) = replies.recv().await {
                    let attrs = reply?.1.get_buf();
                    seen.owned |= text(attrs, 1) == place.table && is_owned(attrs);
                }
                let mut request = Request::new().op_getrule_dump(&header);
                let of = (place.table.as_bytes(), place.chain.as_bytes());
                let _ = request.encode().push_table_bytes(of.0).push_chain_bytes(of.1);
                let mut replies = socket.request(&request).await?;
                while let Some(reply) = replies.recv().await {
                    let attrs = reply?.1.get_buf();
                    // A kernel that does not know the filter sends all of them.
                    let is_there = text(attrs, 1) == place.table && text(attrs, 2) == place.chain;
                    if is_there && is_ours(attrs) {
                        seen.rules.extend(handle(attrs));
                    }
                }
                Ok(Some(seen))
            })
            .await
    }

    /// Puts one rule at the head of a chain of family inet, in place of those that were seen: what comes by one of these interfaces
    /// and has that bit of the mark is accepted.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: the chain, or a rule that was seen, is gone. [`ErrorKind::PermissionDenied`]: CAP_NET_ADMIN is
    /// missing, or the table is owned. [`ErrorKind::TimedOut`]: no answer within 5 s.
    pub(crate) async fn put(
        &mut self,
        place: Place,
        seen: &Seen,
        mark: u32,
        interfaces: &[String],
    ) -> io::Result<()> {
        const SET: u32 = 1;
        self.0
            .transact("changing a firewall's chain", |batch| {
                for rule in &seen.rules {
                    delete(batch, place, *rule);
                }
                unnamed_interfaces(batch, place.table, SET, interfaces);
                Rule::new().arriving_from_unnamed(SET).marked(mark).verdict(VerdictCode::Accept).insert_with(
                    batch,
                    place.table,
                    place.chain,
                    &comment(),
                );
            })
            .await
    }

    /// Takes out what was seen.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub(crate) async fn take(&mut self, place: Place, seen: &Seen) -> io::Result<()> {
        if seen.rules.is_empty() {
            return Ok(());
        }
        self.0
            .transact("changing a firewall's chain", |batch| {
                for rule in &seen.rules {
                    delete(batch, place, *rule);
                }
            })
            .await
    }

    /// Deletes a table that is ours; whether there was one.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub(crate) async fn delete_table(&mut self, family: Family, name: &str) -> io::Result<bool> {
        let header = family.header();
        let there = self
            .0
            .ask("looking for tables", async |socket| {
                let mut there = false;
                let mut replies = socket.request(&Request::new().op_gettable_dump(&header)).await?;
                while let Some(reply) = replies.recv().await {
                    there |= text(reply?.1.get_buf(), 1) == name;
                }
                Ok(there)
            })
            .await?;
        if there {
            self.0
                .transact("deleting a table", |batch| {
                    batch.message_of(family.number(), Kind::DelTable, 0, |o| {
                        drop(PushTableAttrs::new(o).push_name_bytes(name.as_bytes()));
                    });
                })
                .await?;
        }
        Ok(there)
    }
}

fn delete(batch: &mut Batch, place: Place, rule: u64) {
    batch.message_of(place.family.number(), Kind::DelRule, 0, |o| {
        drop(
            PushRuleAttrs::new(o)
                .push_table_bytes(place.table.as_bytes())
                .push_chain_bytes(place.chain.as_bytes())
                .push_handle(rule),
        );
    });
}

/// `NFT_TABLE_F_OWNER`, and somebody has it; one that outlives its owner (`persist`) is nobody's then.
fn is_owned(table: &[u8]) -> bool {
    const NFTA_TABLE_FLAGS: u16 = 2;
    const NFTA_TABLE_OWNER: u16 = 7;
    const OWNER: u32 = 0x2;
    number_of(table, NFTA_TABLE_FLAGS) & OWNER != 0 && number_of(table, NFTA_TABLE_OWNER) != 0
}

fn handle(rule: &[u8]) -> Option<u64> {
    const NFTA_RULE_HANDLE: u16 = 3;
    Some(u64::from_be_bytes(attribute(rule, NFTA_RULE_HANDLE)?.try_into().ok()?))
}

/// By the comment of nft, or that of iptables-nft.
fn is_ours(rule: &[u8]) -> bool {
    const NFTA_RULE_EXPRESSIONS: u16 = 4;
    const NFTA_RULE_USERDATA: u16 = 7;
    if attribute(rule, NFTA_RULE_USERDATA).is_some_and(|own| own.starts_with(&comment())) {
        return true;
    }
    let expressions = attributes(attribute(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default());
    expressions.into_iter().any(|(_, expression)| {
        let data = attribute(expression, 2).unwrap_or_default();
        text(expression, 1) == "match" && text(data, 1) == "comment" && text(data, 3) == COMMENT
    })
}

/// As nft writes it: kind, length, and the text with its zero.
fn comment() -> Vec<u8> {
    const COMMENT_OF_RULE: u8 = 0;
    let len = u8::try_from(COMMENT.len() + 1).expect("it is short");
    [&[COMMENT_OF_RULE, len], COMMENT.as_bytes(), &[0]].concat()
}

/// The kernel's news that somebody has changed tables, chains or rules; elements of sets do not count.
pub(crate) struct Watch {
    events: MulticastSocketRaw,
    /// When the flock of changes at hand is over at the latest.
    flock_ends: Option<Instant>,
}

/// A firewall that is loaded anew makes many changes: they are over after this much silence …
const QUIET: Duration = Duration::from_millis(200);
/// … or this long after the first.
const FLOCK: Duration = Duration::from_secs(2);
const ENOBUFS: i32 = 105;

impl Watch {
    /// # Errors
    /// What the kernel says when it refuses; without CAP_NET_ADMIN, say.
    pub(crate) fn open() -> io::Result<Self> {
        const NFNLGRP_NFTABLES: u32 = 7;
        let mut events = MulticastSocketRaw::new(PROTONUM)?;
        events.listen(NFNLGRP_NFTABLES)?;
        Ok(Self { events, flock_ends: None })
    }

    /// Resolves when something may have changed, and the changes are over. News that were lost count. Cancel-safe.
    ///
    /// # Errors
    /// What the kernel says; a change may have gone by unnoticed then.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        let flock_ends = match self.flock_ends {
            Some(ends) => ends,
            None => {
                self.next().await?;
                *self.flock_ends.insert(Instant::now() + FLOCK)
            }
        };
        loop {
            let silence = flock_ends.min(Instant::now() + QUIET);
            match timeout_at(silence, self.next()).await {
                Ok(more) if Instant::now() < flock_ends => more?,
                _ => break,
            }
        }
        self.flock_ends = None;
        Ok(())
    }

    async fn next(&mut self) -> io::Result<()> {
        // NEWTABLE to DELRULE, of the subsystem 10.
        const COUNTS: std::ops::RangeInclusive<u16> = 0x0a00..=0x0a08;
        loop {
            match self.events.recv().await {
                Ok((about, _)) if COUNTS.contains(&about.message_type) => return Ok(()),
                Ok(_) => {}
                Err(e) if e.as_io_error().raw_os_error() == Some(ENOBUFS) => return Ok(()),
                Err(e) if e.as_io_error().kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
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

    #[test]
    fn our_rule_among_others() {
        let nft = |text: &[u8]| attr(7, &[&[0, u8::try_from(text.len() + 1).unwrap()], text, &[0]].concat());
        let iptables = |text: &[u8]| {
            let mut info = text.to_vec();
            info.resize(256, 0);
            let data = [attr(1, b"comment\0"), attr(2, &[0; 4]), attr(3, &info)].concat();
            attr(4, &attr(1, &[attr(1, b"match\0"), attr(2, &data)].concat()))
        };
        for (rule, ours) in [
            (nft(b"portferry"), true),
            (nft(b"portferry's neighbour"), false),
            (nft(b"!fw4: Accept"), false),
            (iptables(b"portferry"), true),
            (iptables(b"port"), false),
            (Vec::new(), false),
        ] {
            assert_eq!(is_ours(&rule), ours, "{rule:?}");
            for end in 0..rule.len() {
                let _ = is_ours(&rule[..end]);
            }
        }
        assert_eq!(handle(&attr(3, &7_u64.to_be_bytes())), Some(7));
    }

    #[test]
    fn owned_while_the_owner_lives() {
        let flags = |flags: u32| attr(2, &flags.to_be_bytes());
        let owner = |port: u32| attr(7, &port.to_be_bytes());
        assert!(!is_owned(&flags(0)));
        assert!(is_owned(&[flags(2), owner(99)].concat()));
        assert!(!is_owned(&[flags(6), owner(0)].concat()));
        assert!(!is_owned(&flags(6)));
    }
}
