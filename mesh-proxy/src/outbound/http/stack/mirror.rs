//! Copies of a request for mirrors, and what another try needs of it.

use std::{
    convert::Infallible,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use http::header;
use tower::Service;

use super::{
    super::{
        mirror::Copies,
        retry::{self, Repeatable},
    },
    exchange::{Attempts, Outgoing, Tries},
    step::{Step, next, wait},
};

/// Sends the copies when the request itself has its answer.
#[derive(Clone)]
pub(crate) struct Mirror<S>(pub(super) S);

impl<'a, S> Service<Outgoing<'a>> for Mirror<S>
where
    S: Service<Attempts<'a>, Response = Tries, Error = Infallible> + 'static,
{
    type Response = Tries;
    type Error = Infallible;
    type Future = Step<'a, S::Future, Tries>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, outgoing: Outgoing<'a>) -> Self::Future {
        let copies = copies(&outgoing);
        let Outgoing { routed, upstreams, record, request, upgrading } = outgoing;
        let policy = routed.retry_policy().filter(|_| !upgrading);
        let keep = copies.is_some() || retry::after_sending(policy, record.grpc, upstreams.h2);
        let expects = !upstreams.h2 && request.headers().contains_key(header::EXPECT);
        let mut request = Repeatable::new(request, keep, Rc::clone(&record.received));
        if expects {
            request.hold_body();
        }
        let kept = copies.is_some().then(|| request.kept().cloned()).flatten();
        let tries = self.0.call(Attempts { routed, upstreams, request, policy, grpc: record.grpc });
        let Some(copies) = copies else { return next(tries) };
        wait(async move {
            let Ok(tries) = tries.await;
            if !tries.is_late() {
                copies.send(kept.as_ref());
            }
            Ok(tries)
        })
    }
}

fn copies(outgoing: &Outgoing<'_>) -> Option<Copies> {
    let Outgoing { routed, upstreams, request, .. } = outgoing;
    let rule = routed.decision.rule.filter(|r| !r.mirrors.is_empty())?;
    let worker = &upstreams.worker;
    let mut dice = worker.dice();
    let clusters = routed.tables.mirror_clusters(rule, &routed.caller, routed.port, &mut dice);
    let clusters = clusters.map(Arc::clone).collect();
    Copies::of(worker, clusters, upstreams.source.as_ref(), request, (upstreams.h2, routed.shown()))
}
