//! Tables of ours that another program changes: noticed by the kernel's news, and how often they are looked after.
//!
//! The kernel tells of each object that a transaction has changed, and at its end whose transaction it was. Our own ones are
//! known by that, and are no news: so this runs in the thread that makes them. [`Guard`] says when the tables are to be looked at ([`super::Nft::restore`],
//! [`super::pinholes::Pinholes::restore`]); it has neither.

use std::io::{self, ErrorKind};
use std::time::Duration;

use netlink_bindings::nftables::{Nfgenmsg, PROTONUM, Request};
use netlink_socket2::tokio::MulticastSocketRaw;
use tokio::time::{Instant, sleep_until};

use super::batch::NFPROTO_INET;
use super::link::Link;
use super::reading::{number_of, text};
use super::rule::NFPROTO_IPV6;

/// Without the kernel's news it is looked this often, and tried to hear them again.
const ROUND: Duration = Duration::from_secs(10);
/// After a look, or after a table was made anew for the first time, the next one waits this long …
const SHORTEST: Duration = Duration::from_millis(100);
/// … twice as long each time when others change it again and again, but no longer than this …
const LONGEST: Duration = Duration::from_secs(10);
/// … until nobody has changed it for so long.
const CALM: Duration = Duration::from_secs(60);
/// So often in a row it is said that a table was made anew; then it is said that this is not said any more.
const SAID: u32 = 5;

/// The subsystem of nf_tables in a message's type; below it is what happened (`NFT_MSG_*`).
const NF_TABLES: u16 = 10;
/// `NFT_MSG_NEWGEN`: the end of a transaction.
const NEW_GENERATION: u16 = 15;
const GEN_PROCESS: u16 = 2;
const GEN_NAME: u16 = 3;
const ENOBUFS: i32 = 105;

/// A table, by its family (`NFPROTO_*`) and name.
type TableKey = (u8, String);

/// Says when tables of ours are to be looked at.
#[derive(Default)]
pub(crate) struct Guard {
    tables: Vec<TableKey>,
    watch: Option<TableWatch>,
    /// Somebody may have changed a table; who that was, if it is known.
    touched: Option<Option<String>>,
    pace: Pace,
    /// Without news: when it is tried again to hear them.
    listen_again: Option<Instant>,
    /// That news are not heard was said.
    said_deaf: bool,
    /// The last look that found something to do has failed.
    has_failed: bool,
}

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Say {
    /// A table was made anew.
    Restored,
    /// Likewise, and from now on this is not said any more.
    LastWord,
    Nothing,
}

impl Guard {
    /// Of our tables with these names; of none, nothing ever happens. To be called before they are opened, that nothing goes by.
    pub(crate) async fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let both = |name: &str| [NFPROTO_INET, NFPROTO_IPV6].map(|family| (family, name.to_owned()));
        let mut guard = Self { tables: names.into_iter().flat_map(both).collect(), ..Self::default() };
        if !guard.tables.is_empty() {
            guard.listen().await;
        }
        guard
    }

    /// Resolves when the tables are to be looked at, with the name of the program that has changed one, if it is known. Cancel-safe.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub(crate) async fn touched(&mut self) -> Option<String> {
        if self.tables.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            if self.touched.is_some() {
                // Whatever else happens meanwhile is one change.
                sleep_until(self.pace.next_look()).await;
                self.pace.looked(Instant::now());
                return self.touched.take().flatten();
            }
            match &mut self.watch {
                Some(watch) => match watch.changed().await {
                    Ok(by) => self.touched = Some(by),
                    Err(error) => {
                        self.watch = None;
                        self.deaf(&error);
                    }
                },
                None => {
                    sleep_until(self.listen_again.unwrap_or_else(Instant::now)).await;
                    self.listen().await;
                    self.touched = Some(None);
                }
            }
        }
    }

    /// A table had to be made anew; what to say of it.
    pub(crate) fn restored(&mut self) -> Say {
        self.has_failed = false;
        self.pace.restored(Instant::now())
    }

    /// A look has failed: there is another one in a while. True the first time since one has not.
    pub(crate) fn failed(&mut self) -> bool {
        self.touched = Some(None);
        self.pace.next = Some(Instant::now() + ROUND);
        !std::mem::replace(&mut self.has_failed, true)
    }

    async fn listen(&mut self) {
        match TableWatch::open(self.tables.clone()).await {
            Ok(watch) => {
                self.watch = Some(watch);
                self.said_deaf = false;
            }
            Err(error) => self.deaf(&error),
        }
    }

    fn deaf(&mut self, error: &io::Error) {
        self.listen_again = Some(Instant::now() + ROUND);
        if !std::mem::replace(&mut self.said_deaf, true) {
            tracing::warn!(
                "the kernel's news of nftables: {error}; looking every {} s whether our tables are there",
                ROUND.as_secs()
            );
        }
    }
}

/// How soon it is looked again, and a table made anew that others keep changing.
#[derive(Debug, Default)]
struct Pace {
    next: Option<Instant>,
    last_restored: Option<Instant>,
    gap: Duration,
    in_a_row: u32,
}

impl Pace {
    fn next_look(&self) -> Instant {
        self.next.unwrap_or_else(Instant::now)
    }

    fn looked(&mut self, now: Instant) {
        self.next = Some(now + SHORTEST);
    }

    fn restored(&mut self, now: Instant) -> Say {
        let again = self.last_restored.is_some_and(|last| now < last + CALM);
        (self.gap, self.in_a_row) =
            if again { ((self.gap * 2).min(LONGEST), self.in_a_row + 1) } else { (SHORTEST, 1) };
        self.last_restored = Some(now);
        self.next = Some(now + self.gap);
        match self.in_a_row {
            ..SAID => Say::Restored,
            SAID => Say::LastWord,
            _ => Say::Nothing,
        }
    }
}

/// The kernel's news that another program has changed a table of ours.
struct TableWatch {
    events: MulticastSocketRaw,
    news: News,
}

impl TableWatch {
    /// # Errors
    /// What the kernel says when it refuses; without CAP_NET_ADMIN, say.
    async fn open(tables: Vec<TableKey>) -> io::Result<Self> {
        const NFNLGRP_NFTABLES: u32 = 7;
        let own = own_process().await?;
        let mut events = MulticastSocketRaw::new(PROTONUM)?;
        events.listen(NFNLGRP_NFTABLES)?;
        Ok(Self { events, news: News { tables, own, concerned: false } })
    }

    /// Resolves when another program may have changed a table of ours, with its name. News that were lost count. Cancel-safe.
    ///
    /// # Errors
    /// What the kernel says; a change may have gone by unnoticed then.
    async fn changed(&mut self) -> io::Result<Option<String>> {
        loop {
            match self.events.recv().await {
                Ok((about, message)) => {
                    if let Some(by) = self.news.take(about.message_type, message) {
                        return Ok(Some(by));
                    }
                }
                Err(e) if e.as_io_error().raw_os_error() == Some(ENOBUFS) => {
                    self.news.concerned = false;
                    return Ok(None);
                }
                Err(e) if e.as_io_error().kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// By what the kernel names who makes a transaction: the number of this thread, which in a container is not the one that we know
/// it by. So it is asked.
async fn own_process() -> io::Result<u32> {
    Link::default()
        .ask("asking who we are", async |socket| {
            let request = Request::new().op_getgen_do(&Nfgenmsg::new());
            let mut replies = socket.request(&request).await?;
            let (_, attrs) = replies.recv_one().await?;
            Ok(number_of(attrs.get_buf(), GEN_PROCESS))
        })
        .await
}

/// One message after the other, until a transaction is over.
struct News {
    tables: Vec<TableKey>,
    /// Who we are.
    own: u32,
    /// The transaction at hand has changed a table of ours.
    concerned: bool,
}

impl News {
    /// The name of the program whose transaction is over with this message, if it was another's and about a table of ours.
    fn take(&mut self, kind: u16, message: &[u8]) -> Option<String> {
        // `struct nfgenmsg`: family u8, version u8, resource u16; then attributes.
        let (&[family, _, _, _], attrs) = message.split_first_chunk::<4>()?;
        if kind >> 8 != NF_TABLES {
            return None;
        }
        if kind & 0xff != NEW_GENERATION {
            // The name of the table is the first attribute of whatever there is in one.
            let table = text(attrs, 1);
            self.concerned |= self.tables.iter().any(|(own, name)| (*own, name) == (family, &table));
            return None;
        }
        let concerned = std::mem::take(&mut self.concerned);
        (concerned && number_of(attrs, GEN_PROCESS) != self.own).then(|| text(attrs, GEN_NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: u8, attrs: &[(u16, &[u8])]) -> Vec<u8> {
        let mut octets = vec![family, 0, 0, 0];
        for (kind, value) in attrs {
            let len = u16::try_from(value.len() + 4).unwrap();
            octets.extend([len.to_ne_bytes(), kind.to_ne_bytes()].concat());
            octets.extend(*value);
            octets.resize(octets.len().next_multiple_of(4), 0);
        }
        octets
    }

    #[test]
    fn only_what_others_do_to_our_tables_is_news() {
        const DELETE_RULE: u16 = 0x0a08;
        const NEW_ELEMENT: u16 = 0x0a0c;
        const END: u16 = 0x0a0f;
        let tables = vec![(NFPROTO_INET, "ours".to_owned()), (NFPROTO_IPV6, "ours".to_owned())];
        let mut news = News { tables, own: 7, concerned: false };
        let about = |family, table: &[u8]| message(family, &[(1, table), (2, b"chain\0")]);
        let end = |process: u32| message(0, &[(1, &[0; 4]), (2, &process.to_be_bytes()), (3, b"nft\0")]);
        let mut heard = |family, table: &[u8], kind, process| {
            assert_eq!(news.take(kind, &about(family, table)), None, "not before it is over");
            news.take(END, &end(process))
        };
        let by = Some("nft".to_owned());
        assert_eq!(heard(NFPROTO_INET, b"ours\0", DELETE_RULE, 8), by);
        assert_eq!(heard(NFPROTO_IPV6, b"ours\0", NEW_ELEMENT, 8), by);
        assert_eq!(heard(NFPROTO_INET, b"ours\0", NEW_ELEMENT, 7), None, "our own");
        assert_eq!(heard(2, b"ours\0", DELETE_RULE, 8), None, "of another family");
        assert_eq!(heard(NFPROTO_INET, b"theirs\0", DELETE_RULE, 8), None);
        assert_eq!(heard(NFPROTO_INET, b"ours\0", 0x0108, 8), None, "of another subsystem");
        let whole = end(8);
        for cut in 0..whole.len() {
            let _ = news.take(END, &whole[..cut]);
        }
    }

    /// Whoever keeps changing a table has it made anew again and again, but less and less often, and the log stays readable.
    #[test]
    fn no_endless_fight() {
        let begin = Instant::now();
        let (mut pace, mut said, mut restored) = (Pace::default(), Vec::new(), 0);
        let mut now = begin;
        while now < begin + Duration::from_secs(600) {
            pace.looked(now);
            said.push(pace.restored(now));
            restored += 1;
            now = pace.next_look().max(now + Duration::from_millis(1));
        }
        assert!((60..80).contains(&restored), "{restored} times in ten minutes");
        assert_eq!(said[..4], [Say::Restored; 4]);
        assert_eq!(said[4], Say::LastWord);
        assert!(said[5..].iter().all(|say| *say == Say::Nothing));
        // Once there was peace for a minute, it is as at first.
        assert_eq!(pace.restored(now + CALM), Say::Restored);
        assert_eq!(pace.next_look(), now + CALM + SHORTEST);
    }
}
