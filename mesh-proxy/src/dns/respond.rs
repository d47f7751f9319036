//! Decides the answer to one question: the mesh first, then the upstream servers.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use mesh_core::Tables;
use mesh_core::dns::{self, Answer, QueryType, TTL};

use super::forward::{Forwarded, Forwarder, NoAnswer, may_forward};
use super::metrics::Outcome;
use crate::shared::Shared;

/// Aliases followed before giving up; more is a loop.
const MAX_ALIASES: usize = 8;
/// How long an answer waits for its address to be captured: well below the time after which resolvers ask again.
const CAPTURE_WAIT: Duration = Duration::from_secs(1);
/// Addresses sent along with SRV records.
const MAX_ADDITIONALS: usize = 16;

/// The answer to one question.
#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) outcome: Outcome,
    pub(crate) code: ResponseCode,
    pub(crate) authoritative: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Reply {
    pub(crate) fn error(outcome: Outcome, code: ResponseCode) -> Self {
        Self {
            outcome,
            code,
            authoritative: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    fn mesh(outcome: Outcome, code: ResponseCode, answers: Vec<Record>) -> Self {
        Self { authoritative: true, answers, ..Self::error(outcome, code) }
    }
}

pub(crate) struct Responder {
    shared: Arc<Shared>,
    forwarder: Forwarder,
    /// Where the next answer begins in its list, so that clients which take the first address
    /// spread.
    turn: AtomicUsize,
}

impl Responder {
    pub(crate) fn new(shared: Arc<Shared>, forwarder: Forwarder) -> Self {
        Self { shared, forwarder, turn: AtomicUsize::new(0) }
    }

    /// `asked` is the name as the client wrote it, which answers repeat.
    pub(crate) async fn reply(&self, asked: &Name, kind: RecordType, from: IpAddr) -> Reply {
        let mut chain: Vec<Record> = Vec::new();
        let mut name = asked.clone();
        for _ in 0..=MAX_ALIASES {
            let found = self.ask_mesh(&name, kind, from);
            let target = match found {
                Answer::Cname(target) => target,
                Answer::NotOurs if self.is_search_leftover(&name) => {
                    return Reply {
                        answers: chain,
                        ..Reply::error(Outcome::MeshNxDomain, ResponseCode::NXDomain)
                    };
                }
                Answer::NotOurs => return self.forward(chain, &name, kind).await,
                Answer::Records(records) => {
                    self.shared.captured(CAPTURE_WAIT).await;
                    let outcome = Outcome::Mesh;
                    let mut reply = Reply::mesh(outcome, ResponseCode::NoError, chain);
                    self.add(&mut reply, &name, &records);
                    return reply;
                }
                Answer::NoData => {
                    let outcome = if chain.is_empty() { Outcome::MeshNoData } else { Outcome::Mesh };
                    let mut reply = Reply::mesh(outcome, ResponseCode::NoError, chain);
                    reply.authorities.extend(self.soa());
                    return reply;
                }
                // Before the first configuration nothing is known, which is not the same as "no such name".
                Answer::NxDomain if self.shared.tables.load().service_count() == 0 => {
                    return Reply::error(Outcome::Failed, ResponseCode::ServFail);
                }
                Answer::NxDomain => {
                    let mut reply = Reply::mesh(Outcome::MeshNxDomain, ResponseCode::NXDomain, chain);
                    reply.authorities.extend(self.soa());
                    return reply;
                }
            };
            let Some(target) = full_name(&target) else { break };
            chain.push(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
            if kind == RecordType::CNAME {
                return Reply::mesh(Outcome::Mesh, ResponseCode::NoError, chain);
            }
            name = target;
        }
        tracing::debug!(name = %asked, "an alias that leads nowhere");
        Reply::error(Outcome::Failed, ResponseCode::ServFail)
    }

    fn ask_mesh(&self, name: &Name, kind: RecordType, from: IpAddr) -> Answer {
        let query = match kind {
            RecordType::A => QueryType::A,
            RecordType::AAAA => QueryType::Aaaa,
            RecordType::SRV => QueryType::Srv,
            RecordType::PTR => QueryType::Ptr,
            _ => QueryType::Other,
        };
        let mut text = name.to_ascii();
        text.make_ascii_lowercase();
        dns::answer_for(&self.shared.tables.load(), from, &text, query)
    }

    /// A full name of ours with something behind it, such as `a.b.svc.cluster.local.example.com`:
    /// what a resolver makes of our name and its search list before it tries the name itself. It
    /// cannot exist, and asking for it would make our names as slow as the line to the outside.
    fn is_search_leftover(&self, name: &Name) -> bool {
        let tables = self.shared.tables.load();
        let Some(domain) = full_name(&tables.mesh().cluster_domain) else { return false };
        let ours: Vec<&[u8]> = std::iter::once(&b"svc"[..]).chain(domain.iter()).collect();
        let labels: Vec<&[u8]> = name.iter().collect();
        let same = |window: &[&[u8]]| window.iter().zip(&ours).all(|(a, b)| a.eq_ignore_ascii_case(b));
        labels.windows(ours.len()).any(same)
    }

    fn add(&self, reply: &mut Reply, name: &Name, records: &[dns::Record]) {
        let start =
            if records.len() > 1 { self.turn.fetch_add(1, Ordering::Relaxed) % records.len() } else { 0 };
        for record in records[start..].iter().chain(&records[..start]) {
            let Some(data) = rdata(record) else { continue };
            reply.answers.push(Record::from_rdata(name.clone(), TTL, data));
            if let dns::Record::Srv { target, .. } = record {
                addresses_of(&self.shared.tables.load(), target, &mut reply.additionals);
            }
        }
    }

    async fn forward(&self, chain: Vec<Record>, name: &Name, kind: RecordType) -> Reply {
        if !may_forward(kind) {
            return Reply::error(Outcome::Refused, ResponseCode::NotImp);
        }
        let key = (LowerName::from(name), kind);
        match self.forwarder.lookup(&key).await {
            Err(NoAnswer) => Reply::error(Outcome::Failed, ResponseCode::ServFail),
            Ok(forwarded) => {
                let outcome = if forwarded.at_most.is_some() { Outcome::Stale } else { Outcome::Forwarded };
                let mut reply = Reply::error(outcome, forwarded.found.code);
                reply.answers = chain;
                reply.answers.extend(aged(&forwarded.found.answers, &forwarded, name));
                reply.authorities.extend(aged(&forwarded.found.authorities, &forwarded, name));
                reply
            }
        }
    }

    /// Lets resolvers keep negative answers for the mesh's TTL.
    fn soa(&self) -> Option<Record> {
        let domain = full_name(&self.shared.cluster_domain())?;
        let (server, mailbox) = (domain.prepend_label("ns").ok()?, domain.prepend_label("hostmaster").ok()?);
        let soa = SOA::new(server, mailbox, 1, 7200, 1800, 86400, TTL);
        Some(Record::from_rdata(domain, TTL, RData::SOA(soa)))
    }
}

/// Records of the cache with the TTLs of now, the owner written as the client wrote it.
fn aged(records: &[Record], how: &Forwarded, asked: &Name) -> impl Iterator<Item = Record> {
    let shrunk = u32::try_from(how.age.as_secs()).unwrap_or(u32::MAX);
    let at_most =
        how.at_most.map_or(u32::MAX, |limit: Duration| u32::try_from(limit.as_secs()).unwrap_or(u32::MAX));
    records.iter().map(move |record| {
        let mut record = record.clone();
        record.ttl = record.ttl.saturating_sub(shrunk).clamp(1, at_most);
        if record.name == *asked {
            record.name = asked.clone();
        }
        record
    })
}

fn rdata(record: &dns::Record) -> Option<RData> {
    Some(match record {
        dns::Record::A(ip) => RData::A(A(*ip)),
        dns::Record::Aaaa(ip) => RData::AAAA(AAAA(*ip)),
        dns::Record::Ptr(name) => RData::PTR(PTR(full_name(name)?)),
        dns::Record::Srv { priority, weight, port, target } => {
            RData::SRV(SRV::new(*priority, *weight, *port, full_name(target)?))
        }
    })
}

fn full_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn addresses_of(tables: &Tables, target: &str, additionals: &mut Vec<Record>) {
    let Some(name) = full_name(target) else { return };
    for query in [QueryType::A, QueryType::Aaaa] {
        let Answer::Records(records) = dns::answer(tables, target, query) else { continue };
        let room = MAX_ADDITIONALS.saturating_sub(additionals.len());
        let data = records.iter().filter_map(rdata).take(room);
        additionals.extend(data.map(|data| Record::from_rdata(name.clone(), TTL, data)));
    }
}
