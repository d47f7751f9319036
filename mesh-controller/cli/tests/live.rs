//! The commands that look at a running mesh, against a real controller and a real proxy on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

#[path = "live/world.rs"]
mod world;

use std::{collections::BTreeMap, io::Read, time::Duration};

use serde_json::{Value, json};
use world::{World, backend, json_of, meshctl, stderr, stdout, until};

const REVIEWS: &str = "reviews.shop.svc.cluster.local";

#[test]
fn a_running_mesh_is_shown() {
    let mut world = World::start(backend());
    what_controllers_say(&world);
    what_proxies_say(&world);
    what_is_in_force(&world);
    what_goes_on(&world);
    levels_change_while_it_runs(&world);
    a_report_has_no_secret(&world);
    world.kill_controller();
    without_a_controller(&world);
}

fn what_controllers_say(world: &World) {
    let mut found = Value::Null;
    until("edge-a is synced", || {
        let output = meshctl(&["status", "--admin", &world.controller, "-o", "json"]);
        found = json_of(&output);
        found["proxies"][0]["sync"] == "synced" && output.status.code() == Some(0)
    });
    let (controller, proxy) = (&found["controllers"][0], &found["proxies"][0]);
    assert_eq!((&controller["state"], &controller["proxies"]), (&json!("ready"), &json!(1)), "{found:#}");
    assert_eq!((&proxy["node"], &proxy["origin"]), (&json!("edge-a"), &json!("join-token")), "{found:#}");
    assert_eq!(proxy["generation"], controller["generation"], "{found:#}");
    assert!(proxy["lag_ms"].is_u64() && proxy["version"].as_str().unwrap().contains("0.1"), "{found:#}");
    let text = stdout(&meshctl(&["status", "--admin", &world.controller]));
    assert!(text.contains("1 synced") && text.contains("join-token"), "{text}");
    let nobody = meshctl(&["status", "edge-z", "--admin", &world.controller]);
    assert!(nobody.status.code() == Some(2) && stderr(&nobody).contains("edge-z"), "{}", stderr(&nobody));
    // A change comes, and is counted.
    let before = proxy["generation"].as_u64().unwrap();
    let file = world.dir.path().join("source/more.yaml");
    let service = "{apiVersion: v1, kind: Service, metadata: {name: new, namespace: shop}, spec: {clusterIP: 10.96.0.12, ports: [{port: 80}]}}";
    std::fs::write(file, service).unwrap();
    until("the change is taken", || {
        let found = json_of(&meshctl(&["status", "--admin", &world.controller, "-o", "json"]));
        found["proxies"][0]["generation"].as_u64() > Some(before) && found["proxies"][0]["sync"] == "synced"
    });
}

fn what_proxies_say(world: &World) {
    let output = meshctl(&["proxies", "--admin", &world.proxy, "-o", "json"]);
    let row = json_of(&output)[0].clone();
    assert_eq!(output.status.code(), Some(0), "{row:#}");
    assert_eq!(
        (&row["node"], &row["ready"], &row["connected"]),
        (&json!("edge-a"), &json!(true), &json!(true))
    );
    assert!(
        row["certificate_left"].as_i64().unwrap() > 3600 && row["services"].as_u64().unwrap() >= 3,
        "{row:#}"
    );
    let text = stdout(&meshctl(&["proxies", "--admin", &world.proxy]));
    assert!(text.starts_with("NODE") && text.contains("connected"), "{text}");
    // The page of a controller is no proxy's, and the other way round.
    let wrong = meshctl(&["services", "--admin", &world.controller]);
    assert!(wrong.status.code() == Some(2) && stderr(&wrong).contains("15000"), "{}", stderr(&wrong));
    let wrong = meshctl(&["status", "--admin", &world.proxy]);
    assert!(wrong.status.code() == Some(2) && stderr(&wrong).contains("15016"), "{}", stderr(&wrong));
    let nobody = meshctl(&["proxies", "--admin", "http://127.0.0.1:1"]);
    assert!(
        nobody.status.code() == Some(2) && stderr(&nobody).contains("127.0.0.1:1"),
        "{}",
        stderr(&nobody)
    );
    let malformed = meshctl(&["proxies", "--admin", "127.0.0.1:15000"]);
    assert!(stderr(&malformed).contains("http://HOST:PORT"), "{}", stderr(&malformed));
}

fn what_is_in_force(world: &World) {
    let ask = |command: &str, more: &[&str]| {
        let mut args = vec![command, "--admin", &world.proxy, "-o", "json"];
        args.extend(more);
        let output = meshctl(&args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        json_of(&output)
    };
    let services = ask("services", &["--service", "reviews"]);
    assert_eq!(services.as_array().unwrap().len(), 1, "{services:#}");
    assert_eq!((&services[0]["host"], &services[0]["ready"]), (&json!(REVIEWS), &json!(1)), "{services:#}");
    assert_eq!((&services[0]["ports"][0], &services[0]["subsets"][0]), (&json!("9080/http"), &json!("v1")));
    assert_eq!(ask("services", &["--host", "reviews"]).as_array().unwrap().len(), 2);
    assert_eq!(ask("services", &["--host", "reviews", "--port", "9080"]).as_array().unwrap().len(), 1);

    let routes = ask("routes", &["--service", "reviews.shop"]);
    let of = |i: usize, key: &str| routes[i][key].clone();
    assert_eq!(
        (of(0, "order"), of(0, "rule"), of(0, "name")),
        (json!(1), json!("http[0]"), json!("testers")),
        "{routes:#}"
    );
    assert_eq!((of(0, "timeout_ms"), of(0, "retries")), (json!(1500), json!(3)), "{routes:#}");
    let condition = of(0, "match")[0].as_str().unwrap().to_owned();
    assert!(
        condition.contains("path with prefix \"/api\"")
            && condition.contains("header end-user exactly \"jason\""),
        "{condition}"
    );
    assert_eq!((of(1, "order"), of(1, "match")), (json!(2), json!([])), "{routes:#}");
    assert!(of(1, "action").as_str().unwrap().contains("subset v1"), "{routes:#}");

    let gateway = ask("routes", &["--host", "shop.example.com"]);
    assert!(gateway[0]["host"].as_str().unwrap().ends_with("at gateway shop/edge"), "{gateway:#}");
    assert_eq!(gateway[0]["match"][0], "path with prefix \"/shop\"", "{gateway:#}");

    let endpoints = ask("endpoints", &["--service", "reviews", "--port", "9080"]);
    let in_subset: Vec<&Value> =
        endpoints.as_array().unwrap().iter().filter(|e| e["subset"] == "v1").collect();
    assert_eq!(in_subset.len(), 1, "{endpoints:#}");
    let e = in_subset[0];
    assert_eq!(
        (&e["health"], &e["path"], &e["node"]),
        (&json!("ready"), &json!("local"), &json!("edge-a")),
        "{e:#}"
    );
    assert_eq!(
        (&e["locality"], &e["policy"], &e["pod"]),
        (&json!("north/zone-1"), &json!("shop/reviews"), &json!("reviews-1"))
    );
    // Nobody listens there: after a call that failed, it is left alone for a time.
    let health = || ask("endpoints", &["--host", "dead.example.com"])[0]["health"].clone();
    assert_eq!(health(), "ready");
    assert_eq!(world.call("http://dead.example.com/"), 503);
    assert_eq!(health(), "unwell");
    let yaml =
        stdout(&meshctl(&["endpoints", "--admin", &world.proxy, "--service", "reviews", "-o", "yaml"]));
    assert!(yaml.contains("locality: north/zone-1"), "{yaml}");
    let text = stdout(&meshctl(&["routes", "--admin", &world.proxy, "--service", "reviews"]));
    assert!(text.starts_with("HOST") && text.contains("everything") && text.contains("1.5s"), "{text}");
    let nothing = meshctl(&["routes", "--admin", &world.proxy, "--host", "nobody.example.com"]);
    assert!(
        nothing.status.code() == Some(0) && stderr(&nothing).contains("nothing fits"),
        "{}",
        stderr(&nothing)
    );
}

fn what_goes_on(world: &World) {
    let url = |path: &str| format!("http://{REVIEWS}:9080{path}");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (by_proxy, by_service) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(world.call(&url("/ok")), 200);
                assert_eq!(world.call(&url("/fails")), 503);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let top = |more: &[&str]| {
            let mut args = vec!["top", "--admin", &world.proxy, "--interval", "1500ms", "-o", "json"];
            args.extend(more);
            json_of(&meshctl(&args))
        };
        let both = (top(&[]), top(&["--by", "service"]));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        both
    });
    let row = &by_proxy[0];
    assert!(row["requests_per_s"].as_f64().unwrap() > 1.0, "{row:#}");
    // Half of the calls fail; the edges of the time are somewhere.
    let errors = row["errors"].as_f64().unwrap();
    assert!(errors > 0.2 && errors < 0.8, "{row:#}");
    assert!(row["p50_ms"].as_f64().unwrap() <= row["p99_ms"].as_f64().unwrap(), "{row:#}");
    assert!(row["rss_bytes"].as_f64().unwrap() > 1e6 && row["cpu_cores"].as_f64().unwrap() > 0.0, "{row:#}");
    let service = by_service.as_array().unwrap().iter().find(|r| r["name"] == "reviews.shop");
    assert!(service.unwrap()["requests_per_s"].as_f64().unwrap() > 1.0, "{by_service:#}");
}

fn levels_change_while_it_runs(world: &World) {
    let level = |more: &[&str]| {
        let mut args = vec!["proxy", "log-level"];
        args.extend(more);
        args.extend(["--admin", &world.proxy, "-o", "json"]);
        let output = meshctl(&args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        json_of(&output)["levels"].clone()
    };
    let before = level(&[]);
    assert_eq!(level(&["debug", "--target", "mesh_proxy::dns"])["mesh_proxy::dns"], "debug");
    assert_eq!(level(&["trace", "--for", "1h"])["default"], "trace");
    let log = || std::fs::read_to_string(world.dir.path().join("proxy.log")).unwrap();
    until("more is written", || log().contains("TRACE") || log().contains("DEBUG"));
    assert_eq!(level(&["--reset"]), before);
    let wrong = meshctl(&["proxy", "log-level", "loud", "--admin", &world.proxy]);
    assert!(wrong.status.code() == Some(2) && stderr(&wrong).contains("loud"), "{}", stderr(&wrong));
    assert_eq!(level(&[]), before, "a level that is none changes nothing");
}

fn unpack(file: &std::path::Path) -> BTreeMap<String, String> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap()));
    let mut all = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut text) = (entry.path().unwrap().display().to_string(), String::new());
        entry.read_to_string(&mut text).unwrap();
        all.insert(path, text);
    }
    all
}

fn a_report_has_no_secret(world: &World) {
    let file = world.dir.path().join("report.tar.gz");
    let path = file.display().to_string();
    let both = format!("{},{}", world.proxy, world.controller);
    let output = meshctl(&["bug-report", "--admin", &both, "--file", &path, "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let all = unpack(&file);
    assert_eq!(json_of(&output)["files"].as_u64().unwrap(), all.len() as u64);
    let everything = format!("{all:?}");
    for part in [
        "config_dump.json",
        "state.json",
        "stats-prometheus.txt",
        "versions.json",
        "MANIFEST.txt",
        REVIEWS,
        "end-user",
    ] {
        assert!(everything.contains(part), "{part} in {:?}", all.keys());
    }
    // What the proxy joined with, and any key.
    assert!(!everything.contains("selvage1."), "a join token");
    assert!(!everything.contains("PRIVATE KEY"), "a key");
    // A place that cannot be written to is said before anything is asked.
    let nowhere = meshctl(&["bug-report", "--admin", &world.proxy, "--file", "/nowhere/report.tar.gz"]);
    assert!(
        nowhere.status.code() == Some(2) && stderr(&nowhere).contains("/nowhere"),
        "{}",
        stderr(&nowhere)
    );
}

fn without_a_controller(world: &World) {
    let gone = meshctl(&["status", "--admin", &world.controller, "--timeout", "3s"]);
    assert!(
        gone.status.code() == Some(2) && stderr(&gone).contains("does the program run"),
        "{}",
        stderr(&gone)
    );
    until("the proxy notices", || {
        json_of(&meshctl(&["proxies", "--admin", &world.proxy, "-o", "json"]))[0]["connected"] == false
    });
    // What it knows goes on.
    assert_eq!(world.call(&format!("http://{REVIEWS}:9080/ok")), 200);
    let text = stdout(&meshctl(&["proxies", "--admin", &world.proxy]));
    assert!(text.contains("NOT CONNECTED"), "{text}");
}

#[test]
fn a_program_that_never_answers_ends_in_time() {
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    for command in [&["services"][..], &["proxies"], &["top"], &["status"], &["endpoints"], &["routes"]] {
        let start = std::time::Instant::now();
        let mut args = command.to_vec();
        args.extend(["--admin", &url, "--timeout", "1500ms"]);
        let output = meshctl(&args);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("no answer within"), "{command:?}: {}", stderr(&output));
        assert!(start.elapsed() < Duration::from_secs(20), "{command:?}");
    }
}
