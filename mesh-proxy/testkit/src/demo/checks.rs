//! What the demo prints, and the table that it ends with.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use crate::{bins, lab::World};

/// The demo's output.
#[derive(Debug)]
pub(super) struct Screen {
    colour: bool,
    step: u32,
    checks: Vec<Check>,
}

#[derive(Debug)]
struct Check {
    what: String,
    ok: bool,
    figure: String,
}

impl Screen {
    pub(super) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, step: 0, checks: Vec::new() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn print(text: &str) {
        // A reader that closes early is no error of ours.
        let _reader_gone = writeln!(std::io::stdout(), "{text}");
    }

    /// Begins a step.
    pub(super) fn step(&mut self, title: &str) {
        self.step += 1;
        Self::print(&format!("\n{}", self.paint("1;36", &format!("{}. {title}", self.step))));
    }

    /// Says something.
    pub(super) fn say(&self, text: &str) {
        for line in text.lines() {
            Self::print(&format!("   {line}"));
        }
    }

    /// Shows a command as a person would type it.
    pub(super) fn command(&self, at: &str, text: &str) {
        Self::print(&format!("   {} {}", self.paint("2", &format!("{at} $")), self.paint("33", text)));
    }

    /// Notes whether something holds.
    pub(super) fn check(&mut self, what: &str, ok: bool, figure: &str) {
        let mark = if ok { self.paint("32", "ok    ") } else { self.paint("1;31", "FAILED") };
        Self::print(&format!("   {mark} {what}: {figure}"));
        self.checks.push(Check { what: what.to_owned(), ok, figure: figure.to_owned() });
    }

    /// Prints all checks; true when all hold.
    pub(super) fn table(&self, took: Duration) -> bool {
        let width = self.checks.iter().map(|c| c.what.chars().count()).max().unwrap_or(0);
        Self::print(&format!("\n{}", self.paint("1;36", "Checks")));
        for check in &self.checks {
            let mark = if check.ok { self.paint("32", "ok    ") } else { self.paint("1;31", "FAILED") };
            Self::print(&format!("   {mark} {:width$}  {}", check.what, check.figure));
        }
        Self::print(&format!("   in {:.1} s", took.as_secs_f64()));
        self.checks.iter().all(|c| c.ok)
    }

    /// The line that programs read.
    pub(super) fn last_line(&self) {
        let failed = self.checks.iter().filter(|c| !c.ok).count();
        Self::print(&format!("demo: {} passed, {failed} failed, 0 skipped", self.checks.len() - failed));
    }

    /// What can be done with a world that is left up.
    pub(super) fn keep_help(&self, world: &World) {
        let name = &world.spec().name;
        let program =
            |name: &str| bins::find(name).map_or_else(|_| name.to_owned(), |p| p.display().to_string());
        let (lab, echo) = (program("lab"), program("echo"));
        Self::print(&format!("\n{}", self.paint("1;36", "The world stays up")));
        for line in [
            format!("{lab} -w {name} status"),
            format!("{lab} -w {name} heal    # the cloud is back"),
            format!("{lab} -w {name} exec shopper -- {echo} call http://reviews:9080/reviews/0 -n 20"),
            format!("{lab} -w {name} exec edge-a -- {echo} call http://127.0.0.1:15020/metrics"),
            format!("rules: {}", world.dir().join("data/source").display()),
            format!("{lab} -w {name} down"),
        ] {
            self.say(&line);
        }
    }
}
