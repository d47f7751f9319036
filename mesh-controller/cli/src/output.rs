//! Printing results. A machine format is one document on standard output and nothing else.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::args::Format;

/// Prints a result in the format that was asked for; `table` is called for people only.
pub(crate) fn print<T: Serialize>(format: Format, value: &T, table: impl FnOnce() -> String) -> Result<()> {
    let mut text = match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(value).context("print as JSON")?,
        Format::Yaml => serde_saphyr::to_string(value).context("print as YAML")?,
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("print"),
    }
}

/// Rows as columns, padded.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let head: Vec<String> = head.iter().map(|h| h.to_uppercase()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let pad = width.saturating_sub(cell.chars().count()) + 2;
            line.push_str(cell);
            line.push_str(&" ".repeat(pad));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
