//! One stream of a multiplexed connection.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures::{AsyncRead, AsyncWrite};

use super::state::Connection;

#[derive(Debug)]
pub(crate) struct Substream {
    connection: Arc<Connection>,
    id: u32,
}

impl Substream {
    pub(super) fn new(connection: Arc<Connection>, id: u32) -> Self {
        Self { connection, id }
    }
}

impl Drop for Substream {
    fn drop(&mut self) {
        self.connection.drop_stream(self.id);
    }
}

impl AsyncRead for Substream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.connection.poll_read(self.id, cx, buf, Instant::now)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.connection.poll_write(self.id, cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection.poll_write(self.id, cx, bufs)
    }

    /// The connection sends by itself what a stream has written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.connection.end(self.id))
    }
}
