//! Frames of the peer. What a correct peer never sends ends the connection; what comes too late is dropped.

use std::{io, time::Instant};

use super::{
    super::{
        buffer::{LARGE, PIECE, Received},
        frame::{HEADER, Header, Kind},
    },
    Ended, Entry, Inner, OUTPUT_MAX, Role, violation,
};

impl Inner {
    pub(super) fn receive(&mut self, mut bytes: &[u8], now: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            if let Some((id, left, end)) = self.body {
                let n = bytes.len().min(left as usize);
                let (payload, rest) = bytes.split_at(n);
                bytes = rest;
                // `n` is at most `left`.
                let left = left - n as u32;
                self.body = (left > 0).then_some((id, left, end));
                self.deliver(id, end && left == 0, |received| received.push(payload));
                continue;
            }
            let n = bytes.len().min(HEADER - self.head_len);
            let (part, rest) = bytes.split_at(n);
            self.head[self.head_len..self.head_len + n].copy_from_slice(part);
            self.head_len += n;
            bytes = rest;
            if self.head_len == HEADER {
                self.head_len = 0;
                let header = Header::decode(self.head).ok_or_else(|| violation("unknown kind of frame"))?;
                self.on_header(header, now)?;
            }
        }
        if self.output.len() > OUTPUT_MAX {
            return Err(violation("the peer reads nothing of what it asks for"));
        }
        Ok(())
    }

    fn on_header(&mut self, header: Header, now: Instant) -> io::Result<()> {
        let Header { kind, length, stream } = header;
        match kind {
            Kind::Data { open, end } => {
                if open {
                    self.on_open(stream)?;
                }
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.window = entry
                        .window
                        .checked_sub(length)
                        .ok_or_else(|| violation("the peer sends more than it may"))?;
                    if entry.receiving == Ended::Clean {
                        return Err(violation("the peer sends after its end"));
                    }
                }
                if length > 0 {
                    self.body = Some((stream, length, end));
                } else {
                    self.deliver(stream, end, |_| ());
                }
            }
            Kind::Reset => {
                if let Some(entry) = self.streams.get_mut(&stream) {
                    // A clean end that came before stays one. What arrived before the reset is read first: libp2p's
                    // Kademlia drops a stream as soon as its answer is out.
                    if entry.receiving == Ended::No {
                        entry.receiving = Ended::Reset;
                    }
                    entry.sending = Ended::Reset;
                    self.wake.extend(entry.reader.take());
                    self.wake.extend(entry.writer.take());
                }
            }
            Kind::Credit => {
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.credit = entry
                        .credit
                        .checked_add(length)
                        .ok_or_else(|| violation("the peer's window overflows"))?;
                    self.wake.extend(entry.writer.take());
                }
            }
            Kind::Ping => self.push(Header { kind: Kind::Pong, length: 0, stream }),
            Kind::Pong => {
                if let Some(pinged) = self.pinged.filter(|_| self.ping_open) {
                    self.ping_open = false;
                    let measured = now.saturating_duration_since(pinged);
                    self.rtt = Some(self.rtt.map_or(measured, |rtt| (rtt * 3 + measured) / 4));
                }
            }
        }
        Ok(())
    }

    fn on_open(&mut self, id: u32) -> io::Result<()> {
        let theirs = id.is_multiple_of(2) == (self.role == Role::Dialler);
        if id == 0 || !theirs || self.streams.contains_key(&id) {
            return Err(violation("the peer opens a stream with a number that it may not use"));
        }
        if self.streams.len() >= self.config.max_streams {
            self.push(Header { kind: Kind::Reset, length: 0, stream: id });
            return Ok(());
        }
        self.streams.insert(id, Entry::new(self.config.window, true));
        self.head_start(id);
        self.accepted.push_back(id);
        self.wake.extend(self.acceptor.take());
        Ok(())
    }

    /// How much may be read into a piece now: the rest of a large payload, and the header behind it, which then is not in
    /// the way of the next payload.
    pub(super) fn room(&self) -> Option<usize> {
        let (_, left, _) = self.body?;
        (left as usize >= LARGE).then(|| (left as usize + HEADER).min(PIECE))
    }

    /// The same as [`Inner::receive`] for bytes that need not be copied.
    pub(super) fn receive_piece(&mut self, piece: Box<[u8]>, n: usize, now: Instant) -> io::Result<()> {
        let Some((id, left, end)) = self.body else { return self.receive(&piece[..n], now) };
        let payload = n.min(left as usize);
        let (mut head, behind) = ([0; HEADER], n - payload);
        head[..behind].copy_from_slice(&piece[payload..n]);
        // `payload` is at most `left`.
        let left = left - payload as u32;
        self.body = (left > 0).then_some((id, left, end));
        self.deliver(id, end && left == 0, |received| received.push_piece(piece, payload));
        self.receive(&head[..behind], now)
    }

    /// Payload for a stream; for one that is gone it is dropped.
    fn deliver(&mut self, id: u32, end: bool, put: impl FnOnce(&mut Received)) {
        let Some(entry) = self.streams.get_mut(&id) else { return };
        if entry.receiving != Ended::No {
            return;
        }
        put(&mut entry.received);
        if end {
            entry.receiving = Ended::Clean;
        }
        self.wake.extend(entry.reader.take());
    }
}
