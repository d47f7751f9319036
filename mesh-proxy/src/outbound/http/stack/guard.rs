//! Refuses what no rule should see.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use tower::Service;

use super::{
    super::{guard, reply},
    exchange::Call,
    step::{Answer, Step, answer, next},
};

/// Lets through what is well-formed, with a plain path.
#[derive(Clone)]
pub(crate) struct Guard<S>(pub(super) S);

impl<S> Service<Call> for Guard<S>
where
    S: Service<Call, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Step<'static, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        if let Err(class) = guard::check(&call.conn, &call.request) {
            return answer(reply::failed(class, call.record));
        }
        guard::normalize(&mut call.request);
        next(self.0.call(call))
    }
}
