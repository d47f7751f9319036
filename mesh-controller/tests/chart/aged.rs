//! Nodes that come back with a certificate that is good for nothing: it has ended, or is of a CA that the mesh does not have.
//! Their pods join anew by themselves.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use base64::Engine as _;
use mesh_ca::{Authority, Kept, Lives, NodeName, TrustDomain};
use mesh_testkit::kube::eventually;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;

use crate::shop::{NAMESPACE, Shop};

const HOUR: u64 = 3600;

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

/// Key, certificate and CAs of a node: on its disk.
fn identity(shop: &Shop, node: &str) -> PathBuf {
    shop.cluster.disk(node, "/var/lib/selvage/mesh-proxy/identity.pem").unwrap()
}

/// The mesh's CA, from where its controllers keep it.
fn of_the_mesh(shop: &Shop) -> Authority {
    let secret = shop.cluster.kubectl(&["get", "secret", "mesh-ca", "-n", NAMESPACE, "-o", "json"]).unwrap();
    let secret: Value = serde_json::from_str(&secret).unwrap();
    let text = |key: &str| {
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let mut kept = Kept::new(&domain(), &Lives::default(), now()).unwrap();
    (kept.key, kept.certificate) = (text("ca.key"), text("ca.crt"));
    Authority::of(&kept, &domain(), Path::new("mesh-ca")).unwrap()
}

/// A CA that nobody knows any more.
fn of_a_former_mesh() -> Authority {
    let kept = Kept::new(&domain(), &Lives::default(), now() - HOUR).unwrap();
    Authority::of(&kept, &domain(), Path::new("former")).unwrap()
}

/// Gives a node another certificate for the key that it has, issued at `at` for an hour.
fn certify(shop: &Shop, node: &str, ca: &Authority, at: u64) {
    let file = identity(shop, node);
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let leaf = ca.sign_node(&NodeName::new(node).unwrap(), csr.der(), Duration::from_secs(HOUR), at).unwrap();
    let block = |label: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    let text = block("PRIVATE KEY", key.serialized_der())
        + &block("CERTIFICATE", &leaf)
        + &block("CERTIFICATE", ca.certificate());
    std::fs::write(file, text).unwrap();
}

/// Whether a node has a certificate of the mesh's CA that holds.
fn is_certified(shop: &Shop, node: &str) -> Result<(), String> {
    let pem = std::fs::read(identity(shop, node)).unwrap();
    let all: Vec<_> = CertificateDer::pem_slice_iter(&pem).map(Result::unwrap).collect();
    let (_, leaf) = x509_parser::parse_x509_certificate(&all[0]).unwrap();
    let ends = leaf.validity().not_after.timestamp();
    let of_mesh = all[1..].contains(of_the_mesh(shop).certificate());
    if of_mesh && ends > i64::try_from(now()).unwrap() {
        Ok(())
    } else {
        Err(format!("{node}: of the mesh: {of_mesh}, ends in {} s", ends - i64::try_from(now()).unwrap()))
    }
}

/// A node that is off has been off for two days.
pub(crate) fn was_away_for_days(shop: &Shop, node: &str) {
    certify(shop, node, &of_the_mesh(shop), now() - 48 * HOUR);
    is_certified(shop, node).unwrap_err();
}

/// It is one of the mesh again.
pub(crate) fn has_joined_anew(shop: &Shop, node: &str) {
    eventually(Duration::from_secs(90), Duration::from_millis(300), || is_certified(shop, node)).unwrap();
}

/// A pod starts with what a former mesh has left on the node's disk.
pub(crate) fn a_former_ca(shop: &Shop, node: &str) {
    let start = Instant::now();
    certify(shop, node, &of_a_former_mesh(), now());
    is_certified(shop, node).unwrap_err();
    let of_node = format!("spec.nodeName={node}");
    let pods = ["-n", NAMESPACE, "-l", "app.kubernetes.io/name=mesh-proxy", "--field-selector", &of_node];
    shop.cluster.kubectl(&[&["delete", "pod", "--wait=false"], &pods[..]].concat()).unwrap();
    has_joined_anew(shop, node);
    eventually(Duration::from_secs(60), Duration::from_millis(200), || {
        let report = shop.call("ratings", 10);
        if report.failed == 0 { Ok(()) } else { Err(report) }
    })
    .unwrap();
    println!(
        "{node} with a certificate of a former CA: joined anew, its calls work {:.1} s later",
        start.elapsed().as_secs_f64()
    );
}
