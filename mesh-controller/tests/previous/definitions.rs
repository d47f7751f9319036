//! As much of a `.proto` file as decides what is on the wire.

use std::collections::BTreeMap;

/// What each number of each message, each value of each enumeration, and each method means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Definitions(BTreeMap<String, String>);

impl Definitions {
    pub(crate) fn read(text: &str) -> Self {
        let bare: String =
            text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
        let mut spaced = String::new();
        for c in bare.chars() {
            if "{};=<>,()[]".contains(c) {
                spaced.extend([' ', c, ' ']);
            } else {
                spaced.push(c);
            }
        }
        let mut found = Self::default();
        // Where we are, and what kind of block that is.
        let mut blocks: Vec<(&str, &str)> = Vec::new();
        let mut statement: Vec<&str> = Vec::new();
        for word in spaced.split_whitespace() {
            match word {
                "{" => {
                    blocks.push((statement[0], statement.get(1).copied().unwrap_or_default()));
                    statement.clear();
                }
                "}" => _ = blocks.pop(),
                ";" => {
                    found.note(&blocks, &statement);
                    statement.clear();
                }
                word => statement.push(word),
            }
        }
        found
    }

    fn note(&mut self, blocks: &[(&str, &str)], statement: &[&str]) {
        // Which of several fields is set does not show on the wire.
        let names = blocks.iter().filter(|(kind, _)| *kind != "oneof").map(|(_, name)| *name);
        let path = names.collect::<Vec<_>>().join(".");
        match (blocks.last().map(|(kind, _)| *kind), statement) {
            (Some("service"), ["rpc", name, rest @ ..]) => {
                self.0.insert(format!("{path}.{name}"), rest.join(""));
            }
            (Some("message" | "enum" | "oneof"), [first, ..]) if !["reserved", "option"].contains(first) => {
                let Some(at) = statement.iter().position(|w| *w == "=") else { return };
                let (number, what) = (statement[at + 1], statement[..at - 1].join(" "));
                // Of a value the number is its meaning; a field may be called otherwise.
                let what = if blocks.last().is_some_and(|(kind, _)| *kind == "enum") {
                    statement[0].to_owned()
                } else {
                    what
                };
                self.0.insert(format!("{path} = {number}"), what);
            }
            _ => {}
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What is not there any more, or means something else.
    pub(crate) fn lost_in(&self, new: &Self) -> Vec<String> {
        let lost = self.0.iter().filter_map(|(what, meaning)| match new.0.get(what) {
            Some(now) if now == meaning => None,
            Some(now) => Some(format!("{what}: {meaning:?} has become {now:?}")),
            None => Some(format!("{what}: {meaning:?} is gone")),
        });
        lost.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "message A { string name = 1; // its name
        oneof kind { B b = 2; } map<string, int32> m = 3 [deprecated = true];
        message B { repeated uint32 x = 1; } enum E { E_A = 0; E_B = 1; } }
        service S { rpc Get(A) returns (stream A); }";

    #[test]
    fn what_grows_is_fine_and_what_changes_is_said() {
        let old = Definitions::read(OLD);
        assert_eq!(old.len(), 7, "{old:?}");
        let more = OLD.replace("string name = 1;", "string title = 1; string more = 9;");
        assert!(old.lost_in(&Definitions::read(&more)).is_empty());
        for (what, instead) in [
            ("string name = 1;", "bytes name = 1;"),
            ("string name = 1;", "string name = 4;"),
            ("repeated uint32 x", "uint32 x"),
            ("E_B = 1", "E_C = 1"),
            ("stream A", "A"),
            ("B b = 2;", ""),
            ("int32> m", "int64> m"),
        ] {
            let lost = old.lost_in(&Definitions::read(&OLD.replace(what, instead)));
            assert_eq!(lost.len(), 1, "{what} to {instead}: {lost:?}");
        }
    }
}
