//! `meshctl token`: join tokens in the state directory of a controller on this machine.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use mesh_ca::{NodeName, StateDir, TrustDomain};
use serde_json::json;

use crate::{
    Outcome,
    args::{self, Output, State, TokenCommand},
    output,
};

pub(crate) fn run(args: &args::Token) -> Result<Outcome> {
    match &args.command {
        TokenCommand::Create { node, ttl, controllers, state, output } => {
            create(node, ttl, controllers, state, *output)
        }
        TokenCommand::List { state, output } => list(state, *output),
        TokenCommand::Revoke { id, state } => {
            if !StateDir::new(&state.state_dir).tokens()?.remove(id)? {
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

fn create(node: &str, ttl: &str, controllers: &[String], state: &State, output: Output) -> Result<Outcome> {
    let seconds = istio_compat::duration::parse(ttl).context("--ttl")? / 1_000_000_000;
    let seconds = u64::try_from(seconds).ok().filter(|s| *s > 0).context("--ttl must be at least 1s")?;
    let node = NodeName::new(node).context("--node")?;
    let trust_domain = TrustDomain::new(&state.trust_domain).context("--trust-domain")?;
    let dir = StateDir::new(&state.state_dir);
    let authority = dir.authority(&trust_domain, now())?;
    let token = dir.tokens()?.create(&node, seconds, authority.fingerprint(), controllers.to_vec(), now())?;
    let text = token.encode();
    let value = json!({ "id": token.id, "node": node.as_str(), "expires": token.expires, "token": text });
    output::print(output.format, &value, || text)?;
    Ok(Outcome::Fine)
}

fn list(state: &State, output: Output) -> Result<Outcome> {
    let tokens = StateDir::new(&state.state_dir).tokens()?.list()?;
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

fn span(seconds: u64) -> String {
    istio_compat::duration::format_millis(seconds.saturating_mul(1000))
}
