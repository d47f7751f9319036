//! When one CA follows another: the next one is trusted everywhere before it signs anything, and the former one is trusted
//! until the last certificate that it has signed has ended.
//!
//! ```text
//! CA 1  |== signs ==============================|-- trusted --|
//! CA 2                        |-- is trusted ---|== signs ================ …
//!       made            2/3 of CA 1's life   + overlap   + life of a leaf
//! ```
//!
//! The former CA also signs the next one's key (`cross`): who has been told of nothing but the former (a node that missed
//! the overlap, a join token from before it) finds a way from there to the new one for as long as the former is trusted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    authority::{AuthorityError, BACKDATE, Generation, NODE_CERT_TTL},
    spiffe::TrustDomain,
};

/// In this time at least other controllers have seen that there is a next CA.
const SHORTEST_OVERLAP: Duration = Duration::from_secs(60);

/// How long things hold, by which the CA is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// A CA's certificate.
    pub ca: Duration,
    /// A node's certificate: in this time each node that is there has renewed its own, and has learnt of the next CA.
    pub leaf: Duration,
    /// For how long a CA is trusted before it signs.
    pub overlap: Duration,
}

impl Lives {
    /// With an overlap of the life of a leaf.
    pub fn new(ca: Duration, leaf: Duration) -> Self {
        Self { ca, leaf, overlap: leaf }
    }
}

impl Default for Lives {
    fn default() -> Self {
        Self::new(Duration::from_secs(10 * 365 * 24 * 3600), NODE_CERT_TTL)
    }
}

/// What has become of the CAs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is a next one, which is trusted and does not sign.
    Announced,
    /// The next one signs.
    Switched,
    /// A former one is not trusted any more.
    Left,
}

/// The CAs of a mesh as they are kept: key and certificate of the one that signs, as PEM, and the rest.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    /// Key of the one that signs.
    pub key: String,
    /// Its certificate.
    pub certificate: String,
    /// Those before and after it.
    pub others: Others,
}

/// The CAs that do not sign.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Others {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Next>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<Former>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Next {
    key: String,
    certificate: String,
    cross: String,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    certificate: String,
    /// The key of the one after it, signed by it.
    cross: String,
    /// Seconds since 1970.
    until: u64,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Others {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (next, former) = (self.next.is_some(), self.former.len());
        f.debug_struct("Others").field("next", &next).field("former", &former).finish()
    }
}

impl Others {
    /// Reads what [`Others::encode`] has written.
    pub fn decode(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// As JSON. It holds a private key.
    pub fn encode(&self) -> Vec<u8> {
        // Strings and numbers: serialisation has no way to fail.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Certificates to be trusted beside the one that signs, the next one first.
    pub(crate) fn trusted(&self) -> impl Iterator<Item = &str> {
        let former = self.former.iter().rev().map(|f| f.certificate.as_str());
        self.next.iter().map(|n| n.certificate.as_str()).chain(former)
    }

    /// What leads from former CAs to the one that signs: each of them, and what it has signed of the one after it.
    pub(crate) fn vouchers(&self) -> impl Iterator<Item = &str> {
        self.former.iter().rev().flat_map(|f| [f.cross.as_str(), f.certificate.as_str()])
    }
}

impl Kept {
    /// A first CA.
    pub fn new(trust_domain: &TrustDomain, lives: &Lives, now: u64) -> Result<Self, AuthorityError> {
        let Generation { key, certificate } = Generation::create(trust_domain, lives.ca, now)?;
        Ok(Self { key, certificate, others: Others::default() })
    }

    /// A change that was interrupted between its files is brought to its end. `None` when there is nothing to mend.
    pub(crate) fn mended(&self) -> Option<Self> {
        let next = self.others.next.as_ref().filter(|n| n.certificate == self.certificate)?;
        let mut others = self.others.clone();
        others.next = None;
        others.former.retain(|f| f.certificate != self.certificate);
        Some(Self { key: next.key.clone(), certificate: self.certificate.clone(), others })
    }

    /// The CAs beside the one that signs while that is being replaced: all that is needed to bring it to an end.
    pub(crate) fn others_while_it_changes(&self, old: &Self) -> Others {
        Others { next: old.others.next.clone(), former: self.others.former.clone() }
    }

    /// What is due at this time; `None` when nothing is. More than one thing may be: ask again.
    pub fn step(
        &self,
        trust_domain: &TrustDomain,
        lives: &Lives,
        now: u64,
    ) -> Result<Option<(Self, Step)>, AuthorityError> {
        let mut new = self.clone();
        new.others.former.retain(|f| f.until > now);
        if new.others.former.len() < self.others.former.len() {
            return Ok(Some((new, Step::Left)));
        }
        let (made, ends) = life(&self.certificate)?;
        let Some(next) = &self.others.next else {
            if now >= ends {
                // A clock that is wrong is far more likely than a mesh without a controller for years.
                return Err(AuthorityError::Ended { seconds: now - ends });
            }
            let due = made + (ends.saturating_sub(made)) / 3 * 2;
            if now < due {
                return Ok(None);
            }
            return self.announced(trust_domain, lives, ends, now).map(Some);
        };
        let known_since = life(&next.certificate)?.0;
        // Shorter where the controllers were away and the end is near.
        let is_late = now.saturating_add(lives.leaf.as_secs()) >= ends;
        let overlap = if is_late { lives.overlap.min(SHORTEST_OVERLAP) } else { lives.overlap };
        if now < known_since.saturating_add(overlap.as_secs()) {
            return Ok(None);
        }
        let until = now.saturating_add(lives.leaf.as_secs()).saturating_add(lives.leaf.as_secs() / 10);
        let former = Former { certificate: self.certificate.clone(), cross: next.cross.clone(), until };
        new.others.former.retain(|f| f.certificate != former.certificate);
        new.others.former.push(former);
        (new.key, new.certificate) = (next.key.clone(), next.certificate.clone());
        new.others.next = None;
        Ok(Some((new, Step::Switched)))
    }

    /// The next CA before its time, because somebody asked for it at `asked`, in seconds since 1970; `None` when there is one
    /// that was made since, or is about to sign.
    pub fn renewed(
        &self,
        trust_domain: &TrustDomain,
        lives: &Lives,
        asked: u64,
        now: u64,
    ) -> Result<Option<(Self, Step)>, AuthorityError> {
        let (made, ends) = life(&self.certificate)?;
        // Who asks by a clock that is ahead waits for it: done at once, it would be asked for again of the CA that comes of it.
        if self.others.next.is_some() || made >= asked || asked > now || now >= ends {
            return Ok(None);
        }
        self.announced(trust_domain, lives, ends, now).map(Some)
    }

    fn announced(
        &self,
        trust_domain: &TrustDomain,
        lives: &Lives,
        ends: u64,
        now: u64,
    ) -> Result<(Self, Step), AuthorityError> {
        let own = Generation { key: self.key.clone(), certificate: self.certificate.clone() };
        let Generation { key, certificate } = Generation::create(trust_domain, lives.ca, now)?;
        let cross = own.vouch_for(trust_domain, &key, ends, now)?;
        let mut new = self.clone();
        new.others.next = Some(Next { key, certificate, cross });
        Ok((new, Step::Announced))
    }
}

/// When a CA was made and when it ends, in seconds since 1970.
fn life(certificate: &str) -> Result<(u64, u64), AuthorityError> {
    let (from, to) = Generation::validity(certificate)?;
    Ok((from.saturating_add(BACKDATE), to))
}

#[cfg(test)]
mod tests;
