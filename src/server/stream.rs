//! A connection's bytes as hyper sees them: framing is watched, and what the peer does is told to the pulse.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    framing::{Framing, Violation},
    pulse::Pulse,
};

/// No HTTP parser takes this byte, wherever it stands in a head or in a chunk's line.
const POISON: u8 = 0;

/// The pulse of a connection, shared by what drives it.
pub(super) type SharedPulse = Arc<Mutex<Pulse>>;

/// The pulse, whatever became of who held it.
pub(super) fn with<T>(pulse: &SharedPulse, act: impl FnOnce(&mut Pulse) -> T) -> T {
    act(&mut pulse.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A connection whose bytes are watched.
#[derive(Debug)]
pub(super) struct Stream<I> {
    inner: I,
    pulse: SharedPulse,
    framing: Framing,
    refused: Option<Violation>,
}

impl<I> Stream<I> {
    pub fn new(inner: I, pulse: SharedPulse) -> Self {
        Self {
            inner,
            pulse,
            framing: Framing::default(),
            refused: None,
        }
    }

    pub fn into_inner(self) -> I {
        self.inner
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Stream<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.refused.is_some() {
            // Nothing behind it may be used.
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let this = &mut *self;
        let new = buffer.filled_mut().get_mut(before..).unwrap_or_default();
        if let Err((at, violation)) = this.framing.read(new) {
            tracing::debug!(?violation, "a request whose end could be read in two ways");
            this.refused = Some(violation);
            // hyper answers 400 to it, and reads no more.
            if let Some(byte) = new.get_mut(at) {
                *byte = POISON;
            }
            buffer.set_filled(before + at + 1);
        }
        with(&this.pulse, |pulse| {
            pulse.read(this.framing.in_head(), Instant::now());
        });
        Poll::Ready(Ok(()))
    }
}

impl<I> Stream<I> {
    /// Tells the pulse how a write went.
    fn wrote<T>(&self, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        with(&self.pulse, |pulse| match &poll {
            Poll::Pending => pulse.blocked(Instant::now()),
            Poll::Ready(_) => pulse.flows(),
        });
        poll
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Stream<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.wrote(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_flush(context);
        // With nothing to write a flush succeeds at once, which says nothing of the peer.
        if poll.is_pending() { self.wrote(poll) } else { poll }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_shutdown(context);
        if poll.is_pending() { self.wrote(poll) } else { poll }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.wrote(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
