//! Names of service ports, from which the protocol is taken.

use super::{
    deployment::{MANAGED, target_text},
    report::Report,
    workload::is_control_plane,
    world::{Kind, World, number, text},
};

/// Services that gateway controllers make.
const MANAGED_BY: [&str; 3] =
    ["istio.io-gateway-controller", "istio.io-mesh-controller", "istio.io-eastwest-controller"];
/// Ports of protocols where the server speaks first: detection would wait for the client.
const WELL_KNOWN: [u64; 4] = [25, 53, 3306, 27017];
const PROTOCOLS: [&str; 11] =
    ["tcp", "udp", "grpc", "grpc-web", "http", "http_proxy", "http2", "https", "tls", "mongo", "redis"];

/// Each port's protocol is known by its name.
pub(super) fn port_names(world: &World, out: &mut Report) {
    for service in world.all(Kind::Service) {
        let managed = service.labels().get(MANAGED).is_some_and(|by| MANAGED_BY.contains(by));
        if managed || is_control_plane(service) {
            continue;
        }
        let external = service.text("/spec/type") == "ExternalName";
        for (i, port) in service.list("/spec/ports").iter().enumerate() {
            let name = text(port, "/name");
            let protocol = port.get("appProtocol").and_then(|p| p.as_str()).unwrap_or(name);
            let known = text(port, "/protocol") == "UDP" || is_known(protocol, number(port, "/port"));
            let path = format!("spec.ports[{i}].name");
            match external {
                true if !known || name == "tcp" => out.add(service, "IST0150", path, &[]),
                false if !known => {
                    let target = target_text(port).unwrap_or_else(|| "0".to_owned());
                    out.add(service, "IST0118", path, &[&name, &number(port, "/port"), &target]);
                }
                _ => {}
            }
        }
    }
}

fn is_known(name: &str, port: u64) -> bool {
    let name = name.to_ascii_lowercase();
    if name.starts_with("grpc-web")
        || ["kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss"].contains(&name.as_str())
    {
        return true;
    }
    let prefix = name.split('-').next().unwrap_or_default();
    prefix == "mysql" || PROTOCOLS.contains(&prefix) || WELL_KNOWN.contains(&port)
}
