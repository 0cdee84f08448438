//! A connection of which no peer can make more than its time: who says nothing between two requests, and who does not
//! read what it asked for, is let go. What a head and a body may take is not known here; hyper and [`super`] see to that.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep, sleep};

/// A peer from whom nothing is being worked on may be silent for so long.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(5);
/// What an answer may take from the first octet that the peer's window has no room for to the last one.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(10);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Patient<T> {
    inner: T,
    /// A request is being worked on, which has bounds of its own.
    busy: Arc<AtomicBool>,
    idle: Pin<Box<Sleep>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl<T> Patient<T> {
    /// `busy` tells whether a request is being worked on.
    pub(super) fn new(inner: T, busy: Arc<AtomicBool>) -> Self {
        Self { inner, busy, idle: Box::pin(sleep(IDLE_TIME)), writing: None }
    }

    fn hears(&mut self) {
        self.idle.as_mut().reset(Instant::now() + IDLE_TIME);
    }

    /// What a write came to, within [`WRITE_TIME`].
    fn written<R>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if done.is_ready() {
            self.hears();
            return done;
        }
        let writing = self.writing.get_or_insert_with(|| Box::pin(sleep(WRITE_TIME)));
        writing.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: Read + Unpin> Read for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let read = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if read.is_ready() {
            this.hears();
            return read;
        }
        if this.busy.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        // Nothing read is the peer's end to hyper: no fault between two requests, one within a head.
        this.idle.as_mut().poll(cx).map(Ok)
    }
}

impl<T: Write + Unpin> Write for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(cx, octets);
        self.written(cx, done)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_flush(cx);
        if done.is_ready() {
            self.writing = None; // hyper flushes when it has written everything
        }
        self.written(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.written(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.written(cx, done)
    }
}
