//! Retry policies, and gRPC status names.

use mesh_api::model;

use super::http;
use crate::types::HttpRetry;

/// What is retried when a rule does not say. A plain 503 answer is not.
pub const DEFAULT_RETRY_ON: [&str; 5] =
    ["connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes"];
/// Retries when a rule does not say.
pub const DEFAULT_ATTEMPTS: u32 = 2;
const DEFAULT_BACKOFF_MILLIS: u64 = 25;

/// What applies to a rule without `retries`.
pub fn default_policy() -> model::RetryPolicy {
    model::RetryPolicy {
        attempts: DEFAULT_ATTEMPTS,
        per_try_timeout: None,
        retry_on: DEFAULT_RETRY_ON.map(str::to_owned).to_vec(),
        status_codes: Vec::new(),
        backoff: Some(model::Millis { value: DEFAULT_BACKOFF_MILLIS }),
        ignore_previous_hosts: true,
        remote_localities: false,
        previous_hosts_by_hash: true,
    }
}

/// A rule's own policy. Conditions that are given replace the default list; numbers are status codes of answers.
pub(super) fn policy(r: &HttpRetry, destinations: usize) -> model::RetryPolicy {
    let mut out = default_policy();
    out.attempts = u32::try_from(r.attempts).unwrap_or(0);
    if !r.retry_on.is_empty() {
        out.retry_on.clear();
        for word in r.retry_on.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word.parse::<u32>() {
                Ok(code) => out.status_codes.push(code),
                Err(_) => out.retry_on.push(word.to_owned()),
            }
        }
        let by_code = "retriable-status-codes";
        if !out.status_codes.is_empty() && !out.retry_on.iter().any(|w| w == by_code) {
            out.retry_on.push(by_code.to_owned());
        }
    }
    out.per_try_timeout = r.per_try_timeout.as_ref().and_then(http::positive);
    if let Some(backoff) = r.backoff.as_ref().and_then(http::positive) {
        out.backoff = Some(backoff);
    }
    out.previous_hosts_by_hash = r.retry_ignore_previous_hosts.is_none() && destinations == 1;
    out.ignore_previous_hosts = r.retry_ignore_previous_hosts.unwrap_or(true);
    out.remote_localities = r.retry_remote_localities.unwrap_or(false);
    out
}

/// gRPC statuses by number, with the HTTP status that stands for each.
const GRPC_CODES: [(&str, u32); 17] = [
    ("OK", 200),
    ("CANCELLED", 499),
    ("UNKNOWN", 500),
    ("INVALID_ARGUMENT", 400),
    ("DEADLINE_EXCEEDED", 504),
    ("NOT_FOUND", 404),
    ("ALREADY_EXISTS", 409),
    ("PERMISSION_DENIED", 403),
    ("RESOURCE_EXHAUSTED", 429),
    ("FAILED_PRECONDITION", 400),
    ("ABORTED", 409),
    ("OUT_OF_RANGE", 400),
    ("UNIMPLEMENTED", 501),
    ("INTERNAL", 500),
    ("UNAVAILABLE", 503),
    ("DATA_LOSS", 500),
    ("UNAUTHENTICATED", 401),
];

/// The number of a gRPC status, and the HTTP status for clients that do not speak gRPC.
pub(crate) fn grpc_code(name: &str) -> Option<(u32, u32)> {
    (0..).zip(GRPC_CODES).find(|(_, (n, _))| *n == name).map(|(code, (_, http))| (code, http))
}
