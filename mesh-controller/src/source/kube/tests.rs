use std::collections::BTreeMap;

use http::{Request, Response, StatusCode};
use kube::client::Body;
use node_rt::Drain;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;

/// An API server with just enough behaviour: lists, one watch that stays open or says what it is told, discovery.
#[derive(Clone, Default)]
struct Server(Arc<State>);

#[derive(Default)]
struct State {
    /// Objects by list path.
    lists: Mutex<BTreeMap<String, Vec<Value>>>,
    /// Versions of the Istio group that are served.
    istio: Mutex<Vec<&'static str>>,
    /// Watches end when this is notified, so that the client lists again.
    cut: Notify,
    failing: Mutex<bool>,
    /// Lists that are answered with 403.
    forbidden: Mutex<Option<&'static str>>,
    /// The group of Gateway API is served, without any kind.
    gateway_api: Mutex<bool>,
    requests: Mutex<Vec<String>>,
}

fn wanted() -> Wanted {
    Wanted { gateway_api: true, root_namespace: "istio-system".to_owned() }
}

impl Server {
    fn set(&self, path: &str, objects: Vec<Value>) {
        self.0.lists.lock().unwrap().insert(path.to_owned(), objects);
    }

    fn requested(&self, part: &str) -> bool {
        self.0.requests.lock().unwrap().iter().any(|r| r.contains(part))
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        self.0.requests.lock().unwrap().push(format!("{path}?{query}"));
        if *self.0.failing.lock().unwrap() {
            return status(500, "InternalError");
        }
        if *self.0.gateway_api.lock().unwrap() && path == "/apis/gateway.networking.k8s.io" {
            let group = json!({"kind": "APIGroup", "apiVersion": "v1", "name": "gateway.networking.k8s.io", "versions": []});
            return json_body(StatusCode::OK, &group);
        }
        if let Some(answer) = self.discovery(&path) {
            return answer;
        }
        if self.0.forbidden.lock().unwrap().is_some_and(|f| path == f) {
            return status(403, "Forbidden");
        }
        if query.contains("watch=true") {
            // A watch without events; "expired" makes the client list again.
            self.0.cut.notified().await;
            let error = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {},
                "status": "Failure", "message": "too old", "reason": "Expired", "code": 410}});
            return json_body(StatusCode::OK, &error);
        }
        let items = self.0.lists.lock().unwrap().get(&path).cloned().unwrap_or_default();
        let list =
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
        json_body(StatusCode::OK, &list)
    }

    fn discovery(&self, path: &str) -> Option<Response<Body>> {
        // There is no other group of custom kinds.
        if path.strip_prefix("/apis/").is_some_and(|g| !g.contains('/') && g != "networking.istio.io") {
            return Some(status(404, "NotFound"));
        }
        let rest = path.strip_prefix("/apis/networking.istio.io")?;
        let served = self.0.istio.lock().unwrap().clone();
        if served.is_empty() {
            return Some(status(404, "NotFound"));
        }
        if rest.is_empty() {
            let versions: Vec<_> = served
                .iter()
                .map(|v| json!({"groupVersion": format!("networking.istio.io/{v}"), "version": v}))
                .collect();
            let group = json!({"kind": "APIGroup", "apiVersion": "v1", "name": "networking.istio.io", "versions": versions});
            return Some(json_body(StatusCode::OK, &group));
        }
        let version = rest.trim_start_matches('/');
        if version.contains('/') {
            return None;
        }
        let resource = |name: &str, kind: &str| {
            json!({"name": name, "singularName": "", "namespaced": true,
            "kind": kind, "verbs": ["list", "watch"]})
        };
        let list = json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": format!("networking.istio.io/{version}"),
            "resources": [resource("virtualservices", "VirtualService"), resource("destinationrules", "DestinationRule")]});
        Some(json_body(StatusCode::OK, &list))
    }
}

fn json_body(status: StatusCode, value: &Value) -> Response<Body> {
    let body = Body::from(format!("{value}\n").into_bytes());
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn status(code: u16, reason: &str) -> Response<Body> {
    let value = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code});
    json_body(StatusCode::from_u16(code).unwrap(), &value)
}

fn object(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1",
        "managedFields": [{"manager": "x"}]}, "spec": {"ports": [{"port": 80}]}})
}

struct Running {
    server: Server,
    health: Health,
    operations: mpsc::Receiver<Vec<Op>>,
    drain: Drain,
}

impl Running {
    fn start(server: Server) -> Self {
        let (sender, operations) = mpsc::channel(64);
        let (health, drain) = (Health::default(), Drain::new());
        start_with(server.client(), wanted(), sender, health.clone(), &Tasks::new(drain.clone()));
        Self { server, health, operations, drain }
    }

    /// Operations until one fulfils the condition.
    async fn until(&mut self, condition: impl Fn(&Op) -> bool) -> Vec<Op> {
        let mut seen = Vec::new();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.operations.recv()).await;
            seen.extend(next.expect("an operation in time").expect("the source lives"));
            if seen.iter().any(&condition) {
                return seen;
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain.force();
    }
}

fn retains(kind: Kind, count: usize) -> impl Fn(&Op) -> bool {
    move |op| matches!(op, Op::Retain(k, keys) if *k == kind && keys.len() == count)
}

const SERVICES: &str = "/api/v1/services";

#[tokio::test]
async fn everything_is_listed_once_before_synced_and_items_become_manifests() {
    let server = Server::default();
    server.set(SERVICES, vec![object("reviews"), object("ratings")]);
    *server.0.istio.lock().unwrap() = vec!["v1", "v1beta1"];
    server.set("/apis/networking.istio.io/v1/virtualservices", vec![object("vs")]);
    let mut r = Running::start(server);
    let ops = r.until(|op| matches!(op, Op::Synced)).await;
    let applied: Vec<&Value> =
        ops.iter().filter_map(|op| if let Op::Apply(v) = op { Some(v) } else { None }).collect();
    assert_eq!(applied.len(), 3);
    let service = applied.iter().find(|v| v["metadata"]["name"] == "reviews").unwrap();
    assert_eq!((service["apiVersion"].as_str(), service["kind"].as_str()), (Some("v1"), Some("Service")));
    assert_eq!(service["spec"]["ports"][0]["port"], 80);
    assert!(service["metadata"].get("managedFields").is_none());
    let rule = applied.iter().find(|v| v["metadata"]["name"] == "vs").unwrap();
    assert_eq!(rule["apiVersion"], "networking.istio.io/v1");
    let retained = ops.iter().filter(|op| matches!(op, Op::Retain(..))).count();
    assert_eq!(retained, Kind::ALL.len());
    assert!(r.health.snapshot().problems.is_empty());
}

#[tokio::test]
async fn a_relist_says_what_is_left() {
    let server = Server::default();
    server.set(SERVICES, vec![object("a"), object("b")]);
    let mut r = Running::start(server);
    r.until(|op| matches!(op, Op::Synced)).await;
    r.server.set(SERVICES, vec![object("b")]);
    r.server.0.cut.notify_waiters();
    let ops = r.until(retains(Kind::Service, 1)).await;
    let key = ObjectKeyOf("b");
    assert!(
        ops.iter().any(|op| matches!(op, Op::Retain(Kind::Service, keys) if keys.iter().any(|k| key.is(k))))
    );
}

struct ObjectKeyOf(&'static str);

impl ObjectKeyOf {
    fn is(&self, key: &mesh_index::ObjectKey) -> bool {
        *key.name == *self.0 && *key.namespace == *"default"
    }
}

#[tokio::test]
async fn a_crd_that_is_not_there_is_waited_for_and_its_oldest_version_is_good_enough() {
    let mut r = Running::start(Server::default());
    r.until(|op| matches!(op, Op::Synced)).await;
    let state = r.health.snapshot();
    assert!(state.problems.is_empty(), "{:?}", state.problems);
    assert!(state.waiting.contains("VirtualService"));
    r.server.set("/apis/networking.istio.io/v1alpha3/virtualservices", vec![object("vs")]);
    *r.server.0.istio.lock().unwrap() = vec!["v1alpha3"];
    let ops = r.until(retains(Kind::VirtualService, 1)).await;
    assert!(
        ops.iter().any(|op| matches!(op, Op::Apply(v) if v["apiVersion"] == "networking.istio.io/v1alpha3"))
    );
    assert!(!r.server.requested("/v1/virtualservices"));
    assert!(!r.health.snapshot().waiting.contains("VirtualService"));
}

#[tokio::test]
async fn the_settings_of_the_mesh_are_read_without_gateway_api_and_all_config_maps_with_it() {
    let server = Server::default();
    let config_map =
        |name: &str| json!({"metadata": {"name": name, "namespace": "istio-system"}, "data": {}});
    server.set("/api/v1/namespaces/istio-system/configmaps", vec![config_map("istio")]);
    server.set("/api/v1/configmaps", vec![config_map("istio"), config_map("ca")]);
    let mut r = Running::start(server);
    r.until(retains(Kind::ConfigMap, 1)).await;
    assert!(r.server.requested("/namespaces/istio-system/configmaps?&fieldSelector=metadata.name%3Distio"));
    assert!(!r.server.requested("/api/v1/configmaps"));
    *r.server.0.gateway_api.lock().unwrap() = true;
    r.until(retains(Kind::ConfigMap, 2)).await;
}

#[tokio::test]
async fn without_the_right_to_read_config_maps_the_rest_goes_on_and_it_is_said() {
    let server = Server::default();
    *server.0.gateway_api.lock().unwrap() = true;
    *server.0.forbidden.lock().unwrap() = Some("/api/v1/configmaps");
    let mut r = Running::start(server);
    r.until(|op| matches!(op, Op::Synced)).await;
    let problems = r.health.snapshot().problems;
    assert!(problems.keys().eq(["ConfigMap"]), "{problems:?}");
}

#[tokio::test]
async fn a_server_that_fails_is_said_and_tried_again() {
    let server = Server::default();
    *server.0.failing.lock().unwrap() = true;
    let mut r = Running::start(server);
    let mut waited = 0;
    while r.health.snapshot().problems.len() < Kind::ALL.len() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        waited += 1;
        assert!(waited < 500, "{:?}", r.health.snapshot());
    }
    assert!(r.operations.try_recv().is_err(), "nothing is delivered, least of all deletions");
    *r.server.0.failing.lock().unwrap() = false;
    r.until(|op| matches!(op, Op::Synced)).await;
    assert!(r.health.snapshot().problems.is_empty());
}
