//! The way to the kernel: transactions, and the ending of flows, each with its patience.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use netlink_socket2::{ReplyError, tokio::NetlinkSocket};

use super::batch::{Batch, NFPROTO_INET};

/// How long the kernel may take to answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Sequence numbers set aside for a batch; it never has as many messages.
const MESSAGES: u32 = 4096;
/// A transaction is one write, which must fit the socket's send buffer: 160 KiB on 32-bit kernels.
const MAX_OCTETS: usize = 160 * 1024 - 64;

pub(super) struct Link {
    /// Of the tables that are changed.
    family: u8,
    /// Absent after an error or a cancelled call, when answers of an earlier request may still lie in it.
    socket: Option<NetlinkSocket>,
    flows_reported: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self::of(NFPROTO_INET)
    }
}

impl Link {
    /// For tables of this family (`NFPROTO_*`).
    pub(super) fn of(family: u8) -> Self {
        Self { family, socket: None, flows_reported: false }
    }

    /// Sends what `write` writes as one transaction and waits for its outcome; `what` says what it is for.
    pub(super) async fn transact(&mut self, what: &str, write: impl FnOnce(&mut Batch)) -> io::Result<()> {
        let mut socket = self.socket.take().unwrap_or_default();
        let mut batch = Batch::new(socket.reserve_seq(MESSAGES), self.family);
        write(&mut batch);
        if batch.len() > MAX_OCTETS {
            self.socket = Some(socket);
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!("{what}: too much for one transaction"),
            ));
        }
        let batch = batch.finish();
        within(what, async { socket.request_chained(&batch).await?.recv_all().await }).await?;
        self.socket = Some(socket);
        Ok(())
    }

    /// Asks the kernel something; `what` says what for.
    pub(super) async fn ask<T>(
        &mut self,
        what: &str,
        work: impl AsyncFnOnce(&mut NetlinkSocket) -> Result<T, ReplyError>,
    ) -> io::Result<T> {
        let mut socket = self.socket.take().unwrap_or_default();
        let answer = within(what, work(&mut socket)).await?;
        self.socket = Some(socket);
        Ok(answer)
    }

    /// Never fails as a whole: the table has changed already.
    pub(super) async fn end_flows(
        &mut self,
        work: impl AsyncFnOnce(&mut NetlinkSocket) -> Result<(), ReplyError>,
    ) {
        let mut socket = self.socket.take().unwrap_or_default();
        match within("ending flows", work(&mut socket)).await {
            Ok(()) => self.socket = Some(socket),
            Err(e) if self.flows_reported => tracing::debug!("{e}"),
            Err(e) => {
                self.flows_reported = true;
                tracing::warn!("{e}; flows of removed mappings will end by themselves only");
            }
        }
    }
}

/// Waits for the kernel, and says what for when it refuses.
async fn within<T>(what: &str, work: impl Future<Output = Result<T, ReplyError>>) -> io::Result<T> {
    match tokio::time::timeout(REPLY_TIMEOUT, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(io::Error::new(e.as_io_error().kind(), format!("{what}: {e}"))),
        Err(_) => Err(io::Error::new(ErrorKind::TimedOut, format!("{what}: the kernel does not answer"))),
    }
}
