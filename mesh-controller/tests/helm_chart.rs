//! charts/mesh by the real helm: it is well formed, every value has the effect that it should have, and a value that is
//! not known or cannot be meant is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "helm/cases.rs"]
mod cases;
#[path = "helm/chart.rs"]
mod chart;
#[path = "helm/expect.rs"]
mod expect;
#[path = "helm/reference.rs"]
mod reference;
#[path = "helm/values.rs"]
mod values;

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
};

use chart::{defaults, leaves, merged, name, nested, objects, run, schema, template};
use serde_json::{Value, json};

/// All that can be switched on.
fn everything() -> Value {
    json!({
        "relay": { "enabled": true, "addresses": ["/dns4/relay.example.com/tcp/15008"] },
        "gateway": { "enabled": true },
        "controller": { "externalAddresses": ["mesh.example.com:15012"], "service": { "type": "LoadBalancer" } },
        "monitoring": { "podMonitor": { "enabled": true }, "serviceMonitor": { "enabled": true } },
    })
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    let chart = chart::chart();
    for values in [json!({}), everything(), json!({ "proxy": { "enabled": false } })] {
        let args = ["lint", "--strict", chart.to_str().unwrap(), "--values", "-"];
        let out = run(&args, &values);
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && !text.contains("[WARNING]"), "{text}");
    }
}

#[test]
fn every_value_has_the_effect_that_is_meant() {
    values::check_all();
}

#[test]
fn what_is_not_known_or_cannot_be_meant_is_refused() {
    // A typo anywhere: in each map of the schema that is not free.
    let mut maps = BTreeSet::from([String::new()]);
    for (path, _) in leaves(&schema()) {
        let mut path = path.as_str();
        while let Some((map, _)) = path.rsplit_once('.') {
            maps.insert(map.to_owned());
            path = map;
        }
    }
    maps.remove("global");
    assert!(maps.len() > 25, "{maps:?}");
    // Helm names them all at once.
    let typo = |i: usize, map: &str| format!("{map}{}tpyo{i}x", if map.is_empty() { "" } else { "." });
    let all = maps.iter().enumerate().map(|(i, map)| nested(&typo(i, map), json!(1)));
    let all = all.reduce(|a, b| merged(&a, &b)).unwrap();
    let said = template(&all, &["--set", "crds.install=false"]).unwrap_err();
    let missing: Vec<usize> = (0..maps.len()).filter(|i| !said.contains(&format!("tpyo{i}x"))).collect();
    assert!(missing.is_empty(), "{missing:?} of {maps:?} are not named: {said}");
    for (path, wrong) in [
        ("controller.replicas", json!(-1)),
        ("controller.replicas", json!("2")),
        ("controller.antiAffinity", json!("sometimes")),
        ("controller.externalAddresses", json!(["no-port"])),
        ("controller.externalAddresses", json!("a:1")),
        ("controller.webhook.failurePolicy", json!("ignore")),
        ("controller.webhook.timeoutSeconds", json!(31)),
        ("controller.service.nodePort", json!(80)),
        ("controller.service.loadBalancerSourceRanges", json!(["10.0.0.1"])),
        ("controller.podDisruptionBudget.maxUnavailable", json!("many")),
        ("controller.resources.limits", json!({ "memory": "1 GB" })),
        ("proxy.stateDir", json!("relative/path")),
        ("proxy.dns.address", json!("169.254.96")),
        ("proxy.drainSeconds", json!(3601)),
        ("proxy.updateStrategy.type", json!("Recreate")),
        ("proxy.edge.nodeLabel", json!("a label")),
        ("proxy.tolerations", json!(["all"])),
        ("proxy.capture.podDns", json!("yes")),
        ("mesh.trustDomain", json!("Not_DNS")),
        ("mesh.outbound", json!("ALLOW_ANY")),
        ("mesh.certificates.caDays", json!(8)),
        ("mesh.certificates.nodeHours", json!(0)),
        ("image.pullPolicy", json!("always")),
        ("image.pullSecrets", json!([{ "name": "regcred" }])),
        ("preflight.ignore", json!(["kernal"])),
        ("gateway.ports", json!([{ "name": "http", "port": 80, "targetPort": 80 }])),
        ("gateway.ports", json!([])),
        ("relay.addresses", json!(["relay.example.com:15008"])),
        ("networkPolicy.apiServerCidrs", json!(["everywhere"])),
        ("monitoring.interval", json!("15")),
        ("monitoring.rules.kind", json!("Rule")),
    ] {
        refused(&nested(path, wrong), path.rsplit('.').next().unwrap());
    }
}

/// What `helm upgrade --reuse-values` makes of a release of an older chart: its values are all that there is.
#[test]
fn an_upgrade_works_with_the_values_of_an_older_chart() {
    let dir = tempfile::tempdir().unwrap();
    let archive = chart::root().join("mesh-controller/tests/chart/previous/mesh-0.1.0.tgz");
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(dir.path()));
    let (old, new) = (dir.path().join("mesh"), dir.path().join("new"));
    run(Command::new("cp").arg("-rL").arg(chart::chart()).arg(&new));
    std::fs::copy(old.join("values.yaml"), new.join("values.yaml")).unwrap();
    let render = |values: &Value| {
        let path = new.to_str().unwrap();
        let args =
            ["template", "mesh", path, "-n", chart::NAMESPACE, "--set", "crds.install=false", "-f", "-"];
        let out = chart::run(&args, values);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        chart::parse(std::str::from_utf8(&out.stdout).unwrap())
    };
    for values in [json!({}), everything()] {
        assert!(render(&values) == objects(&values).unwrap(), "a default is not what values.yaml says");
    }
    // And nothing that could be set is refused now.
    let schema = std::fs::read_to_string(old.join("values.schema.json")).unwrap();
    let before = leaves(&serde_json::from_str(&schema).unwrap());
    let count = before.len();
    let now: BTreeSet<String> = leaves(&chart::schema()).into_iter().map(|(path, _)| path).collect();
    let gone: Vec<String> = before.into_iter().map(|(path, _)| path).filter(|p| !now.contains(p)).collect();
    assert!(gone.is_empty(), "{gone:?}");
    println!("{} values, {} of them new", now.len(), now.len() - count);
}

/// Helm names the value in its refusal.
fn refused(values: &Value, named: &str) {
    match template(values, &["--set", "crds.install=false"]) {
        Ok(_) => panic!("accepted: {values}"),
        Err(said) => assert!(said.contains(named), "{named} is not named for {values}: {said}"),
    }
}

#[test]
fn the_schema_describes_every_value_and_nothing_else() {
    fn walk(path: &str, part: &Value) {
        assert!(part["description"].as_str().is_some_and(|d| d.len() > 4), "{path} is not described");
        let Some(properties) = part["properties"].as_object() else { return };
        assert_eq!(part["additionalProperties"], false, "{path} takes anything");
        properties.iter().for_each(|(key, part)| walk(&format!("{path}.{key}"), part));
    }
    let schema = schema();
    walk("values", &schema);
    let defaults = defaults();
    for (path, _) in leaves(&schema) {
        assert!(
            path == "global" || chart::at(&defaults, &path).is_some(),
            "{path} has no default in values.yaml"
        );
    }
}

#[test]
fn the_reference_of_values_is_current() {
    reference::check();
}

/// What the chart writes for the programs is what they take.
#[test]
fn the_programs_accept_their_configuration() {
    let proxy = mesh_testkit::bins::find("mesh-proxy").unwrap();
    let mut seen = BTreeSet::new();
    for values in [json!({}), everything()] {
        for object in objects(&values).unwrap() {
            let Some(text) = object.pointer("/data/config.yaml").and_then(Value::as_str) else { continue };
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let name = name(&object);
            let program = if name == "ConfigMap/mesh-controller" {
                env!("CARGO_BIN_EXE_mesh-controller").into()
            } else {
                proxy.clone()
            };
            let mut command = Command::new(program);
            command.arg("--config").arg(file.path()).arg("--print-config").env("MESH_PROXY_NODE", "a");
            let out = command.stdin(Stdio::null()).output().unwrap();
            assert!(out.status.success(), "{name}: {}\n{text}", String::from_utf8_lossy(&out.stderr));
            seen.insert(name);
        }
    }
    let all = ["controller", "gateway", "proxy", "proxy-edge", "relay"];
    assert_eq!(seen, all.map(|n| format!("ConfigMap/mesh-{n}")).into());
}

/// What holds for every pod of the chart, whatever the values.
#[test]
fn no_pod_has_more_power_than_it_needs() {
    let mut pods = 0;
    for object in objects(&everything()).unwrap() {
        let Some(pod) = object.pointer("/spec/template/spec") else { continue };
        let name = name(&object);
        pods += 1;
        assert_eq!(pod["enableServiceLinks"], false, "{name}");
        assert_eq!(
            pod.pointer("/securityContext/seccompProfile/type"),
            Some(&json!("RuntimeDefault")),
            "{name}"
        );
        let on_node = name.starts_with("DaemonSet/");
        assert_eq!(pod.get("hostNetwork").is_some(), on_node, "{name}");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
            assert_eq!(context.get("privileged"), None, "{name}");
            let added = json!(["NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE"]);
            assert_eq!(context["capabilities"].get("add"), on_node.then_some(&added), "{name}");
            assert_eq!(context["runAsNonRoot"] == true, !on_node, "{name}");
            // Two pods of a DaemonSet share a node while it is upgraded: not with a declared port.
            assert!(!on_node || container.get("ports").is_none(), "{name}");
        }
        // Only what talks to the API server has its token.
        let talks = ["Deployment/mesh-controller", "Job/mesh-preflight"].contains(&name.as_str());
        assert_eq!(pod.get("automountServiceAccountToken") == Some(&json!(false)), !talks, "{name}");
    }
    assert_eq!(pods, 6);
}

/// Rules of (Cluster)Roles, one by one: scope, group, resource, name, verb.
fn rights<'a>(objects: impl Iterator<Item = &'a Value>) -> BTreeSet<String> {
    let list = |rule: &Value, key: &str| -> Vec<String> {
        let all = rule[key].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let mut out = BTreeSet::new();
    for object in objects.filter(|o| o["kind"].as_str().is_some_and(|k| k.ends_with("Role"))) {
        for rule in object["rules"].as_array().unwrap() {
            let names = match list(rule, "resourceNames") {
                none if none.is_empty() => vec!["any".to_owned()],
                some => some,
            };
            for group in list(rule, "apiGroups") {
                for (resource, name) in
                    list(rule, "resources").iter().flat_map(|r| names.iter().map(move |n| (r.clone(), n)))
                {
                    let verbs = list(rule, "verbs");
                    let kind = object["kind"].as_str().unwrap();
                    out.extend(verbs.iter().map(|v| format!("{kind} {group}/{resource} {name} {v}")));
                }
            }
        }
    }
    out
}

/// What the chart grants the controller is what the tests on a real API server show to be enough, and no more.
#[test]
fn the_controllers_rights_are_those_that_the_tests_run_with() {
    let all = objects(&json!({})).unwrap();
    let of_controller =
        |o: &&Value| o.pointer("/metadata/name").unwrap().as_str().unwrap().contains("mesh-controller");
    let chart = rights(all.iter().filter(of_controller));
    let folder = chart::root().join("mesh-controller/tests/kube");
    let tested: Vec<Value> = ["rbac.yaml", "gateway-api-rbac.yaml"]
        .iter()
        .flat_map(|f| chart::parse(&std::fs::read_to_string(folder.join(f)).unwrap()))
        .collect();
    let tested = rights(tested.iter());
    let more: Vec<&String> = chart.difference(&tested).collect();
    assert_eq!(
        more,
        ["Role /configmaps mesh-state get"],
        "only the owner of the state, which the tests do without"
    );
    let less: Vec<&String> = tested.difference(&chart).collect();
    // Leases are granted in the namespace; Gateway API's groups are spelled out.
    let missing = |r: &&String| r.contains("leases") || r.contains("gateway.networking.k8s.io/*");
    assert!(less.iter().all(missing), "{less:?}");
}

/// A change of configuration rolls the pods that read it, and no others.
#[test]
fn pods_roll_when_their_configuration_changes() {
    let sums = |values: &Value| -> Vec<(String, String)> {
        let all = objects(values).unwrap();
        let sum =
            |o: &Value| Some(o.pointer("/spec/template/metadata/annotations/checksum~1config")?.to_string());
        all.iter().filter_map(|o| Some((name(o), sum(o)?))).collect()
    };
    let before = sums(&everything());
    let changed = |value: Value| -> Vec<String> {
        let after = sums(&merged(&everything(), &value));
        before.iter().zip(&after).filter(|(b, a)| b != a).map(|(b, _)| b.0.clone()).collect()
    };
    assert_eq!(changed(nested("proxy.edge.config.workers", json!(1))), ["DaemonSet/mesh-proxy-edge"]);
    assert_eq!(changed(nested("controller.logLevel", json!("debug"))), ["Deployment/mesh-controller"]);
    assert_eq!(changed(nested("controller.replicas", json!(3))), [""; 0]);
}

/// Definitions are upgraded with the chart, and stay when it goes.
#[test]
fn definitions_are_templates_that_are_kept() {
    let files = std::fs::read_dir(chart::root().join("charts/crds")).unwrap().count();
    let crds = |values: &Value| -> Vec<Value> {
        let all = chart::parse(&template(values, &[]).unwrap());
        all.into_iter().filter(|o| o["kind"] == "CustomResourceDefinition").collect()
    };
    let kept =
        |c: &Value| c.pointer("/metadata/annotations/helm.sh~1resource-policy") == Some(&json!("keep"));
    let all = crds(&json!({}));
    assert_eq!((all.len(), all.iter().all(kept)), (files, true));
    let loose = crds(&json!({ "crds": { "keep": false } }));
    assert_eq!((loose.len(), loose.iter().any(kept)), (files, false));
    assert!(crds(&json!({ "crds": { "install": false } })).is_empty());
}

/// The settings of an EdgeMesh become values that the chart takes, and nothing of them is passed over in silence.
#[test]
fn settings_of_edgemesh_become_values() {
    let settings = include_str!("helm/edgemesh.yaml");
    let program = mesh_testkit::bins::find("meshctl").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), settings).unwrap();
    let migrate = |format: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["migrate", "edgemesh-values", "-f"]).arg(file.path()).args(format);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        out
    };
    // What a user does: the values of one command are the file of the next.
    let out = migrate(&[]);
    let values = chart::parse(std::str::from_utf8(&out.stdout).unwrap()).remove(0);
    let all = objects(&values).unwrap_or_else(|e| panic!("{e}: {values}"));
    let find = |wanted: &str| all.iter().find(|o| name(o) == wanted).unwrap();
    let config = |name: &str| find(name).pointer("/data/config.yaml").unwrap().as_str().unwrap().to_owned();
    assert!(config("ConfigMap/mesh-proxy-edge").contains("controller: 203.0.113.7:31512,mesh-controller."));
    assert!(config("ConfigMap/mesh-proxy").contains("192.0.2.53:53"));
    let limits = find("DaemonSet/mesh-proxy").pointer("/spec/template/spec/containers/0/resources/limits");
    assert_eq!(limits, Some(&json!({ "cpu": 1, "memory": "256Mi" })));
    assert_eq!(find("Service/mesh-controller").pointer("/spec/ports/0/nodePort"), Some(&json!(31512)));

    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    for part in [
        "kubectl label node k8s-master selvage.io/relay=true",
        "kubectl annotate node k8s-master selvage.io/addresses=203.0.113.7",
        "agent.psk: every node has a random key",
        "agent.modules.edgeCNI.enable: no pod network is made",
        "agent.modules.edgeProxy.serviceFilterMode: the label service.edgemesh",
        "agent.favouriteColour: not in the values",
    ] {
        assert!(said.contains(part), "{part:?} is not said: {said}");
    }
    // Each leaf of the file has its answer.
    let document: Value = serde_json::from_slice(&migrate(&["-o", "json"]).stdout).unwrap();
    let answered: BTreeSet<&str> =
        document["settings"].as_array().unwrap().iter().map(|l| l["setting"].as_str().unwrap()).collect();
    let given = chart::parse(settings).remove(0);
    let agent = given["agent"].as_object().unwrap();
    for key in agent.keys() {
        let path = format!("agent.{key}");
        let below = format!("{path}.");
        assert!(answered.iter().any(|a| *a == path || a.starts_with(&below)), "{path} has no answer");
    }
}
