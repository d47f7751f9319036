//! Answers shaped like the parts of the bookinfo sample: who calls whom, under which names and ports, and
//! which headers travel on. The words are our own.

use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::{Value, json};

use super::serve::Shared;

/// A part of bookinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum App {
    /// Calls details and reviews.
    Productpage,
    /// A leaf.
    Details,
    /// Versions v2 and v3 call ratings.
    Reviews,
    /// A leaf.
    Ratings,
}

/// Headers that a part passes on: the user for routing, and what tracing needs.
const PASSED_ON: [&str; 12] = [
    "end-user",
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "traceparent",
    "tracestate",
    "cookie",
    "user-agent",
];

/// The client side of a part.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Default for Upstream {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(3)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(5))
            .build(connector);
        Self { client }
    }
}

impl Upstream {
    async fn get(&self, url: &str, headers: &HeaderMap, limit: Duration) -> Result<(u16, Value), String> {
        let mut request = Request::get(url);
        for name in PASSED_ON {
            for value in headers.get_all(name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
        let call = async {
            let response = self.client.request(request).await.map_err(|e| chain(&e))?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.map_err(|e| chain(&e))?.to_bytes();
            let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
            Ok((status, serde_json::from_slice(&body).unwrap_or_else(|_| text())))
        };
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}

/// Answers a request as that part does.
pub async fn answer(app: App, shared: &Shared, request: &Request<Incoming>) -> (StatusCode, Value) {
    let path = request.uri().path();
    let known = match app {
        App::Productpage => {
            ["/", "/productpage", "/login", "/health"].contains(&path) || path.starts_with("/api/v1/")
        }
        App::Details => path.starts_with("/details"),
        App::Reviews => path.starts_with("/reviews"),
        App::Ratings => path.starts_with("/ratings"),
    };
    if !known && path != "/health" {
        return (StatusCode::NOT_FOUND, json!({ "error": "not found", "path": path }));
    }
    let me = &shared.identity;
    let mut page = json!({ "name": me.name, "version": me.version, "node": me.node });
    if path == "/health" {
        return (StatusCode::OK, page);
    }
    let headers = request.headers();
    if let Some(user) = headers.get("end-user").and_then(|v| v.to_str().ok()) {
        page["endUser"] = user.into();
    }
    if let Some(host) = headers.get(header::HOST).and_then(|v| v.to_str().ok()) {
        page["authority"] = host.into();
    }
    match app {
        App::Productpage => {
            let (details, reviews) =
                tokio::join!(section(shared, "details", headers), section(shared, "reviews", headers));
            page["details"] = details;
            page["reviews"] = reviews;
        }
        App::Details => {
            page["id"] = 0.into();
            page["author"] = "William Shakespeare".into();
            page["year"] = 1595.into();
            page["pages"] = 200.into();
        }
        App::Reviews => page["reviews"] = reviews(shared, headers).await,
        App::Ratings => page["ratings"] = json!({ "Reviewer1": 5, "Reviewer2": 4 }),
    }
    (StatusCode::OK, page)
}

/// A part of the product page; one that fails leaves its error, and the page is still served. Reviews get
/// two tries of three seconds each.
async fn section(shared: &Shared, part: &str, headers: &HeaderMap) -> Value {
    let url = format!("http://{part}:9080/{part}/0");
    let tries = if part == "reviews" { 2 } else { 1 };
    let mut last = Value::Null;
    for _ in 0..tries {
        match shared.upstream.get(&url, headers, Duration::from_secs(3)).await {
            Ok((200, body)) => return json!({ "status": 200, "body": body }),
            Ok((status, body)) => last = json!({ "status": status, "body": body }),
            Err(error) => last = json!({ "error": error }),
        }
    }
    last
}

async fn reviews(shared: &Shared, headers: &HeaderMap) -> Value {
    let color = match shared.identity.version.as_str() {
        "v1" => None,
        "v2" => Some("black"),
        _ => Some("red"),
    };
    let mut list = json!([
        { "reviewer": "Reviewer1", "text": "Worth every page." },
        { "reviewer": "Reviewer2", "text": "Short, and better for it." },
    ]);
    let Some(color) = color else { return list };
    let ratings =
        shared.upstream.get("http://ratings:9080/ratings/0", headers, Duration::from_secs(10)).await;
    for entry in list.as_array_mut().into_iter().flatten() {
        let reviewer = entry["reviewer"].as_str().unwrap_or_default().to_owned();
        entry["rating"] = match &ratings {
            Ok((200, body)) => {
                json!({ "stars": body["ratings"][&reviewer], "color": color, "version": body["version"], "node": body["node"] })
            }
            Ok((status, _)) => json!({ "error": "ratings are not available", "status": status }),
            Err(error) => json!({ "error": "ratings are not available", "why": error }),
        };
    }
    list
}
