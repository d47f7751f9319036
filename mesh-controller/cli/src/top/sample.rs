//! Prometheus' text form, as far as our own programs write it.

/// Lines that are looked at; a proxy writes fewer than 60,000.
const MOST: usize = 1_000_000;

/// One series at one time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Series {
    pub(crate) fn label(&self, key: &str) -> &str {
        self.labels.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }
}

/// All series; lines that are none are left out.
pub(crate) fn parse(text: &str) -> Vec<Series> {
    text.lines().take(MOST).filter(|l| !l.starts_with('#')).filter_map(line).collect()
}

fn line(line: &str) -> Option<Series> {
    let at = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(at);
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = value.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Series { name: name.to_owned(), labels, value })
}

/// The labels, and what follows the brace.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, quoted) = rest.split_once("=\"")?;
        let (mut value, mut chars) = (String::new(), quoted.char_indices());
        rest = loop {
            match chars.next()? {
                (at, '"') => break quoted.get(at + 1..)?,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    c => value.push(c),
                },
                (_, c) => value.push(c),
            }
        };
        labels.push((key.to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_with_what_labels_may_hold() {
        let text = "# HELP a b\n# TYPE a counter\na 1\na{x=\"1\",y=\"a } \\\"b\\\" \\n\"} 2.5e3\nb{} NaN\nbroken\nc{x=\"} 1\n";
        let all = parse(text);
        assert_eq!(all.len(), 3, "{all:?}");
        assert_eq!((all[0].value, all[1].value, all[1].label("x")), (1.0, 2500.0, "1"));
        assert_eq!(all[1].label("y"), "a } \"b\" \n");
        assert!(all[2].value.is_nan());
    }
}
