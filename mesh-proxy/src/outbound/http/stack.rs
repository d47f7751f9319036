//! What happens to a request, in the order in which it happens.
//!
//! Every step is a layer: it answers by itself, waits, or hands the request on with what it found out about it. The
//! types of the requests say what is known where: [`Call`], [`Exchange`], [`Placed`], [`Forwarding`], [`Outgoing`],
//! [`Attempts`], [`Try`]. From the routes on they borrow from the tables that the request began with.
//!
//! All of it stays on one thread, so nothing is `Send`. No layer waits in `poll_ready`: who is too many gets an answer.
//! A step that has nothing to wait for returns the future of the next one as it is; what remains are three boxes for
//! each request, which are gone while a connection is idle.
//!
//! [`Call`]: exchange::Call
//! [`Exchange`]: exchange::Exchange
//! [`Placed`]: exchange::Placed
//! [`Forwarding`]: exchange::Forwarding
//! [`Outgoing`]: exchange::Outgoing
//! [`Attempts`]: exchange::Attempts
//! [`Try`]: exchange::Try

mod answer;
mod cors;
mod edit;
mod endpoint;
mod exchange;
mod fault;
mod gateway;
mod guard;
mod limits;
mod mirror;
mod record;
mod retry;
mod route;
mod step;
mod timeout;

use std::{convert::Infallible, rc::Rc};

use http::{Request, Response};
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder, service_fn};

use super::{HttpConnection, response::ResponseBody};

/// Answers the requests of a connection, whatever happens.
pub(crate) fn service(
    conn: Rc<HttpConnection>,
) -> impl Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible, Future: 'static> + Clone
{
    ServiceBuilder::new()
        // Metrics and the access log: what begins here counts, however it ends.
        .layer_fn(move |next| record::Measure::new(Rc::clone(&conn), next))
        // Refuses what is not well-formed, and takes dot segments out of the path.
        .layer_fn(guard::Guard)
        // Who calls what, and what do the rules say?
        .layer_fn(route::Route)
        // Injected faults come before everything that the rule does with the request.
        .layer_fn(fault::Fault)
        // Cross-origin preflights.
        .layer_fn(cors::Cors)
        // Answers that need no endpoint: redirects, direct responses, no route.
        .layer_fn(answer::Answers)
        // The cluster's state, and whether it takes one more request.
        .layer_fn(limits::Limits)
        // What the rule changes, and what belongs to this connection only: on the way there and on the way back.
        .layer_fn(edit::Edit)
        // Copies for mirrors.
        .layer_fn(mirror::Mirror)
        // The route's time, for all tries together.
        .layer_fn(timeout::Timeout)
        // Tries, each with its own time.
        .layer_fn(retry::Retry)
        // An endpoint by the balancer, a connection from its pool or a new one, the head of the response.
        .service(service_fn(endpoint::send))
}

/// What a request holds while it waits for an endpoint: the futures that are boxed, together.
#[cfg(test)]
pub(crate) fn exchange_size() -> usize {
    type Sending<E> = mirror::Mirror<timeout::Timeout<retry::Retry<E>>>;
    type Deciding<E> = fault::Fault<cors::Cors<answer::Answers<limits::Limits<edit::Edit<Sending<E>>>>>>;

    fn size<S, A, F>(_: fn(S, A) -> F) -> usize {
        size_of::<F>()
    }

    fn all<E>(_: E) -> usize
    where
        E: for<'a> Service<
                exchange::Try<'a>,
                Response = (super::super::endpoint::Response, super::super::endpoint::Lease),
                Error = super::client::TryError,
            > + Clone
            + 'static,
    {
        size(route::route::<Deciding<E>>) + size(edit::forward::<Sending<E>>) + size(retry::run::<E>)
    }

    all(service_fn(endpoint::send))
}
