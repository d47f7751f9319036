//! `meshctl node`: who has joined the mesh, and taking one out.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::{
    Outcome,
    args::{self, NodeCommand},
    output, place,
    token::{now, span},
};

pub(crate) fn run(args: &args::Node) -> Result<Outcome> {
    match &args.command {
        NodeCommand::List { place, output } => {
            let mut nodes = place::open(place)?.nodes()?;
            nodes.sort_by_key(|node| text(node, "node"));
            output::print(output.format, &nodes, || table(&nodes, now()))?;
        }
        NodeCommand::Remove { name, place } => {
            if !place::open(place)?.remove_node(name)? {
                bail!("no node {name} has joined");
            }
            eprintln!(
                "node {name} is removed: its streams end, and its certificate is good for nothing any more"
            );
        }
    }
    Ok(Outcome::Fine)
}

fn text(node: &Value, key: &str) -> String {
    node[key].as_str().unwrap_or_default().to_owned()
}

fn table(nodes: &[Value], now: u64) -> String {
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            let since = |key: &str| span(now.saturating_sub(node[key].as_u64().unwrap_or(now)));
            let note = match node["refused"]["machine"].as_str() {
                Some(machine) => format!("a second machine with its key was refused: {machine}"),
                None => String::new(),
            };
            vec![
                text(node, "node"),
                text(node, "origin"),
                since("joined"),
                text(node, "version"),
                text(node, "machine"),
                note,
            ]
        })
        .collect();
    output::table(&["node", "joined by", "age", "version", "machine", "note"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_copied_disk_is_seen_in_the_list() {
        let nodes = [json!({ "node": "edge-a", "joined": 10, "origin": "join-token", "machine": "h/1",
            "refused": { "machine": "h/2", "kept_address": "1.2.3.4", "at": 5 } })];
        let text = table(&nodes, 70);
        for part in ["edge-a", "join-token", "1m0s", "h/1", "refused: h/2"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
