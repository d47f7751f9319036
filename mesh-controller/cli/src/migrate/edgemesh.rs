//! Which setting of EdgeMesh is which value of charts/mesh. A table; each leaf of the input is looked up in it.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{Became, Line, Migration};

/// Whose settings they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Agent,
    Gateway,
}

/// Translates the values of a chart, or a ConfigMap with the configuration of the agent or the gateway.
pub(super) fn translate(document: &Value, out: &mut Migration) -> Result<()> {
    if document["kind"] == "ConfigMap" {
        let files = document["data"].as_object().cloned().unwrap_or_default();
        for (name, text) in files.iter().filter_map(|(n, t)| Some((n, t.as_str()?))) {
            let part = if name.contains("gateway") { Part::Gateway } else { Part::Agent };
            if name == "psk" {
                out.say("psk", Became::Needless, PSK);
                continue;
            }
            for document in istio_compat::yaml::values(text).with_context(|| name.clone())? {
                walk(part, "", &document, out);
            }
        }
        return Ok(());
    }
    let Some(map) = document.as_object() else { return Ok(()) };
    // The gateway's chart has its settings at the top, the agent's below `agent`.
    let nested = map.contains_key("agent") || map.contains_key("gateway");
    let of_gateway = map.contains_key("nodeName") || !document["modules"]["edgeGateway"].is_null();
    for (key, value) in map {
        match (key.as_str(), nested, of_gateway) {
            ("agent", ..) => walk(Part::Agent, "agent", value, out),
            ("gateway", ..) => walk(Part::Gateway, "gateway", value, out),
            ("spiderpool" | "global", ..) => setting(Part::Agent, key, value, key, out),
            (_, true, _) => out.say(key, Became::Unknown, "not in the values of EdgeMesh's charts"),
            (_, false, true) => setting_or_walk(Part::Gateway, key, key, value, out),
            (_, false, false) => setting_or_walk(Part::Agent, key, key, value, out),
        }
    }
    Ok(())
}

const PSK: &str = "every node has a random key of its own and a certificate for it; delete the shared key";

impl Migration {
    fn say(&mut self, path: &str, became: Became, text: &str) {
        self.settings.push(Line { setting: path.to_owned(), became, text: text.to_owned() });
    }

    /// Sets the value at `a.b.c`.
    fn set(&mut self, path: &str, target: &str, value: Value) {
        let mut at = &mut self.values;
        for key in target.split('.') {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            at = &mut at[key];
        }
        let text = format!("{target}: {value}");
        *at = value;
        self.say(path, Became::Value, &text);
    }
}

fn walk(part: Part, path: &str, value: &Value, out: &mut Migration) {
    let Some(map) = value.as_object() else { return };
    for (key, value) in map {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let local = path.strip_prefix("agent.").or_else(|| path.strip_prefix("gateway.")).unwrap_or(&path);
        let local = local.to_owned();
        setting_or_walk(part, &path, &local, value, out);
    }
}

/// Maps that mean something as a whole.
const WHOLE: [&str; 5] = ["affinity", "nodeSelector", "resources", "metaServerSecret", "kubeAPIConfig"];

fn setting_or_walk(part: Part, path: &str, local: &str, value: &Value, out: &mut Migration) {
    if value.is_object() && !WHOLE.contains(&local) {
        walk(part, path, value, out);
    } else {
        setting(part, local, value, path, out);
    }
}

/// One leaf. `local` is the key without the chart's prefix.
fn setting(part: Part, local: &str, value: &Value, path: &str, out: &mut Migration) {
    // What the charts leave empty by default says nothing.
    let is_empty = value.is_null()
        || value.as_str() == Some("")
        || value.as_array().is_some_and(Vec::is_empty)
        || value.as_object().is_some_and(Map::is_empty);
    if is_empty {
        return;
    }
    let ours = if part == Part::Agent { "proxy" } else { "gateway" };
    let to = |name: &str| format!("{ours}.{name}");
    match local {
        "affinity" | "nodeSelector" | "tolerations" | "resources" => out.set(path, &to(local), value.clone()),
        "relayNodes" | "modules.edgeTunnel.relayNodes" if part == Part::Agent => relays(path, value, out),
        "relayNodes" | "modules.edgeTunnel.relayNodes" => {
            out.say(path, Became::Needless, "gateways find the relays of the mesh by themselves");
        }
        "nodeName" => {
            out.set(path, "gateway.nodeSelector", json!({ "kubernetes.io/hostname": value }));
        }
        "commonConfig.bridgeDeviceIP" => out.set(path, "proxy.dns.address", value.clone()),
        "modules.edgeDNS.enable" => out.set(path, "proxy.dns.enabled", value.clone()),
        "modules.edgeDNS.cacheDNS.upstreamServers" => {
            let list = value.as_array().cloned().unwrap_or_default();
            let servers: Vec<String> = list.iter().filter_map(Value::as_str).map(with_port).collect();
            out.set(path, "proxy.dns.upstreams", json!(servers));
        }
        "modules.edgeProxy.enable" => out.set(path, "proxy.capture.enabled", value.clone()),
        "modules.edgeGateway.enable" => out.set(path, "gateway.enabled", value.clone()),
        _ => rest(local, value, path, out),
    }
}

/// Settings that become nothing.
fn rest(local: &str, value: &Value, path: &str, out: &mut Migration) {
    use Became::{Needless, Nothing, Unknown};
    let (became, text) = match local {
        "image" | "modules.image" => (Needless, "the chart has images of its own: image.*"),
        "psk" => (Needless, PSK),
        "modules.edgeProxy.serviceFilterMode" if value == "FilterIfLabelDoesNotExists" => (
            Nothing,
            "services are captured unless a label says otherwise; there is no list of those that are: label the others \
             selvage.io/capture=false",
        ),
        "modules.edgeProxy.serviceFilterMode" => {
            (Needless, "the label service.edgemesh.kubeedge.io/service-proxy-name is honoured as it is")
        }
        "modules.edgeProxy.socks5Proxy.enable" => {
            (Needless, "SOCKS5, and HTTP CONNECT, are always on at 127.0.0.1:15080 of each node")
        }
        "modules.edgeProxy.socks5Proxy.listenPort" => {
            (Nothing, "127.0.0.1:15080; proxy.config.listen.proxy takes another address of loopback")
        }
        "modules.edgeDNS.listenPort" | "commonConfig.bridgeDeviceName" => {
            (Nothing, "port 53, on the link selvage0")
        }
        "modules.edgeDNS.cacheDNS.enable" | "modules.edgeDNS.cacheDNS.autoDetect" => {
            (Needless, "other names are always forwarded to the servers of the node, and cached")
        }
        "modules.edgeDNS.cacheDNS.cacheTTL" => {
            (Needless, "answers are kept for their own time, and served stale while no server answers")
        }
        "modules.edgeTunnel.enable" => (Needless, "the tunnel is part of every proxy"),
        "modules.edgeTunnel.transport" => {
            (Needless, "QUIC, TCP and WebSocket are tried, the best that works is used")
        }
        "modules.edgeTunnel.listenPort" => {
            (Nothing, "the tunnel listens on 15008, TCP and UDP: open it in firewalls")
        }
        "metaServerSecret" | "kubeAPIConfig" => {
            (Needless, "proxies ask no API server and no MetaServer, only the mesh's controller")
        }
        "spiderpool" | "cloudCIDR" | "edgeCIDR" => (Nothing, CNI),
        "global" => (Needless, "nothing is read from it"),
        other if other.starts_with("kubeAPIConfig.") => {
            (Needless, "proxies ask no API server and no MetaServer, only the mesh's controller")
        }
        other if other.starts_with("commonConfig.pprofConfig") => {
            (Nothing, "profiling is not part of the programs")
        }
        other if other.starts_with("modules.edgeCNI") => (Nothing, CNI),
        other if other.contains("loadBalancer") => {
            (Needless, "sizes of hash rings are set by rule: DestinationRule, consistentHash")
        }
        other if other.starts_with("modules.edgeTunnel.psk") => (Needless, PSK),
        other if other.starts_with("modules.edgeTunnel.tunnelLimitConfig") => {
            (Needless, "bounds are higher and for each stream; proxy.config.tunnel.relay has those of relays")
        }
        other if other.starts_with("modules.edgeTunnel.metricConfig") => {
            (Needless, "metrics are always on: port 15020 of each node")
        }
        other if other.starts_with("modules.edgeTunnel.") => {
            (Needless, "peers come from the controller, mDNS and each other; nothing is to be tuned")
        }
        other if other.starts_with("modules.edgeGateway.") => {
            (Nothing, "the gateway is reached by its Service: gateway.service, gateway.ports")
        }
        _ => (Unknown, "not in the values of EdgeMesh's charts"),
    };
    out.say(path, became, text);
}

const CNI: &str =
    "no pod network is made; pods of other nodes are reached by service and by name, through the tunnel";

/// Relays are nodes with a label; their outer addresses are an annotation, and the way to the controller too, as both
/// are in the cloud.
fn relays(path: &str, value: &Value, out: &mut Migration) {
    let mut outside = Vec::new();
    for relay in value.as_array().map(Vec::as_slice).unwrap_or_default() {
        let Some(node) = relay["nodeName"].as_str() else { continue };
        let listed = relay["advertiseAddress"].as_array().cloned().unwrap_or_default();
        let addresses: Vec<&str> = listed.iter().filter_map(Value::as_str).collect();
        let mut command = |text: String| {
            out.say(path, Became::Command, &text);
            out.commands.push(text);
        };
        command(format!("kubectl label node {node} selvage.io/relay=true"));
        if !addresses.is_empty() {
            command(format!("kubectl annotate node {node} selvage.io/addresses={}", addresses.join(",")));
        }
        outside.extend(addresses.iter().map(|a| with(a, CONTROLLER_NODE_PORT)));
    }
    if !outside.is_empty() {
        outside.dedup();
        out.set(path, "controller.externalAddresses", json!(outside));
        out.set(path, "controller.service.type", json!("NodePort"));
        out.set(path, "controller.service.nodePort", json!(CONTROLLER_NODE_PORT));
    }
}

/// The controller at the relays' addresses.
const CONTROLLER_NODE_PORT: u16 = 31512;

fn with_port(server: &str) -> String {
    let has_port = server.parse::<std::net::SocketAddr>().is_ok();
    if has_port { server.to_owned() } else { with(server, 53) }
}

fn with(host: &str, port: u16) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migrate(text: &str) -> Migration {
        let mut out = Migration { values: json!({}), ..Migration::default() };
        for document in istio_compat::yaml::values(text).unwrap() {
            translate(&document, &mut out).unwrap();
        }
        out
    }

    fn became(migration: &Migration, setting: &str) -> Vec<Became> {
        migration.settings.iter().filter(|l| l.setting == setting).map(|l| l.became).collect()
    }

    #[test]
    fn every_leaf_is_answered_once_and_false_is_kept() {
        let m = migrate(
            "agent:\n  psk: x\n  modules:\n    edgeDNS: {enable: false, listenPort: 53}\n    edgeProxy: {enable: false}\n  what: 1\nother: 2\n",
        );
        assert_eq!(
            m.values,
            json!({ "proxy": { "dns": { "enabled": false }, "capture": { "enabled": false } } })
        );
        assert_eq!(became(&m, "agent.psk"), [Became::Needless]);
        assert_eq!(became(&m, "agent.what"), [Became::Unknown]);
        assert_eq!(became(&m, "other"), [Became::Unknown]);
        assert_eq!(became(&m, "agent.modules.edgeDNS.listenPort"), [Became::Nothing]);
        assert_eq!(m.settings.len(), 6);
    }

    #[test]
    fn relays_become_labels_and_the_way_to_the_controller() {
        let m = migrate(
            "agent: {relayNodes: [{nodeName: master, advertiseAddress: [192.0.2.1, '2001:db8::1']}]}\n",
        );
        assert_eq!(
            m.commands,
            [
                "kubectl label node master selvage.io/relay=true",
                "kubectl annotate node master selvage.io/addresses=192.0.2.1,2001:db8::1"
            ]
        );
        assert_eq!(
            m.values["controller"]["externalAddresses"],
            json!(["192.0.2.1:31512", "[2001:db8::1]:31512"])
        );
    }

    #[test]
    fn the_gateways_chart_and_config_maps_are_known_too() {
        let m = migrate("nodeName: master\nimage: x\nmodules: {edgeGateway: {enable: true, nic: eth0}}\n");
        assert_eq!(m.values["gateway"]["nodeSelector"]["kubernetes.io/hostname"], "master");
        assert_eq!(m.values["gateway"]["enabled"], true);
        assert_eq!(became(&m, "modules.edgeGateway.nic"), [Became::Nothing]);
        let m = migrate(
            "kind: ConfigMap\ndata:\n  edgemesh-agent.yaml: |\n    commonConfig: {bridgeDeviceIP: 169.254.96.17}\n    modules:\n      edgeDNS: {cacheDNS: {upstreamServers: [10.96.0.10, '192.0.2.53:5353']}}\n",
        );
        assert_eq!(m.values["proxy"]["dns"]["address"], "169.254.96.17");
        assert_eq!(m.values["proxy"]["dns"]["upstreams"], json!(["10.96.0.10:53", "192.0.2.53:5353"]));
    }
}
