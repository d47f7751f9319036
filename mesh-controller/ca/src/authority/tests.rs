use std::os::unix::fs::PermissionsExt;

use rcgen::{CertificateSigningRequest, CustomExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

const NOW: u64 = 1_900_000_000;

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

fn authority() -> (Authority, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Authority::open(&dir.path().join("ca"), &domain(), NOW).unwrap(), dir)
}

fn csr(params: &CertificateParams, key: &KeyPair) -> CertificateSigningRequest {
    params.serialize_request(key).unwrap()
}

#[test]
fn the_same_ca_is_loaded_again_and_the_key_is_private() {
    let (a, dir) = authority();
    let b = Authority::open(&dir.path().join("ca"), &domain(), NOW + 5).unwrap();
    assert_eq!(a.fingerprint(), b.fingerprint());
    let mode =
        |f: &str| std::fs::metadata(dir.path().join("ca").join(f)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("ca.key"), 0o600);
    let left: Vec<_> =
        std::fs::read_dir(dir.path().join("ca")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn two_that_start_at_once_share_one_ca() {
    let dir = tempfile::tempdir().unwrap();
    let prints = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let a = Authority::open(&dir.path().join("ca"), &domain(), NOW).unwrap();
                prints.lock().unwrap().push(a.fingerprint());
            });
        }
    });
    let prints = prints.into_inner().unwrap();
    assert!(prints.iter().all(|p| *p == prints[0]));
}

#[test]
fn a_damaged_or_foreign_ca_is_refused_not_replaced() {
    let (_, dir) = authority();
    let ca = dir.path().join("ca");
    let other = TrustDomain::new("other").unwrap();
    assert!(matches!(Authority::open(&ca, &other, NOW), Err(AuthorityError::Corrupt { .. })));
    let foreign = KeyPair::generate().unwrap().serialize_pem();
    let good = std::fs::read(ca.join("ca.key")).unwrap();
    std::fs::write(ca.join("ca.key"), foreign).unwrap();
    let err = Authority::open(&ca, &domain(), NOW).unwrap_err().to_string();
    assert!(err.contains("does not belong to ca.key"), "{err}");
    std::fs::write(ca.join("ca.key"), "garbage").unwrap();
    assert!(matches!(Authority::open(&ca, &domain(), NOW), Err(AuthorityError::Corrupt { .. })));
    std::fs::write(ca.join("ca.key"), good).unwrap();
    std::fs::remove_file(ca.join("ca.crt")).unwrap();
    assert!(matches!(Authority::open(&ca, &domain(), NOW), Err(AuthorityError::Incomplete(_))));
}

#[test]
fn a_node_certificate_says_what_the_ca_decides() {
    let (a, _dir) = authority();
    let key = KeyPair::generate().unwrap();
    // The request asks for everything that it must not get.
    let mut asked = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    asked.subject_alt_names.push(SanType::URI("spiffe://cluster.local/node/root".try_into().unwrap()));
    asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    asked.distinguished_name.push(DnType::CommonName, "root");
    let request = csr(&asked, &key);
    let der = a.sign_node(&NodeName::new("edge-a").unwrap(), request.der(), NODE_CERT_TTL, NOW).unwrap();
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(certificate_uris(&cert), ["spiffe://cluster.local/node/edge-a"]);
    let san = cert.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names.len(), 1);
    assert!(!cert.is_ca());
    let eku = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(eku.client_auth && eku.server_auth && !eku.any && !eku.code_signing);
    let now = i64::try_from(NOW).unwrap();
    assert_eq!(cert.validity().not_before.timestamp(), now - 300);
    assert_eq!(cert.validity().not_after.timestamp(), now + 24 * 3600);
    assert_eq!(cert.public_key().subject_public_key.data.as_ref(), key.der_bytes());
    assert!(cert.subject().iter_common_name().all(|cn| cn.as_str().unwrap() == "edge-a"));
    let (_, ca) = X509Certificate::from_der(a.certificate()).unwrap();
    cert.verify_signature(Some(ca.public_key())).unwrap();
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let (a, _dir) = authority();
    let node = NodeName::new("edge-a").unwrap();
    let key = KeyPair::generate().unwrap();
    let good = csr(&CertificateParams::default(), &key).der().to_vec();
    let sign = |der: &[u8]| a.sign_node(&node, der, NODE_CERT_TTL, NOW);
    assert!(sign(&good).is_ok());
    let mut forged = good.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(matches!(sign(&forged), Err(SignError::BadRequest(_))));
    // The key of somebody else under an own signature.
    let other = csr(&CertificateParams::default(), &KeyPair::generate().unwrap()).der().to_vec();
    let at = good.windows(65).position(|w| w == key.der_bytes()).unwrap();
    let mut swapped = other;
    swapped[at..at + 65].copy_from_slice(key.der_bytes());
    assert!(matches!(sign(&swapped), Err(SignError::BadRequest(_))));
    assert!(matches!(sign(b""), Err(SignError::BadRequest(_))));
    assert!(matches!(sign(b"\x30\x03abc"), Err(SignError::BadRequest(_))));
    assert_eq!(sign(&vec![0; 9000]), Err(SignError::TooLarge(9000)));
    let mut odd = CertificateParams::default();
    odd.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    assert!(matches!(sign(csr(&odd, &key).der()), Err(SignError::BadRequest(_))));
}

#[test]
fn ed25519_and_p384_keys_are_accepted() {
    let (a, _dir) = authority();
    for alg in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(alg).unwrap();
        let request = csr(&CertificateParams::default(), &key);
        a.sign_node(&NodeName::new("n").unwrap(), request.der(), NODE_CERT_TTL, NOW).unwrap();
    }
}

#[test]
fn the_controller_has_its_own_identity() {
    let (a, _dir) = authority();
    let names = ["controller.mesh.svc".to_owned(), "203.0.113.1".to_owned(), "::1".to_owned()];
    let issued = a.issue_controller(&names, NODE_CERT_TTL, NOW).unwrap();
    assert_eq!(issued.chain.len(), 2);
    assert_eq!(&issued.chain[1], a.certificate());
    let (_, cert) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(certificate_uris(&cert), ["spiffe://cluster.local/controller"]);
    assert_eq!(cert.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 4);
    let shown = format!("{issued:?} {a:?}");
    assert!(!shown.contains("BEGIN") && shown.len() < 200, "{shown}");
    assert!(a.issue_controller(&["not a name\u{e9}".to_owned()], NODE_CERT_TTL, NOW).is_err());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..Default::default() })]

    #[test]
    fn no_damaged_request_is_signed(at in 3usize..400, to in proptest::prelude::any::<u8>(), cut in 0usize..400) {
        static CA: std::sync::LazyLock<(Authority, Vec<u8>, tempfile::TempDir)> = std::sync::LazyLock::new(|| {
            let (a, dir) = authority();
            let request = csr(&CertificateParams::default(), &KeyPair::generate().unwrap()).der().to_vec();
            (a, request, dir)
        });
        let (ca, good, _) = &*CA;
        let node = NodeName::new("n").unwrap();
        let mut bad = good.clone();
        // Within what the signature covers; outside, DER has more than one way to say the same.
        let signed = good.len() - 90;
        if let Some(b) = bad[..signed].get_mut(at) {
            *b = to;
        }
        if bad != *good {
            proptest::prop_assert!(ca.sign_node(&node, &bad, NODE_CERT_TTL, NOW).is_err());
        }
        if cut < good.len() {
            proptest::prop_assert!(ca.sign_node(&node, &good[..cut], NODE_CERT_TTL, NOW).is_err());
        }
    }
}
