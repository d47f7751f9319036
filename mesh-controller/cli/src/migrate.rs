//! `meshctl migrate edgemesh-values`: what EdgeMesh was told, as values of charts/mesh; and what has no counterpart, with
//! the reason. Reads the values of its charts and the configuration in its ConfigMaps.

mod edgemesh;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::{Outcome, args, args::Format, output};

/// What a setting became.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Became {
    /// A value of the chart.
    Value,
    /// A command, because it is about one node.
    Command,
    /// Nothing: the mesh does it by itself, or otherwise.
    Needless,
    /// Nothing: there is no counterpart.
    Nothing,
    /// Nothing: the key is not EdgeMesh's.
    Unknown,
}

/// One setting of EdgeMesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    /// Its key.
    setting: String,
    became: Became,
    /// What it became, or why it became nothing.
    text: String,
}

/// The result.
#[derive(Debug, Default, Serialize)]
struct Migration {
    values: Value,
    commands: Vec<String>,
    settings: Vec<Line>,
}

pub(crate) fn run(args: &args::Migrate) -> Result<Outcome> {
    let args::MigrateWhat::EdgemeshValues(args) = &args.what;
    let mut migration = Migration { values: Value::Object(serde_json::Map::new()), ..Migration::default() };
    for file in &args.files.files {
        let text = match file.as_os_str() == "-" {
            true => std::io::read_to_string(std::io::stdin()).context("read standard input")?,
            false => std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?,
        };
        for document in istio_compat::yaml::values(&text).with_context(|| file.display().to_string())? {
            if document.is_null() {
                continue;
            }
            if !document.is_object() {
                bail!("{}: not values of a chart", file.display());
            }
            edgemesh::translate(&document, &mut migration)?;
        }
    }
    if args.output.format == Format::Table {
        // Values on standard output, to be written into a file; what there is to say beside them.
        eprint!("{}", report(&migration));
        output::print(Format::Yaml, &migration.values, String::new)?;
    } else {
        output::print(args.output.format, &migration, String::new)?;
    }
    Ok(Outcome::Fine)
}

fn report(migration: &Migration) -> String {
    let mut text = String::new();
    for (became, title) in [
        (Became::Value, "Taken over:"),
        (Became::Command, "About one node; run:"),
        (Became::Needless, "Not needed:"),
        (Became::Nothing, "WITHOUT COUNTERPART:"),
        (Became::Unknown, "NOT A SETTING OF EDGEMESH:"),
    ] {
        let lines: Vec<&Line> = migration.settings.iter().filter(|l| l.became == became).collect();
        if lines.is_empty() {
            continue;
        }
        text.push_str(&format!("{title}\n"));
        for line in lines {
            text.push_str(&format!("  {}: {}\n", line.setting, line.text));
        }
    }
    text
}
