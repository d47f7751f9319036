//! One plain HTTP request over loopback; no client library is worth its weight here.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: u64 = 512 << 20;

pub(super) fn get(url: &str, path: &str) -> Result<Value> {
    let body = text(url, path)?;
    serde_json::from_str(&body).with_context(|| format!("{url}{path} did not answer in JSON"))
}

/// A change to the proxy; what it answers is the page after it.
pub(super) fn post(url: &str, path: &str) -> Result<Value> {
    let body = ask("POST", url, path)?;
    serde_json::from_str(&body).with_context(|| format!("{url}{path} did not answer in JSON"))
}

pub(super) fn text(url: &str, path: &str) -> Result<String> {
    ask("GET", url, path)
}

fn ask(method: &str, url: &str, path: &str) -> Result<String> {
    let Some(authority) = url.strip_prefix("http://").map(|u| u.trim_end_matches('/')) else {
        bail!("--admin: {url:?} does not begin with http://");
    };
    let address =
        authority.to_socket_addrs().with_context(|| format!("--admin: resolve {authority}"))?.next();
    let address = address.with_context(|| format!("--admin: {authority} has no address"))?;
    let fetch = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
        // HTTP/1.0: the answer ends with the connection and is never chunked.
        let request = format!("{method} {path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = fetch().with_context(|| format!("ask {url}{path} (does the proxy run on this node?)"))?;
    let (head, body) = split(&answer).with_context(|| format!("{url}{path} did not answer in HTTP"))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split_ascii_whitespace().nth(1) != Some("200") {
        // The page says in one line what is wrong with what was asked.
        let said = String::from_utf8_lossy(body);
        let said = said.lines().next().filter(|_| status.contains(" 400 ")).unwrap_or(status);
        bail!("{url}{path} answered {said:?}");
    }
    String::from_utf8(body.to_vec()).with_context(|| format!("{url}{path} did not answer in text"))
}

fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&answer[..at]).ok()?, &answer[at + 4..]))
}
