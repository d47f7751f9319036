//! What the values of annotations must look like.

use std::str::FromStr;

use ipnet::IpNet;

/// Checks the value of an annotation that has a form.
pub(super) fn check(name: &str, value: &str) -> Result<(), String> {
    let Some((prefix, key)) = name.split_once('/') else { return Ok(()) };
    match (prefix, key) {
        ("sidecar.istio.io", "interceptionMode") if !["REDIRECT", "TPROXY", "NONE"].contains(&value) => {
            Err(format!("interceptionMode invalid, use REDIRECT,TPROXY,NONE: {value}"))
        }
        ("status.sidecar.istio.io", "port") => port(value).map_err(|e| format!("port invalid: {e}")),
        (
            "readiness.status.sidecar.istio.io",
            "initialDelaySeconds" | "periodSeconds" | "failureThreshold",
        ) => {
            let number = value.parse::<u32>().map(drop);
            number.map_err(|_| format!("{value:?} is not a whole number of seconds or times"))
        }
        ("traffic.sidecar.istio.io", key) => traffic(key, value).map_err(|e| format!("{key} invalid: {e}")),
        ("istio.io", "reroute-virtual-interfaces") => interfaces(value),
        ("prometheus.istio.io", "merge-metrics") => {
            let known = ["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"];
            if known.contains(&value) { Ok(()) } else { Err(format!("{value:?} is neither true nor false")) }
        }
        ("proxy.istio.io", "config") => match crate::yaml::values(value) {
            Ok(values) if values.iter().all(|v| v.is_object() || v.is_null()) => Ok(()),
            Ok(_) => Err("is not a set of fields".to_owned()),
            Err(e) => Err(format!("failed to convert to apply proxy config: {e}")),
        },
        ("sidecar.istio.io", "proxyCPU" | "proxyMemory" | "proxyCPULimit" | "proxyMemoryLimit") => {
            quantity(value)
        }
        _ => Ok(()),
    }
}

fn traffic(key: &str, value: &str) -> Result<(), String> {
    match key {
        "includeOutboundIPRanges" | "includeInboundPorts" if value == "*" => Ok(()),
        "includeOutboundIPRanges" | "excludeOutboundIPRanges" => {
            each(value, |range| match IpNet::from_str(range) {
                Ok(_) => Ok(()),
                Err(_) => Err(format!("failed parsing cidr '{range}'")),
            })
        }
        "includeInboundPorts" | "excludeInboundPorts" | "excludeOutboundPorts" => each(value.trim(), port),
        "excludeInterfaces" | "kubevirtInterfaces" => interfaces(value),
        _ => Ok(()),
    }
}

fn each(list: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    if list.is_empty() { Ok(()) } else { list.split(',').try_for_each(check) }
}

fn port(text: &str) -> Result<(), String> {
    let port = text.trim().parse::<u16>().map(drop);
    port.map_err(|_| format!("failed parsing port '{text}'"))
}

/// Names of network interfaces as Linux takes them.
fn interfaces(list: &str) -> Result<(), String> {
    each(list, |name| {
        let fits =
            (1..=15).contains(&name.len()) && !name.contains(['/', ' ', ':']) && name != "." && name != "..";
        if fits { Ok(()) } else { Err(format!("{name:?} is no name of a network interface")) }
    })
}

/// An amount as Kubernetes writes it: `100m`, `1.5Gi`, `2e3`.
fn quantity(text: &str) -> Result<(), String> {
    const SUFFIXES: [&str; 17] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e"];
    let bad = || format!("{text:?} is not an amount such as 100m or 1Gi");
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    let (digits, suffix) = number.split_at(end);
    let is_number = digits.parse::<f64>().is_ok();
    let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i32>().is_ok());
    if is_number && (exponent || (SUFFIXES.contains(&suffix) && suffix != "e")) { Ok(()) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (name, good, bad) in [
            ("sidecar.istio.io/interceptionMode", "TPROXY", "tproxy"),
            ("status.sidecar.istio.io/port", "15020", "70000"),
            ("readiness.status.sidecar.istio.io/periodSeconds", "2", "two"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8,fd00::/8", "10.0.0.0/33"),
            ("traffic.sidecar.istio.io/includeInboundPorts", "*", "80;81"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "", "x"),
            ("traffic.sidecar.istio.io/kubevirtInterfaces", "net1,net2", "a-name-that-is-too-long"),
            ("prometheus.istio.io/merge-metrics", "true", "yes"),
            ("proxy.istio.io/config", "concurrency: 2", "[1"),
            ("sidecar.istio.io/proxyCPU", "100m", "100 m"),
            ("sidecar.istio.io/proxyMemory", "1.5Gi", "lots"),
        ] {
            assert_eq!(check(name, good), Ok(()), "{name} {good}");
            assert!(check(name, bad).is_err(), "{name} {bad}");
        }
        assert_eq!(check("sidecar.istio.io/logLevel", "anything"), Ok(()));
    }
}
