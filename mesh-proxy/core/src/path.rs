//! Paths: dot segments and the query.

use std::borrow::Cow;

/// The path without its query, and the query with its question mark.
pub fn split_query(path_and_query: &str) -> (&str, &str) {
    let at = path_and_query.find('?').unwrap_or(path_and_query.len());
    path_and_query.split_at(at)
}

/// Removes dot segments from the path as RFC 3986 §5.2.4 says, and as Envoy does: a dot may be spelled `%2e`, and a
/// backslash is a slash. Leaves the query, `//` and `%2F` as they are. Nothing is copied when there is nothing to change.
/// A path that is not absolute (`*`, CONNECT) stays as it is.
pub fn normalize(path_and_query: &str) -> Cow<'_, str> {
    let (path, query) = split_query(path_and_query);
    if !path.starts_with('/') || !needs_work(path) {
        return Cow::Borrowed(path_and_query);
    }
    let mut out = String::with_capacity(path_and_query.len());
    let mut segments = path[1..].split(['/', '\\']).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            Some(1) if last => out.push('/'),
            Some(1) => {}
            Some(_) => {
                out.truncate(out.rfind('/').unwrap_or(0));
                if last {
                    out.push('/');
                }
            }
            None => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    out.push_str(query);
    Cow::Owned(out)
}

fn needs_work(path: &str) -> bool {
    let b = path.as_bytes();
    // Almost every path is settled by the first tests.
    let suspicious = |w: &[u8]| w == b"/." || w[0] == b'\\' || w == b"%2";
    (b.windows(2).any(suspicious) || b.last() == Some(&b'\\'))
        && (b.contains(&b'\\') || path.split('/').any(|s| dots(s).is_some()))
}

/// How many dots a dot segment has.
fn dots(segment: &str) -> Option<usize> {
    let mut rest = segment.as_bytes();
    let mut count = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return None,
        };
        count += 1;
    }
    (1..=2).contains(&count).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_segments_go_and_all_else_stays() {
        for (from, to) in [
            ("/a/b/c/./../../g", "/a/g"),
            ("/../a", "/a"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/.", "/"),
            ("/..", "/"),
            ("/a//../b", "/a/b"),
            ("/a//b", "/a//b"),
            ("/a/.hidden/..x", "/a/.hidden/..x"),
            ("/a%2F../b", "/a%2F../b"),
            ("/x/../y?q=/../z", "/y?q=/../z"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b/%2E", "/b/"),
            ("/a%2eb/.%2e%2e/c", "/a%2eb/.%2e%2e/c"),
            ("/a/..\\c\\d", "/c/d"),
            ("/a\\", "/a/"),
            ("/a?x=\\..", "/a?x=\\.."),
            ("*", "*"),
            ("/", "/"),
            ("", ""),
        ] {
            assert_eq!(normalize(from), to, "{from}");
            assert_eq!(normalize(&normalize(from)), to, "again {from}");
        }
        assert!(matches!(normalize("/plain/path.html?x=../"), Cow::Borrowed(_)));
    }
}
