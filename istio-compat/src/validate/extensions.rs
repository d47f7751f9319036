//! EnvoyFilters, WasmPlugins, ProxyConfigs: read so that it can be said that they have no effect.

use std::collections::BTreeSet;

use super::{Verdict, targets};
use crate::types::{EnvValueSource, EnvoyFilter, PatchContext, ProxyConfig, WasmPlugin};

pub(super) fn check_filter(object: &EnvoyFilter, out: &mut Verdict) {
    let spec = &object.spec;
    targets::check(None, None, &spec.target_refs, out);
    if let Some(selector) = &spec.workload_selector {
        out.selector("spec.workloadSelector", Some(&selector.labels));
        if !spec.target_refs.is_empty() {
            out.error("spec.targetRefs", "must not be together with workloadSelector");
        }
    }
    for (i, patch) in spec.config_patches.iter().enumerate() {
        let Some(m) = &patch.selector else { continue };
        let of_waypoint = m.context == Some(PatchContext::Waypoint);
        if of_waypoint != m.waypoint.is_some() {
            out.error(
                format!("spec.configPatches[{i}].match"),
                "`waypoint` and context WAYPOINT belong together",
            );
        }
    }
}

pub(super) fn check_plugin(object: &WasmPlugin, out: &mut Verdict) {
    let spec = &object.spec;
    targets::check(spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs, out);
    if spec.url.is_empty() {
        out.error("spec.url", "is required");
    } else {
        let scheme = spec.url.split_once("://").map(|(s, _)| s);
        let known = scheme.is_none_or(|s| matches!(s, "http" | "https" | "oci" | "file"));
        let clean = !spec.url.bytes().any(|b| b <= b' ' || b == b'#' || b == b'<' || b == b'>' || b == b'\\');
        if !known || !clean {
            out.error(
                "spec.url",
                format!("{:?} is not a URL with scheme http, https, oci or file", spec.url),
            );
        }
    }
    if !spec.sha256.is_empty() {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if spec.sha256.len() != 64 || !spec.sha256.bytes().all(hex) {
            out.error("spec.sha256", "is not a SHA-256 sum");
        }
    }
    let mut names = BTreeSet::new();
    for (i, env) in spec.vm_config.iter().flat_map(|v| &v.env).enumerate() {
        if env.name.is_empty() {
            out.error(format!("spec.vmConfig.env[{i}].name"), "is required");
        }
        if env.value_from == Some(EnvValueSource::Host) && !env.value.is_empty() {
            out.error(format!("spec.vmConfig.env[{i}].value"), "must not be set when it comes from the host");
        }
        if !names.insert(&env.name) {
            out.error(format!("spec.vmConfig.env[{i}].name"), format!("{:?} is there twice", env.name));
        }
    }
}

pub(super) fn check_proxy(object: &ProxyConfig, out: &mut Verdict) {
    if let Some(selector) = &object.spec.selector {
        out.selector("spec.selector", Some(&selector.match_labels));
    }
    if let Some(n) = object.spec.concurrency.filter(|n| *n < 0) {
        out.error("spec.concurrency", format!("must not be negative, is {n}"));
    }
}
