//! `meshctl token`: join tokens, in the state directory of a controller on this machine or in a cluster.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use mesh_ca::NodeName;
use serde_json::json;

use crate::{
    Outcome,
    args::{self, Output, Place, TokenCommand},
    output, place,
};

pub(crate) fn run(args: &args::Token) -> Result<Outcome> {
    match &args.command {
        TokenCommand::Create { node, ttl, controllers, place, output } => {
            create(node, ttl, controllers, place, *output)
        }
        TokenCommand::List { place, output } => list(place, *output),
        TokenCommand::Revoke { id, place } => {
            if !place::open(place)?.tokens()?.remove(id)? {
                bail!("no token has the id {id}");
            }
            eprintln!("token {id} is revoked");
            Ok(Outcome::Fine)
        }
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn create(node: &str, ttl: &str, controllers: &[String], place: &Place, output: Output) -> Result<Outcome> {
    let seconds = istio_compat::duration::parse(ttl).context("--ttl")? / 1_000_000_000;
    let seconds = u64::try_from(seconds).ok().filter(|s| *s > 0).context("--ttl must be at least 1s")?;
    let node = NodeName::new(node).context("--node")?;
    let state = place::open(place)?;
    let (ca, tokens) = (state.ca_sha256(now())?, state.tokens()?);
    let token = tokens.create(&node, seconds, ca, controllers.to_vec(), now())?;
    let text = token.encode();
    let value = json!({ "id": token.id, "node": node.as_str(), "expires": token.expires, "token": text });
    output::print(output.format, &value, || text)?;
    Ok(Outcome::Fine)
}

fn list(place: &Place, output: Output) -> Result<Outcome> {
    let tokens = place::open(place)?.tokens()?.list()?;
    let now = now();
    let table = || {
        let rows: Vec<_> = tokens
            .iter()
            .map(|t| {
                let state = match t.used {
                    Some(at) => format!("used {} ago", span(now.saturating_sub(at))),
                    None if t.expires <= now => "expired".to_owned(),
                    None => format!("open, {} left", span(t.expires - now)),
                };
                vec![t.id.clone(), t.node.clone(), span(now.saturating_sub(t.created)), state]
            })
            .collect();
        output::table(&["id", "node", "age", "state"], &rows)
    };
    output::print(output.format, &tokens, table)?;
    Ok(Outcome::Fine)
}

pub(crate) fn span(seconds: u64) -> String {
    istio_compat::duration::format_millis(seconds.saturating_mul(1000))
}
