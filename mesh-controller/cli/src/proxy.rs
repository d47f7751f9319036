//! `meshctl proxy`: what a node's proxy knows, from its admin page.

mod rows;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    Outcome,
    args::{self, ProxyWhat},
    output,
    reach::One,
};

pub(crate) fn run(args: &args::Proxy) -> Result<Outcome> {
    let proxy = One::find(&args.admin)?;
    if let ProxyWhat::LogLevel { level, target, time, reset } = &args.what {
        let change = Change { level: level.as_deref(), target: target.as_deref(), time: time.as_deref() };
        let value = log_level(&proxy, &change, *reset)?;
        let view = rows::of_levels(&value);
        output::print(args.format, &value, || output::table(&view.head, &view.rows))?;
        return Ok(Outcome::Fine);
    }
    let page = match args.what {
        ProxyWhat::Peers => "/peers",
        _ => "/config_dump",
    };
    let dump = proxy.get(page)?;
    let (value, view) = match &args.what {
        ProxyWhat::Status => {
            let status = rows::status(&dump);
            let view = rows::of_status(&status);
            (status, view)
        }
        ProxyWhat::Peers => {
            let view = rows::of_peers(&dump);
            (dump, view)
        }
        ProxyWhat::Services { filter } => shown(&dump, filter.as_deref(), rows::of_services),
        ProxyWhat::Routes { filter } => shown(&dump, filter.as_deref(), rows::of_routes),
        ProxyWhat::Endpoints { filter } => shown(&dump, filter.as_deref(), rows::of_endpoints),
        // Has ended above: it asks another page.
        ProxyWhat::LogLevel { .. } => return Ok(Outcome::Fine),
    };
    output::print(args.format, &value, || output::table(&view.head, &view.rows))?;
    Ok(Outcome::Fine)
}

/// Another log level.
struct Change<'a> {
    level: Option<&'a str>,
    target: Option<&'a str>,
    time: Option<&'a str>,
}

/// The levels, after a change if one is wanted.
fn log_level(proxy: &One, change: &Change<'_>, reset: bool) -> Result<Value> {
    if reset {
        return proxy.post("/logging?format=json&reset");
    }
    let Some(level) = change.level else { return proxy.get("/logging?format=json") };
    let mut path = format!("/logging?format=json&level={}", quoted(level));
    for (name, value) in [("target", change.target), ("for", change.time)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", quoted(value)));
        }
    }
    proxy.post(&path)
}

/// A text as part of a query.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:,".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Services whose host contains the filter, and their rows.
fn shown(dump: &Value, filter: Option<&str>, view: fn(&[Value]) -> rows::View) -> (Value, rows::View) {
    let all = dump.get("services").and_then(Value::as_array).cloned().unwrap_or_default();
    let kept = |s: &Value| filter.is_none_or(|f| s["host"].as_str().is_some_and(|h| h.contains(f)));
    let list: Vec<Value> = all.into_iter().filter(kept).collect();
    let view = view(&list);
    (json!(list), view)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::TcpListener,
    };

    use clap::Parser as _;

    use super::*;

    /// What is asked of a page that answers like this, and what comes of it.
    fn asked(answer: &'static str, change: &Change<'_>, reset: bool) -> (String, Result<Value>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let page = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            write!(stream, "{answer}").unwrap();
            head[0].clone()
        });
        let proxy = args::Args::try_parse_from(["meshctl", "paths", "--admin", &url]).unwrap();
        let args::Command::Paths(paths) = proxy.command else { panic!("another command") };
        let value = log_level(&One::find(&paths.admin).unwrap(), change, reset);
        (page.join().unwrap(), value)
    }

    const FINE: &str = "HTTP/1.0 200 OK\r\n\r\n{\"levels\":{\"default\":\"debug\"}}";
    const NONE: Change<'_> = Change { level: None, target: None, time: None };

    #[test]
    fn log_levels_are_shown_and_changed() {
        let (line, value) = asked(FINE, &NONE, false);
        assert_eq!(line, "GET /logging?format=json HTTP/1.1");
        assert_eq!(rows::of_levels(&value.unwrap()).rows, [["default", "debug"]]);
        let change = Change { level: Some("trace"), target: Some("a b&c"), time: Some("10m") };
        let (line, _) = asked(FINE, &change, false);
        assert_eq!(line, "POST /logging?format=json&level=trace&target=a%20b%26c&for=10m HTTP/1.1");
        assert_eq!(asked(FINE, &NONE, true).0, "POST /logging?format=json&reset HTTP/1.1");
        let wrong = "HTTP/1.0 400 Bad Request\r\n\r\n\"loud\" is no level\n";
        let error = asked(wrong, &Change { level: Some("loud"), ..NONE }, false).1.unwrap_err();
        assert!(format!("{error:#}").contains("is no level"), "{error:#}");
    }
}
