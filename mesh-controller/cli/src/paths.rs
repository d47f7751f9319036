//! `meshctl paths`: on which path each peer is reached, and why it is not a better one.

use anyhow::Result;
use serde_json::Value;

use crate::{
    Outcome,
    args::{self, Format},
    output,
    reach::One,
};

pub(crate) fn run(args: &args::Paths) -> Result<Outcome> {
    let page = if args.all { "/paths?all=1" } else { "/paths" };
    let found = One::find(&args.admin)?.get(page)?;
    let wanted = |p: &&Value| args.peer.as_ref().is_none_or(|n| p["peer"] == n.as_str());
    let paths: Vec<Value> = found.as_array().into_iter().flatten().filter(wanted).cloned().collect();
    if let (Some(node), true, Format::Table) = (&args.peer, paths.is_empty(), args.output.format) {
        eprintln!("meshctl: there is no connection to {node}: one is made with the next call to it");
    }
    output::print(args.output.format, &paths, || text(&paths))?;
    Ok(Outcome::Fine)
}

fn text(paths: &[Value]) -> String {
    let head =
        ["peer", "path", "relay", "transport", "rtt", "loss", "since", "sent", "received", "nat", "punch"];
    let rows: Vec<Vec<String>> = paths.iter().map(row).collect();
    let mut out = output::table(&head, &rows);
    for path in paths {
        if let Some(why) = path["why_not_better"].as_str().filter(|w| !w.is_empty()) {
            out.push_str(&format!("{}: {why}\n", word(&path["peer"])));
        }
    }
    out
}

fn row(p: &Value) -> Vec<String> {
    let punch = match p["last_punch"].as_object() {
        Some(punch) => format!("{} after {}", word(&punch["outcome"]), word(&punch["attempts"])),
        None => "-".to_owned(),
    };
    vec![
        word(&p["peer"]),
        word(&p["path"]),
        word(&p["relay"]),
        word(&p["transport"]),
        p["rtt_ms"].as_f64().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
        p["loss"].as_f64().map_or_else(|| "-".to_owned(), |part| format!("{:.1} %", part * 100.0)),
        word(&p["since"]),
        bytes(&p["bytes_sent"]),
        bytes(&p["bytes_received"]),
        format!("{} / {}", word(&p["nat"]["local"]), word(&p["nat"]["remote"])),
        punch,
    ]
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(s) if s.is_empty() => "-".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn bytes(value: &Value) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let Some(mut n) = value.as_f64() else { return "-".to_owned() };
    let mut unit = 0;
    while n >= 1024.0 && unit + 1 < UNITS.len() {
        n /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{n:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_is_a_row_and_its_reason_a_sentence() {
        let path = json!({
            "node": "edge-a", "peer": "edge-b", "path": "relayed", "relay": "cloud", "transport": "quic",
            "rtt_ms": 21.44, "loss": 0.015, "since": "2026-01-01T00:00:00Z", "bytes_sent": 1536, "bytes_received": 7,
            "nat": { "local": "symmetric", "remote": "full-cone" },
            "last_punch": { "at": "2026-01-01T00:00:05Z", "outcome": "failed", "attempts": 3 },
            "why_not_better": "both sides translate.",
        });
        let text = text(&[path]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "edge-b relayed cloud quic 21.4 ms 1.5 % 2026-01-01T00:00:00Z 1.5 KiB 7 B symmetric / full-cone failed after 3"
        );
        assert_eq!(lines[2], "edge-b: both sides translate.");
    }
}
