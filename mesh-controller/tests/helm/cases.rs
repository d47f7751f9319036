//! The cases: what each value of the chart is for.

use serde_json::{Value, json};

use super::{
    chart::{merged, nested},
    expect::{
        Expect::{self, Config, Gone, Has, Is, Lacks, There},
        container, pod,
    },
};

const CTRL: &str = "Deployment/mesh-controller";
const PROXY: &str = "DaemonSet/mesh-proxy";
const EDGE: &str = "DaemonSet/mesh-proxy-edge";
const RELAY: &str = "StatefulSet/mesh-relay";
const GATEWAY: &str = "Deployment/mesh-gateway";

pub(crate) struct Case {
    pub(crate) path: String,
    /// What must be set beside it.
    pub(crate) base: Value,
    pub(crate) value: Value,
    pub(crate) expect: Vec<Expect>,
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    let mut all = Cases::default();
    all.images();
    all.mesh();
    all.controller();
    all.proxy();
    all.relay();
    all.gateway();
    all.policies();
    all.monitoring();
    all.0
}

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add<const N: usize>(&mut self, path: &str, value: Value, expect: [Expect; N]) {
        self.with(json!({}), path, value, expect);
    }

    fn with<const N: usize>(&mut self, base: Value, path: &str, value: Value, expect: [Expect; N]) {
        self.0.push(Case { path: path.to_owned(), base, value, expect: expect.into() });
    }

    fn images(&mut self) {
        let image = |object, text: &str| Is(object, container("/image"), json!(text));
        self.add(
            "image.registry",
            json!("registry.example.com/mirror/"),
            [image(CTRL, "registry.example.com/mirror/selvage/mesh-controller:0.1.0")],
        );
        let both = |c: &str, p: &str| {
            [image(CTRL, c), image("Job/mesh-preflight", c), image(PROXY, p), image(EDGE, p)]
        };
        self.add("image.tag", json!("7"), both("selvage/mesh-controller:7", "selvage/mesh-proxy:7"));
        self.add("image.controller", json!("x/c"), [image(CTRL, "x/c:0.1.0")]);
        self.add("image.proxy", json!("x/p"), [image(PROXY, "x/p:0.1.0"), image(EDGE, "x/p:0.1.0")]);
        let policy = |object| Is(object, container("/imagePullPolicy"), json!("Never"));
        self.add(
            "image.pullPolicy",
            json!("Never"),
            [policy(CTRL), policy(PROXY), policy("Job/mesh-preflight")],
        );
        let secrets = |object| Is(object, pod("/imagePullSecrets"), json!([{ "name": "regcred" }]));
        self.add(
            "image.pullSecrets",
            json!(["regcred"]),
            [secrets(CTRL), secrets(PROXY), secrets("Job/mesh-preflight")],
        );
    }

    fn mesh(&mut self) {
        self.add(
            "mesh.trustDomain",
            json!("example.org"),
            [
                Config("mesh-controller", "/trustDomain", json!("example.org")),
                Config("mesh-proxy", "/trustDomain", json!("example.org")),
                Config("mesh-proxy-edge", "/trustDomain", json!("example.org")),
            ],
        );
        let controller = "mesh-controller.selvage-system.svc.corp.local:15012";
        self.add(
            "mesh.clusterDomain",
            json!("corp.local"),
            [
                Config("mesh-controller", "/clusterDomain", json!("corp.local")),
                Config("mesh-proxy", "/controller", json!(controller)),
            ],
        );
        self.add(
            "mesh.rootNamespace",
            json!("mesh"),
            [Config("mesh-controller", "/rootNamespace", json!("mesh"))],
        );
        let only = json!("registry-only");
        self.add("mesh.outbound", only.clone(), [Config("mesh-controller", "/outbound", only)]);
        let lives = |key, seconds: u64| [Config("mesh-controller", key, json!(seconds))];
        self.add("mesh.certificates.caDays", json!(90), lives("/caCertificateTtl", 7_776_000));
        self.add("mesh.certificates.nodeHours", json!(12), lives("/nodeCertificateTtl", 43_200));
        let label = |object| Is(object, "/metadata/labels/team".to_owned(), json!("net"));
        let set = [
            label(CTRL),
            label(PROXY),
            label("ClusterRole/selvage-mesh-controller"),
            label("Job/mesh-preflight"),
        ];
        self.add("commonLabels", json!({ "team": "net" }), set);
        let rule =
            json!({ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"] });
        let role = "ClusterRole/selvage-mesh-controller";
        self.add(
            "gatewayApi.enabled",
            json!(false),
            [
                Config("mesh-controller", "/gatewayApi", json!(false)),
                Lacks(role, "/rules/7".to_owned()),
                Lacks("ValidatingWebhookConfiguration/selvage-validator", "/webhooks/0/rules/4".to_owned()),
            ],
        );
        let off = json!({ "gatewayApi": { "enabled": false } });
        self.with(off, "gatewayApi.enabled", json!(true), [Has(role, "/rules".to_owned(), rule)]);
        self.add(
            "preflight.enabled",
            json!(false),
            [Gone("Job/mesh-preflight"), Gone("ClusterRole/selvage-mesh-preflight")],
        );
        self.add(
            "preflight.ignore",
            json!(["kernel", "edgemesh"]),
            [Has("Job/mesh-preflight", container("/args"), json!("--ignore=kernel,edgemesh"))],
        );
    }

    fn controller(&mut self) {
        for n in [0, 5] {
            self.add("controller.replicas", json!(n), [Is(CTRL, "/spec/replicas".to_owned(), json!(n))]);
        }
        let config = |key, value| [Config("mesh-controller", key, value)];
        self.add("controller.logLevel", json!("debug"), config("/logLevel", json!("debug")));
        self.add("controller.logFormat", json!("json"), config("/logFormat", json!("json")));
        self.add("controller.writeStatus", json!(false), config("/writeStatus", json!(false)));
        self.add("controller.config", json!({ "maxConnections": 7 }), config("/maxConnections", json!(7)));
        self.add("controller.config", json!({ "logLevel": "warn" }), config("/logLevel", json!("warn")));
        let inside = "mesh-controller.selvage-system.svc.cluster.local:15012";
        self.add(
            "controller.externalAddresses",
            json!(["mesh.example.com:443", "192.0.2.1:15012"]),
            [
                Config(
                    "mesh-proxy",
                    "/controller",
                    json!(format!("{inside},mesh.example.com:443,192.0.2.1:15012")),
                ),
                Config(
                    "mesh-proxy-edge",
                    "/controller",
                    json!(format!("mesh.example.com:443,192.0.2.1:15012,{inside}")),
                ),
            ],
        );
        let hook = "ValidatingWebhookConfiguration/selvage-validator";
        self.add("controller.webhook.enabled", json!(false), [Gone(hook), Gone("Service/mesh-webhook")]);
        self.add(
            "controller.webhook.failurePolicy",
            json!("Fail"),
            [Is(hook, "/webhooks/0/failurePolicy".to_owned(), json!("Fail"))],
        );
        self.add(
            "controller.webhook.timeoutSeconds",
            json!(9),
            [Is(hook, "/webhooks/0/timeoutSeconds".to_owned(), json!(9))],
        );
        self.service("controller", "Service/mesh-controller", &json!({}));
        let node_port = nested("controller.service.type", json!("NodePort"));
        self.with(
            node_port,
            "controller.service.nodePort",
            json!(31500),
            [Is("Service/mesh-controller", "/spec/ports/0/nodePort".to_owned(), json!(31500))],
        );
        self.budget("controller", "PodDisruptionBudget/mesh-controller", &json!({}));
        self.apart("controller", CTRL, &json!({}));
        self.scheduling("controller", CTRL, &json!({}));
    }

    fn proxy(&mut self) {
        let account = "ServiceAccount/mesh-proxy";
        self.add("proxy.enabled", json!(false), [Gone(PROXY), Gone(EDGE), Gone(account)]);
        let both = |key, value: Value| {
            [Config("mesh-proxy", key, value.clone()), Config("mesh-proxy-edge", key, value)]
        };
        self.add("proxy.logLevel", json!("debug"), both("/logLevel", json!("debug")));
        self.add("proxy.logFormat", json!("json"), both("/logFormat", json!("json")));
        self.add("proxy.capture.enabled", json!(false), both("/capture/enabled", json!(false)));
        self.add("proxy.capture.podDns", json!(false), both("/capture/podDns", json!(false)));
        self.add("proxy.dns.enabled", json!(false), both("/dns/enabled", json!(false)));
        self.add("proxy.dns.address", json!("169.254.7.7"), both("/dns/listen", json!("169.254.7.7:53")));
        self.add(
            "proxy.dns.upstreams",
            json!(["192.0.2.53:53"]),
            both("/dns/upstreams", json!(["192.0.2.53:53"])),
        );
        self.add("proxy.drainSeconds", json!(0), both("/drainSeconds", json!(0)));
        let grace = |object| Is(object, pod("/terminationGracePeriodSeconds"), json!(70));
        self.add("proxy.drainSeconds", json!(60), [grace(PROXY), grace(EDGE)]);
        let path = |object| Is(object, pod("/volumes/1/hostPath/path"), json!("/data/mesh"));
        self.add("proxy.stateDir", json!("/data/mesh"), [path(PROXY), path(EDGE)]);
        self.add(
            "proxy.config",
            json!({ "capture": { "table": "mine" } }),
            both("/capture/table", json!("mine")),
        );
        self.add("proxy.config", json!({ "logLevel": "warn" }), both("/logLevel", json!("warn")));
        let delete = json!({ "type": "OnDelete", "rollingUpdate": null });
        let by_hand = |object| Is(object, "/spec/updateStrategy".to_owned(), json!({ "type": "OnDelete" }));
        self.add("proxy.updateStrategy", delete, [by_hand(PROXY), by_hand(EDGE)]);
        let rolling = json!({ "maxSurge": 0, "maxUnavailable": "10%" });
        let rolls = |object| {
            Is(
                object,
                "/spec/updateStrategy/rollingUpdate".to_owned(),
                json!({ "maxSurge": 0, "maxUnavailable": "10%" }),
            )
        };
        self.add("proxy.updateStrategy.rollingUpdate", rolling, [rolls(PROXY), rolls(EDGE)]);
        self.scheduling("proxy", PROXY, &json!({}));
        self.scheduling("proxy", EDGE, &json!({}));
        self.add("proxy.edge.enabled", json!(false), [Gone(EDGE), Lacks(PROXY, pod("/affinity"))]);
        let term = pod(
            "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/0",
        );
        self.add(
            "proxy.edge.nodeLabel",
            json!("site"),
            [
                Is(EDGE, term.clone(), json!({ "key": "site", "operator": "Exists" })),
                Is(PROXY, term, json!({ "key": "site", "operator": "DoesNotExist" })),
            ],
        );
        self.add(
            "proxy.edge.config",
            json!({ "workers": 1 }),
            [Config("mesh-proxy-edge", "/workers", json!(1))],
        );
    }

    fn relay(&mut self) {
        let on = nested("relay.enabled", json!(true));
        let account =
            Config("mesh-controller", "/enrolPodServiceAccounts", json!(["selvage-system/mesh-relay"]));
        self.add("relay.enabled", json!(true), [There(RELAY), There("Service/mesh-relay"), account]);
        for n in [0, 3] {
            self.with(
                on.clone(),
                "relay.replicas",
                json!(n),
                [Is(RELAY, "/spec/replicas".to_owned(), json!(n))],
            );
        }
        let address = json!(["/dns4/relay.example.com/tcp/15008"]);
        self.with(
            on.clone(),
            "relay.addresses",
            address.clone(),
            [Config("mesh-relay", "/tunnel/addresses", address)],
        );
        let limits = json!({ "tunnel": { "relay": { "circuits": 9 } } });
        self.with(
            on.clone(),
            "relay.config",
            limits,
            [Config("mesh-relay", "/tunnel/relay", json!({ "circuits": 9, "enabled": true }))],
        );
        self.service("relay", "Service/mesh-relay", &on);
        self.scheduling("relay", RELAY, &on);
    }

    fn gateway(&mut self) {
        let on = nested("gateway.enabled", json!(true));
        let service = "Service/mesh-gateway";
        let account =
            Config("mesh-controller", "/enrolPodServiceAccounts", json!(["selvage-system/mesh-gateway"]));
        self.add("gateway.enabled", json!(true), [There(GATEWAY), There(service), account]);
        for n in [0, 5] {
            self.with(
                on.clone(),
                "gateway.replicas",
                json!(n),
                [Is(GATEWAY, "/spec/replicas".to_owned(), json!(n))],
            );
        }
        self.with(
            on.clone(),
            "gateway.labels",
            json!({ "site": "north" }),
            [
                Config("mesh-gateway", "/gateway/labels/site", json!("north")),
                Is(GATEWAY, "/spec/template/metadata/labels/site".to_owned(), json!("north")),
            ],
        );
        self.with(
            on.clone(),
            "gateway.ports",
            json!([{ "name": "mqtt", "port": 883, "targetPort": 8883 }]),
            [
                Config("mesh-gateway", "/gateway/ports", json!({ "883": 8883 })),
                Is(
                    service,
                    "/spec/ports".to_owned(),
                    json!([{ "name": "mqtt", "port": 883, "targetPort": "mqtt" }]),
                ),
                Has(
                    "NetworkPolicy/mesh-gateway",
                    "/spec/ingress/0/ports".to_owned(),
                    json!({ "port": 8883 }),
                ),
            ],
        );
        self.with(
            on.clone(),
            "gateway.config",
            json!({ "workers": 3 }),
            [Config("mesh-gateway", "/workers", json!(3))],
        );
        self.service("gateway", service, &on);
        let local = [Is(service, "/spec/externalTrafficPolicy".to_owned(), json!("Local"))];
        self.with(on.clone(), "gateway.service.externalTrafficPolicy", json!("Local"), local);
        self.budget("gateway", "PodDisruptionBudget/mesh-gateway", &on);
        self.apart("gateway", GATEWAY, &on);
        self.scheduling("gateway", GATEWAY, &on);
    }

    fn policies(&mut self) {
        let policy = "NetworkPolicy/mesh-controller";
        self.add("networkPolicy.enabled", json!(false), [Gone(policy)]);
        self.add(
            "networkPolicy.apiServerCidrs",
            json!(["10.0.0.1/32"]),
            [Is(
                policy,
                "/spec/ingress/1/from".to_owned(),
                json!([{ "ipBlock": { "cidr": "10.0.0.1/32" } }]),
            )],
        );
        let peers = json!([{ "namespaceSelector": {} }]);
        self.add(
            "networkPolicy.metricsFrom",
            peers.clone(),
            [Is(policy, "/spec/ingress/2/from".to_owned(), peers)],
        );
    }

    fn monitoring(&mut self) {
        let scrape =
            |object| Lacks(object, "/spec/template/metadata/annotations/prometheus.io~1scrape".to_owned());
        self.add("monitoring.annotations", json!(false), [scrape(CTRL), scrape(PROXY), scrape(EDGE)]);
        let (pods, services) = ("PodMonitor/mesh-proxy", "ServiceMonitor/mesh-controller");
        let both = json!({ "monitoring": { "podMonitor": { "enabled": true }, "serviceMonitor": { "enabled": true } } });
        self.with(
            both.clone(),
            "monitoring.interval",
            json!("60s"),
            [
                Is(pods, "/spec/podMetricsEndpoints/0/interval".to_owned(), json!("60s")),
                Is(services, "/spec/endpoints/0/interval".to_owned(), json!("60s")),
            ],
        );
        self.add("monitoring.podMonitor.enabled", json!(true), [There(pods)]);
        self.add(
            "monitoring.serviceMonitor.enabled",
            json!(true),
            [There(services), There("Service/mesh-controller-metrics")],
        );
        let label = |object| Is(object, "/metadata/labels/release".to_owned(), json!("prom"));
        let release = || json!({ "release": "prom" });
        self.with(both.clone(), "monitoring.podMonitor.labels", release(), [label(pods)]);
        self.with(both, "monitoring.serviceMonitor.labels", release(), [label(services)]);
        let board = "ConfigMap/mesh-dashboard-sample-board";
        self.add("monitoring.dashboards.enabled", json!(false), [Gone(board)]);
        self.add("monitoring.dashboards.labels", release(), [label(board)]);
        let folder = Is(board, "/metadata/annotations/folder".to_owned(), json!("Mesh"));
        self.add("monitoring.dashboards.annotations", json!({ "folder": "Mesh" }), [folder]);
        let (rules, operator) = ("ConfigMap/mesh-rules", "PrometheusRule/mesh-sample");
        self.add("monitoring.rules.enabled", json!(false), [Gone(rules)]);
        self.add(
            "monitoring.rules.kind",
            json!("PrometheusRule"),
            [Gone(rules), Is(operator, "/spec/groups/0/name".to_owned(), json!("sample"))],
        );
        self.add("monitoring.rules.labels", release(), [label(rules)]);
    }

    /// A Service that may be reached from outside.
    fn service(&mut self, part: &str, object: &'static str, base: &Value) {
        let key = |name: &str| format!("{part}.service.{name}");
        let is = |pointer: &str, value| [Is(object, pointer.to_owned(), value)];
        self.with(base.clone(), &key("type"), json!("NodePort"), is("/spec/type", json!("NodePort")));
        let annotation = json!({ "a.example/b": "c" });
        self.with(
            base.clone(),
            &key("annotations"),
            annotation,
            is("/metadata/annotations/a.example~1b", json!("c")),
        );
        let balanced = merged(base, &nested(&key("type"), json!("LoadBalancer")));
        let ranges = json!(["192.0.2.0/24"]);
        self.with(
            balanced,
            &key("loadBalancerSourceRanges"),
            ranges.clone(),
            is("/spec/loadBalancerSourceRanges", ranges),
        );
    }

    fn budget(&mut self, part: &str, object: &'static str, base: &Value) {
        let key = |name: &str| format!("{part}.podDisruptionBudget.{name}");
        self.with(base.clone(), &key("enabled"), json!(false), [Gone(object)]);
        for n in [json!(0), json!("50%")] {
            self.with(
                base.clone(),
                &key("maxUnavailable"),
                n.clone(),
                [Is(object, "/spec/maxUnavailable".to_owned(), n)],
            );
        }
    }

    fn apart(&mut self, part: &str, object: &'static str, base: &Value) {
        let key = format!("{part}.antiAffinity");
        let at = "/affinity/podAntiAffinity";
        let strict = format!("{at}/requiredDuringSchedulingIgnoredDuringExecution/0/topologyKey");
        self.with(
            base.clone(),
            &key,
            json!("required"),
            [Is(object, pod(&strict), json!("kubernetes.io/hostname"))],
        );
        self.with(base.clone(), &key, json!("none"), [Lacks(object, pod(at))]);
    }

    fn scheduling(&mut self, part: &str, object: &'static str, base: &Value) {
        let mut add = |name: &str, value: Value, expect: Expect| {
            self.with(base.clone(), &format!("{part}.{name}"), value, [expect]);
        };
        let amount = json!({ "cpu": "3", "memory": "7Gi" });
        add(
            "resources.requests",
            amount.clone(),
            Is(object, container("/resources/requests"), amount.clone()),
        );
        add("resources.limits", amount.clone(), Is(object, container("/resources/limits"), amount));
        let disk = Is(object, pod("/nodeSelector/disk"), json!("ssd"));
        add("nodeSelector", json!({ "disk": "ssd" }), disk);
        let taint = json!([{ "key": "dedicated", "operator": "Exists" }]);
        add("tolerations", taint.clone(), Is(object, pod("/tolerations"), taint));
        // Those of the chart that say on which nodes a proxy runs stay.
        let wish = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] }
        ]}}});
        let expressions = pod(
            "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions",
        );
        let zone = json!({ "key": "zone", "operator": "In", "values": ["a"] });
        add("affinity", wish, Has(object, expressions, zone));
        add("priorityClassName", json!("vip"), Is(object, pod("/priorityClassName"), json!("vip")));
        let note = Is(object, "/spec/template/metadata/annotations/note".to_owned(), json!("x"));
        add("podAnnotations", json!({ "note": "x" }), note);
        let team = Is(object, "/spec/template/metadata/labels/team".to_owned(), json!("net"));
        add("podLabels", json!({ "team": "net" }), team);
    }
}
