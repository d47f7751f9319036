//! What Telemetry resources say about traces.

use mesh_api::model;
use mesh_core::WorkloadEntry;

use super::{RuleTable, Side};
use crate::telemetry::trace::{Tag, TagNeeds};

/// What holds for the traces of one workload.
#[derive(Debug)]
pub(crate) struct TraceRules {
    /// Spans are reported at all.
    pub(crate) reports: bool,
    /// Share of requests that begin a trace, in percent; none = as configured.
    pub(crate) sampling: Option<f64>,
    /// Tags of spans.
    pub(crate) tags: Vec<Tag>,
    /// What texts with operators among the tags need.
    pub(crate) needs: Option<TagNeeds>,
}

impl Default for TraceRules {
    fn default() -> Self {
        Self { reports: true, sampling: None, tags: Vec::new(), needs: None }
    }
}

impl TraceRules {
    /// Tags out of the headers of a message that is only read; by the name of each.
    pub(crate) fn tags_of<'h>(&self, header: &dyn Fn(&str) -> Option<&'h str>) -> Vec<(String, String)> {
        self.tags.iter().filter_map(|t| Some((t.name.clone(), t.of_lines(header)?))).collect()
    }
}

impl RuleTable {
    /// What holds for a workload's traces on one side of calls, for the collector of that name. A narrower resource
    /// overrides what it says, and nothing else.
    pub(crate) fn traces(&self, workload: Option<&WorkloadEntry>, side: Side, provider: &str) -> TraceRules {
        let mut rules = TraceRules::default();
        let mut ours = true;
        let mut tags: &[model::TracingTag] = &[];
        let all = self.holding(workload).flat_map(|c| &c.tracing);
        for rule in all.filter(|t| side.is_meant(t.mode())) {
            if !rule.providers.is_empty() {
                ours = rule.providers.iter().any(|p| p == provider);
            }
            if rule.disable_span_reporting || rule.enable_span_reporting {
                rules.reports = rule.enable_span_reporting;
            }
            rules.sampling = rule.sampling_percent.or(rules.sampling);
            if !rule.tags.is_empty() {
                tags = &rule.tags;
            }
        }
        rules.reports &= ours;
        for tag in tags {
            match Tag::compile(tag) {
                Ok(tag) => rules.tags.extend(tag),
                Err(error) => tracing::warn!(%error, "a tag of spans is not understood and left out"),
            }
        }
        let operators: Vec<_> =
            rules.tags.iter().filter_map(Tag::format).flat_map(|f| f.operators()).collect();
        let needs = (!operators.is_empty()).then(|| TagNeeds::of(&operators));
        rules.needs = needs;
        rules
    }
}
