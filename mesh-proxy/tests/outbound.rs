//! The outbound path from socket to socket: real listeners, real upstreams on loopback, tables made by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "test servers and clients belong to the test's own runtime")]
#![allow(unreachable_pub, missing_docs, reason = "modules of one test program")]

#[path = "outbound/failures.rs"]
mod failures;
#[path = "outbound/gateway.rs"]
mod gateway;
#[path = "outbound/gateway_tls.rs"]
mod gateway_tls;
#[path = "outbound/http1.rs"]
mod http1;
#[path = "outbound/http2.rs"]
mod http2;
#[path = "outbound/l4.rs"]
mod l4;
#[path = "outbound/measured.rs"]
mod measured;
#[path = "outbound/outside.rs"]
mod outside;
#[path = "outbound/policy.rs"]
mod policy;
#[path = "outbound/proxy_port.rs"]
mod proxy_port;
#[path = "outbound/retries.rs"]
mod retries;
#[path = "outbound/rules.rs"]
mod rules;
#[path = "outbound/said.rs"]
mod said;
#[path = "outbound/tls.rs"]
mod tls;
#[path = "outbound/tunnel.rs"]
mod tunnel;
#[path = "outbound/under_load.rs"]
mod under_load;
#[path = "outbound/upstream.rs"]
mod upstream;
#[path = "outbound/world.rs"]
mod world;
