//! The matrix as a whole.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Args, Cell, MatrixKind, Transport, UPGRADE, limit};

/// All cells, and what they say together.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    cells: Vec<Cell>,
    checks: Vec<Check>,
    skipped: usize,
}

#[derive(Clone, Debug, Serialize)]
struct Check {
    what: String,
    ok: bool,
    figure: String,
}

/// Share of punched pairs that must need one attempt.
const FIRST_ATTEMPT: f64 = 0.95;

impl Summary {
    /// Adds the cells of one transport.
    pub fn add(&mut self, args: &Args, transport: Transport, cells: Vec<Cell>) {
        let name = transport.as_str();
        let mut upgrades: Vec<f64> = cells.iter().filter_map(|c| c.upgrade_ms).collect();
        upgrades.sort_by(f64::total_cmp);
        if let Some(median) = upgrades.get(upgrades.len() / 2) {
            self.checks.push(Check {
                what: format!("{name}: median upgrade within {} s", UPGRADE.as_secs()),
                ok: *median < limit(args, UPGRADE),
                figure: format!("{median:.0} ms of {}", upgrades.len()),
            });
        }
        let attempts: Vec<u64> =
            cells.iter().filter(|c| c.reached == "punched").filter_map(|c| c.attempts).collect();
        if !attempts.is_empty() {
            let first = attempts.iter().filter(|a| **a == 1).count();
            self.checks.push(Check {
                what: format!("{name}: punches that succeed at the first attempt, at least 95 %"),
                ok: first as f64 >= FIRST_ATTEMPT * attempts.len() as f64,
                figure: format!("{first} of {}", attempts.len()),
            });
        }
        self.cells.extend(cells);
    }

    /// Notes the cells that a transport does not have.
    pub fn skip(&mut self, kinds: &[MatrixKind], transport: Transport) {
        let here = kinds.iter().filter(|k| k.skipped(transport).is_none()).count();
        self.skipped += kinds.len() * kinds.len() - here * here;
    }

    /// Checks that do not hold.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.cells.iter().filter(|c| !c.ok()).count() + self.checks.iter().filter(|c| !c.ok).count()
    }

    fn passed(&self) -> usize {
        self.cells.len() + self.checks.len() - self.failed()
    }

    /// The cells.
    #[must_use]
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The line that programs read.
    #[must_use]
    pub fn last_line(&self) -> String {
        format!("nat-matrix: {} passed, {} failed, {} skipped", self.passed(), self.failed(), self.skipped)
    }

    pub(super) fn print(&self, took: Duration) {
        println!();
        let cold: Vec<String> = (self.cells.iter())
            .filter_map(|c| Some(format!("{} → {} {:.0} ms", c.from.as_str(), c.to.as_str(), c.cold_ms?)))
            .collect();
        if !cold.is_empty() {
            println!("first byte of proxies that had just started: {}", cold.join(", "));
        }
        let mut busy: Vec<f64> = self.cells.iter().map(|c| c.busy).collect();
        busy.sort_by(f64::total_cmp);
        if let Some(median) = busy.get(busy.len() / 2) {
            println!(
                "half of the time this machine was {median:.1} times slower than an idle one; limits are stretched by that"
            );
        }
        for check in &self.checks {
            println!("{} {}: {}", if check.ok { "ok    " } else { "FAILED" }, check.what, check.figure);
        }
        for cell in self.cells.iter().filter(|c| !c.ok()) {
            println!("{}", cell.line());
        }
        println!("in {:.0} s", took.as_secs_f64());
        println!("{}", self.last_line());
    }

    pub(super) fn json(&self, took: Duration) -> Value {
        json!({
            "cells": self.cells, "checks": self.checks, "seconds": took.as_secs_f64(),
            "passed": self.passed(), "failed": self.failed(), "skipped": self.skipped,
        })
    }
}
