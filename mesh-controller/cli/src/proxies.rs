//! `meshctl proxies`: what each proxy says of itself.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::{
    Outcome, args, output,
    reach::{self, Mesh, Program},
    token::{now, span},
};

/// A proxy, relay or gateway.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) node: String,
    pub(crate) kind: String,
    pub(crate) pod: String,
    pub(crate) version: String,
    /// ready, what it waits for, or why it does not answer.
    pub(crate) state: String,
    pub(crate) ready: bool,
    pub(crate) answers: bool,
    pub(crate) restarts: i32,
    /// Seconds since its process started.
    pub(crate) age_seconds: Option<u64>,
    pub(crate) connected: bool,
    /// Seconds since its controller said something new.
    pub(crate) updated_seconds: Option<u64>,
    pub(crate) services: u64,
    pub(crate) nodes: u64,
    pub(crate) workloads: u64,
    /// Connections with other nodes.
    pub(crate) peers: u64,
    /// Captured addresses; none when nothing is captured.
    pub(crate) captured: Option<u64>,
    /// Seconds; below 0 = it has ended.
    pub(crate) certificate_left: Option<i64>,
    /// What is not as it should be.
    pub(crate) notes: Vec<String>,
}

pub(crate) fn run(args: &args::Proxies) -> Result<Outcome> {
    let rows = reach::within(args.look.reach.timeout, "proxies of the mesh", async {
        let mesh = Mesh::find(&args.look.reach).await?;
        of(&mesh, &args.nodes).await
    })?;
    output::print(args.look.output.format, &rows, || text(&rows))?;
    Ok(if rows.iter().all(|r| r.ready && r.answers) { Outcome::Fine } else { Outcome::Findings })
}

/// Asks them.
pub(crate) async fn of(mesh: &Mesh, names: &[String]) -> Result<Vec<Row>> {
    let programs = mesh.proxies(names)?;
    if programs.is_empty() {
        return Err(mesh.nothing());
    }
    let answers = mesh.ask_json(programs, "/status").await;
    Ok(answers.iter().map(|(program, answer)| row(program, answer.as_ref(), now())).collect())
}

fn row(program: &Program, answer: Result<&Value, &anyhow::Error>, now: u64) -> Row {
    let mut row =
        Row { node: program.name.clone(), kind: reach::word(program.kind).to_owned(), ..Row::default() };
    if let Some(pod) = &program.pod {
        (row.pod, row.restarts) = (pod.name.clone(), pod.restarts);
    }
    let page = match answer {
        Ok(page) => page,
        Err(error) => {
            let trouble = program.pod.as_ref().map(|p| p.trouble.clone()).filter(|t| !t.is_empty());
            row.state = trouble.unwrap_or_else(|| format!("no answer: {error:#}"));
            return row;
        }
    };
    fill(&mut row, page, now);
    row
}

fn fill(row: &mut Row, page: &Value, now: u64) {
    let count = |key: &str| page[key].as_u64().unwrap_or(0);
    let metric = |name: &str| page["metrics"][name].as_f64();
    let since = |name: &str| metric(name).filter(|at| *at > 0.0).map(|at| now.saturating_sub(at as u64));
    row.answers = true;
    row.node = page["node"].as_str().unwrap_or(&row.node).to_owned();
    row.version = page["version"].as_str().unwrap_or_default().to_owned();
    row.ready = page["ready"] == true;
    let pending: Vec<&str> =
        page["pending"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    row.state = if row.ready { "ready".to_owned() } else { format!("waits for {}", reach::list(&pending)) };
    row.age_seconds = since("process_start_time_seconds");
    row.connected = metric("selvage_discovery_connected") == Some(1.0);
    row.updated_seconds = since("selvage_discovery_last_update_seconds");
    (row.services, row.nodes, row.workloads) = (count("services"), count("nodes"), count("workloads"));
    row.peers = metric("selvage_tunnel_connections").unwrap_or(0.0) as u64;
    row.captured = metric("selvage_capture_addresses").map(|n| n as u64);
    row.certificate_left = metric("selvage_certificate_expires_seconds")
        .filter(|end| *end > 0.0)
        .map(|end| end as i64 - now.cast_signed());
    let above_none = |name: &str| metric(name).filter(|n| *n > 0.0);
    let mut note = |text: String| row.notes.push(text);
    if let Some(n) = above_none("selvage_discovery_refused_total") {
        note(format!("refused {n} resources of its controller (meshctl status says which)"));
    }
    if let Some(n) = above_none("selvage_capture_failed_total") {
        note(format!("nftables refused {n} changes (meshctl logs --level warn)"));
    }
    if above_none("selvage_store_degraded").is_some() {
        note(
            "cannot write to its disk: it goes on from memory, and knows nothing after a restart".to_owned(),
        );
    }
    match metric("selvage_clock_ahead_seconds") {
        Some(ahead) if ahead.abs() >= 5.0 => {
            note(format!("its clock is {ahead} s ahead of the controller's"))
        }
        _ => {}
    }
    if row.certificate_left.is_some_and(|left| left <= 0) {
        row.notes.push("its certificate has ended: no peer takes its calls".to_owned());
    }
}

fn text(rows: &[Row]) -> String {
    let head = [
        "node",
        "kind",
        "state",
        "age",
        "controller",
        "updated",
        "services",
        "nodes",
        "pods",
        "peers",
        "captured",
        "certificate",
        "version",
    ];
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let mut out = output::table(&head, &cells);
    for row in rows {
        if !row.answers {
            out.push_str(&format!("{}: {}\n", row.node, row.state));
        }
        for note in &row.notes {
            out.push_str(&format!("{}: {note}\n", row.node));
        }
    }
    out
}

fn cells(r: &Row) -> Vec<String> {
    let seconds = |s: Option<u64>| s.map_or_else(|| "-".to_owned(), span);
    let certificate = match r.certificate_left {
        None => "-".to_owned(),
        Some(left) if left <= 0 => "ENDED".to_owned(),
        Some(left) if left < 86_400 => format!("{:.1} h", left as f64 / 3600.0),
        Some(left) => format!("{:.1} d", left as f64 / 86_400.0),
    };
    let known = |n: u64| if r.answers { n.to_string() } else { "-".to_owned() };
    vec![
        r.node.clone(),
        r.kind.clone(),
        if r.answers { r.state.clone() } else { "NO ANSWER".to_owned() },
        seconds(r.age_seconds),
        match (r.answers, r.connected) {
            (false, _) => "-",
            (true, true) => "connected",
            (true, false) => "NOT CONNECTED",
        }
        .to_owned(),
        seconds(r.updated_seconds),
        known(r.services),
        known(r.nodes),
        known(r.workloads),
        known(r.peers),
        r.captured.map_or_else(|| "-".to_owned(), |n| n.to_string()),
        certificate,
        r.version.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_proxy_says_becomes_a_row_and_what_is_wrong_a_note() {
        let mut row = Row::default();
        let page = json!({ "node": "edge-a", "version": "0.1.0", "ready": true, "pending": [], "services": 7, "nodes": 3,
            "workloads": 2, "metrics": { "selvage_discovery_connected": 1.0, "selvage_certificate_expires_seconds": 999.0,
            "selvage_tunnel_connections": 2.0, "process_start_time_seconds": 400.0, "selvage_store_degraded": 1.0,
            "selvage_clock_ahead_seconds": -7.0 } });
        fill(&mut row, &page, 1000);
        let text = text(&[row]);
        for part in ["edge-a", "connected", "10m0s", "ENDED", "cannot write", "clock is -7 s", "has ended"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let mut row = Row::default();
        fill(&mut row, &json!({ "ready": false, "pending": ["discovery"], "metrics": {} }), 1000);
        assert_eq!((row.state.as_str(), row.connected, row.captured), ("waits for discovery", false, None));
    }
}
