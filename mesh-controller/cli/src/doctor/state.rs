//! Capture, controller, clock, certificate: from what the proxy says. DNS is asked.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant, SystemTime},
};

use super::{Check, ask::Node};

/// A clock that is wrong by more makes fresh certificates invalid for others.
const CLOCK_WARN: f64 = 5.0;
const CLOCK_FAIL: f64 = 60.0;
/// Certificates are renewed long before; less left means that renewal fails.
const DAY: f64 = 86_400.0;
const DNS_WAIT: Duration = Duration::from_secs(2);

pub(super) fn proxy(node: &anyhow::Result<Node>) -> Check {
    match node {
        Err(error) => Check::fail(
            "proxy",
            format!("{error:#}"),
            "Start mesh-proxy on this node, or name its admin address with --admin.",
        ),
        Ok(node) if node.dump["ready"] == true => {
            let (name, version) = (&node.dump["node"], &node.dump["version"]);
            let plain = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
            Check::ok("proxy", format!("{} is ready, version {}", plain(name), plain(version)))
        }
        Ok(node) => Check::fail(
            "proxy",
            format!("not ready: waits for {}", node.dump["pending"]),
            "See the proxy's log; a node that has never seen its controller waits for its first configuration.",
        ),
    }
}

/// What the proxy's own words are enough for, wherever it runs.
pub(super) fn said(node: &Node) -> Vec<Check> {
    vec![capture(node), datagrams(node), controller(node), clock(node), certificate(node, SystemTime::now())]
}

fn capture(node: &Node) -> Check {
    if node.setting("capture.enabled") != true {
        return Check::warn(
            "capture",
            "off: applications use the HTTP CONNECT or SOCKS5 proxy",
            "Set capture.enabled: true and give the proxy NET_ADMIN to capture what applications send to services.",
        );
    }
    let (Some(addresses), failed) = (
        node.metric("selvage_capture_addresses"),
        node.metric("selvage_capture_failed_total").unwrap_or(0.0),
    ) else {
        return Check::fail(
            "capture",
            "the rules were never written",
            "Install nftables and give the proxy the NET_ADMIN capability; its log has nft's own words.",
        );
    };
    let repaired = node.metric("selvage_capture_repaired_total").unwrap_or(0.0);
    let found = format!("{addresses} addresses and ports of services; rules repaired {repaired} times");
    if failed > 0.0 {
        let fix = "See the proxy's log for nft's words; rules that fail are written again every few seconds.";
        return Check::warn("capture", format!("{found}, refused {failed} times"), fix);
    }
    if repaired > 10.0 {
        let fix = "Something on this node rewrites nftables: have it leave the proxy's table alone.";
        return Check::warn("capture", found, fix);
    }
    Check::ok("capture", found)
}

fn datagrams(node: &Node) -> Check {
    let what = "udp services";
    if node.setting("capture.enabled") != true || node.metric("selvage_udp_sessions").is_none() {
        return Check::warn(
            what,
            "not captured",
            "UDP services need capture (NET_ADMIN) and the kernel's nft_tproxy; TCP is not concerned.",
        );
    }
    let dropped = node.metric("selvage_udp_dropped_total").unwrap_or(0.0);
    let sessions = node.metric("selvage_udp_sessions").unwrap_or(0.0);
    let passed = node.metric("selvage_udp_datagrams_total").unwrap_or(0.0);
    let found = format!("{sessions} sessions, {passed} datagrams passed, {dropped} dropped");
    if dropped > 100.0 && dropped > passed / 100.0 {
        let fix = "selvage_udp_dropped_total says why, by reason; udp.sessions and udp.queue are the bounds.";
        return Check::warn(what, found, fix);
    }
    Check::ok(what, found)
}

pub(super) fn dns(node: &Node) -> Check {
    if node.setting("dns.enabled") != true {
        let fix = "Set dns.enabled: true, or let a DNS server that knows services' addresses answer.";
        return Check::warn("dns", "off", fix);
    }
    let listen = node.setting("dns.listen").as_str().unwrap_or_default();
    let Ok(address) = listen.parse::<SocketAddr>() else {
        return Check::fail("dns", format!("{listen:?} is no address"), "Set dns.listen to IP:PORT.");
    };
    let domain = node.dump["cluster_domain"].as_str().unwrap_or("cluster.local");
    match question(address, &format!("svc.{domain}")) {
        Ok(took) => Check::ok("dns", format!("{listen} answers in {:.1} ms", took.as_secs_f64() * 1e3)),
        Err(error) => Check::fail(
            "dns",
            format!("{listen} does not answer: {error}"),
            "See who listens there (ss -lunp) and whether a firewall of this node drops port 53.",
        ),
    }
}

/// Asks for an address; any answer to that question will do.
fn question(server: SocketAddr, name: &str) -> std::io::Result<Duration> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(DNS_WAIT))?;
    let mut query = vec![0x5e, 0x1f, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(0));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let start = Instant::now();
    socket.send(&query)?;
    let mut answer = [0; 512];
    loop {
        let n = socket.recv(&mut answer)?;
        if n >= 12 && answer[..2] == query[..2] {
            return Ok(start.elapsed());
        }
    }
}

fn controller(node: &Node) -> Check {
    let known = node.dump["service_count"].as_u64().unwrap_or(0);
    if node.metric("selvage_discovery_connected") == Some(1.0) {
        return Check::ok("controller", format!("connected; {known} services are known"));
    }
    let fix = "What is known goes on working. See the proxy's log, and whether this node reaches the controller's port.";
    Check::warn("controller", format!("not connected; {known} services are known"), fix)
}

fn clock(node: &Node) -> Check {
    let Some(ahead) = node.metric("selvage_clock_ahead_seconds") else {
        return Check::warn("clock", "not compared", "The proxy is older than this meshctl: update it.");
    };
    if node.metric("selvage_discovery_responses_total").unwrap_or(0.0) == 0.0 {
        let fix = "It is compared as soon as the controller is reached.";
        return Check::warn("clock", "not compared with the controller's yet", fix);
    }
    let found = match ahead {
        a if a.abs() < 2.0 => "agrees with the controller's".to_owned(),
        a if a > 0.0 => format!("{a} s ahead of the controller's"),
        a => format!("{} s behind the controller's", -a),
    };
    let fix = "Let this node keep its time by NTP (chronyd, systemd-timesyncd).";
    match ahead.abs() {
        a if a >= CLOCK_FAIL => Check::fail("clock", found, fix),
        a if a >= CLOCK_WARN => Check::warn("clock", found, fix),
        _ => Check::ok("clock", found),
    }
}

fn certificate(node: &Node, now: SystemTime) -> Check {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let failures = node.metric("selvage_certificate_failures_total").unwrap_or(0.0);
    let left =
        node.metric("selvage_certificate_expires_seconds").filter(|end| *end > 0.0).map(|end| end - now);
    match left {
        None => Check::fail(
            "certificate",
            "there is none: this node has not joined",
            "Make a token with meshctl token create --node NAME and start the proxy with --join-token.",
        ),
        Some(left) if left <= 0.0 => Check::fail(
            "certificate",
            format!("expired {:.0} h ago", -left / 3600.0),
            "Reach the controller, and check this node's clock; join again with a new token if it stays.",
        ),
        Some(left) if left < DAY && failures > 0.0 => Check::warn(
            "certificate",
            format!("{:.0} h left, and {failures} attempts to renew failed", left / 3600.0),
            "See the proxy's log; it renews by itself as soon as the controller is reached.",
        ),
        Some(left) => Check::ok("certificate", format!("holds for {:.1} days", left / DAY)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::Status;

    fn node(metrics: &str) -> Node {
        Node {
            config: json!({ "capture": { "enabled": true }, "dns": { "enabled": false } }),
            dump: json!({ "ready": true, "node": "a", "version": "1", "service_count": 3 }),
            metrics: metrics.to_owned(),
            ..Node::default()
        }
    }

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let n = node("# HELP a b\na 1\na{x=\"} 7\"} 2\nab 9\na_total 5\n");
        assert_eq!(n.metric("a"), Some(3.0));
        assert_eq!(n.metric("a_total"), Some(5.0));
        assert_eq!(n.metric("c"), None);
    }

    #[test]
    fn clocks_and_certificates_that_are_off_are_said() {
        let at = |ahead: i32| {
            clock(&node(&format!(
                "selvage_clock_ahead_seconds {ahead}\nselvage_discovery_responses_total 4\n"
            )))
        };
        let statuses = [0, 1, -5, 59, 60, -3600].map(|a| at(a).status);
        use Status::{Fail, Ok, Warn};
        assert_eq!(statuses, [Ok, Ok, Warn, Warn, Fail, Fail]);
        assert_eq!(at(-3600).found, "3600 s behind the controller's");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let left = |end: i64, failures: u32| {
            let text = format!(
                "selvage_certificate_expires_seconds {end}\nselvage_certificate_failures_total {failures}\n"
            );
            certificate(&node(&text), now).status
        };
        let cases =
            [left(0, 0), left(999_000, 0), left(1_003_600, 0), left(1_003_600, 2), left(2_000_000, 2)];
        assert_eq!(cases, [Fail, Fail, Ok, Warn, Ok]);
    }

    #[test]
    fn capture_that_is_off_refused_or_fought_over_is_said() {
        let status = |text: &str| capture(&node(text)).status;
        assert_eq!(status("selvage_capture_addresses 5\n"), Status::Ok);
        assert_eq!(status(""), Status::Fail);
        assert_eq!(status("selvage_capture_addresses 5\nselvage_capture_failed_total 1\n"), Status::Warn);
        assert_eq!(status("selvage_capture_addresses 5\nselvage_capture_repaired_total 11\n"), Status::Warn);
    }
}
