//! Which protocol a service port speaks, as Istio decides it: `appProtocol`, else the prefix of the port's name, else a
//! few port numbers whose protocols let the server speak first, else detection.

use mesh_api::model::Protocol;

/// SMTP, DNS, MySQL, MongoDB: waiting for the client's first bytes would only add delay.
const SERVER_FIRST_PORTS: [u32; 4] = [25, 53, 3306, 27017];

/// The protocol of a port; `Unspecified` means that the node detects it.
pub fn of_port(transport: &str, app_protocol: Option<&str>, name: &str, number: u32) -> Protocol {
    if transport.eq_ignore_ascii_case("UDP") {
        return Protocol::Udp;
    }
    let text = match app_protocol {
        Some("kubernetes.io/h2c") => return Protocol::Http2,
        Some("kubernetes.io/ws") => return Protocol::Http,
        Some("kubernetes.io/wss") => return Protocol::Tls,
        Some(other) => other,
        None => name,
    }
    .to_ascii_lowercase();
    // Before the general prefix: "grpc-web" is not gRPC on the wire but HTTP with a different framing.
    if text.starts_with("grpc-web") {
        return Protocol::Http;
    }
    match text.split('-').next().unwrap_or_default() {
        "http" | "http_proxy" => Protocol::Http,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "https" | "tls" => Protocol::Tls,
        // Whatever its name says, what Kubernetes calls TCP is no port for datagrams.
        "tcp" | "udp" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
        _ if SERVER_FIRST_PORTS.contains(&number) => Protocol::Tcp,
        _ => Protocol::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_istio_reads_them() {
        use Protocol::{Grpc, Http, Http2, Tcp, Tls, Udp, Unspecified};
        let cases = [
            ("TCP", None, "http", 80, Http),
            ("TCP", None, "http-web", 80, Http),
            ("TCP", None, "HTTP-web", 80, Http),
            ("TCP", None, "httpweb", 80, Unspecified),
            ("TCP", None, "http2-web", 80, Http2),
            ("TCP", None, "grpc", 80, Grpc),
            ("TCP", None, "grpc-web", 80, Http),
            ("TCP", None, "grpc-webx", 80, Http),
            ("TCP", None, "grpc-we", 80, Grpc),
            ("TCP", None, "https", 443, Tls),
            ("TCP", None, "tls-x", 443, Tls),
            ("TCP", None, "tcp-http", 80, Tcp),
            ("TCP", None, "mysql", 1, Tcp),
            ("TCP", None, "", 3306, Tcp),
            ("TCP", None, "", 8080, Unspecified),
            ("TCP", Some("http"), "tcp", 80, Http),
            ("TCP", Some("kubernetes.io/h2c"), "", 80, Http2),
            ("TCP", Some("kubernetes.io/ws"), "", 80, Http),
            ("TCP", Some("kubernetes.io/wss"), "", 80, Tls),
            ("TCP", Some("example.com/own"), "http", 80, Unspecified),
            ("UDP", Some("http"), "http", 80, Udp),
            ("UDP", None, "dns", 53, Udp),
            ("TCP", None, "udp-dns", 53, Tcp),
            ("TCP", None, "dns-tcp", 53, Tcp),
        ];
        for (transport, app, name, number, expected) in cases {
            assert_eq!(
                of_port(transport, app, name, number),
                expected,
                "{transport} {app:?} {name} {number}"
            );
        }
    }
}
