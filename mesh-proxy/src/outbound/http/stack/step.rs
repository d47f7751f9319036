//! The futures of layers.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
};

use futures::future::{Either, LocalBoxFuture};
use http::Response;

use super::super::response::ResponseBody;

/// What the client gets.
pub(super) type Answer = Response<ResponseBody>;

/// A layer always has an outcome.
pub(super) type Done<T> = Result<T, Infallible>;

/// A layer's own work.
pub(super) type Boxed<'t, T> = LocalBoxFuture<'t, Done<T>>;

/// A layer that mostly has nothing to wait for: an outcome at once, the next layer's future, or own work.
pub(super) type Step<'t, F, T = Answer> = Either<Either<Ready<Done<T>>, F>, Boxed<'t, T>>;

/// The outcome is known.
pub(super) fn answer<'t, F, T>(outcome: T) -> Step<'t, F, T> {
    Either::Left(Either::Left(ready(Ok(outcome))))
}

/// The next layer does the rest.
pub(super) const fn next<'t, F, T>(future: F) -> Step<'t, F, T> {
    Either::Left(Either::Right(future))
}

/// The layer has to wait.
pub(super) fn wait<'t, F, T>(future: impl Future<Output = Done<T>> + 't) -> Step<'t, F, T> {
    Either::Right(Box::pin(future))
}
