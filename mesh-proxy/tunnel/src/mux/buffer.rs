//! What a stream has received and nobody has read yet, in pieces. Large pieces are handed on from stream to stream of a
//! thread, so that bulk neither allocates nor moves bytes that have arrived; small messages take what they need.

use std::{cell::RefCell, collections::VecDeque};

use super::frame::HEADER;

/// Size of a large piece: what one TLS record holds, and a header.
pub(super) const PIECE: usize = (16 << 10) + HEADER;
/// A payload of this size gets a large piece.
pub(super) const LARGE: usize = 4 << 10;
/// Large pieces that a thread keeps: 512 KiB.
const KEPT: usize = 32;

thread_local! {
    static PIECES: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A large piece.
pub(super) fn take() -> Box<[u8]> {
    PIECES.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; PIECE].into())
}

/// Keeps a piece for the next one who needs it.
pub(super) fn give(piece: Box<[u8]>) {
    if piece.len() == PIECE {
        PIECES.with_borrow_mut(|kept| {
            if kept.len() < KEPT {
                kept.push(piece);
            }
        });
    }
}

#[derive(Debug, Default)]
pub(super) struct Received(VecDeque<Piece>);

#[derive(Debug)]
struct Piece {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Received {
    /// Copies bytes behind those that are there.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.0.back().is_none_or(|p| p.end == p.bytes.len()) {
                let piece = if bytes.len() < LARGE { vec![0; bytes.len()].into() } else { take() };
                self.0.push_back(Piece { bytes: piece, start: 0, end: 0 });
            }
            let Some(last) = self.0.back_mut() else { return };
            let n = bytes.len().min(last.bytes.len() - last.end);
            let (now, later) = bytes.split_at(n);
            last.bytes[last.end..last.end + n].copy_from_slice(now);
            last.end += n;
            bytes = later;
        }
    }

    /// Puts the first `filled` bytes of a large piece behind those that are there.
    pub(super) fn push_piece(&mut self, piece: Box<[u8]>, filled: usize) {
        if filled < LARGE {
            // Whoever sends crumbs does not make us hold a whole piece for each.
            self.push(&piece[..filled]);
            return give(piece);
        }
        self.0.push_back(Piece { bytes: piece, start: 0, end: filled });
    }

    /// Moves bytes out; 0 when there are none.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> usize {
        let mut read = 0;
        while let Some(first) = self.0.front_mut() {
            let n = (first.end - first.start).min(buf.len() - read);
            buf[read..read + n].copy_from_slice(&first.bytes[first.start..first.start + n]);
            first.start += n;
            read += n;
            if first.start < first.end {
                break;
            }
            if let Some(piece) = self.0.pop_front() {
                give(piece.bytes);
            }
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let sent: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        for step in [1, 700, 5_000, 16_384, 40_000] {
            let (mut received, mut got, mut at) = (Received::default(), Vec::new(), 0);
            let mut buf = vec![0; 3_000];
            while at < sent.len() {
                let n = step.min(sent.len() - at);
                if n <= PIECE && at % 2 == 0 {
                    let mut piece = take();
                    piece[..n].copy_from_slice(&sent[at..at + n]);
                    received.push_piece(piece, n);
                } else {
                    received.push(&sent[at..at + n]);
                }
                at += n;
                let read = received.read(&mut buf);
                got.extend_from_slice(&buf[..read]);
            }
            loop {
                match received.read(&mut buf) {
                    0 => break,
                    n => got.extend_from_slice(&buf[..n]),
                }
            }
            assert!(got == sent, "step {step}");
            assert!(received.0.is_empty());
        }
    }

    #[test]
    fn small_messages_hold_no_large_pieces() {
        let mut received = Received::default();
        let mut piece = take();
        piece[..10].fill(1);
        received.push_piece(piece, 10);
        received.push(&[2; 100]);
        assert!(received.0.iter().all(|p| p.bytes.len() < LARGE));
    }
}
