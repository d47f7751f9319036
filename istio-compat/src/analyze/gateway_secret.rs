//! The secrets that gateways name: they exist where the gateway's pods are, and hold a certificate that is valid now.

use base64::Engine as _;
use x509_parser::pem::Pem;

use super::{
    report::Report,
    world::{Kind, Name, Object, World, selector_text, selects, text},
};

/// Certificate and key, in the two spellings that are read.
const KEYS: [(&str, &str); 2] = [("cert", "key"), ("tls.crt", "tls.key")];

/// Checks every `credentialName`.
pub(super) fn secrets(world: &World, out: &mut Report) {
    for gateway in world.all(Kind::Gateway) {
        let selector = gateway.map("/spec/selector");
        let Some(pod) = world.all(Kind::Pod).iter().find(|p| selects(&selector, &p.labels())) else {
            out.missing(gateway, "spec.selector", "selector", &selector_text(&selector));
            continue;
        };
        for (i, server) in gateway.list("/spec/servers").iter().enumerate() {
            let wanted = text(server, "/tls/credentialName");
            if wanted.is_empty() {
                continue;
            }
            let path = format!("spec.servers[{i}].tls.credentialName");
            match world.find(Kind::Secret, &Name::reference(wanted, pod.namespace())) {
                None => out.missing(gateway, path, "credentialName", wanted),
                Some(secret) if !is_valid(secret, world.options.now) => {
                    out.add(gateway, "IST0161", path, &[&gateway.name.name, &pod.namespace()]);
                }
                Some(_) => {}
            }
        }
    }
}

fn is_valid(secret: &Object, now: i64) -> bool {
    let has = |key: &str| part(secret, key).filter(|v| !v.is_empty());
    let pair = KEYS.iter().find_map(|(certificate, key)| Some((has(certificate)?, has(key)?)));
    pair.is_some_and(|(certificate, _)| is_current(&certificate, now))
}

fn part(secret: &Object, key: &str) -> Option<Vec<u8>> {
    let of = |field: &str| secret.value.get(field).and_then(|d| d.get(key)).and_then(|v| v.as_str());
    match of("stringData") {
        Some(text) => Some(text.as_bytes().to_vec()),
        None => base64::engine::general_purpose::STANDARD.decode(of("data")?).ok(),
    }
}

fn is_current(certificate: &[u8], now: i64) -> bool {
    let Some(Ok(pem)) = Pem::iter_from_buffer(certificate).next() else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let validity = certificate.validity();
    now == 0 || (validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp())
}
