//! A bounded fuzz of everything that reads bytes from strangers: mutations of a seed corpus, from a
//! fixed seed so that a failure comes back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use mesh_net::sniff::{client_hello, h2_preface, request_line, sniff};
use mesh_net::tls::{SpiffeId, identity_of};
use rustls_pki_types::CertificateDer;

const ROUNDS: usize = 300_000;
/// A slow machine does fewer rounds.
const AT_MOST: Duration = Duration::from_secs(10);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.next() as u8),
            4 if !bytes.is_empty() => drop(bytes.remove(at)),
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = (at + random.below(64)).min(bytes.len());
                let again = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

fn fuzz(name: &str, seeds: &[Vec<u8>], target: impl Fn(&[u8])) {
    let mut random = Random(0x5e1f_a9e5_eed0_0001);
    let start = Instant::now();
    let mut done = 0;
    while done < ROUNDS && start.elapsed() < AT_MOST {
        let bytes = mutate(&mut random, seeds);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&bytes))).is_err() {
            panic!("{name} panics on {bytes:02x?}");
        }
        done += 1;
    }
    println!("{name}: {done} inputs in {:?}", start.elapsed());
    assert!(done > 1000, "{name}: only {done} inputs");
}

fn hello(name: &'static str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = rustls::ClientConnection::new(config.into(), name.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn first_bytes() {
    let whole = hello("shop.example.com");
    let cut: Vec<u8> = whole[5..]
        .chunks(100)
        .flat_map(|part| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat())
        .collect();
    let seeds = [
        whole,
        cut,
        mesh_net::sniff::H2_PREFACE.to_vec(),
        b"GET /index.html?a=b HTTP/1.1\r\nhost: example.com\r\n\r\n".to_vec(),
        b"\r\nPOST http://a/ HTTP/1.0\r\n\r\n".to_vec(),
    ];
    fuzz("sniff", &seeds, |bytes| {
        let _ = (sniff(bytes), client_hello(bytes), h2_preface(bytes), request_line(bytes));
    });
}

#[test]
fn certificates_and_identities() {
    let mut parameters = rcgen::CertificateParams::default();
    let uri = "spiffe://cluster.local/node/edge-a".try_into().unwrap();
    parameters.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    assert!(identity_of(certificate.der()).is_ok());
    fuzz("identity_of", &[certificate.der().to_vec()], |bytes| {
        let _ = identity_of(&CertificateDer::from(bytes));
    });
    let seeds = [b"spiffe://cluster.local/node/edge-a".to_vec(), b"spiffe://td/ns/a/sa/b".to_vec()];
    fuzz("SpiffeId::parse", &seeds, |bytes| {
        if let Ok(id) = SpiffeId::parse(&String::from_utf8_lossy(bytes)) {
            assert_eq!(format!("spiffe://{}/{}", id.trust_domain(), id.path()), id.as_str());
            let _ = (id.node(), id.is_controller());
        }
    });
}
