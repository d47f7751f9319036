//! What changes between client and endpoint: the request on its way there, the response on its way back.

use std::{
    convert::Infallible,
    future::Future,
    rc::Rc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use mesh_core::{actions::CorsOutcome, route::WeightedDestination};
use tower::Service;

use super::{
    super::{
        super::{cluster_name, failure::FailureClass},
        client::Upstreams,
        edit,
        record::Record,
        reply,
        response::{ResponseBody, Tail},
        said::Kept,
        upgrade,
    },
    exchange::{Exchange, Forwarding, Outgoing, Routed, Tries},
    step::{Answer, Boxed, Done},
};
use crate::telemetry::Flags;

/// Applies the rule to both messages, and hangs the request's end on the end of the response.
#[derive(Clone)]
pub(crate) struct Edit<S>(pub(super) S);

impl<'t, S> Service<Forwarding<'t>> for Edit<S>
where
    S: for<'a> Service<Outgoing<'a>, Response = Tries, Error = Infallible> + Clone + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Boxed<'t, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, forwarding: Forwarding<'t>) -> Self::Future {
        Box::pin(forward(self.0.clone(), forwarding))
    }
}

pub(super) fn forward<S>(mut next: S, forwarding: Forwarding<'_>) -> impl Future<Output = Done<Answer>>
where
    S: for<'a> Service<Outgoing<'a>, Response = Tries, Error = Infallible>,
{
    let Forwarding { exchange, to, mut upstreams, permit } = forwarding;
    let Exchange { conn, routed, mut record, mut request, cors, set_cookie } = exchange;

    let kept = Kept::of(&request, &routed.decision, to);
    let upgrading = request_for(&mut request, &mut upstreams, routed, to);
    let client = upgrading.then(|| hyper::upgrade::on(&mut request));
    async move {
        let outgoing = Outgoing { routed, upstreams: &mut upstreams, record: &record, request, upgrading };
        let Ok(tries) = next.call(outgoing).await;

        let late = tries.is_late();
        if tries.exhausted {
            record.flags = record.flags.with(Flags::RETRY_LIMIT);
        }
        let mut response = match tries.outcome {
            Ok((response, lease)) => {
                let upstream = lease.endpoint().addr;
                let cluster = Rc::clone(&upstreams.state.cluster);
                note(&mut record, &upstreams, upstream);
                record.code = response.status().as_u16();
                record.details = "via_upstream";
                record.beside = upstreams.beside.take();
                record.see_head(response.headers());
                if record.grpc {
                    record.see_grpc(response.headers());
                }
                let tail = Box::new(Tail {
                    record,
                    lease,
                    state: upstreams.state,
                    connection: Rc::clone(conn),
                    permit,
                    deadline: tries.deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
                });
                let mut response = finish(response, tail, client);
                edit::response(&mut response, to, routed.call(Some(cluster.get())), Some(upstream), &kept);
                if let Some(cookie) = set_cookie {
                    response.headers_mut().append(header::SET_COOKIE, *cookie);
                }
                response
            }
            Err(class) => {
                let response = failed(class, record, &upstreams);
                if late { routed.edited(response) } else { response }
            }
        };
        if let CorsOutcome::Actual(list) = &cors {
            reply::set(response.headers_mut(), list);
        }
        Ok(response)
    }
}

/// Edits a request; says whether the client wants to change the protocol.
fn request_for(
    request: &mut Request<Incoming>,
    upstreams: &mut Upstreams,
    routed: &Routed<'_>,
    to: Option<&WeightedDestination>,
) -> bool {
    let upgrade = edit::upgrade_wanted(request);
    let upgrading = upgrade.is_some();
    edit::hop_by_hop(request.headers_mut());
    if let Some(protocol) = upgrade {
        // Only HTTP/1 can change its protocol.
        upstreams.h2 = false;
        edit::ask_upgrade(request.headers_mut(), protocol);
    }
    edit::request(request, to, routed.call(Some(upstreams.state.cluster.get())));
    edit::travel_form(request, upstreams.h2);
    upgrading
}

/// Says in record and log which endpoint it was.
fn note(record: &mut Record, upstreams: &Upstreams, addr: std::net::SocketAddr) {
    let state = &upstreams.state;
    record.parties.destination = upstreams.last.map(|at| Rc::clone(&state.workloads[at]));
    let elapsed = record.entry.is_some().then(|| record.elapsed());
    if let Some(entry) = &mut record.entry {
        entry.upstream = Some(addr);
        entry.upstream_time = elapsed;
        entry.cluster = cluster_name(&state.cluster);
        entry.attempts = u32::try_from(upstreams.tried.len()).unwrap_or(u32::MAX);
    }
}

fn failed(class: FailureClass, mut record: Box<Record>, upstreams: &Upstreams) -> Answer {
    if let Some(tried) = upstreams.tried.last() {
        note(&mut record, upstreams, tried.addr());
    }
    reply::failed(class, record)
}

/// The response as the client gets it.
fn finish(
    mut response: Response<Incoming>,
    tail: Box<Tail>,
    client: Option<OnUpgrade>,
) -> Response<ResponseBody> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upstream = hyper::upgrade::on(&mut response);
        let protocol = response.headers().get(header::UPGRADE).cloned();
        let (mut parts, _) = response.into_parts();
        match (client, protocol) {
            (Some(client), Some(protocol)) => {
                edit::hop_by_hop(&mut parts.headers);
                edit::ask_upgrade(&mut parts.headers, protocol);
                upgrade::start(client, upstream, tail);
                return Response::from_parts(parts, ResponseBody::none());
            }
            // Nobody asked for it.
            _ => return reply::failed(FailureClass::UpstreamProtocol, tail.record),
        }
    }
    let (mut parts, body) = response.into_parts();
    edit::hop_by_hop(&mut parts.headers);
    parts.version = http::Version::HTTP_11;
    Response::from_parts(parts, ResponseBody::upstream(body, tail))
}
