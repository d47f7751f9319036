use super::*;

fn object(kind: &'static str, name: &str, labels: &[(&str, &str)]) -> Object {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Object { kind, namespace: "other".to_owned(), name: name.to_owned(), labels, ..Object::default() }
}

fn node(name: &str, kernel: &str) -> NodeFacts {
    NodeFacts {
        name: name.to_owned(),
        os: "linux".to_owned(),
        kernel: kernel.to_owned(),
        ..NodeFacts::default()
    }
}

fn said(facts: &Facts, check: &str) -> (Level, String) {
    let all = all(facts, &[]);
    let verdict = all.into_iter().find(|v| v.check == check).unwrap();
    (verdict.level, verdict.text)
}

fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn facts() -> Facts {
    Facts::new("selvage-system", "mesh")
}

#[test]
fn an_empty_cluster_is_fine() {
    let mut facts = facts();
    facts.nodes.push(node("a", "6.1.0-13-amd64"));
    assert!(all(&facts, &[]).iter().all(|v| v.level == Level::Ok), "{:?}", all(&facts, &[]));
}

#[test]
fn another_release_is_named_and_the_own_one_is_not_another() {
    let mut facts = facts();
    let mut set = object("DaemonSet", "mesh-proxy", &[("app.kubernetes.io/part-of", "selvage")]);
    set.annotations.insert("meta.helm.sh/release-name".to_owned(), "mesh".to_owned());
    set.annotations.insert("meta.helm.sh/release-namespace".to_owned(), "selvage-system".to_owned());
    facts.workloads.push(set.clone());
    assert_eq!(said(&facts, "second-release").0, Level::Ok);
    set.annotations.insert("meta.helm.sh/release-name".to_owned(), "first".to_owned());
    facts.workloads.push(set);
    let (level, text) = said(&facts, "second-release");
    assert!(level == Level::Refuse && text.contains("\"first\""), "{text}");
    // One that was not installed by Helm.
    facts.workloads = vec![object(
        "Deployment",
        "mesh-controller",
        &[("app.kubernetes.io/part-of", "selvage"), ("app.kubernetes.io/instance", "mesh")],
    )];
    assert_eq!(said(&facts, "second-release").0, Level::Refuse, "another namespace");
}

#[test]
fn other_meshes_are_refused_with_a_reason() {
    let mut facts = facts();
    facts.workloads.push(object("DaemonSet", "agent", &[("kubeedge", "edgemesh-agent")]));
    assert!(said(&facts, "edgemesh").1.contains("docs/migration.md"));
    facts.workloads.push(object("DaemonSet", "ztunnel", &[]));
    assert_eq!(said(&facts, "istio-ambient").0, Level::Refuse);
    facts.webhooks.push(object("MutatingWebhookConfiguration", "istio-sidecar-injector", &[]));
    facts.namespaces.push(object("Namespace", "shop", &[]));
    assert_eq!(said(&facts, "istio-sidecar").0, Level::Warn);
    facts.namespaces.push(object("Namespace", "bank", &[("istio-injection", "enabled")]));
    let (level, text) = said(&facts, "istio-sidecar");
    assert!(level == Level::Refuse && text.contains("bank") && !text.contains("shop"), "{text}");
    // What is ignored is still said.
    let ignored = all(&facts, &["istio-sidecar".to_owned()]);
    let verdict = ignored.iter().find(|v| v.check == "istio-sidecar").unwrap();
    assert!(verdict.level == Level::Warn && verdict.text.starts_with("(ignored)"));
}

#[test]
fn cilium_is_in_the_way_only_where_it_translates_in_pods() {
    let mut facts = facts();
    let mut with = |pairs: &[(&str, &str)]| {
        facts.settings.insert(CILIUM, settings(pairs));
        said(&facts, "cilium").0
    };
    assert_eq!(with(&[("kube-proxy-replacement", "false")]), Level::Ok);
    assert_eq!(with(&[("kube-proxy-replacement", "true")]), Level::Refuse);
    let hosts_only = [("kube-proxy-replacement", "true"), ("bpf-lb-sock-hostns-only", "true")];
    assert_eq!(with(&hosts_only), Level::Ok);
    assert_eq!(with(&[("bpf-lb-sock", "true")]), Level::Refuse);
}

#[test]
fn a_dns_cache_of_the_node_is_told_whom_to_ask() {
    for (name, labels) in [("nodelocaldns", &[][..]), ("cache", &[("k8s-app", "node-local-dns")][..])] {
        let mut facts = facts();
        facts.workloads.push(object("DaemonSet", name, labels));
        let (level, text) = said(&facts, "nodelocaldns");
        assert!(level == Level::Warn && text.contains("forward . 169.254.96.16"), "{text}");
        facts.settings.insert(
            NODE_LOCAL_DNS,
            settings(&[("Corefile", "cluster.local:53 {\n forward . 10.96.0.10\n}")]),
        );
        assert_eq!(said(&facts, "nodelocaldns").0, Level::Warn);
        facts.settings.insert(
            NODE_LOCAL_DNS,
            settings(&[("Corefile", "cluster.local:53 {\n forward . 169.254.96.16\n}")]),
        );
        assert_eq!(said(&facts, "nodelocaldns").0, Level::Ok);
    }
}

#[test]
fn what_is_left_of_an_edgemesh_is_named_and_refuses_nothing() {
    let mut facts = facts();
    facts.settings.insert(EDGEMESH, Settings::new());
    let (level, text) = said(&facts, "edgemesh");
    assert!(level == Level::Warn && text.contains("kubeedge/edgemesh-agent-cfg"), "{text}");
    facts.workloads.push(object("Deployment", "edgemesh-gateway", &[]));
    assert!(said(&facts, "edgemesh").1.contains("Deployment other/edgemesh-gateway"));
    facts.workloads.push(object("DaemonSet", "edgemesh-agent", &[]));
    assert_eq!(said(&facts, "edgemesh").0, Level::Refuse);
}

#[test]
fn nodes_of_kubeedge_need_their_label_and_a_way_to_the_controller() {
    let mut facts = facts();
    let of_edge = |name: &str, edge| NodeFacts {
        kubelet: "v1.30.7-kubeedge-v1.20.0".to_owned(),
        edge,
        ..node(name, "6.1")
    };
    facts.nodes = vec![node("cloud", "6.1"), of_edge("a", true), of_edge("b", false)];
    facts.controller_addresses = Some(0);
    let (level, text) = said(&facts, "kubeedge");
    assert!(level == Level::Warn && text.contains("(b)"), "{text}");
    facts.nodes.pop();
    let (level, text) = said(&facts, "kubeedge");
    assert!(
        level == Level::Warn && text.contains("controller.externalAddresses") && text.contains("(a)"),
        "{text}"
    );
    for known in [Some(1), None] {
        facts.controller_addresses = known;
        assert_eq!(said(&facts, "kubeedge").0, Level::Ok);
    }
    // Edge nodes of others have what a cluster's nodes have.
    facts.nodes = vec![NodeFacts { edge: true, ..node("k3s", "6.1") }];
    facts.controller_addresses = Some(0);
    assert_eq!(said(&facts, "kubeedge").0, Level::Ok);
}

#[test]
fn one_old_node_is_a_warning_and_only_old_nodes_are_a_refusal() {
    let mut facts = facts();
    facts.nodes = vec![node("new", "5.15.0"), node("old", "3.10.0-1160.el7")];
    let (level, text) = said(&facts, "kernel");
    assert!(level == Level::Warn && text.contains("old") && !text.contains("new"), "{text}");
    facts.nodes.remove(0);
    assert_eq!(said(&facts, "kernel").0, Level::Refuse);
    facts.nodes = vec![node("rhel", "4.18.0-553.el8")];
    assert_eq!(said(&facts, "kernel").0, Level::Warn);
    let windows = NodeFacts { os: "windows".to_owned(), ..node("w", "10.0.17763") };
    facts.nodes = vec![windows, node("a", "6.8")];
    assert_eq!(said(&facts, "kernel").0, Level::Ok);
    facts.nodes = (0..9).map(|i| node(&format!("n{i}"), "3.0")).collect();
    assert!(said(&facts, "kernel").1.contains("and 4 more nodes"));
}

#[test]
fn what_could_not_be_seen_and_what_would_not_be_admitted_is_said() {
    let mut facts = facts();
    facts.unseen.push("get configmap a/b".to_owned());
    let (level, text) = said(&facts, "rights");
    assert!(level == Level::Warn && text.contains("a/b"), "an older chart with newer images: {text}");
    facts.forbidden.push("list nodes".to_owned());
    assert!(said(&facts, "rights").1.contains("list nodes"));
    let mut own = object("Namespace", "selvage-system", &[]);
    own.labels.insert("pod-security.kubernetes.io/enforce".to_owned(), "restricted".to_owned());
    facts.namespaces.push(own);
    let (level, text) = said(&facts, "pod-security");
    assert!(level == Level::Refuse && text.contains("enforce=privileged"), "{text}");
}
