use std::time::Duration;

use rcgen::PublicKeyData as _;

use super::*;

fn hex(text: &str) -> CertificateDer<'static> {
    let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect::<Vec<u8>>().into()
}

/// From the test vectors of libp2p's TLS specification: an Ed25519 peer.
const GOOD: &str = "308201773082011ea003020102020900f5bd0debaa597f52300a06082a8648ce3d04030230003020170d37353031303130\
    30303030305a180f34303936303130313030303030305a30003059301306072a8648ce3d020106082a8648ce3d030107034200046bf987122\
    0d71dcb3483ecdfcbfcc7c103f8509d0974b3c18ab1f1be1302d643103a08f7a7722c1b247ba3876fe2c59e26526f479d7718a85202ddbe47\
    562358a37f307d307b060a2b0601040183a25a01010101ff046a30680424080112207fda21856709c5ae12fd6e8450623f15f11955d384212\
    b89f56e7e136d2e17280440aaa6bffabe91b6f30c35e3aa4f94b1188fed96b0ffdd393f4c58c1c047854120e674ce64c788406d1c2c4b1165\
    81fd7411b309881c3c7f20b46e54c7e6fe7f0f300a06082a8648ce3d040302034700304402207d1a1dbd2bda235ff2ec87daf006f9b04ba07\
    6a5a5530180cd9c2e8f6399e09d0220458527178c7e77024601dbb1b256593e9b96d961b96349d1f560114f61a87595";
/// From the same: the peer's signature is wrong.
const BAD: &str = "308201773082011da003020102020830a73c5d896a1109300a06082a8648ce3d04030230003020170d373530313031303030\
    3030305a180f34303936303130313030303030305a30003059301306072a8648ce3d020106082a8648ce3d03010703420004bbe62df9a7c1c\
    46b7f1f21d556deec5382a36df146fb29c7f1240e60d7d5328570e3b71d99602b77a65c9b3655f62837f8d66b59f1763b8c9beba3be077780\
    43a37f307d307b060a2b0601040183a25a01010101ff046a3068042408011220ec8094573afb9728088860864f7bcea2d4fd412fef09a8e2d\
    24d482377c20db60440ecabae8354afa2f0af4b8d2ad871e865cb5a7c0c8d3dbdbf42de577f92461a0ebb0a28703e33581af7d2a4f2270fc3\
    7aec6261fcc95f8af08f3f4806581c730a300a06082a8648ce3d040302034800304502202dfb17a6fa0f94ee0e2e6a3b9fb6e986f311dee27\
    392058016464bd130930a61022100ba4b937a11c8d3172b81e7cd04aedb79b978c4379c2b5b24d565dd5d67d3cb3c";

fn refusal(der: &CertificateDer<'_>) -> CertificateError {
    parse(der).map(|_| ()).unwrap_err()
}

#[test]
fn the_specification_s_vectors_are_judged_as_it_says() {
    let good = hex(GOOD);
    let certificate = parse(&good).unwrap();
    assert_eq!(certificate.peer_id().to_string(), "12D3KooWJRSrypvnpHgc6ZAgyCni4KcSmbV7uGRaMw5LgMKT18fq");
    assert_eq!(refusal(&hex(BAD)), CertificateError::HostSignature);
}

#[test]
fn a_certificate_of_ours_names_the_peer_and_keeps_time() {
    let host = Keypair::generate_ed25519();
    let own = generate(&host).unwrap();
    let certificate = parse(&own.cert[0]).unwrap();
    assert_eq!(certificate.peer_id(), host.public().to_peer_id());
    assert_eq!(peer_of(&own.cert[0]).unwrap(), host.public().to_peer_id());
    let year = |year: u64| UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_556_952));
    // A machine whose clock has lost its battery starts in 1970 or at its firmware's date.
    assert_eq!(certificate.at(year(1980)), Ok(()));
    assert_eq!(certificate.at(year(2100)), Ok(()));
    assert_eq!(certificate.at(year(1971)), Err(CertificateError::Time));
    assert_eq!(certificate.at(year(4200)), Err(CertificateError::Time));
}

/// What can be wrong, made wrong one at a time.
fn made(
    algorithm: &'static rcgen::SignatureAlgorithm,
    host: &Keypair,
    change: impl FnOnce(&mut rcgen::CertificateParams, Vec<u8>),
) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let signature = host.sign(&[PREFIX, &key.subject_public_key_info()].concat()).unwrap();
    let value = yasna::encode_der(&(host.public().encode_protobuf(), signature));
    let mut params = rcgen::CertificateParams::default();
    change(&mut params, value);
    params.self_signed(&key).unwrap().into()
}

fn extension(value: Vec<u8>) -> rcgen::CustomExtension {
    rcgen::CustomExtension::from_oid_content(&EXTENSION, value)
}

#[test]
fn each_thing_that_can_be_wrong_is_named() {
    let host = Keypair::generate_ed25519();
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let with = |change: &dyn Fn(&mut rcgen::CertificateParams, Vec<u8>)| made(p256, &host, change);

    let bare = with(&|_, _| ());
    assert_eq!(refusal(&bare), CertificateError::Extension, "no extension");
    let twice = with(&|p, v| p.custom_extensions = vec![extension(v.clone()), extension(v)]);
    // The parser of certificates refuses two of one kind itself.
    assert!(
        matches!(refusal(&twice), CertificateError::Extension | CertificateError::Encoding),
        "two extensions"
    );
    let garbage = with(&|p, mut v| {
        v.push(0);
        p.custom_extensions.push(extension(v));
    });
    assert_eq!(refusal(&garbage), CertificateError::Extension, "something after the sequence");
    let other_host = Keypair::generate_ed25519();
    let stolen = with(&|p, _| {
        // Another peer's key, with a signature that is not its own.
        let value = yasna::encode_der(&(other_host.public().encode_protobuf(), vec![7u8; 64]));
        p.custom_extensions.push(extension(value));
    });
    assert_eq!(refusal(&stolen), CertificateError::HostSignature);
    let no_key = with(&|p, _| {
        p.custom_extensions.push(extension(yasna::encode_der(&(vec![8u8, 9, 9], vec![7u8; 64]))));
    });
    assert_eq!(refusal(&no_key), CertificateError::HostKey);
    let critical = with(&|p, v| {
        let mut unknown =
            rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 53594, 1, 99], vec![5, 0]);
        unknown.set_criticality(true);
        p.custom_extensions = vec![extension(v), unknown];
    });
    assert_eq!(refusal(&critical), CertificateError::Critical);
    assert_eq!(refusal(&CertificateDer::from(vec![0x30, 0x82, 0xff])), CertificateError::Encoding);
    let mut longer = generate(&host).unwrap().cert[0].to_vec();
    longer.push(0);
    assert_eq!(refusal(&longer.into()), CertificateError::Encoding, "something after the certificate");
}

#[test]
fn the_curves_that_are_offered_are_taken_and_no_other() {
    let host = Keypair::generate_ed25519();
    let good = |p: &mut rcgen::CertificateParams, v| p.custom_extensions.push(extension(v));
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        assert!(parse(&made(algorithm, &host, good)).is_ok(), "{algorithm:?}");
    }
    let p521 = made(&rcgen::PKCS_ECDSA_P521_SHA512, &host, good);
    assert_eq!(refusal(&p521), CertificateError::Algorithm);
}

#[test]
fn a_changed_bit_proves_nothing() {
    let host = Keypair::generate_ed25519();
    let der = generate(&host).unwrap().cert[0].to_vec();
    let body = X509Certificate::from_der(&der).unwrap().1.tbs_certificate.as_ref().len();
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1 << (at % 8);
        let changed = changed.into();
        let parsed = parse(&changed);
        // After the signed body come the algorithm's name once more, in whose tag the parser takes bits that say
        // nothing, and the signature.
        if !(4 + body..4 + body + 7).contains(&at) {
            assert!(parsed.is_err(), "byte {at} of {}", der.len());
        } else if let Ok(certificate) = parsed {
            assert_eq!(certificate.peer_id(), host.public().to_peer_id(), "byte {at}");
        }
    }
    for length in 0..der.len() {
        assert!(parse(&der[..length].to_vec().into()).is_err(), "{length} bytes of it");
    }
}

#[test]
fn a_handshake_is_checked_with_the_scheme_of_the_key() {
    let host = Keypair::generate_ed25519();
    let own = generate(&host).unwrap();
    let signer = own.key.choose_scheme(&SCHEMES).unwrap();
    let signature = signer.sign(b"transcript").unwrap();
    let check =
        |scheme, message: &[u8], signature: &[u8]| verify_handshake(&own.cert[0], scheme, message, signature);
    let right = SignatureScheme::ED25519;
    assert_eq!(check(right, b"transcript", &signature), Ok(()));
    assert_eq!(check(right, b"another", &signature), Err(CertificateError::Handshake));
    let other = SignatureScheme::ECDSA_NISTP256_SHA256;
    assert_eq!(check(other, b"transcript", &signature), Err(CertificateError::Algorithm));
}
