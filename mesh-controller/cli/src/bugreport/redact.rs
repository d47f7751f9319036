//! What is a secret: by the name of what holds it, or by what it looks like. Rather too much than too little.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

const HIDDEN: &str = "***";
/// Parts of names, in lower case and without separators.
const NAMES: [&str; 16] = [
    "secret",
    "password",
    "passwd",
    "passphrase",
    "token",
    "credential",
    "authorization",
    "cookie",
    "apikey",
    "privatekey",
    "accesskey",
    "clientkey",
    "signingkey",
    "tlskey",
    "cakey",
    "bearer",
];
/// Names that hold no secret though they sound like it.
const HARMLESS: [&str; 8] = [
    "file",
    "path",
    "name",
    "seconds",
    "ttl",
    "audience",
    "expirationseconds",
    "automountserviceaccounttoken",
];

/// Whether what has this name is a secret.
fn is_secret(name: &str) -> bool {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let sounds = NAMES.iter().any(|n| plain.contains(n))
        || plain.ends_with("pwd")
        || matches!(plain.as_str(), "key" | "auth");
    sounds && !HARMLESS.iter().any(|h| plain.ends_with(h))
}

/// Replaces values by their names. Numbers, switches and structures stay, so that the shape can be seen; their texts go.
pub(crate) fn json(value: &mut Value) {
    walk(value, false);
}

fn walk(value: &mut Value, hide: bool) {
    match value {
        Value::Object(map) => {
            // `{"name": "API_TOKEN", "value": "..."}`: an environment variable, or a header.
            let named =
                map.get("name").or_else(|| map.get("key")).and_then(Value::as_str).is_some_and(is_secret);
            for (key, value) in map.iter_mut() {
                let by_pair = named && matches!(key.as_str(), "value" | "values" | "exact" | "data");
                walk(value, hide || by_pair || (is_secret(key) && !is_about_names(key, value)));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| walk(v, hide)),
        Value::String(text) if hide && !text.is_empty() => HIDDEN.clone_into(text),
        Value::String(text) => {
            // A document within a document, such as a ConfigMap's, or an annotation with the last applied object.
            if text.starts_with(['{', '['])
                && let Ok(mut inner) = serde_json::from_str::<Value>(text)
            {
                walk(&mut inner, false);
                *text = inner.to_string();
            } else if let Some(clean) = yaml(text) {
                *text = clean;
            }
            // Here, where a line still is a line: in JSON its end is two characters.
            *text = self::text(text);
        }
        _ => {}
    }
}

/// A document of YAML without its secrets, which may have many lines; none when it is no such document, or has none.
fn yaml(text: &str) -> Option<String> {
    if !text.contains('\n') || !text.contains(": ") {
        return None;
    }
    let mut documents = istio_compat::yaml::values(text).ok()?;
    let before = documents.clone();
    documents.iter_mut().for_each(|d| walk(d, false));
    let is_mapping = documents.iter().all(|d| d.is_object() || d.is_null());
    if !is_mapping || documents == before {
        return None;
    }
    let texts: Option<Vec<String>> = documents.iter().map(|d| serde_saphyr::to_string(d).ok()).collect();
    Some(texts?.join("---\n"))
}

/// `pullSecrets: [a]`, `secretName`: names of Secrets, not what is in them.
fn is_about_names(key: &str, value: &Value) -> bool {
    let plain = key.to_ascii_lowercase();
    let listed = matches!(
        plain.as_str(),
        "pullsecrets" | "imagepullsecrets" | "secrets" | "credentialname" | "secret"
    );
    match value {
        Value::Array(_) => listed,
        Value::Object(map) => {
            listed
                && map.keys().all(|k| {
                    matches!(k.as_str(), "secretName" | "name" | "items" | "optional" | "defaultMode")
                })
        }
        Value::String(_) => plain.ends_with("name"),
        _ => true,
    }
}

/// What looks like a secret in any text. Each keeps what says what it was.
static LOOKS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = [
        r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
        // The same in base64, as in a Secret.
        r"(LS0tLS1CRUdJTi)(?:BQUklW|BFQyBQ|BSU0Eg|BPUEVO|BFTkNS|BEU0Eg)[A-Za-z0-9+/=_\-]*",
        // Join tokens and JSON web tokens.
        r"(selvage1\.)[A-Za-z0-9_\-.+/=]+",
        r"()eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]*",
        r"(?i)((?:bearer|basic)\s+)[A-Za-z0-9_\-.+/=~]{6,}",
        // user:password@host
        r"(://[^/\s:@]{0,200}:)[^/\s@]{1,500}@",
    ];
    patterns.iter().filter_map(|p| Regex::new(p).ok()).collect()
});

/// `password: all of this`, alone on its line.
static LINES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r#"(?m)^(?P<lead>[ \t]*(?:- )?["']?)(?P<key>[A-Za-z][A-Za-z0-9_\-.]{0,80})(?P<sep>["']?:[ \t]+)(?P<value>[^\s{\[].*)$"#)
        .ok()
});

/// `password: x`, `API_TOKEN=x`, `"cookie":"x"`, in text that is no JSON.
static PAIRS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r#"(?m)(?P<key>[A-Za-z][A-Za-z0-9_\-.]{0,80})(?P<sep>"?\s{0,3}[:=]\s{0,3})(?P<value>"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s,;&"'{}\[\]]+)"#).ok()
});

/// Replaces what looks like a secret.
pub(crate) fn text(text: &str) -> String {
    let mut text = text.to_owned();
    for look in LOOKS.iter() {
        let replaced = look.replace_all(&text, |c: &Captures<'_>| {
            let end = if c[0].ends_with('@') { "@" } else { "" };
            format!("{}{HIDDEN}{end}", &c[1])
        });
        text = replaced.into_owned();
    }
    let (Some(lines), Some(pairs)) = (LINES.as_ref(), PAIRS.as_ref()) else { return HIDDEN.to_owned() };
    let text = lines.replace_all(&text, |c: &Captures<'_>| {
        let value = c["value"].trim_end_matches(',').trim_matches(['"', '\'']);
        if !is_secret(&c["key"]) || is_plain(value) || value.starts_with(HIDDEN) {
            return c[0].to_owned();
        }
        let quote = c["value"]
            .chars()
            .next()
            .filter(|q| matches!(q, '"' | '\''))
            .map(String::from)
            .unwrap_or_default();
        let comma = if c["value"].ends_with(',') { "," } else { "" };
        format!("{}{}{}{quote}{HIDDEN}{quote}{comma}", &c["lead"], &c["key"], &c["sep"])
    });
    pairs
        .replace_all(&text, |c: &Captures<'_>| {
            let value = &c["value"];
            let bare = value.trim_matches(['"', '\'']);
            let harmless = bare.is_empty() || bare == HIDDEN || bare.starts_with("***") || is_plain(bare);
            if harmless || !is_secret(&c["key"]) {
                return c[0].to_owned();
            }
            let quote = value
                .chars()
                .next()
                .filter(|q| matches!(q, '"' | '\''))
                .map(String::from)
                .unwrap_or_default();
            format!("{}{}{quote}{HIDDEN}{quote}", &c["key"], &c["sep"])
        })
        .into_owned()
}

/// A number or a switch.
fn is_plain(value: &str) -> bool {
    matches!(value, "true" | "false" | "null" | "~" | "none")
        || value.parse::<f64>().is_ok_and(|_| value.len() < 4)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_go_by_their_names_and_the_shape_stays() {
        let mut value = json!({
            "adminPassword": "S3cret-1", "joinToken": "S3cret-2", "tls": { "tls.key": "S3cret-3", "mode": "SIMPLE" },
            "otlp": { "headers": { "Authorization": "S3cret-4", "x-team": "blue" } },
            "env": [{ "name": "API_TOKEN", "value": "S3cret-5" }, { "name": "MODE", "value": "fast" }],
            "data": { "config.yaml": "a: b", "inner.json": "{\"apiKey\":\"S3cret-6\",\"n\":1}" },
            "secretRef": { "password": ["S3cret-7"], "n": 3 }, "clientSecret": { "value": "S3cret-8" },
            "serviceAccountTokenFile": "/var/run/selvage/token", "secretName": "web-cert", "expirationSeconds": 3600,
            "imagePullSecrets": [{ "name": "registry" }], "automountServiceAccountToken": false, "tokens": 5,
        });
        json(&mut value);
        let text = value.to_string();
        assert!(!text.contains("S3cret"), "{text}");
        // A file within: its lines are looked at one by one.
        let mut file = json!({ "config.yaml": "drainSeconds: 30\njoinToken: S3cret-9\nlogLevel: info\n" });
        json(&mut file);
        assert_eq!(file["config.yaml"], "drainSeconds: 30\njoinToken: \"***\"\nlogLevel: info\n");
        for kept in [
            "SIMPLE",
            "blue",
            "fast",
            "/var/run/selvage/token",
            "web-cert",
            "registry",
            "\"tokens\":5",
            "\\\"n\\\":1",
            "\"n\":3",
        ] {
            assert!(text.contains(kept), "{kept} in {text}");
        }
    }

    #[test]
    fn secrets_of_many_lines_and_words_go_as_a_whole() {
        let clean = |text: &str| {
            let mut value = json!({ "data": { "config.yaml": text } });
            json(&mut value);
            value["data"]["config.yaml"].as_str().unwrap().to_owned()
        };
        let block = clean("mode: fast\npassword: |\n  S3cret one\n  S3cret two\nlist: [a]\n");
        assert!(!block.contains("S3cret") && block.contains("mode: fast"), "{block}");
        let nested = clean("tls:\n  clientKey: >-\n    S3cret\n    S3cret\n  mode: MUTUAL\n");
        assert!(!nested.contains("S3cret") && nested.contains("MUTUAL"), "{nested}");
        assert_eq!(text("db_password: S3cret horse battery"), "db_password: ***");
        assert_eq!(text("  \"clientSecret\": \"S3cret and more\","), "  \"clientSecret\": \"***\",");
        // What has no secret stays as it was written, with its comments.
        let plain = "# a comment\nmode: fast\n";
        assert_eq!(clean(plain), plain);
        use base64::Engine as _;
        for kind in ["PRIVATE", "EC PRIVATE", "RSA PRIVATE", "OPENSSH PRIVATE", "ENCRYPTED PRIVATE"] {
            let key = format!("-----BEGIN {kind} KEY-----\nS3cret\n-----END {kind} KEY-----\n");
            let packed = base64::engine::general_purpose::STANDARD.encode(key);
            let clean = text(&format!("data: {packed}"));
            assert!(!clean.contains(&packed[24..]), "{kind}: {clean}");
        }
        let certificate =
            base64::engine::general_purpose::STANDARD.encode("-----BEGIN CERTIFICATE-----\nMII\n");
        assert!(
            text(&format!("caBundle: {certificate}")).contains(&certificate),
            "a certificate is no secret"
        );
    }

    #[test]
    fn texts_lose_what_looks_like_a_secret() {
        let all = "\
            -----BEGIN EC PRIVATE KEY-----\nS3cret\nmore\n-----END EC PRIVATE KEY-----\n\
            token selvage1.S3cretS3cret.x was used\n\
            Authorization: Bearer S3cretS3cret\n\
            jwt eyJS3cretS3cret.S3cret.S3cret\n\
            collector https://user:S3cret@otlp.example.com/v1\n\
            password=S3cret1 db_password: 'S3cret 2' {\"cookie\":\"S3cret3\",\"path\":\"/a\"}\n\
            x-api-key: S3cret4\n";
        let clean = text(all);
        assert!(!clean.contains("S3cret"), "{clean}");
        for kept in [
            "BEGIN EC PRIVATE KEY",
            "was used",
            "otlp.example.com/v1",
            "\"path\":\"/a\"",
            "db_password",
            "jwt",
        ] {
            assert!(clean.contains(kept), "{kept} in {clean}");
        }
        // A key that was cut off goes to the end.
        assert!(!text("-----BEGIN PRIVATE KEY-----\nS3cret").contains("S3cret"));
    }

    #[test]
    fn what_is_no_secret_stays() {
        for plain in [
            "2026-01-01T00:00:00Z  INFO mesh_proxy: listening on 127.0.0.1:15000",
            "certificate of spiffe://cluster.local/node/edge-a",
            "reviews.default.svc.cluster.local:9080 to 10.1.0.1:9080",
            "serviceAccountTokenFile: /var/run/selvage/token",
            "keys: 5, tokens: 12",
        ] {
            assert_eq!(text(plain), plain);
        }
    }
}
