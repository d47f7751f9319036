//! Cross-origin preflights. What an actual request's response says is set where responses are edited.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use mesh_core::actions::CorsOutcome;
use tower::Service;

use super::{
    super::{reply, view::View},
    exchange::Exchange,
    step::{Answer, Step, answer, next},
};

/// Answers preflights.
#[derive(Clone)]
pub(crate) struct Cors<S>(pub(super) S);

impl<'t, S> Service<Exchange<'t>> for Cors<S>
where
    S: Service<Exchange<'t>, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Step<'t, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut exchange: Exchange<'t>) -> Self::Future {
        if let Some(rule) = exchange.routed.decision.rule {
            exchange.cors = rule.cors(&View::of(&exchange.request));
        }
        if matches!(exchange.cors, CorsOutcome::Preflight(_)) {
            return answer(reply::preflight(&exchange.cors, exchange.record));
        }
        next(self.0.call(exchange))
    }
}
