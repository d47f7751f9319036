//! What the proxy of a node says of itself.

use anyhow::Result;
use serde_json::Value;

use crate::reach::One;

/// Pages and metrics of a proxy.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// `/config`
    pub(super) config: Value,
    /// `/config_dump`
    pub(super) dump: Value,
    /// `/paths`
    pub(super) paths: Value,
    /// Metrics as text.
    pub(super) metrics: String,
}

impl Node {
    pub(super) fn ask(proxy: &One) -> Result<Self> {
        Ok(Self {
            config: proxy.get("/config")?,
            dump: proxy.get("/config_dump")?,
            paths: proxy.get("/paths")?,
            metrics: proxy.text("/stats/prometheus")?,
        })
    }

    /// The sum of a metric's series; nothing when there is none.
    pub(super) fn metric(&self, name: &str) -> Option<f64> {
        let values = self.metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once('}')?.1,
                None => rest,
            };
            if !value.starts_with(' ') {
                return None;
            }
            value.trim().parse::<f64>().ok()
        });
        values.fold(None, |sum, v| Some(sum.unwrap_or(0.0) + v))
    }

    /// A setting, by its path.
    pub(super) fn setting(&self, path: &str) -> &Value {
        path.split('.').fold(&self.config, |value, key| &value[key])
    }
}
