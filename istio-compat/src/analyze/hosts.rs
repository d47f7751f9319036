//! Which services and service entries a host in a rule means, as seen from the rule's namespace.

use std::collections::BTreeMap;

use super::world::{Kind, Labels, Name, Object, World, list, map, number, texts};

/// Exported to everybody.
pub(super) const EVERYBODY: &str = "*";
const CLUSTER_SUFFIX: &str = ".svc.cluster.local";

/// A host as an object of a namespace means it.
pub(super) fn full(host: &str, namespace: &str) -> String {
    if host.starts_with('*') || host.contains('.') {
        return host.to_owned();
    }
    format!("{host}.{namespace}{CLUSTER_SUFFIX}")
}

/// Namespace and name of the service that a host means; any other host is a name in `namespace`.
pub(super) fn service_name(host: &str, namespace: &str) -> Name {
    let parts = host.strip_suffix(CLUSTER_SUFFIX).and_then(|h| h.rsplit_once('.'));
    let (name, namespace) =
        parts.filter(|(n, ns)| !n.is_empty() && !ns.is_empty()).unwrap_or((host, namespace));
    Name { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// Whether one host, maybe a wildcard, and another have names in common.
pub(super) fn overlap(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
        (Some(suffix), None) => b.ends_with(suffix),
        (None, Some(suffix)) => a.ends_with(suffix),
        (None, None) => a == b,
    }
}

/// Namespaces that a list of `exportTo` names, `.` being `own`; everybody when it is empty or says so.
pub(super) fn scopes<'a>(export_to: impl Iterator<Item = &'a str>, own: &'a str) -> Vec<&'a str> {
    let mut out: Vec<&str> = export_to.map(|e| if e == "." { own } else { e }).collect();
    if out.is_empty() || out.contains(&EVERYBODY) {
        return vec![EVERYBODY];
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// What a host leads to.
#[derive(Debug, Clone)]
pub(super) struct Service<'w> {
    /// Port numbers.
    pub(super) ports: Vec<u64>,
    /// Labels of the workloads that a service entry selects.
    pub(super) selector: Labels<'w>,
}

/// Services and service entries by the namespace they are exported to and by host.
pub(super) struct Services<'w>(BTreeMap<(String, String), Service<'w>>);

impl<'w> Services<'w> {
    pub(super) fn of(world: &'w World) -> Self {
        let mut out = BTreeMap::new();
        for object in world.all(Kind::ServiceEntry) {
            let ports = list(&object.value, "/spec/ports").iter().map(|p| number(p, "/number")).collect();
            let service = Service { ports, selector: map(&object.value, "/spec/workloadSelector/labels") };
            for scope in scopes(texts(&object.value, "/spec/exportTo"), object.namespace()) {
                for host in texts(&object.value, "/spec/hosts") {
                    out.insert((scope.to_owned(), full(host, object.namespace())), service.clone());
                }
            }
        }
        for object in world.all(Kind::Service) {
            let ports = list(&object.value, "/spec/ports").iter().map(|p| number(p, "/port")).collect();
            let service = Service { ports, selector: Labels::new() };
            let host = format!("{}.{}{CLUSTER_SUFFIX}", object.name.name, object.namespace());
            for scope in exported_by_annotation(object) {
                out.insert((scope, host.clone()), service.clone());
            }
        }
        Self(out)
    }

    /// What `host` means for a rule of `namespace` that is exported to `export_to`.
    pub(super) fn find<'a>(
        &self,
        host: &str,
        namespace: &'a str,
        export_to: impl Iterator<Item = &'a str>,
    ) -> Option<&Service<'w>> {
        let name = full(host, namespace);
        let at = |scope: &str| self.0.get(&(scope.to_owned(), name.clone()));
        let mut scopes: Vec<&str> = export_to.map(|e| if e == "." { namespace } else { e }).collect();
        if scopes.is_empty() {
            scopes.push(namespace);
        }
        at(EVERYBODY).or_else(|| scopes.into_iter().find_map(at)).or_else(|| self.wildcard(host, namespace))
    }

    fn wildcard(&self, host: &str, namespace: &str) -> Option<&Service<'w>> {
        let host = host.trim_start_matches('*');
        let visible = |scope: &str| scope == EVERYBODY || scope == namespace;
        let mut all = self.0.iter();
        all.find(|((scope, pattern), _)| {
            visible(scope) && pattern.strip_prefix('*').is_some_and(|suffix| host.ends_with(suffix))
        })
        .map(|(_, service)| service)
    }
}

fn exported_by_annotation(service: &Object) -> Vec<String> {
    let annotation = service.annotations().get("networking.istio.io/exportTo").copied().unwrap_or_default();
    if annotation.is_empty() {
        return vec![EVERYBODY.to_owned()];
    }
    let own = service.namespace();
    annotation.split(',').map(str::trim).map(|n| if n == "." { own } else { n }.to_owned()).collect()
}
