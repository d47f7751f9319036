//! The owner's end of a session: datagrams of a tunnel stream to the pod and back. Who may open it has been decided.

use std::{cell::Cell, io, net::SocketAddr, time::Duration};

use mesh_net::udp;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::UdpSocket,
    time::Instant,
};

use super::{
    counts::{Counts, End},
    frame::{Frames, frame},
    session::with_room,
};

/// Longer than the opener's own time, which decides: this one is for an opener that has vanished.
pub(crate) const IDLE: Duration = Duration::from_secs(300);

/// A socket to the pod, before the opener hears that all is well.
pub(crate) async fn connect(pod: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    udp::connected(pod, mark).await
}

/// Payload bytes that were moved.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// To the pod.
    pub(crate) received: Cell<u64>,
    /// From the pod.
    pub(crate) sent: Cell<u64>,
}

/// Passes datagrams on until the opener ends the stream, the pod's port turns out closed, or nothing moved for `idle`.
pub(crate) async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    pod: UdpSocket,
    counts: &Counts,
    carried: &Carried,
    idle: Duration,
) -> Result<(), io::Error> {
    let side = &counts.inbound;
    side.opened.inc();
    side.active.inc();
    let (read, mut write) = tokio::io::split(stream);
    let last = Cell::new(Instant::now());
    let up = async {
        let mut frames = Frames::new(read);
        while let Some(datagram) = frames.next().await? {
            pod.send(&datagram).await?;
            side.sent.add(datagram.len());
            carried.received.set(carried.received.get() + datagram.len() as u64);
            last.set(Instant::now());
        }
        Ok(End::Closed)
    };
    let down = async {
        loop {
            pod.readable().await?;
            let framed = with_room(|room| match pod.try_recv(room) {
                Ok(length) => Ok(room.get(..length).and_then(frame)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(e) => Err(e),
            })?;
            let Some(framed) = framed else { continue };
            write.write_all(&framed).await?;
            write.flush().await?;
            let bytes = framed.len() - super::frame::HEADER;
            side.received.add(bytes);
            carried.sent.set(carried.sent.get() + bytes as u64);
            last.set(Instant::now());
        }
    };
    let silent = async {
        loop {
            let due = last.get() + idle;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    };
    let ended: io::Result<End> = tokio::select! {
        ended = up => ended,
        ended = down => ended,
        () = silent => Ok(End::Idle),
    };
    side.active.dec();
    side.closed(*ended.as_ref().unwrap_or(&End::Closed));
    let _gone = write.shutdown().await;
    ended.map(drop)
}
