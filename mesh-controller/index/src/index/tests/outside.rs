//! Services outside of Kubernetes, gateways and their secrets, scopes.

use super::*;

const ENTRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.example.com]
  resolution: STATIC
  location: MESH_INTERNAL
  ports: [{number: 5432, name: tcp, protocol: TCP, targetPort: 15432}]
  workloadSelector: {labels: {app: db}}
";

fn workload(name: &str, address: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: {name}}}, \
         spec: {{address: {address}, labels: {{app: db, version: v1}}, locality: eu/eu-1/shop-7, weight: 3}}}}"
    )
}

#[test]
fn a_selector_finds_workload_entries_and_pods() {
    let mut w = World::with(ENTRY);
    assert_eq!(w.endpoints("db.example.com"), []);
    let db = w.service("db.example.com").unwrap().clone();
    assert_eq!(db.kind(), model::service::Kind::External);
    assert_eq!(db.resolution(), model::service::Resolution::Static);
    assert_eq!((db.namespace.as_str(), db.source.as_str()), ("default", "default/db"));
    // It gets an address of its own, always the same.
    assert_eq!(db.vips.len(), 1);
    assert!(db.vips[0].starts_with("240.240."), "{:?}", db.vips);
    assert_eq!(World::with(ENTRY).service("db.example.com").unwrap().vips, db.vips);

    w.apply(&workload("one", "2.2.2.2"));
    let found = &w.endpoints("db.example.com")[0];
    assert_eq!((found.address.as_str(), found.weight), ("2.2.2.2", 3));
    assert_eq!(found.ports, [model::PortMap { service_port: 5432, target_port: 15432 }]);
    assert_eq!(found.locality.as_ref().unwrap().site, "shop-7");
    assert_eq!(w.changed, ["endpoints db.example.com"], "nothing else is compiled to something new");

    w.apply("{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {app: db}}, spec: {nodeName: edge}, status: {phase: Running, podIP: 10.1.0.9}}");
    let nodes: Vec<_> = w.endpoints("db.example.com").iter().map(|e| e.node.as_str()).collect();
    assert_eq!(nodes, ["edge", ""]);
    w.delete(Kind::WorkloadEntry, "one");
    w.delete(Kind::Pod, "p");
    assert_eq!(w.endpoints("db.example.com"), []);
    w.delete(Kind::ServiceEntry, "db");
    assert!(w.service("db.example.com").is_none());
}

#[test]
fn names_are_resolved_by_nodes_and_rules_find_the_host() {
    let w = World::with(
        "
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: a}, spec: {hosts: [a.example.com], resolution: DNS,
  ports: [{number: 443, name: tls, protocol: TLS}], exportTo: [., other]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: mixed}, spec: {hosts: [m.example.com], resolution: DNS,
  ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: x.example.com}, {address: 1.1.1.1, ports: {http: 8080}}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: wild}, spec: {hosts: ['*.example.org'],
  ports: [{number: 80, name: http, protocol: HTTP}], addresses: [10.7.0.0/16]}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d}, spec: {host: '*.example.com', trafficPolicy: {loadBalancer: {simple: RANDOM}}}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v}, spec: {hosts: [m.example.com], http: [{route: [{destination: {host: a.example.com}}]}]}}
",
    );
    let a = w.service("a.example.com").unwrap();
    assert_eq!(a.visible_to, ["default", "other"]);
    assert_eq!(a.policies.len(), 1);
    assert_eq!(w.endpoints("a.example.com")[0].fqdn, "a.example.com");
    let mixed: Vec<_> =
        w.endpoints("m.example.com").iter().map(|e| (e.fqdn.as_str(), e.ports[0].target_port)).collect();
    assert_eq!(mixed, [("x.example.com", 80), ("1.1.1.1", 8080)], "an address among names is a name");
    assert_eq!(w.sources("m.example.com"), ["default/v"]);
    let wild = w.service("*.example.org").unwrap();
    assert_eq!((wild.vips.len(), wild.cidrs.as_slice()), (0, &["10.7.0.0/16".to_owned()][..]));
    assert!(
        !w.all.contains_key(&(ResourceType::Endpoints, "*.example.org".to_owned())),
        "the called address is used"
    );
}

#[test]
fn each_namespace_has_its_own_entry_for_a_host_and_a_service_comes_before_all() {
    let entry = |namespace: &str, name: &str, year: u32, port: u32| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '{year}-01-01T00:00:00Z'}}, \
             spec: {{hosts: [reviews.default.svc.cluster.local], resolution: STATIC, ports: [{{number: {port}, name: p{port}, protocol: HTTP}}], endpoints: [{{address: 1.1.1.1}}]}}}}\n---\n"
        )
    };
    let mut w = World::with(
        &(entry("one", "old", 2020, 80) + &entry("one", "more", 2021, 81) + &entry("two", "late", 2022, 82)),
    );
    let host = "reviews.default.svc.cluster.local";
    let ports = |w: &World| w.service(host).unwrap().ports.iter().map(|p| p.number).collect::<Vec<_>>();
    assert_eq!(ports(&w), [80, 81]);
    let others = |w: &World| -> Vec<(String, Vec<u32>, String)> {
        let of = |o: &model::service::OtherOwner| {
            let s = o.service.as_ref().unwrap();
            let ports = s.ports.iter().map(|p| p.number).collect();
            assert_eq!(o.endpoints.as_ref().unwrap().endpoints.len(), 1);
            (s.source.clone(), ports, s.vips[0].clone())
        };
        w.service(host).unwrap().others.iter().map(of).collect()
    };
    let late = others(&w);
    assert_eq!((late[0].0.as_str(), late[0].1.as_slice(), late.len()), ("two/late", &[82][..], 1));
    assert_ne!(late[0].2, w.service(host).unwrap().vips[0], "each has an address of its own");
    assert_eq!(w.index.findings().count(), 0);
    // One that resolves differently adds nothing to those of its namespace.
    w.apply(&entry("two", "odd", 2023, 83).replace("resolution: STATIC", "resolution: DNS"));
    let shadowed: Vec<_> = w.index.findings().map(ToString::to_string).collect();
    assert!(
        shadowed.iter().any(|f| f.contains("two/odd") && f.contains("belongs to ServiceEntry two/late")),
        "{shadowed:?}"
    );
    assert_eq!(others(&w), late);
    w.apply(REVIEWS);
    assert_eq!((ports(&w), others(&w)), (vec![9080, 9090], vec![]));
    w.delete(Kind::Service, "reviews");
    assert_eq!((ports(&w), others(&w)), (vec![80, 81], late));
    // The next one owns the host when the first are gone.
    w.delete_in(Kind::ServiceEntry, "one", "old");
    w.delete_in(Kind::ServiceEntry, "one", "more");
    assert_eq!((ports(&w), others(&w)), (vec![82], vec![]));
}

#[test]
fn pods_of_a_further_owner_reach_the_host() {
    let entry = |namespace: &str, year: u32| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: db, namespace: {namespace}, creationTimestamp: '{year}-01-01T00:00:00Z'}}, \
             spec: {{hosts: [db.example.com], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], workloadSelector: {{labels: {{app: db}}}}}}}}\n---\n"
        )
    };
    let mut w = World::with(&(entry("one", 2020) + &entry("two", 2021)));
    let count = |w: &World| {
        let service = w.service("db.example.com").unwrap();
        let other = service.others[0].endpoints.as_ref().unwrap().endpoints.len();
        (w.endpoints("db.example.com").len(), other)
    };
    assert_eq!(count(&w), (0, 0));
    for (namespace, address) in [("one", "10.1.0.1"), ("two", "10.1.0.2"), ("three", "10.1.0.3")] {
        w.apply(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: {namespace}, labels: {{app: db}}}}, spec: {{nodeName: edge}}, status: {{phase: Running, podIP: {address}}}}}"));
    }
    assert_eq!(count(&w), (1, 1));
    w.delete_in(Kind::Pod, "two", "p");
    assert_eq!(count(&w), (1, 0));
}

const GATEWAY: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front, namespace: edge}
spec:
  selector: {istio: ingress}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*.example.com', 'shop/*.example.org']}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [a.example.com], tls: {mode: SIMPLE, credentialName: keys}}
---
{apiVersion: v1, kind: Secret, metadata: {name: keys, namespace: edge}, data: {tls.crt: Y2VydA==, tls.key: a2V5}}
---
{apiVersion: v1, kind: Secret, metadata: {name: keys-cacert, namespace: edge}, stringData: {ca.crt: authority}}
---
{apiVersion: v1, kind: Secret, metadata: {name: other, namespace: edge}, stringData: {tls.crt: x, tls.key: y}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {istio: ingress}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}}
";

impl World {
    fn names(&self, kind: ResourceType) -> Vec<&str> {
        let mut out: Vec<_> = self.all.keys().filter(|(k, _)| *k == kind).map(|(_, n)| n.as_str()).collect();
        out.sort_unstable();
        out
    }

    fn audience(&self, secret: &str) -> Vec<String> {
        let found = self.index.resources().find(|(k, n, _)| *k == ResourceType::Secret && &***n == secret);
        found.unwrap().2.audience.clone().unwrap().iter().map(ToString::to_string).collect()
    }
}

#[test]
fn keys_go_to_the_nodes_that_run_the_gateway_and_to_no_other() {
    let mut w = World::with(GATEWAY);
    assert_eq!(w.names(ResourceType::Secret), ["edge/keys"], "what nobody names is not compiled");
    assert_eq!(w.audience("edge/keys"), ["n1"]);
    let Resource::Secret(secret) = &w.all[&(ResourceType::Secret, "edge/keys".to_owned())] else { panic!() };
    assert_eq!((secret.private_key.as_slice(), secret.ca.as_slice()), (&b"key"[..], &b"authority"[..]));
    assert_eq!(w.node("n1").unwrap().gateways, ["edge/front"]);
    assert!(w.node("n2").unwrap().gateways.is_empty());
    // A gateway pod comes to the other node, and goes again.
    w.apply("{apiVersion: v1, kind: Pod, metadata: {name: gw, labels: {istio: ingress}}, spec: {nodeName: n2}, status: {phase: Running, podIP: 10.1.0.2}}");
    assert_eq!(w.audience("edge/keys"), ["n1", "n2"]);
    assert_eq!(w.node("n2").unwrap().gateways, ["edge/front"]);
    w.delete(Kind::Pod, "gw");
    assert_eq!(w.audience("edge/keys"), ["n1"]);
    // A new key is sent, an old one withdrawn.
    w.apply("{apiVersion: v1, kind: Secret, metadata: {name: keys, namespace: edge}, stringData: {tls.crt: c2, tls.key: k2}}");
    assert_eq!(w.changed, ["secret edge/keys"]);
    w.delete_in(Kind::Gateway, "edge", "front");
    assert!(w.names(ResourceType::Secret).is_empty());
    assert!(w.node("n1").unwrap().gateways.is_empty());
}

#[test]
fn rules_answer_at_the_narrower_host_of_a_server_and_only_touched_domains_are_compiled() {
    let rule = |namespace: &str, name: &str, hosts: &str, to: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: {name}, namespace: {namespace}}}, \
             spec: {{hosts: [{hosts}], gateways: [edge/front], http: [{{route: [{{destination: {{host: {to}}}}}]}}]}}}}"
        )
    };
    let mut w = World::with(GATEWAY);
    w.apply(&rule("shop", "a", "a.example.com", "one"));
    let http = "edge/front|80|a.example.com";
    assert_eq!(w.changed, ["gateway_host edge/front|443|a.example.com", &format!("gateway_host {http}")]);
    assert!(w.names(ResourceType::Service).is_empty(), "it is not for the mesh");
    w.apply(&rule("shop", "all", "'*'", "two"));
    assert_eq!(
        w.names(ResourceType::GatewayHost),
        ["edge/front|443|a.example.com", http, "edge/front|80|*.example.com", "edge/front|80|*.example.org"]
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
    let sources = |w: &World, name: &str| match &w.all[&(ResourceType::GatewayHost, name.to_owned())] {
        Resource::GatewayHost(h) => h.parts.iter().map(|p| p.source.clone()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    // Both answer at the exact host of the TLS server; at the plaintext one each has its own domain.
    assert_eq!(sources(&w, "edge/front|443|a.example.com"), ["shop/a", "shop/all"]);
    assert_eq!(sources(&w, http), ["shop/a"]);
    // The second host of the first server is for rules of namespace shop only.
    w.apply(&rule("other", "b", "b.example.org", "three"));
    assert!(w.changed.is_empty(), "{:?}", w.changed);
    w.apply(&rule("shop", "b", "b.example.org", "three"));
    assert_eq!(w.changed, ["gateway_host edge/front|80|b.example.org"]);
    w.delete_in(Kind::Gateway, "edge", "front");
    assert!(w.names(ResourceType::GatewayHost).is_empty());
    assert!(w.names(ResourceType::Gateway).is_empty());
}

#[test]
fn what_changes_envoy_is_refused_and_what_has_no_effect_is_said() {
    let mut w = World::new();
    let applied = w.apply(
        "{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {name: f}, spec: {configPatches: [{applyTo: CLUSTER}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p}, spec: {mtls: {mode: STRICT}}}",
    );
    assert_eq!(applied, [Applied::Rejected, Applied::Changed]);
    let of = |kind, name: &str| w.index.findings_of(&ObjectKey::new(kind, "default", name)).to_vec();
    assert!(
        of(Kind::EnvoyFilter, "f").iter().any(|f| f.level == Level::Error && f.message.contains("refused"))
    );
    assert!(
        of(Kind::PeerAuthentication, "p").iter().any(|f| f.level == Level::Warning && f.path == "spec.mtls")
    );
    assert!(w.index.delete(&ObjectKey::new(Kind::PeerAuthentication, "default", "p")));
    assert_eq!(w.index.keys(Kind::EnvoyFilter).len(), 1);
}

#[test]
fn an_ingress_listener_leads_to_the_port_of_its_default_endpoint() {
    let mut w = World::with(
        "
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.9, selector: {app: web}, ports: [{port: 80, targetPort: 9080}, {name: b, port: 81, targetPort: 9081}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {app: web}}, spec: {nodeName: edge}, status: {phase: Running, podIP: 10.1.0.9}}
",
    );
    let sidecar = |name: &str, selector: &str, to: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {{name: {name}}}, spec: {{{selector} ingress: \
             [{{port: {{number: 9080, protocol: HTTP, name: http}}, defaultEndpoint: '{to}'}}], egress: [{{hosts: ['*/*']}}]}}}}"
        )
    };
    let targets = |w: &World| w.endpoints("web")[0].ports.iter().map(|p| p.target_port).collect::<Vec<_>>();
    assert_eq!(targets(&w), [9080, 9081]);
    w.apply(&sidecar("all", "", "127.0.0.1:8080"));
    assert_eq!(targets(&w), [8080, 9081]);
    w.apply(&sidecar("own", "workloadSelector: {labels: {app: web}},", "0.0.0.0:7070"));
    assert_eq!(targets(&w), [7070, 9081], "the one with a selector comes first");
    w.apply(&sidecar("own", "workloadSelector: {labels: {app: other}},", "0.0.0.0:7070"));
    assert_eq!(targets(&w), [8080, 9081]);
    w.apply(&sidecar("all", "", "unix:///socket"));
    assert_eq!(targets(&w), [9080, 9081]);
    w.apply(&sidecar("all", "", "127.0.0.1:8080"));
    w.delete(Kind::Sidecar, "all");
    assert_eq!(targets(&w), [9080, 9081]);
}
