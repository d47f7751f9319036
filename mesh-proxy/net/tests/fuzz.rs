//! Fuzz targets: everything in this crate that reads bytes from strangers.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use mesh_net::sniff::{client_hello, h2_preface, request_line, sniff};
use mesh_net::tls::{SpiffeId, identity_of};
use mesh_testkit::fuzz;
use rustls_pki_types::CertificateDer;

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
fn fuzz_first_bytes() {
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
    fuzz::run("sniff", &seeds, |bytes| {
        // What is seen and how it is read; names in it would make each input a new outcome.
        let all = (sniff(bytes), client_hello(bytes), h2_preface(bytes), request_line(bytes));
        fuzz::shape(&format!("{all:?}"))
    });
}

#[test]
fn fuzz_certificates_and_identities() {
    let mut parameters = rcgen::CertificateParams::default();
    let uri = "spiffe://cluster.local/node/edge-a".try_into().unwrap();
    parameters.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    assert!(identity_of(certificate.der()).is_ok());
    fuzz::run("identity_of", &[certificate.der().to_vec()], |bytes| {
        fuzz::shape(&format!("{:?}", identity_of(&CertificateDer::from(bytes))))
    });
    let seeds = [b"spiffe://cluster.local/node/edge-a".to_vec(), b"spiffe://td/ns/a/sa/b".to_vec()];
    fuzz::run("spiffe_id", &seeds, |bytes| {
        if let Ok(id) = SpiffeId::parse(&String::from_utf8_lossy(bytes)) {
            assert_eq!(format!("spiffe://{}/{}", id.trust_domain(), id.path()), id.as_str());
            return (true, id.node().is_some(), id.is_controller());
        }
        (false, false, false)
    });
}
