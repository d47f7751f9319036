//! Istio's MeshConfig: the key `mesh` of the ConfigMap `istio` in the root namespace. Each setting is read by itself, so
//! that a bad one takes none of the others with it; what has no effect here is reported like fields of resources.

use mesh_api::model::{self, mesh_config::OutboundMode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Finding,
    support::{self, MESH_CONFIG},
    translate::{ExportDefaults, mesh},
    types, yaml,
};

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "istio";
/// Its key.
pub const KEY: &str = "mesh";

/// What of a MeshConfig holds here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// To whom objects are exported that say nothing themselves.
    pub exports: ExportDefaults,
    /// What nodes are told: only the fields that are set here count.
    pub model: model::MeshConfig,
}

/// A MeshConfig, and what is to be said of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Read {
    /// What holds.
    pub settings: Settings,
    /// Settings of the wrong form; they are left out.
    pub errors: Vec<Finding>,
    /// Settings without effect here, and those that nobody knows.
    pub warnings: Vec<Finding>,
}

#[derive(Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum H2Upgrade {
    DoNotUpgrade,
    Upgrade,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DefaultPolicy {
    connection_pool: Option<types::ConnectionPoolSettings>,
    outlier_detection: Option<types::OutlierDetection>,
}

/// Reads the text of the key.
pub fn read(text: &str) -> Read {
    let mut out = Read::default();
    let path = |name: &str| format!("data.{KEY}.{name}");
    let map = match yaml::values(text) {
        Ok(mut documents) if documents.len() < 2 => documents.pop().unwrap_or_default(),
        Ok(_) => {
            out.errors.push(Finding::new(format!("data.{KEY}"), "must be one document"));
            return out;
        }
        Err(e) => {
            out.errors.push(Finding::new(format!("data.{KEY}"), e.to_string()));
            return out;
        }
    };
    let map = match map {
        Value::Object(map) => map,
        Value::Null => return out,
        _ => {
            out.errors.push(Finding::new(format!("data.{KEY}"), "must be an object"));
            return out;
        }
    };
    for (name, value) in map.into_iter().filter(|(_, v)| !v.is_null()) {
        if !MESH_CONFIG.iter().any(|f| f.path == name) {
            out.warnings.push(Finding::new(path(&name), "is not a setting of the mesh"));
            continue;
        }
        if let Some(note) = support::unsupported_setting(&name, &value) {
            out.warnings.push(Finding::new(path(&name), note));
        }
        if let Err(e) = set(&mut out.settings, &name, value) {
            out.errors.push(Finding::new(path(&name), e.to_string()));
        }
    }
    out
}

fn of<T: DeserializeOwned>(value: Value) -> Result<T, serde_json::Error> {
    serde_json::from_value(value)
}

fn set(out: &mut Settings, name: &str, value: Value) -> Result<(), serde_json::Error> {
    let m = &mut out.model;
    match name {
        "outboundTrafficPolicy" => {
            let policy: types::OutboundTrafficPolicy = of(value)?;
            m.set_outbound(match policy.mode.unwrap_or_default() {
                types::OutboundMode::RegistryOnly => OutboundMode::RegistryOnly,
                types::OutboundMode::AllowAny => OutboundMode::AllowAny,
            });
        }
        "defaultServiceExportTo" => out.exports.service = of(value)?,
        "defaultVirtualServiceExportTo" => out.exports.virtual_service = of(value)?,
        "defaultDestinationRuleExportTo" => out.exports.destination_rule = of(value)?,
        "defaultHttpRetryPolicy" => m.default_retry = Some(mesh::retry(&of(value)?)),
        "connectTimeout" => m.connect_timeout = mesh::length(&of(value)?),
        "tcpKeepalive" => m.tcp_keepalive = Some(mesh::keepalive(&of(value)?)),
        "h2UpgradePolicy" => m.h2_upgrade = matches!(of(value)?, H2Upgrade::Upgrade),
        "localityLbSetting" => m.locality = Some(mesh::locality(&of(value)?)),
        "defaultTrafficPolicy" => {
            let policy: DefaultPolicy = of(value)?;
            m.default_pool = policy.connection_pool.as_ref().map(mesh::pool);
            m.default_outlier = policy.outlier_detection.as_ref().map(mesh::outlier);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(list: &[Finding]) -> Vec<&str> {
        list.iter().map(|f| f.path.as_str()).collect()
    }

    #[test]
    fn what_fits_holds_and_the_rest_is_said() {
        let read = read(
            "
            outboundTrafficPolicy: { mode: REGISTRY_ONLY }
            defaultVirtualServiceExportTo: ['.']
            defaultHttpRetryPolicy: { attempts: 5, retryOn: '503' }
            connectTimeout: 3s
            tcpKeepalive: { probes: 2, time: 10s }
            h2UpgradePolicy: UPGRADE
            localityLbSetting: { enabled: false }
            defaultTrafficPolicy: { outlierDetection: { consecutive5xxErrors: 2 } }
            accessLogFile: /dev/stdout
            trustDomain: example.org
            enableAutoMtls: true
            nobodyKnows: 1
            ",
        );
        assert_eq!(read.errors, []);
        assert_eq!(
            paths(&read.warnings),
            ["data.mesh.accessLogFile", "data.mesh.nobodyKnows", "data.mesh.trustDomain"]
        );
        let m = &read.settings.model;
        assert_eq!(m.outbound(), OutboundMode::RegistryOnly);
        assert_eq!(m.connect_timeout, Some(model::Millis { value: 3000 }));
        assert_eq!(
            m.default_retry.as_ref().map(|r| (r.attempts, r.status_codes.clone())),
            Some((5, vec![503]))
        );
        assert_eq!(m.tcp_keepalive.as_ref().map(|k| k.probes), Some(2));
        assert!(m.h2_upgrade);
        assert!(m.locality.as_ref().is_some_and(|l| !l.enabled));
        assert_eq!(m.default_outlier.as_ref().map(|o| o.consecutive_5xx), Some(2));
        assert_eq!(read.settings.exports.virtual_service, ["."]);
    }

    #[test]
    fn a_bad_setting_takes_none_of_the_others_with_it() {
        let read = read("connectTimeout: [1]\nh2UpgradePolicy: UPGRADE");
        assert_eq!(paths(&read.errors), ["data.mesh.connectTimeout"]);
        assert!(read.settings.model.h2_upgrade);
        for (text, errors) in [("", 0), ("- a", 1), ("{", 1), ("a: 1\n---\nb: 1", 1)] {
            assert_eq!(super::read(text).errors.len(), errors, "{text}");
        }
    }
}
