//! Settings of the whole mesh.

use super::*;

const RULES: &str = "
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop}
spec: {clusterIP: 10.96.1.1, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec: {hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rule, namespace: shop}
spec: {hosts: [a.example.com], http: [{route: [{destination: {host: a.example.com}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: policy, namespace: shop}
spec: {host: a.example.com, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
";

fn settings(text: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: istio, namespace: istio-system}}, data: {{mesh: '{text}'}}}}"
    )
}

impl World {
    fn mesh(&self) -> &model::MeshConfig {
        match &self.all[&(ResourceType::MeshConfig, "mesh".to_owned())] {
            Resource::MeshConfig(m) => m,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn objects_that_do_not_say_for_whom_they_are_follow_the_mesh() {
    let plain = "plain.shop.svc.cluster.local";
    let mut w = World::with(RULES);
    let seen = |w: &World| {
        let s = w.service("a.example.com").unwrap();
        (
            s.visible_to.clone(),
            s.virtual_hosts[0].visible_to.clone(),
            w.service(plain).unwrap().visible_to.clone(),
        )
    };
    let everybody: Vec<String> = Vec::new();
    assert_eq!(seen(&w), (everybody.clone(), everybody.clone(), everybody.clone()));
    assert_eq!(
        w.apply(&settings("{defaultServiceExportTo: [\".\"], defaultVirtualServiceExportTo: [prod]}")),
        [Applied::Changed]
    );
    let (shop, prod) = (vec!["shop".to_owned()], vec!["prod".to_owned()]);
    assert_eq!(seen(&w), (shop.clone(), prod, shop));
    w.apply(&settings("{defaultDestinationRuleExportTo: [\".\"]}"));
    assert_eq!(seen(&w), (everybody.clone(), everybody.clone(), everybody.clone()));
    assert_eq!(w.service("a.example.com").unwrap().policies[0].visible_to, ["shop"]);
    w.delete_in(Kind::ConfigMap, "istio-system", "istio");
    assert_eq!(w.service("a.example.com").unwrap().policies[0].visible_to, everybody);
    assert!(w.index.compile().is_empty());
}

#[test]
fn settings_reach_nodes_and_what_has_no_effect_is_said() {
    let mut w = World::with(&settings(
        "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}, connectTimeout: 3s, h2UpgradePolicy: UPGRADE, accessLogFile: /dev/stdout, connectTimeoutt: 1s}",
    ));
    assert_eq!(w.mesh().outbound(), model::mesh_config::OutboundMode::RegistryOnly);
    assert_eq!(w.mesh().connect_timeout, Some(model::Millis { value: 3000 }));
    assert!(w.mesh().h2_upgrade && w.mesh().cluster_domain == "cluster.local");
    let said = |w: &World| w.index.findings().map(|f| f.path.clone()).collect::<Vec<_>>();
    assert_eq!(said(&w), ["data.mesh.accessLogFile", "data.mesh.connectTimeoutt"]);
    // Not the one in another namespace, nor another name.
    w.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: shop}, data: {mesh: \"{connectTimeout: 9s}\"}}");
    assert_eq!(w.mesh().connect_timeout, Some(model::Millis { value: 3000 }));
    w.delete_in(Kind::ConfigMap, "istio-system", "istio");
    assert_eq!((w.mesh().connect_timeout, said(&w).len()), (None, 0));
    assert_eq!(w.mesh().outbound(), model::mesh_config::OutboundMode::AllowAny);
}

#[test]
fn a_service_says_for_whom_it_is_and_whether_near_endpoints_come_first() {
    let w = World::with(
        "
apiVersion: v1
kind: Service
metadata: {name: a, annotations: {networking.istio.io/exportTo: '., prod'}}
spec: {clusterIP: 10.96.1.1, trafficDistribution: PreferClose, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, annotations: {networking.istio.io/exportTo: '~'}}
spec: {clusterIP: 10.96.1.2, ports: [{name: http, port: 80}]}
",
    );
    assert_eq!(w.service("a").unwrap().visible_to, ["default", "prod"]);
    assert!(w.service("a").unwrap().traffic_distribution);
    assert_eq!(w.service("b").unwrap().visible_to, ["default"]);
    assert!(!w.service("b").unwrap().traffic_distribution);
}
