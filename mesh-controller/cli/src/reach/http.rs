//! One plain HTTP request over a stream; no client library is worth its weight here.

use std::fmt;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest answer: what a proxy with many thousand services knows.
const MAX_ANSWER: usize = 512 << 20;
const MAX_HEAD: usize = 64 << 10;

/// An answer that is a refusal.
#[derive(Debug)]
pub(crate) struct Status(String);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it answered {:?}", self.0)
    }
}

impl std::error::Error for Status {}

/// Whether the other side spoke HTTP and said no.
pub(crate) fn is_status(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Status>())
}

/// Asks for a page. The end of the answer is known by its length or its last chunk: a stream through an API server may stay
/// open, or be cut off.
pub(crate) async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    method: &str,
    authority: &str,
    path: &str,
) -> Result<String> {
    // A change is in the path alone.
    let length = if method == "GET" { "" } else { "Content-Length: 0\r\n" };
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\n{length}Connection: close\r\n\r\n");
    // Who does not listen may have answered all the same.
    let sent = match stream.write_all(request.as_bytes()).await {
        Ok(()) => stream.flush().await,
        failed => failed,
    };
    let (mut answer, mut buffer) = (Answer::default(), vec![0; 64 << 10]);
    loop {
        let n = stream.read(&mut buffer).await.context("read the answer")?;
        if n == 0 {
            break;
        }
        if answer.take(&buffer[..n])? {
            break;
        }
    }
    if answer.head.is_none() {
        if answer.raw.is_empty() {
            sent.context("send the request")?;
        }
        bail!("the answer is not HTTP, or the connection ended before it");
    }
    answer.finish()
}

/// How long the body is.
#[derive(Debug, Clone, Copy)]
enum Length {
    Known(usize),
    Chunked,
    /// Until the connection ends.
    Open,
}

/// An answer as far as it is there.
#[derive(Debug, Default)]
struct Answer {
    /// What is not yet part of the body.
    raw: Vec<u8>,
    /// First line, and how long the body is.
    head: Option<(String, Length)>,
    body: Vec<u8>,
    complete: bool,
}

impl Answer {
    /// Takes in what came; whether that was all.
    fn take(&mut self, bytes: &[u8]) -> Result<bool> {
        self.raw.extend_from_slice(bytes);
        if self.head.is_none() {
            let Some(at) = self.raw.windows(4).position(|w| w == b"\r\n\r\n") else {
                if self.raw.len() > MAX_HEAD {
                    bail!("the head of the answer is longer than {MAX_HEAD} bytes");
                }
                return Ok(false);
            };
            self.head = Some(head(&String::from_utf8_lossy(&self.raw[..at])));
            self.raw.drain(..at + 4);
        }
        match self.head.as_ref().map(|(_, length)| *length) {
            Some(Length::Chunked) => self.chunks()?,
            _ => self.body.append(&mut self.raw),
        }
        if self.body.len() > MAX_ANSWER {
            bail!("the answer is longer than {MAX_ANSWER} bytes");
        }
        if let Some((_, Length::Known(length))) = self.head {
            self.complete = self.body.len() >= length;
        }
        Ok(self.complete)
    }

    /// Moves whole chunks into the body.
    fn chunks(&mut self) -> Result<()> {
        let mut from = 0;
        while let Some(end) = self.raw[from..].windows(2).position(|w| w == b"\r\n") {
            let line = String::from_utf8_lossy(&self.raw[from..from + end]);
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).ok().filter(|s| *s <= MAX_ANSWER);
            let size = size.context("the answer has a chunk without a length")?;
            let begin = from + end + 2;
            if size == 0 {
                self.complete = true;
                break;
            }
            let Some(chunk) = self.raw.get(begin..begin + size) else { break };
            self.body.extend_from_slice(chunk);
            // The line break may still be on its way.
            if self.raw.len() < begin + size + 2 {
                self.body.truncate(self.body.len() - size);
                break;
            }
            from = begin + size + 2;
        }
        self.raw.drain(..from);
        Ok(())
    }

    fn finish(self) -> Result<String> {
        let Some((status, length)) = self.head else { bail!("the answer is not HTTP") };
        if !self.complete && !matches!(length, Length::Open) {
            bail!("the connection ended within the answer");
        }
        let body = String::from_utf8(self.body).context("the answer is not text")?;
        if status.split_ascii_whitespace().nth(1) != Some("200") {
            // The page says in one line what is wrong with what was asked.
            let said = body.lines().next().filter(|_| status.contains(" 400 ")).unwrap_or(&status);
            return Err(Status(said.to_owned()).into());
        }
        Ok(body)
    }
}

fn head(text: &str) -> (String, Length) {
    let mut lines = text.lines();
    let status = lines.next().unwrap_or_default().to_owned();
    let mut length = Length::Open;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") && value.trim().eq_ignore_ascii_case("chunked") {
            length = Length::Chunked;
        } else if name.eq_ignore_ascii_case("content-length")
            && let Ok(n) = value.trim().parse()
        {
            length = Length::Known(n);
        }
    }
    (status, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(answer: &[u8], stays_open: bool) -> Result<String> {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(answer).await.unwrap();
        // Dropped at the end, or now.
        let open = stays_open.then_some(theirs);
        let answer = ask(&mut ours, "GET", "x", "/").await;
        drop(open);
        answer
    }

    #[tokio::test]
    async fn an_answer_ends_by_its_length_or_with_the_connection() {
        let of = |length: &str, body: &str| format!("HTTP/1.0 200 OK\r\n{length}\r\n{body}").into_bytes();
        assert_eq!(asked(&of("Content-Length: 2\r\n", "ok"), true).await.unwrap(), "ok");
        assert_eq!(asked(&of("", "all of it"), false).await.unwrap(), "all of it");
        let cut = asked(&of("Content-Length: 9\r\n", "ok"), false).await.unwrap_err();
        assert!(cut.to_string().contains("ended within"), "{cut}");
        let chunked = of("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n");
        assert_eq!(asked(&chunked, true).await.unwrap(), "abcdefg");
        for cut in 1..5 {
            let part = &chunked[..chunked.len() - 5 - cut];
            assert!(asked(part, false).await.unwrap_err().to_string().contains("ended within"), "{cut}");
        }
        // However it is cut into packets.
        let mut answer = Answer::default();
        let all = chunked.iter().all(|b| !answer.take(&[*b]).unwrap() || answer.complete);
        assert!(all && answer.complete && answer.body == b"abcdefg");
        assert!(asked(b"SSH-2.0-x\r\n", false).await.unwrap_err().to_string().contains("not HTTP"));
    }

    #[tokio::test]
    async fn a_refusal_is_told_apart_from_a_failure() {
        let missing = asked(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n", true).await.unwrap_err();
        assert!(is_status(&missing) && missing.to_string().contains("404"), "{missing}");
        let wrong =
            asked(b"HTTP/1.0 400 Bad Request\r\nContent-Length: 8\r\n\r\nno level", true).await.unwrap_err();
        assert!(wrong.to_string().contains("no level"), "{wrong}");
        assert!(!is_status(&asked(b"", false).await.unwrap_err()));
    }
}
