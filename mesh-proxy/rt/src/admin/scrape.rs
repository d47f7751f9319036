//! A scrape: written off the runtime's threads, in parts when it is large, so that no node needs memory for all of it at
//! once and a scraper that reads slowly is waited for.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use prometheus::Registry;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::{text_response, typed};
use crate::{Exposed, Place};

/// Bytes of a part at least.
const PART: usize = 64 * 1024;
/// Parts that wait to be sent.
const WAITING: usize = 2;
/// A scraper that takes no part for so long has left.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is sent.
pub(super) enum Page {
    /// At once.
    Whole(Full<Bytes>),
    /// As it comes.
    Parts(mpsc::Receiver<Bytes>),
}

impl Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Parts(parts) => parts.poll_recv(cx).map(|part| Some(Ok(Frame::data(part?)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Parts(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Parts(_) => SizeHint::default(),
        }
    }
}

/// What is written of a scrape so far.
struct Text {
    large: Option<Arc<dyn Exposed>>,
    /// Where the large families go on; none = they are over.
    next: Option<Place>,
}

impl Text {
    /// The first part, with all that is not large.
    fn begin(registry: &Registry, large: Option<Arc<dyn Exposed>>) -> (Self, Vec<u8>) {
        let out = crate::exposition(&registry.gather());
        let mut text = Self { next: large.as_ref().map(|_| (0, 0)), large };
        let out = text.part(out);
        (text, out)
    }

    fn part(&mut self, mut out: Vec<u8>) -> Vec<u8> {
        while let (Some(large), Some(from)) = (&self.large, self.next) {
            self.next = large.expose(from, &mut out);
            if out.len() >= PART {
                break;
            }
        }
        out
    }
}

/// Answers a scrape.
pub(super) async fn answer(registry: Registry, large: Option<Arc<dyn Exposed>>) -> Response<Page> {
    let begun = tokio::task::spawn_blocking(move || Text::begin(&registry, large)).await;
    let (text, first) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let text = format!("metrics: {error}\n");
            return text_response(StatusCode::INTERNAL_SERVER_ERROR, text).map(Page::Whole);
        }
    };
    let head = typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Bytes::new());
    if text.next.is_none() {
        return head.map(|_| Page::Whole(Full::from(first)));
    }
    let (sender, parts) = mpsc::channel(WAITING);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || rest(text, first, &sender, &runtime));
    head.map(|_| Page::Parts(parts))
}

/// Writes part after part, as they are taken.
fn rest(mut text: Text, first: Vec<u8>, sender: &mpsc::Sender<Bytes>, runtime: &Handle) {
    let mut part = first;
    while !part.is_empty() {
        let sent = runtime.block_on(tokio::time::timeout(PATIENCE, sender.send(part.into())));
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        part = text.part(Vec::with_capacity(PART + PART / 4));
    }
}
