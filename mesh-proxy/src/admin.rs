//! Pages on loopback: what the proxy knows, how it does, and two things that an operator may change.

mod dump;
mod paths;

use std::sync::Arc;

use http::StatusCode;
use mesh_tunnel::Tunnel;
use node_rt::{
    AdminRequest, AdminResponse, AdminServer, Drain, Exposed, LogControl, Readiness, Reason, Tasks,
    json_response, text_response,
};
use serde_json::json;

use crate::shared::Shared;

const HELP: &str = "\
GET  /config_dump        services, nodes and workloads in force (?host=PART restricts the services)
GET  /clusters           clusters with their endpoints (?host=PART restricts them)
GET  /status             how the proxy does, in few words
GET  /peers              tunnel connections
GET  /paths              the path to each peer, and why it is not a better one (?all=1: also paths not in use)
GET  /config             the configuration, without secrets
GET  /ready              200 when ready, else 503 with what is pending
GET  /stats/prometheus   metrics
GET  /logging            log levels by target (?format=json)
POST /logging?level=L    all to one level; ?target=T&level=L or ?T=L one, ?paths=T:L,T:L some, &for=10m for a time, ?reset
GET  /log                the log filter
POST /log?level=FILTER   another one
POST /drain              let connections end, then stop
";

/// What the pages show.
pub struct Admin {
    /// Tables and configuration.
    pub shared: Arc<Shared>,
    /// Readiness.
    pub readiness: Readiness,
    /// The end of the process.
    pub drain: Drain,
    /// The log filter; none in tests that have no log.
    pub log: Option<LogControl>,
    /// What ends with the process.
    pub tasks: Tasks,
    /// The tunnel, if there is one.
    pub tunnel: Option<Tunnel>,
}

impl Admin {
    /// The routes.
    pub fn server(self) -> AdminServer {
        let this = Arc::new(self);
        let page = |f: fn(&Admin, &AdminRequest) -> AdminResponse| {
            let this = this.clone();
            move |request: AdminRequest| std::future::ready(f(&this, &request))
        };
        let mut server = AdminServer::new();
        if let Some(log) = &this.log {
            server = server.logging(log.clone(), this.tasks.clone());
        }
        server
            .route("GET", "/", page(|_, _| text_response(StatusCode::OK, HELP)))
            .route(
                "GET",
                "/config_dump",
                page(|a, r| {
                    let part = query(r, "host").unwrap_or_default();
                    json_response(StatusCode::OK, &dump::config(&a.shared, &a.readiness, &part))
                }),
            )
            .route(
                "GET",
                "/clusters",
                page(|a, r| {
                    let part = query(r, "host").unwrap_or_default();
                    json_response(StatusCode::OK, &dump::clusters(&a.shared, &part))
                }),
            )
            .route(
                "GET",
                "/status",
                page(|a, _| json_response(StatusCode::OK, &dump::status(&a.shared, &a.readiness))),
            )
            .route("GET", "/peers", page(Self::peers))
            .route(
                "GET",
                "/paths",
                page(|a, r| {
                    let all = query(r, "all").is_some_and(|v| v == "1");
                    let found = a.tunnel.as_ref().map(Tunnel::paths).unwrap_or_default();
                    json_response(StatusCode::OK, &paths::list(&a.shared.node, &found, all))
                }),
            )
            .route("GET", "/config", page(|a, _| json_response(StatusCode::OK, &*a.shared.config)))
            .route(
                "GET",
                "/ready",
                page(|a, _| {
                    let pending = a.readiness.pending();
                    let status =
                        if pending.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                    json_response(status, &json!({ "ready": pending.is_empty(), "pending": pending }))
                }),
            )
            .route(
                "GET",
                "/log",
                page(|a, _| {
                    let current = a.log.as_ref().map(LogControl::current).unwrap_or_default();
                    text_response(StatusCode::OK, current + "\n")
                }),
            )
            .route("POST", "/log", page(Self::set_log))
            .route(
                "POST",
                "/drain",
                page(|a, _| {
                    a.drain.begin(Reason::Requested("admin request"));
                    text_response(StatusCode::ACCEPTED, "draining\n")
                }),
            )
            .health(this.readiness.clone())
            .metrics_and(this.shared.metrics.clone(), this.traffic())
    }

    /// The metrics of traffic, once the data side has started.
    fn traffic(&self) -> Option<Arc<dyn Exposed>> {
        self.shared.traffic.get().cloned().map(|t| -> Arc<dyn Exposed> { t })
    }

    fn peers(&self, _: &AdminRequest) -> AdminResponse {
        let status = self.tunnel.as_ref().map(Tunnel::status).unwrap_or_default();
        let list: Vec<_> = status
            .iter()
            .map(|p| {
                json!({
                    "node": p.node, "peer_id": p.peer_id, "transport": p.transport, "dialled": p.dialled,
                    "streams": p.streams, "rtt_ms": p.rtt.map(|r| r.as_secs_f64() * 1e3),
                })
            })
            .collect();
        json_response(StatusCode::OK, &list)
    }

    fn set_log(&self, request: &AdminRequest) -> AdminResponse {
        let (Some(log), Some(level)) = (&self.log, query(request, "level")) else {
            return text_response(StatusCode::BAD_REQUEST, "level=FILTER is missing\n");
        };
        match log.set(&level) {
            Ok(()) => text_response(StatusCode::OK, level + "\n"),
            Err(error) => text_response(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }
}

/// A parameter of the request, with `%2C` and the like decoded.
fn query(request: &AdminRequest, name: &str) -> Option<String> {
    let raw = request.uri().query()?.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='))?;
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            b'+' => out.push(b' '),
            b => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let get = |uri: &str| {
            let request = http::Request::builder().uri(uri).body(bytes::Bytes::new()).unwrap();
            query(&request, "level")
        };
        assert_eq!(get("/log?level=info%2Cmesh_proxy=debug").as_deref(), Some("info,mesh_proxy=debug"));
        assert_eq!(get("/log?x=1&level=a+b").as_deref(), Some("a b"));
        assert_eq!(get("/log?levels=a"), None);
        assert_eq!(get("/log?level=%f"), None);
        assert_eq!(get("/log"), None);
    }
}
