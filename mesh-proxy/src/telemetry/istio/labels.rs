//! The names of the labels, and their values for a call, in one order.

use super::Call;

/// Labels that every family has, in order.
pub const CALL_LABELS: [&str; 23] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "connection_security_policy",
    "request_protocol",
    "response_flags",
];

/// Labels that only request families have, after the others.
pub const REQUEST_LABELS: [&str; 2] = ["response_code", "grpc_response_status"];

/// The values of [`CALL_LABELS`].
pub(super) fn call_values<'a>(
    call: &Call<'a>,
    protocol: &'a str,
    flags: &'a str,
) -> [&'a str; CALL_LABELS.len()] {
    let (s, d, v) = (call.source, call.destination, call.service);
    [
        call.reporter.as_str(),
        &s.workload,
        &s.namespace,
        &s.principal,
        &s.app,
        &s.version,
        &s.cluster,
        &s.canonical_service,
        &s.canonical_revision,
        &d.workload,
        &d.namespace,
        &d.principal,
        &d.app,
        &d.version,
        &d.cluster,
        &d.canonical_service,
        &d.canonical_revision,
        &v.host,
        &v.name,
        &v.namespace,
        call.security.as_str(),
        protocol,
        flags,
    ]
}
