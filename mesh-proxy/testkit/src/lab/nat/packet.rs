//! IPv4 packets in place: what a router reads of one, and how it changes addresses and ports so that every
//! checksum stays right.

use std::net::{Ipv4Addr, SocketAddrV4};

/// What is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    /// Echo requests and their answers; the identifier stands for the port.
    Echo,
}

/// What a router needs of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) protocol: Protocol,
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) flags: Flags,
    /// Where the transport header starts.
    header: usize,
}

/// What TCP says of a connection's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) syn: bool,
    pub(super) ack: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
}

/// An ICMP error and the packet that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) protocol: Protocol,
    /// Sender of the packet complained of.
    pub(super) from: SocketAddrV4,
    /// Its destination.
    pub(super) to: SocketAddrV4,
    header: usize,
    inner: usize,
    inner_header: usize,
}

/// A packet as a router sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Plain(View),
    Complaint(Complaint),
    /// A fragment, another protocol, or damaged.
    Other,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

/// Length of the IP header, protocol number, source, destination; nothing for fragments.
fn ip(bytes: &[u8]) -> Option<(usize, u8, Ipv4Addr, Ipv4Addr)> {
    let first = *bytes.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 || bytes.len() < header + 8 {
        return None;
    }
    // Offset and "more follow"; "do not fragment" is fine.
    if u16_at(bytes, 6)? & 0x3fff != 0 {
        return None;
    }
    Some((header, *bytes.get(9)?, address_at(bytes, 12)?, address_at(bytes, 16)?))
}

/// Reads a packet.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let Some((header, number, source, destination)) = ip(bytes) else { return Parsed::Other };
    let length = usize::from(u16_at(bytes, 2).unwrap_or_default());
    if length > bytes.len() {
        return Parsed::Other;
    }
    let view = |protocol, from, to, flags| {
        let (from, to) = (SocketAddrV4::new(source, from), SocketAddrV4::new(destination, to));
        Parsed::Plain(View { protocol, from, to, flags, header })
    };
    let (Some(a), Some(b)) = (u16_at(bytes, header), u16_at(bytes, header + 2)) else { return Parsed::Other };
    match number {
        UDP => view(Protocol::Udp, a, b, Flags::default()),
        TCP if bytes.len() >= header + 20 => {
            let bits = bytes[header + 13];
            let flags =
                Flags { fin: bits & 1 != 0, syn: bits & 2 != 0, rst: bits & 4 != 0, ack: bits & 16 != 0 };
            view(Protocol::Tcp, a, b, flags)
        }
        ICMP => match (bytes[header], u16_at(bytes, header + 4)) {
            (8, Some(id)) => view(Protocol::Echo, id, 0, Flags::default()),
            (0, Some(id)) => view(Protocol::Echo, 0, id, Flags::default()),
            (3 | 11 | 12, _) => complaint(bytes, header).map_or(Parsed::Other, Parsed::Complaint),
            _ => Parsed::Other,
        },
        _ => Parsed::Other,
    }
}

fn complaint(bytes: &[u8], header: usize) -> Option<Complaint> {
    let inner = header + 8;
    let (length, number, source, destination) = ip(bytes.get(inner..)?)?;
    let at = inner + length;
    let (a, b, protocol) = match number {
        UDP => (u16_at(bytes, at)?, u16_at(bytes, at + 2)?, Protocol::Udp),
        TCP => (u16_at(bytes, at)?, u16_at(bytes, at + 2)?, Protocol::Tcp),
        ICMP if bytes.get(at) == Some(&8) => (u16_at(bytes, at + 4)?, 0, Protocol::Echo),
        _ => return None,
    };
    let (from, to) = (SocketAddrV4::new(source, a), SocketAddrV4::new(destination, b));
    Some(Complaint { protocol, from, to, header, inner, inner_header: at })
}

/// Writes bytes at an even offset and keeps the checksums at `sums` right (RFC 1624).
fn patch(bytes: &mut [u8], at: usize, new: &[u8], sums: &[usize]) {
    for (i, word) in new.chunks_exact(2).enumerate() {
        let at = at + 2 * i;
        let (Some(old), &[high, low]) = (u16_at(bytes, at), word) else { return };
        let new = u16::from_be_bytes([high, low]);
        bytes[at..at + 2].copy_from_slice(word);
        for &sum in sums {
            let Some(check) = u16_at(bytes, sum) else { continue };
            let mut total = u32::from(!check) + u32::from(!old) + u32::from(new);
            while total > 0xffff {
                total = (total & 0xffff) + (total >> 16);
            }
            let check = !u16::try_from(total).unwrap_or_default();
            bytes[sum..sum + 2].copy_from_slice(&check.to_be_bytes());
        }
    }
}

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

impl View {
    /// Gives a packet another source or destination.
    pub(super) fn rewrite(&self, bytes: &mut [u8], end: End, new: SocketAddrV4) {
        let header = self.header;
        let ip_at = if end == End::Source { 12 } else { 16 };
        let (port_at, sum) = match self.protocol {
            Protocol::Udp => (header + if end == End::Source { 0 } else { 2 }, header + 6),
            Protocol::Tcp => (header + if end == End::Source { 0 } else { 2 }, header + 16),
            Protocol::Echo => (header + 4, header + 2),
        };
        let ip_sum = 10;
        if self.protocol == Protocol::Echo {
            // ICMP's checksum does not cover addresses.
            patch(bytes, ip_at, &new.ip().octets(), &[ip_sum]);
            patch(bytes, port_at, &new.port().to_be_bytes(), &[sum]);
            return;
        }
        let has_sum = self.protocol == Protocol::Tcp || u16_at(bytes, sum) != Some(0);
        let both = [ip_sum, sum];
        patch(bytes, ip_at, &new.ip().octets(), if has_sum { &both } else { &both[..1] });
        patch(bytes, port_at, &new.port().to_be_bytes(), if has_sum { &both[1..] } else { &[] });
        if has_sum && self.protocol == Protocol::Udp && u16_at(bytes, sum) == Some(0) {
            // Zero would mean that there is none.
            bytes[sum..sum + 2].fill(0xff);
        }
    }
}

impl Complaint {
    /// Gives an end of the packet complained of another address; the outer packet's `outer` end becomes its IP address.
    pub(super) fn rewrite(&self, bytes: &mut [u8], inner: End, new: SocketAddrV4, outer: (End, Ipv4Addr)) {
        let at = |end| if end == End::Source { 12 } else { 16 };
        patch(bytes, at(outer.0), &outer.1.octets(), &[10]);
        patch(bytes, self.inner + at(inner), &new.ip().octets(), &[self.inner + 10]);
        let port = match (self.protocol, inner) {
            (Protocol::Echo, _) => 4,
            (_, End::Source) => 0,
            (_, End::Destination) => 2,
        };
        patch(bytes, self.inner_header + port, &new.port().to_be_bytes(), &[]);
        // Over all of the message, which is short.
        let length = usize::from(u16_at(bytes, 2).unwrap_or_default()).min(bytes.len());
        bytes[self.header + 2..self.header + 4].fill(0);
        let sum = checksum(&bytes[self.header..length]);
        bytes[self.header + 2..self.header + 4].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The Internet checksum.
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let mut total: u32 = 0;
    for word in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap_or_default()
}
