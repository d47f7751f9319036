//! `meshctl analyze`: what is wrong with objects when they are looked at together, in files or in a cluster.

mod cluster;

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use istio_compat::{
    analyze::{self, Level, Message, Options, World},
    yaml,
};
use serde_json::Value;

use crate::{
    Outcome,
    args::{self, Format},
    input, output,
};

/// The check that reads secrets.
const SECRETS: &str = "gateway.SecretAnalyzer";

pub(crate) fn run(args: &args::Analyze) -> Result<Outcome> {
    check_codes(&args.codes)?;
    let from_files = !args.files.is_empty();
    let mut world = World::new(Options {
        default_namespace: args.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        root_namespace: args.root_namespace.clone(),
        // A cluster shows the gateways that it has; a folder of rules does not.
        assume_ingress_gateway: from_files,
        now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64),
        mesh_config: settings(args.mesh_config.as_deref())?,
        mesh_networks: settings(args.mesh_networks.as_deref())?,
    });
    let mut secrets_are_known = true;
    if from_files {
        for object in input::objects(&args.files)? {
            let shown = format!("{} {}", object.text("/kind"), object.text("/metadata/name"));
            if !world.add(object.value) {
                eprintln!("meshctl: {}: {shown} is ignored", object.file);
            }
        }
    } else {
        secrets_are_known = cluster::read(&args.cluster, &mut world)?;
    }
    let by_code = !args.codes.is_empty();
    let mut messages =
        analyze::run(&world, |a| (secrets_are_known || a.name != SECRETS) && (a.by_default || by_code));
    messages.retain(|m| !by_code || args.codes.iter().any(|c| c.eq_ignore_ascii_case(m.code)));
    if let Some(namespace) = args.namespace.as_ref().filter(|_| !args.all_namespaces) {
        messages.retain(|m| m.namespace.is_empty() || m.namespace == *namespace);
    }
    if args.output.format == Format::Table {
        output::print(Format::Table, &(), || lines(&messages))?;
    } else {
        output::print(args.output.format, &messages, String::new)?;
    }
    let failed = messages.iter().any(|m| m.level == Level::Error);
    Ok(if failed { Outcome::Findings } else { Outcome::Fine })
}

fn check_codes(codes: &[String]) -> Result<()> {
    for code in codes {
        if !analyze::CODES.iter().any(|c| c.code.eq_ignore_ascii_case(code)) {
            bail!("--codes: there is no code {code}");
        }
    }
    Ok(())
}

fn settings(path: Option<&Path>) -> Result<Value> {
    let Some(path) = path else { return Ok(Value::Null) };
    let text = input::text(path)?;
    let values = yaml::values(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(values.into_iter().next().unwrap_or_default())
}

/// As `istioctl analyze` prints.
fn lines(messages: &[Message]) -> String {
    if messages.is_empty() {
        return "Nothing to complain about.\n".to_owned();
    }
    let line = |m: &Message| {
        let place = if m.path.is_empty() { String::new() } else { format!(" {}", m.path) };
        format!("{} [{}] ({}{place}) {}\n", m.level.as_str(), m.code, m.resource, m.message)
    };
    messages.iter().map(line).collect()
}
