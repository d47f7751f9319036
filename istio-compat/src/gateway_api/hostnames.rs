//! Which host names meet: a route's, a listener's.

fn suffix(pattern: &str) -> Option<&str> {
    pattern.strip_prefix('*')
}

/// Whether some name is covered by both; an empty name covers nothing but itself.
pub(crate) fn overlap(a: &str, b: &str) -> bool {
    subset(a, b) || subset(b, a)
}

/// Whether `covering` covers every name that `name` covers.
pub(crate) fn subset(name: &str, covering: &str) -> bool {
    match (suffix(name), suffix(covering)) {
        (Some(n), Some(c)) => n.len() >= c.len() && n.ends_with(c),
        (Some(_), None) => false,
        (None, Some(c)) => name.ends_with(c),
        (None, None) => name == covering,
    }
}

/// The narrower of each pair that meets, each once, in the order of `a`.
pub(crate) fn intersection(a: &[String], b: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for x in a {
        for y in b {
            let narrower = if subset(x, y) {
                x
            } else if subset(y, x) {
                y
            } else {
                continue;
            };
            if !out.contains(narrower) {
                out.push(narrower.clone());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrower_names_win() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(intersection(&list(&["a.com", "*.net"]), &list(&["*.com", "b.net"])), ["a.com", "b.net"]);
        assert_eq!(intersection(&list(&["*.net"]), &list(&["*.b.net"])), ["*.b.net"]);
        assert!(intersection(&list(&["a.com"]), &list(&["b.com"])).is_empty());
        assert!(overlap("*", "*.com") && overlap("a.b.com", "*.com") && !overlap("*.com", "com"));
        assert!(subset("*.a.com", "*.com") && !subset("*.com", "*.a.com") && !subset("*.com", "a.com"));
    }
}
