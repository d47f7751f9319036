//! Every example of every `--help`, and of docs/meshctl.md, is a command that meshctl takes; every command has one; completion
//! knows all of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::{collections::BTreeSet, path::Path};

use clap::{Command, CommandFactory, Parser};
use meshctl::args::Args;

/// The `meshctl ...` of a line, as a shell splits it.
fn words(line: &str) -> Option<Vec<String>> {
    let line = &line[line.find("meshctl ")?..];
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(q)) if c == q => quote = None,
            ('|' | '>' | '#' | ';', None) => break,
            (' ', None) => {
                // Two spaces: what it does follows.
                if word.is_empty() && words.last().is_some() {
                    break;
                }
                words.push(std::mem::take(&mut word));
            }
            (c, _) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    Some(words)
}

fn check(from: &str, line: &str) -> Option<String> {
    let words = words(line)?;
    if let Err(error) = Args::try_parse_from(&words) {
        panic!("{from}: {line:?} as {words:?}: {error}");
    }
    words.get(1).cloned()
}

/// All commands that do something, with the names of those above them.
fn all<'c>(command: &'c Command, path: &str, found: &mut Vec<(String, &'c Command)>) {
    for sub in command.get_subcommands() {
        let path = format!("{path} {}", sub.get_name());
        found.push((path.clone(), sub));
        all(sub, &path, found);
    }
}

#[test]
fn examples_of_help_are_commands_and_every_command_has_one() {
    let command = Args::command();
    let mut found = vec![("meshctl".to_owned(), &command)];
    all(&command, "meshctl", &mut found);
    let mut lacking = Vec::new();
    for (path, command) in &found {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples = after.split_once("Example").map(|(_, e)| e.to_owned()).unwrap_or_default();
        let lines =
            examples.lines().filter(|l| l.trim_start().starts_with("meshctl ") || l.contains("| meshctl "));
        let count = lines.filter_map(|line| check(path, line)).count();
        let leaf = command.get_subcommands().next().is_none();
        if leaf && count == 0 {
            lacking.push(path.clone());
        }
    }
    // Shown with the command above them.
    let shown = [
        "meshctl token list",
        "meshctl proxy services",
        "meshctl proxy routes",
        "meshctl proxy endpoints",
        "meshctl proxy peers",
        "meshctl proxy status",
    ];
    lacking.retain(|path| !shown.contains(&path.as_str()));
    assert!(lacking.is_empty(), "without an example: {lacking:?}");
}

#[test]
fn the_page_shows_every_command_by_an_example_that_is_one() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/meshctl.md");
    let text = std::fs::read_to_string(page).unwrap();
    let mut shown = BTreeSet::new();
    let mut code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            code = line == "```sh";
        } else if code && line.starts_with("meshctl ") {
            shown.extend(check("docs/meshctl.md", line));
        }
    }
    for command in Args::command().get_subcommands() {
        assert!(
            shown.contains(command.get_name()),
            "docs/meshctl.md has no example of {}",
            command.get_name()
        );
    }
}

#[test]
fn completion_knows_all_commands() {
    for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
        let (mut command, mut script) = (Args::command(), Vec::new());
        clap_complete::generate(shell, &mut command, "meshctl", &mut script);
        let script = String::from_utf8(script).unwrap();
        for command in Args::command().get_subcommands() {
            assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
        }
    }
}
