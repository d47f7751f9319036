//! A scrape: written off the runtime's threads, in parts when it is large, so that no node needs memory for all of it at
//! once and a scraper that reads slowly is waited for. Compressed for who asks, as Prometheus does: text of this kind becomes
//! a twentieth, and behind a thin line that is the difference between watched and not.

use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue, VARY};
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
/// The least effort: more of it saves little.
const EFFORT: Compression = Compression::new(1);

/// What is sent.
pub(super) enum Page {
    /// At once.
    Whole(Full<Bytes>),
    /// As it comes; none is the end.
    Parts(mpsc::Receiver<Option<Bytes>>),
}

/// The writer has left before the end: what the scraper has must not look whole.
#[derive(Debug, thiserror::Error)]
#[error("the text ends before its end")]
pub(super) struct Cut;

impl Body for Page {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Parts(parts) => parts.poll_recv(cx).map(|part| match part {
                Some(part) => Some(Ok(Frame::data(part?))),
                None => Some(Err(Cut)),
            }),
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

/// Whether the scraper takes gzip, and did not say that it would rather not.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| {
        let mut words = coding.split(';').map(str::trim);
        let is_gzip = words.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = |word: &str| {
            word.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0)
        };
        is_gzip && !words.any(refused)
    })
}

/// How parts leave.
enum Coding {
    Plain,
    Gzip(GzEncoder<Vec<u8>>),
}

impl Coding {
    fn of(gzip: bool) -> Self {
        if gzip { Self::Gzip(GzEncoder::new(Vec::new(), EFFORT)) } else { Self::Plain }
    }

    /// What is to be sent after `part`: perhaps nothing yet.
    fn code(&mut self, part: Vec<u8>) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(part),
            Self::Gzip(encoder) => {
                encoder.write_all(&part)?;
                let done = encoder.get_mut();
                Ok(if done.len() < PART { Vec::new() } else { std::mem::take(done) })
            }
        }
    }

    fn end(self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(Vec::new()),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }
}

/// Answers a scrape.
pub(super) async fn answer(
    registry: Registry,
    large: Option<Arc<dyn Exposed>>,
    gzip: bool,
    patience: Duration,
) -> Response<Page> {
    let begun = tokio::task::spawn_blocking(move || {
        let (text, first) = Text::begin(&registry, large);
        let mut coding = Coding::of(gzip);
        if text.next.is_some() {
            return Ok((text, first, coding));
        }
        let mut whole = coding.code(first)?;
        whole.append(&mut coding.end()?);
        Ok::<_, std::io::Error>((text, whole, Coding::Plain))
    });
    let (text, first, coding) = match begun.await.map_err(std::io::Error::other).and_then(|begun| begun) {
        Ok(begun) => begun,
        Err(error) => {
            let text = format!("metrics: {error}\n");
            return text_response(StatusCode::INTERNAL_SERVER_ERROR, text).map(Page::Whole);
        }
    };
    let mut head = typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Bytes::new());
    head.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    if gzip {
        head.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if text.next.is_none() {
        return head.map(|_| Page::Whole(Full::from(first)));
    }
    let (sender, parts) = mpsc::channel(WAITING);
    let writer = Writer { parts: sender, patience, runtime: Handle::current() };
    tokio::task::spawn_blocking(move || writer.write(text, first, coding));
    head.map(|_| Page::Parts(parts))
}

/// Writes part after part, as they are taken.
struct Writer {
    parts: mpsc::Sender<Option<Bytes>>,
    /// A scraper that takes no part for so long is given up.
    patience: Duration,
    runtime: Handle,
}

impl Writer {
    /// All that comes after the first part. It returns early if the scraper is gone or too slow; the page then ends with an
    /// error, because nobody has said that it is whole.
    fn write(self, mut text: Text, first: Vec<u8>, mut coding: Coding) {
        let mut part = first;
        while !part.is_empty() {
            let coded = coding.code(part);
            if !coded.is_ok_and(|coded| coded.is_empty() || self.send(Some(coded.into()), &text)) {
                return;
            }
            part = text.part(Vec::with_capacity(PART + PART / 4));
        }
        if coding.end().is_ok_and(|last| last.is_empty() || self.send(Some(last.into()), &text)) {
            self.send(None, &text);
        }
    }

    /// False: it was not taken.
    fn send(&self, part: Option<Bytes>, text: &Text) -> bool {
        let sent = self.runtime.block_on(tokio::time::timeout(self.patience, self.parts.send(part)));
        if sent.is_err() {
            tracing::debug!("a scrape is cut off: its parts are not taken");
            text.large.iter().for_each(|large| large.cut_off());
        }
        matches!(sent, Ok(Ok(())))
    }
}
