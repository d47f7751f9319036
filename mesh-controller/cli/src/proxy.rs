//! `meshctl proxy`: what a node's proxy knows, from its admin page.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    Outcome,
    args::{self, ProxyWhat},
    output,
};

const WAIT: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: u64 = 512 << 20;

pub(crate) fn run(args: &args::Proxy) -> Result<Outcome> {
    let dump = get(&args.admin, "/config_dump")?;
    let (value, head, rows) = match &args.what {
        ProxyWhat::Status => {
            let mut value = dump.clone();
            if let Value::Object(map) = &mut value {
                map.retain(|_, v| !v.is_array());
            }
            let rows = flat(&value);
            (value, vec!["field", "value"], rows)
        }
        ProxyWhat::Services { filter } => {
            let list = select(&dump, filter.as_deref());
            let rows = list
                .iter()
                .map(|s| vec![cell(s, "host"), cell(s, "kind"), cell(s, "vips"), cell(s, "ports")]);
            (json!(list), vec!["host", "kind", "addresses", "ports"], rows.collect())
        }
        ProxyWhat::Routes { filter } => {
            let list = select(&dump, filter.as_deref());
            let rows =
                list.iter().map(|s| vec![cell(s, "host"), cell(s, "virtual_hosts"), cell(s, "policies")]);
            (json!(list), vec!["host", "virtual services", "destination rules"], rows.collect())
        }
        ProxyWhat::Endpoints { filter } => {
            let list = select(&dump, filter.as_deref());
            let mut rows = Vec::new();
            for service in &list {
                for e in service.get("endpoints").and_then(Value::as_array).into_iter().flatten() {
                    rows.push(vec![
                        cell(service, "host"),
                        cell(e, "address"),
                        cell(e, "node"),
                        cell(e, "ready"),
                    ]);
                }
            }
            (json!(list), vec!["host", "address", "node", "ready"], rows)
        }
    };
    output::print(args.format, &value, || output::table(&head, &rows))?;
    Ok(Outcome::Fine)
}

/// Services of a dump whose host contains the filter.
fn select(dump: &Value, filter: Option<&str>) -> Vec<Value> {
    let all = dump.get("services").and_then(Value::as_array).cloned().unwrap_or_default();
    all.into_iter().filter(|s| filter.is_none_or(|f| cell(s, "host").contains(f))).collect()
}

/// A field as text: names of things, not their insides.
fn cell(value: &Value, key: &str) -> String {
    text(value.get(key).unwrap_or(&Value::Null))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Object(map) => {
            let name = ["source", "number", "name", "host", "address"].iter().find_map(|k| map.get(*k));
            name.map_or_else(|| value.to_string(), text)
        }
        other => other.to_string(),
    }
}

fn flat(value: &Value) -> Vec<Vec<String>> {
    let map = value.as_object().into_iter().flatten();
    map.map(|(k, v)| vec![k.clone(), if v.is_object() { v.to_string() } else { text(v) }]).collect()
}

/// One plain HTTP request over loopback; no client library is worth its weight here.
fn get(url: &str, path: &str) -> Result<Value> {
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
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = fetch().with_context(|| format!("ask {url}{path} (is the proxy running on this node?)"))?;
    let (head, body) = split(&answer).with_context(|| format!("{url}{path} did not answer in HTTP"))?;
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200") {
        bail!("{url}{path} answered {status}");
    }
    serde_json::from_slice(body).with_context(|| format!("{url}{path} did not answer in JSON"))
}

fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&answer[..at]).ok()?, &answer[at + 4..]))
}
