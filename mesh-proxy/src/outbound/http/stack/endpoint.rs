//! The innermost service: one try at an endpoint.

use std::future::Future;

use super::{
    super::{
        super::endpoint::{Lease, Response},
        client::TryError,
    },
    exchange::Try,
};

/// Balances, takes a connection from the pool or makes one, sends the request, and waits for the response's head.
pub(super) fn send(one: Try<'_>) -> impl Future<Output = Result<(Response, Lease), TryError>> {
    one.upstreams.call(one.request)
}
