//! Retries: what another try hides, what it may cost, and what is said of it.

use http::{Request, StatusCode};
use mesh_api::model;

use crate::{
    rules::{HOST, TO, with, world},
    upstream::{collect, full},
    world::{forward, ms},
};

fn retry(attempts: u32, on: &[&str]) -> Option<model::RetryPolicy> {
    Some(model::RetryPolicy {
        attempts,
        retry_on: on.iter().map(|s| (*s).to_owned()).collect(),
        ignore_previous_hosts: true,
        ..Default::default()
    })
}

#[tokio::test]
async fn a_retry_hides_a_failure_and_sends_the_same_body() {
    let (world, upstream) = world(model::HttpRule { retry: retry(3, &["5xx"]), ..forward("web") }).await;
    let mut client = world.http1(TO).await;
    let request = Request::post("/echo")
        .header("host", HOST)
        .header("x-test-status", "503")
        .header("x-test-fail-first", "2")
        .body(full("the body"))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(collect(response.into_body()).await.0, "the body");
    assert_eq!(upstream.requests(), 3);
}

#[tokio::test]
async fn a_body_too_large_to_keep_is_not_retried() {
    let (world, upstream) = world(model::HttpRule { retry: retry(3, &["5xx"]), ..forward("web") }).await;
    let mut client = world.http1(TO).await;
    let request = Request::post("/len")
        .header("host", HOST)
        .header("x-test-status", "503")
        .body(full(vec![1; 1 << 20]))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn tries_are_counted_and_said() {
    let (world, upstream) = world(model::HttpRule { retry: retry(2, &["reset"]), ..forward("web") }).await;
    let mut client = world.http1(TO).await;
    let response = client.send_request(with("x-test-reset", "1")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(upstream.requests(), 3);
    world.metric(&["istio_requests_total{", "response_flags=\"UC,URX\""]).await;
}

#[tokio::test]
async fn no_retries_when_the_rule_says_so() {
    let (world, upstream) = world(model::HttpRule { retry: retry(0, &[]), ..forward("web") }).await;
    let mut client = world.http1(TO).await;
    let response = client.send_request(with("x-test-reset", "1")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn each_try_has_its_own_time() {
    let policy = model::RetryPolicy { per_try_timeout: ms(150), ..retry(1, &["5xx"]).unwrap() };
    let (world, upstream) = world(model::HttpRule { retry: Some(policy), ..forward("web") }).await;
    let mut client = world.http1(TO).await;
    let response = client.send_request(with("x-test-delay-ms", "5000")).await.unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn a_storm_of_retries_is_bounded() {
    let (world, upstream) = world(model::HttpRule {
        retry: Some(model::RetryPolicy { backoff: ms(1), ..retry(5, &["5xx"]).unwrap() }),
        ..forward("web")
    })
    .await;
    let mut client = world.http1(TO).await;
    for _ in 0..300 {
        let response = client.send_request(with("x-test-status", "503")).await.unwrap();
        collect(response.into_body()).await;
    }
    let tries = upstream.requests();
    assert!(tries >= 300 + 30, "some retries happen: {tries} tries");
    assert!(tries <= 300 + 60, "{tries} tries for 300 requests: at most 1.2 times the load");
}
