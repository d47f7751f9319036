//! Delays and refusals that a rule injects.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use mesh_core::HttpRule;
use tower::Service;

use super::{
    super::super::{failure::FailureClass, worker::WorkerState},
    exchange::Exchange,
    step::{Answer, Step, answer, next, wait},
};
use crate::telemetry::Flags;

/// Delays a request and refuses it, as the rule and chance want.
#[derive(Clone)]
pub(crate) struct Fault<S>(pub(super) S);

impl<'t, S> Service<Exchange<'t>> for Fault<S>
where
    S: Service<Exchange<'t>, Response = Answer, Error = Infallible> + Clone + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Step<'t, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut exchange: Exchange<'t>) -> Self::Future {
        let worker = &exchange.conn.connection.worker;
        let Some(rule) = exchange.routed.decision.rule else { return next(self.0.call(exchange)) };
        let Some(delay) = rule.delay(&mut worker.dice()) else {
            return match abort(rule, worker) {
                Some(class) => answer(refused(exchange, class)),
                None => next(self.0.call(exchange)),
            };
        };
        exchange.record.flags = exchange.record.flags.with(Flags::DELAY_INJECTED);
        let mut then = self.0.clone();
        wait(async move {
            tokio::time::sleep(delay).await;
            match abort(rule, worker) {
                Some(class) => Ok(refused(exchange, class)),
                None => then.call(exchange).await,
            }
        })
    }
}

fn refused(exchange: Exchange<'_>, class: FailureClass) -> Answer {
    let routed = exchange.routed;
    routed.edited(exchange.failed(class))
}

/// The refusal, if there is to be one.
fn abort(rule: &HttpRule, worker: &WorkerState) -> Option<FailureClass> {
    let abort = rule.abort(&mut worker.dice())?;
    let grpc = abort.grpc_status.and_then(|s| u16::try_from(s).ok());
    // A gRPC status for a caller that does not speak gRPC has no HTTP status of its own.
    let status = if abort.http_status == 0 { 200 } else { abort.http_status };
    Some(FailureClass::FaultAbort { status, grpc })
}
