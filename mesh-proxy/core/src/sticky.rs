//! The key of a request for consistent hashing.

use std::{net::IpAddr, time::Duration};

use crate::{
    client::{Dice, DiceKind, RequestView},
    hash::{Fnv, mix},
    path::split_query,
    policy::{CookieKey, HashKey, HashPolicy},
};

/// What a request says about its endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Key {
    /// The hash; none = any endpoint.
    pub hash: Option<u64>,
    /// The value of a `set-cookie` header for the response, if the client is to keep its endpoint.
    pub cookie: Option<String>,
}

/// The key of a request. Allocates only for a cookie that is made.
pub fn key_of<R: RequestView>(
    policy: &HashPolicy,
    request: &R,
    source: Option<IpAddr>,
    dice: &mut impl Dice,
) -> Key {
    let known = |hash: Option<u64>| Key { hash, cookie: None };
    match &policy.key {
        HashKey::SourceIp => known(source.map(of_address)),
        HashKey::Header(name) => known(header(request, name)),
        HashKey::Query(name) => {
            let (_, query) = split_query(request.path_and_query());
            let query = query.strip_prefix('?').unwrap_or_default();
            let value = query.split('&').find_map(|pair| match pair.split_once('=') {
                Some((n, v)) => (*n == **name).then_some(v),
                None => (*pair == **name).then_some(""),
            });
            known(value.map(|v| of_bytes(v.as_bytes())))
        }
        HashKey::Cookie(cookie) => match (cookie_value(request, &cookie.name), cookie.ttl) {
            (Some(hash), _) => known(Some(hash)),
            (None, None) => known(None),
            (None, Some(ttl)) => {
                let value = fresh_value(dice);
                Key { hash: Some(of_bytes(value.as_bytes())), cookie: Some(set_cookie(cookie, ttl, &value)) }
            }
        },
    }
}

/// The key of a connection: its client's address.
pub fn of_address(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => of_bytes(&ip.octets()),
        IpAddr::V6(ip) => of_bytes(&ip.octets()),
    }
}

fn of_bytes(bytes: &[u8]) -> u64 {
    mix(Fnv::of(&[bytes]))
}

/// All values of a header together.
fn header<R: RequestView>(request: &R, name: &str) -> Option<u64> {
    let mut hash = None;
    let mut take = |value: &str| {
        hash = Some(mix(hash.unwrap_or(0) ^ of_bytes(value.as_bytes())));
        false
    };
    match name {
        ":method" => take(request.method()),
        ":path" => take(request.path_and_query()),
        ":authority" | "host" => take(request.authority()),
        _ => request.header_values(name, &mut take),
    };
    hash
}

fn cookie_value<R: RequestView>(request: &R, name: &str) -> Option<u64> {
    let mut hash = None;
    request.header_values("cookie", &mut |line| {
        let value = line.split(';').find_map(|pair| {
            let (n, v) = pair.trim().split_once('=')?;
            (n == name).then(|| v.trim_matches('"'))
        });
        hash = value.filter(|v| !v.is_empty()).map(|v| of_bytes(v.as_bytes()));
        hash.is_some()
    });
    hash
}

fn fresh_value(dice: &mut impl Dice) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "32 bits of a number in [0, 1)"
    )]
    let mut word = || (dice.roll(DiceKind::Balance) * 4_294_967_296.0) as u32;
    format!("{:08x}{:08x}", word(), word())
}

fn set_cookie(cookie: &CookieKey, ttl: Duration, value: &str) -> String {
    let mut out = format!("{}=\"{value}\"", cookie.name);
    if !ttl.is_zero() {
        out += &format!("; Max-Age={}", ttl.as_secs());
    }
    if !cookie.path.is_empty() {
        out += &format!("; Path={}", cookie.path);
    }
    out += &cookie.attributes;
    out + "; HttpOnly"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixtures::{dice, get},
        policy::HashTableKind,
    };

    fn policy(key: HashKey) -> HashPolicy {
        HashPolicy { key, table: HashTableKind::Ring { minimum: 1024 }, bound_percent: 0 }
    }

    #[test]
    fn the_key_is_where_the_rule_says() {
        let key = |p: HashKey, r: &crate::fixtures::Req| key_of(&policy(p), r, None, &mut dice(0.5)).hash;
        let header = || HashKey::Header("x-user".into());
        let ann = get("a", "/?user=ann&x").with("x-user", "ann");
        assert_eq!(key(header(), &ann), key(header(), &get("b", "/other").with("x-user", "ann")));
        assert_ne!(key(header(), &ann), key(header(), &get("a", "/").with("x-user", "bob")));
        assert_eq!(key(header(), &get("a", "/")), None);
        let query = |n: &str| HashKey::Query(n.into());
        assert_eq!(key(query("user"), &ann), key(query("user"), &get("a", "/p?b=1&user=ann")));
        assert!(key(query("x"), &ann).is_some());
        assert_eq!(key(query("us"), &ann), None);
        let from = |ip: &str| key_of(&policy(HashKey::SourceIp), &ann, ip.parse().ok(), &mut dice(0.5)).hash;
        assert_eq!(from("10.0.0.1"), from("::ffff:10.0.0.1"));
        assert_ne!(from("10.0.0.1"), from("10.0.0.2"));
    }

    #[test]
    fn a_cookie_is_made_only_if_it_has_a_lifetime() {
        let cookie = |ttl| {
            policy(HashKey::Cookie(CookieKey {
                name: "u".into(),
                path: "/x".into(),
                ttl,
                attributes: "; SameSite=Strict".into(),
            }))
        };
        let plain = get("a", "/");
        assert_eq!(key_of(&cookie(None), &plain, None, &mut dice(0.5)), Key::default());
        let made = key_of(&cookie(Some(Duration::from_secs(60))), &plain, None, &mut dice(0.5));
        let text = made.cookie.unwrap();
        assert_eq!(text, "u=\"8000000080000000\"; Max-Age=60; Path=/x; SameSite=Strict; HttpOnly");
        // What the client sends back leads to the same endpoint, and no other cookie is made.
        let again = get("a", "/").with("cookie", "other=1; u=\"8000000080000000\"");
        let again = key_of(&cookie(Some(Duration::from_secs(60))), &again, None, &mut dice(0.1));
        assert_eq!(again, Key { hash: made.hash, cookie: None });
        let session = key_of(&cookie(Some(Duration::ZERO)), &plain, None, &mut dice(0.5));
        assert!(!session.cookie.unwrap().contains("Max-Age"));
    }
}
