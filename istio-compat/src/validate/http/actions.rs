//! What HTTP rules do.

use crate::{
    translate::retry::grpc_code,
    types::{
        CorsPolicy, FaultAbort, FaultDelay, HttpDirectResponse, HttpRedirect, HttpRetry, HttpRewrite,
        HttpRoute, Percent,
    },
    validate::{Verdict, text, virtual_service},
};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];
const LARGE_BODY: usize = 100 << 10;
const MAX_BODY: usize = 1 << 20;

pub(super) fn check(path: &str, rule: &HttpRoute, out: &mut Verdict) {
    mirrors(path, rule, out);
    if let Some(r) = &rule.redirect {
        redirect(&format!("{path}.redirect"), r, out);
    }
    if let Some(d) = &rule.direct_response {
        direct_response(&format!("{path}.directResponse"), d, out);
    }
    if let Some(r) = &rule.rewrite {
        rewrite(&format!("{path}.rewrite"), r, out);
    }
    if let Some(r) = &rule.retries {
        retries(&format!("{path}.retries"), r, out);
    }
    if let Some(f) = &rule.fault {
        let path = format!("{path}.fault");
        if f.abort.is_none() && f.delay.is_none() {
            out.error(path.as_str(), "needs a delay or an abort");
        }
        if let Some(d) = &f.delay {
            delay(&format!("{path}.delay"), d, out);
        }
        if let Some(a) = &f.abort {
            abort(&format!("{path}.abort"), a, out);
        }
    }
    if let Some(c) = &rule.cors_policy {
        cors(&format!("{path}.corsPolicy"), c, out);
    }
}

fn mirror_share(path: &str, share: Option<Percent>, out: &mut Verdict) {
    if let Some(p) = share.filter(|p| !(0.0..=100.0).contains(&p.value)) {
        out.error(format!("{path}.value"), format!("must be from 0 to 100, is {}", p.value));
    }
}

fn mirrors(path: &str, rule: &HttpRoute, out: &mut Verdict) {
    if let Some(d) = &rule.mirror {
        virtual_service::destination(&format!("{path}.mirror"), d, out);
    }
    if let Some(percent) = rule.mirror_percent {
        let path = format!("{path}.mirrorPercent");
        out.warn(path.as_str(), "is deprecated; use mirrorPercentage");
        if percent > 100 {
            out.error(path, format!("must be at most 100, is {percent}"));
        }
    }
    mirror_share(&format!("{path}.mirrorPercentage"), rule.mirror_percentage, out);
    for (i, m) in rule.mirrors.iter().enumerate() {
        let path = format!("{path}.mirrors[{i}]");
        match &m.destination {
            Some(d) => virtual_service::destination(&format!("{path}.destination"), d, out),
            None => out.error(format!("{path}.destination"), "is required"),
        }
        mirror_share(&format!("{path}.percentage"), m.percentage, out);
    }
}

fn redirect(path: &str, r: &HttpRedirect, out: &mut Verdict) {
    let texts = [&r.uri, &r.prefix_rewrite, &r.authority, &r.scheme];
    if texts.iter().all(|t| t.is_empty()) && r.port.is_none() && r.derive_port.is_none() {
        out.error(path, "needs a uri, prefixRewrite, authority, scheme or port");
    }
    if !r.uri.is_empty() && !r.prefix_rewrite.is_empty() {
        out.error(format!("{path}.prefixRewrite"), "must not be together with uri");
    }
    if r.port.is_some() && r.derive_port.is_some() {
        out.error(format!("{path}.derivePort"), "must not be together with port");
    }
    if r.redirect_code != 0 && !(300..400).contains(&r.redirect_code) {
        out.error(format!("{path}.redirectCode"), format!("must be from 300 to 399, is {}", r.redirect_code));
    }
    if !matches!(r.scheme.as_str(), "" | "http" | "https") {
        out.error(format!("{path}.scheme"), format!("{:?} is neither http nor https", r.scheme));
    }
    if let Some(port) = r.port.filter(|p| *p != 0) {
        out.check(&format!("{path}.port"), text::port(port));
    }
}

fn direct_response(path: &str, d: &HttpDirectResponse, out: &mut Verdict) {
    out.check(&format!("{path}.status"), text::http_status(i64::from(d.status)));
    let Some(body) = &d.body else { return };
    if body.string.is_some() && body.bytes.is_some() {
        out.error(format!("{path}.body"), "only one of string and bytes may be set");
    }
    let size = match (&body.string, &body.bytes) {
        (Some(text), _) => text.len(),
        (None, Some(encoded)) => encoded.len() / 4 * 3,
        (None, None) => 0,
    };
    if size > MAX_BODY {
        out.error(format!("{path}.body"), format!("must not be larger than {MAX_BODY} bytes, is {size}"));
    } else if size > LARGE_BODY {
        out.warn(format!("{path}.body"), format!("of {size} bytes is held by every node"));
    }
}

fn rewrite(path: &str, r: &HttpRewrite, out: &mut Verdict) {
    if r.uri.is_empty() && r.authority.is_empty() && r.uri_regex_rewrite.is_none() {
        out.error(path, "needs a uri, uriRegexRewrite or authority");
    }
    let Some(regex) = &r.uri_regex_rewrite else { return };
    let path = format!("{path}.uriRegexRewrite");
    if !r.uri.is_empty() {
        out.error(path.as_str(), "must not be together with uri");
    }
    if regex.pattern.is_empty() || regex.rewrite.is_empty() {
        out.error(path, "needs both match and rewrite");
    } else {
        out.check(&format!("{path}.match"), text::regex(&regex.pattern));
    }
}

fn retries(path: &str, r: &HttpRetry, out: &mut Verdict) {
    if r.attempts < 0 {
        out.error(format!("{path}.attempts"), format!("must not be negative, is {}", r.attempts));
    }
    let more = r.per_try_timeout.is_some() || !r.retry_on.is_empty() || r.retry_remote_localities.is_some();
    if r.attempts == 0 && more {
        out.error(path, "has settings although 0 attempts switch retries off");
    }
    out.duration(&format!("{path}.perTryTimeout"), r.per_try_timeout.as_ref());
    out.duration(&format!("{path}.backoff"), r.backoff.as_ref());
    if r.retry_on.is_empty() {
        return;
    }
    for word in r.retry_on.split(',') {
        let status = word.parse::<u16>().is_ok_and(is_registered_status);
        if !status && !RETRY_ON.contains(&word) {
            out.error(
                format!("{path}.retryOn"),
                format!("{word:?} is neither a condition nor an HTTP status"),
            );
        }
    }
}

/// Status codes that have a meaning.
fn is_registered_status(code: u16) -> bool {
    matches!(code,
        100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431 | 451
        | 500..=508 | 510 | 511)
}

fn delay(path: &str, d: &FaultDelay, out: &mut Verdict) {
    if let Some(p) = d.percentage {
        out.check(&format!("{path}.percentage.value"), text::percentage(p));
    }
    out.duration(&format!("{path}.fixedDelay"), d.fixed_delay.as_ref());
    if d.exponential_delay.is_some() {
        out.duration(&format!("{path}.exponentialDelay"), d.exponential_delay.as_ref());
        out.error(format!("{path}.exponentialDelay"), "is not supported");
    }
}

fn abort(path: &str, a: &FaultAbort, out: &mut Verdict) {
    if let Some(p) = a.percentage {
        out.check(&format!("{path}.percentage.value"), text::percentage(p));
    }
    if let Some(status) = a.http_status {
        out.check(&format!("{path}.httpStatus"), text::http_status(i64::from(status)));
    }
    if let Some(status) = &a.grpc_status
        && grpc_code(status).is_none()
    {
        out.error(format!("{path}.grpcStatus"), format!("{status:?} is not a gRPC status"));
    }
    let named = [a.http_status.is_some(), a.grpc_status.is_some(), a.http2_error.is_some()];
    if named.iter().filter(|set| **set).count() > 1 {
        out.error(path, "only one of httpStatus, grpcStatus and http2Error may be set");
    }
    if a.http2_error.is_some() {
        out.error(format!("{path}.http2Error"), "is not supported");
    } else if a.http_status.is_none() && a.grpc_status.is_none() {
        out.warn(path, "names no status: nothing is aborted");
    }
}

fn cors(path: &str, c: &CorsPolicy, out: &mut Verdict) {
    for (i, origin) in c.allow_origins.iter().enumerate() {
        let path = format!("{path}.allowOrigins[{i}]");
        let value = [&origin.exact, &origin.prefix, &origin.regex].into_iter().flatten().next();
        if value.is_none_or(String::is_empty) {
            out.error(path.as_str(), "needs an exact value, a prefix or a regular expression");
        } else if let Some(regex) = &origin.regex {
            out.check(&path, text::regex(regex));
        }
    }
    for (i, method) in c.allow_methods.iter().enumerate() {
        if method != "*" && !METHODS.contains(&method.as_str()) {
            out.error(format!("{path}.allowMethods[{i}]"), format!("{method:?} is not an HTTP method"));
        }
    }
    for (field, list) in [("allowHeaders", &c.allow_headers), ("exposeHeaders", &c.expose_headers)] {
        for (i, name) in list.iter().enumerate() {
            out.check(&format!("{path}.{field}[{i}]"), text::cors_header_name(name));
        }
    }
    if let Some(age) = &c.max_age {
        out.duration(&format!("{path}.maxAge"), Some(age));
        if !age.millis().is_multiple_of(1000) {
            out.error(format!("{path}.maxAge"), format!("{} is not in whole seconds", age.0));
        }
    }
}
