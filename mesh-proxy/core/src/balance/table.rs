//! Tables for consistent hashing: a ring, or Maglev's permutations. Both depend only on the addresses and weights of
//! the endpoints, not on their order, so that every worker and every node gives a key the same endpoint.
//!
//! A table is bounded: [`MAX_RING`] points, or [`MAX_MAGLEV`] slots of two or four bytes.

use crate::{
    cluster::ClusterEndpoint,
    hash::{Fnv, mix},
    policy::HashTableKind,
};

/// Most points of a ring (12 bytes each).
pub const MAX_RING: usize = 1 << 18;
/// Most slots of a Maglev table; the largest size that Istio takes.
pub const MAX_MAGLEV: u32 = 5_000_011;

/// Which endpoint a hash leads to. Positions are those in the cluster's list.
#[derive(Debug, PartialEq, Eq)]
pub struct HashTable(Kind);

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Points in ascending order.
    Ring(Box<[(u64, u32)]>),
    /// Slots; the narrow form while two bytes number the endpoints.
    Narrow(Box<[u16]>),
    Wide(Box<[u32]>),
}

impl HashTable {
    /// The table of the endpoints at `members`.
    pub fn build(kind: HashTableKind, endpoints: &[ClusterEndpoint], members: &[u32]) -> Self {
        let mut named: Vec<Named> = members.iter().map(|i| Named::new(*i, &endpoints[*i as usize])).collect();
        named.sort_by(|a, b| a.name.cmp(&b.name));
        Self(match kind {
            HashTableKind::Ring { minimum } => Kind::Ring(ring(&named, minimum)),
            HashTableKind::Maglev { size } => {
                let slots = maglev(&named, prime_from(size.clamp(2, MAX_MAGLEV)));
                match slots.iter().map(|s| u16::try_from(*s)).collect::<Result<Box<[_]>, _>>() {
                    Ok(narrow) => Kind::Narrow(narrow),
                    Err(_) => Kind::Wide(slots.into_boxed_slice()),
                }
            }
        })
    }

    /// The endpoint for a hash: the first one from its place on that is all right.
    pub fn find(&self, hash: u64, ok: impl Fn(usize) -> bool) -> Option<usize> {
        match &self.0 {
            Kind::Ring(points) => {
                let start = points.partition_point(|(at, _)| *at < hash);
                let (before, after) = points.split_at(start);
                after.iter().chain(before).map(|(_, i)| *i as usize).find(|i| ok(*i))
            }
            Kind::Narrow(slots) => walk(slots, hash, |i| usize::from(*i), ok),
            Kind::Wide(slots) => walk(slots, hash, |i| *i as usize, ok),
        }
    }

    /// How many points or slots there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::Ring(points) => points.len(),
            Kind::Narrow(slots) => slots.len(),
            Kind::Wide(slots) => slots.len(),
        }
    }

    /// Whether it leads nowhere.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn walk<T>(slots: &[T], hash: u64, index: impl Fn(&T) -> usize, ok: impl Fn(usize) -> bool) -> Option<usize> {
    if slots.is_empty() {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below the length")]
    let start = (hash % slots.len() as u64) as usize;
    let (before, after) = slots.split_at(start);
    after.iter().chain(before).map(index).find(|i| ok(*i))
}

struct Named {
    index: u32,
    name: String,
    weight: u64,
}

impl Named {
    fn new(index: u32, e: &ClusterEndpoint) -> Self {
        Self { index, name: e.addr.to_string(), weight: u64::from(e.weight.max(1)) }
    }

    fn hash(&self, salt: u64) -> u64 {
        mix(Fnv::of(&[self.name.as_bytes(), &salt.to_le_bytes()]))
    }
}

/// Points by weight: the lightest endpoint gets at least its share of `minimum`, others as many times more as their
/// weight is greater, all together at most [`MAX_RING`].
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares of at most 2^18 points"
)]
fn ring(named: &[Named], minimum: u32) -> Box<[(u64, u32)]> {
    let total: u64 = named.iter().map(|n| n.weight).sum();
    let Some(least) = named.iter().map(|n| n.weight).min() else { return Box::default() };
    let share = least as f64 / total as f64;
    let scale = ((share * f64::from(minimum)).ceil() / share).min(MAX_RING as f64);
    let mut points = Vec::with_capacity(scale as usize + named.len());
    let (mut target, mut made) = (0.0, 0.0);
    for n in named {
        target += scale * n.weight as f64 / total as f64;
        let mut k = 0;
        while made < target && points.len() < MAX_RING {
            points.push((n.hash(k), n.index));
            k += 1;
            made += 1.0;
        }
    }
    points.sort_unstable();
    points.into_boxed_slice()
}

/// Maglev: endpoints take slots in turn, each by its own permutation, and a heavier one more often.
fn maglev(named: &[Named], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    if named.is_empty() {
        return Vec::new();
    }
    let size = u64::from(size);
    let heaviest = named.iter().map(|n| n.weight).max().unwrap_or(1);
    let mut turns: Vec<(u64, u64, u64, u64)> = named
        .iter()
        .map(|n| (n.hash(u64::MAX) % size, n.hash(u64::MAX - 1) % (size - 1) + 1, 0, 0))
        .collect();
    #[allow(clippy::cast_possible_truncation, reason = "at most MAX_MAGLEV")]
    let mut slots = vec![FREE; size as usize];
    let (mut left, mut round) = (slots.len(), 0);
    while left > 0 {
        round += 1;
        for (n, (offset, skip, next, due)) in named.iter().zip(&mut turns) {
            if round * n.weight < *due {
                continue;
            }
            *due += heaviest;
            // The size is prime, so that a permutation reaches every slot.
            let free = loop {
                #[allow(clippy::cast_possible_truncation, reason = "below the number of slots")]
                let at = ((*offset + *skip * *next) % size) as usize;
                *next += 1;
                if slots[at] == FREE {
                    break at;
                }
            };
            slots[free] = n.index;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    slots
}

/// The first prime from `n` on.
fn prime_from(n: u32) -> u32 {
    let is_prime = |n: u32| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    (n..).find(|n| is_prime(*n)).unwrap_or(65_537)
}

#[cfg(test)]
mod tests;
