//! Telemetry.

use super::{Verdict, targets, text};
use crate::types::{CustomTag, Metrics, ProviderRef, TagOperation, Telemetry, Tracing};

pub(super) fn check(object: &Telemetry, out: &mut Verdict) {
    let spec = &object.spec;
    targets::check(spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs, out);
    if spec.tracing.len() > 1 {
        out.warn("spec.tracing", "only the first entry counts");
    }
    for (i, t) in spec.tracing.iter().enumerate() {
        tracing(&format!("spec.tracing[{i}]"), t, out);
    }
    for (i, m) in spec.metrics.iter().enumerate() {
        metrics(&format!("spec.metrics[{i}]"), m, out);
    }
    for (i, log) in spec.access_logging.iter().enumerate() {
        let path = format!("spec.accessLogging[{i}]");
        providers(&path, &log.providers, out);
        if let Some(filter) = &log.filter {
            out.check(&format!("{path}.filter.expression"), text::expression(&filter.expression));
        }
    }
}

fn providers(path: &str, list: &[ProviderRef], out: &mut Verdict) {
    for (i, _) in list.iter().enumerate().filter(|(_, p)| p.name.is_empty()) {
        out.error(format!("{path}.providers[{i}].name"), "is required");
    }
}

fn tracing(path: &str, t: &Tracing, out: &mut Verdict) {
    providers(path, &t.providers, out);
    if t.providers.len() > 1 {
        out.warn(format!("{path}.providers"), "only the first provider counts");
    }
    if let Some(p) = t.random_sampling_percentage.filter(|p| !(0.0..=100.0).contains(p)) {
        out.error(format!("{path}.randomSamplingPercentage"), format!("must be from 0 to 100, is {p}"));
    }
    for (name, tag) in &t.custom_tags {
        let path = format!("{path}.customTags[{name:?}]");
        if name.is_empty() {
            out.error(path.as_str(), "a tag needs a name");
        }
        custom_tag(&path, tag, out);
    }
}

fn custom_tag(path: &str, tag: &CustomTag, out: &mut Verdict) {
    let named = [("header", &tag.header), ("environment", &tag.environment)];
    for (kind, source) in named {
        if source.as_ref().is_some_and(|s| s.name.is_empty()) {
            out.error(format!("{path}.{kind}.name"), "is required");
        }
    }
    for (kind, source) in [("literal", &tag.literal), ("formatter", &tag.formatter)] {
        if source.as_ref().is_some_and(|s| s.value.is_empty()) {
            out.error(format!("{path}.{kind}.value"), "is required");
        }
    }
}

fn metrics(path: &str, m: &Metrics, out: &mut Verdict) {
    providers(path, &m.providers, out);
    out.duration(&format!("{path}.reportingInterval"), m.reporting_interval.as_ref());
    for (i, o) in m.overrides.iter().enumerate() {
        let path = format!("{path}.overrides[{i}]");
        if o.selector.as_ref().and_then(|s| s.custom_metric.as_deref()) == Some("") {
            out.error(format!("{path}.match.customMetric"), "is required");
        }
        for (name, tag) in &o.tag_overrides {
            let path = format!("{path}.tagOverrides[{name:?}]");
            if name.is_empty() {
                out.error(path.as_str(), "a tag needs a name");
            }
            match (tag.operation.unwrap_or_default(), tag.value.is_empty()) {
                (TagOperation::Upsert, true) => out.error(format!("{path}.value"), "is required for UPSERT"),
                (TagOperation::Remove, false) => {
                    out.error(format!("{path}.value"), "must not be set for REMOVE")
                }
                _ => {}
            }
        }
    }
}
