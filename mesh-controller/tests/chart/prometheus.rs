//! A real Prometheus in the cluster: it finds controllers and proxies by what the chart writes on their pods, and evaluates
//! the rules that the chart brings.

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

use mesh_testkit::{kube::eventually, lab::Proc};
use serde_json::Value;

use crate::shop::{NAMESPACE, NODES, Shop, root};

/// How Prometheus' own documentation finds pods by annotation. Debian's build has no discovery by the API server; a file with
/// the same labels takes its place.
const CONFIG: &str = r"
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: ['RULES/*.yaml']
scrape_configs:
  - job_name: kubernetes-pods
    file_sd_configs: [{files: ['TARGETS'], refresh_interval: 1s}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape], action: keep, regex: 'true'}
      - {source_labels: [__meta_kubernetes_pod_phase], action: drop, regex: Pending|Succeeded|Failed|Completed}
      - {source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_path], action: replace, target_label: __metrics_path__, regex: (.+)}
      - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_port, __meta_kubernetes_pod_ip]
        action: replace
        regex: '(\d+);((([0-9]+?)(\.|$)){4})'
        replacement: $2:$1
        target_label: __address__
      - {source_labels: [__meta_kubernetes_namespace], action: replace, target_label: namespace}
      - {source_labels: [__meta_kubernetes_pod_name], action: replace, target_label: pod}
      - {source_labels: [__meta_kubernetes_pod_node_name], action: replace, target_label: node}
";
const ADDRESS: &str = "127.0.0.1:9090";

/// A Prometheus on the node `cloud`, which stops when it is dropped.
pub(crate) struct Prometheus<'a> {
    shop: &'a Shop,
    _process: Proc,
}

impl<'a> Prometheus<'a> {
    /// Starts it with the rules of the release; none where the program is not installed.
    pub(crate) fn start(shop: &'a Shop) -> Option<Self> {
        if Command::new("prometheus").arg("--version").output().is_err() {
            println!("skipped: prometheus is not installed (package prometheus)");
            return None;
        }
        let folder = shop.cluster.world().folder("prometheus").unwrap();
        let rules = folder.join("rules");
        std::fs::create_dir_all(&rules).unwrap();
        let shipped =
            shop.cluster.kubectl(&["get", "configmap", "mesh-rules", "-n", NAMESPACE, "-o", "json"]);
        let shipped: Value = serde_json::from_str(&shipped.unwrap()).unwrap();
        let shipped = shipped["data"].as_object().unwrap();
        assert!(shipped.len() >= 2, "rules: {:?}", shipped.keys());
        for (name, text) in shipped {
            std::fs::write(rules.join(name), text.as_str().unwrap()).unwrap();
        }
        let targets = folder.join("targets.json");
        std::fs::write(&targets, discovered(shop).to_string()).unwrap();
        let config = CONFIG
            .replace("RULES", &rules.display().to_string())
            .replace("TARGETS", &targets.display().to_string());
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"));
        let process = shop.cluster.place("cloud").unwrap().spawn("prometheus", &command).unwrap();
        Some(Self { shop, _process: process })
    }

    fn ask(&self, path: &str, query: Option<&str>) -> Result<Value, String> {
        let url = format!("http://{ADDRESS}/api/v1/{path}");
        let mut args = vec!["curl".to_owned(), "-sS".into(), "-m".into(), "10".into(), "-G".into(), url];
        if let Some(query) = query {
            args.extend(["--data-urlencode".to_owned(), format!("query={query}")]);
        }
        let output = self.shop.cluster.place("cloud").unwrap().exec(&args).map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_str(&output.stdout)
            .map_err(|e| format!("{e}: {}{}", output.stdout, output.stderr))?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer.to_string()) }
    }

    /// The result of a query; empty is an error.
    fn data(&self, query: &str) -> Result<Vec<Value>, String> {
        let data = self.ask("query", Some(query))?;
        let result = data["result"].as_array().cloned().unwrap_or_default();
        if result.is_empty() { Err(format!("no data: {query}")) } else { Ok(result) }
    }

    fn targets(&self) -> Result<BTreeMap<String, (String, String)>, String> {
        let data = self.ask("targets?state=active", None)?;
        let targets = data["activeTargets"].as_array().cloned().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        Ok(targets
            .iter()
            .map(|t| (text(&t["labels"]["pod"]), (text(&t["health"]), text(&t["lastError"]))))
            .collect())
    }

    /// All pods of the mesh are found and answer; what the dashboards and rules ask for is there.
    pub(crate) fn sees_the_mesh(&self) {
        let start = Instant::now();
        let mut found = BTreeMap::new();
        eventually(Duration::from_secs(60), Duration::from_millis(500), || {
            let targets = self.targets()?;
            let up = |prefix: &str| {
                targets.iter().filter(|(pod, (health, _))| pod.starts_with(prefix) && health == "up").count()
            };
            let all_up = targets.values().all(|(health, _)| health == "up");
            let entrances = up("mesh-relay") == 1 && up("mesh-gateway") == 2;
            if all_up && up("mesh-proxy") >= NODES.len() && up("mesh-controller") >= 1 && entrances {
                found = targets;
                Ok(())
            } else {
                Err(format!("{targets:#?}"))
            }
        })
        .unwrap();
        println!("prometheus: {} targets up after {:.1} s", found.len(), start.elapsed().as_secs_f64());
        // Rates need some time with calls in it.
        for _ in 0..4 {
            for service in ["reviews", "productpage"] {
                assert_eq!(self.shop.call(service, 10).failed, 0);
            }
        }
        let queries =
            std::fs::read_to_string(root().join("mesh-controller/tests/prometheus/istio-queries.txt"))
                .unwrap();
        let queries: Vec<&str> = queries.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
        assert!(queries.len() > 20, "{queries:?}");
        let missing = || -> Vec<String> { queries.iter().filter_map(|q| self.data(q).err()).collect() };
        eventually(Duration::from_secs(30), Duration::from_secs(1), || {
            assert_eq!(self.shop.call("reviews", 10).failed, 0);
            let missing = missing();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:#?}")) }
        })
        .unwrap();
        println!("prometheus: {} queries of Istio's dashboards return data", queries.len());
        self.rules_work();
        let cost = self.data("max(scrape_duration_seconds) or vector(0)").unwrap();
        println!("prometheus: longest of the last scrapes {} s", cost[0]["value"][1]);
    }

    /// Rules are evaluated without an error, recordings have values, and no alert of weight fires on a mesh that works.
    fn rules_work(&self) {
        let data = self.ask("rules", None).unwrap();
        let groups = data["groups"].as_array().unwrap();
        let rules: Vec<&Value> = groups.iter().flat_map(|g| g["rules"].as_array().unwrap()).collect();
        assert!(rules.len() > 20, "{}", rules.len());
        let bad: Vec<&&Value> = rules.iter().filter(|r| r["health"] == "err").collect();
        assert!(bad.is_empty(), "{bad:#?}");
        let firing: Vec<&&Value> = rules
            .iter()
            .filter(|r| r["state"] == "firing" && r["labels"]["severity"] == "critical")
            .collect();
        assert!(firing.is_empty(), "{firing:#?}");
        eventually(Duration::from_secs(60), Duration::from_secs(1), || {
            self.shop.call("reviews", 5);
            self.data("destination_service:istio_requests:rate1m{reporter=\"source\"}").map(|_| ())
        })
        .unwrap();
        println!("prometheus: {} rules evaluated", rules.len());
    }
}

/// What Prometheus' discovery makes of the cluster's pods.
fn discovered(shop: &Shop) -> Value {
    let pods = shop.cluster.kubectl(&["get", "pods", "-A", "-o", "json"]).unwrap();
    let pods: Value = serde_json::from_str(&pods).unwrap();
    let groups = pods["items"].as_array().unwrap().iter().map(|pod| {
        let address = pod["status"]["podIP"].as_str().unwrap_or_default();
        let mut labels = serde_json::Map::new();
        let mut set = |name: &str, value: &Value| {
            labels.insert(format!("__meta_kubernetes_{name}"), value.as_str().unwrap_or_default().into());
        };
        set("namespace", &pod["metadata"]["namespace"]);
        set("pod_name", &pod["metadata"]["name"]);
        set("pod_node_name", &pod["spec"]["nodeName"]);
        set("pod_phase", &pod["status"]["phase"]);
        set("pod_ip", &pod["status"]["podIP"]);
        for (name, value) in pod["metadata"]["annotations"].as_object().into_iter().flatten() {
            let name: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            set(&format!("pod_annotation_{name}"), value);
        }
        serde_json::json!({ "targets": [address], "labels": labels })
    });
    groups.collect()
}
