//! Paths: dot segments and the query.

use std::borrow::Cow;

/// The path without its query, and the query with its question mark.
pub fn split_query(path_and_query: &str) -> (&str, &str) {
    let at = path_and_query.find('?').unwrap_or(path_and_query.len());
    path_and_query.split_at(at)
}

/// Removes dot segments from the path as RFC 3986 §5.2.4 says; leaves the query, `//` and `%2F` as they are. Nothing
/// is copied when there is nothing to remove. A path that is not absolute (`*`, CONNECT) stays as it is.
pub fn normalize(path_and_query: &str) -> Cow<'_, str> {
    let (path, query) = split_query(path_and_query);
    if !path.starts_with('/') || !has_dot_segment(path) {
        return Cow::Borrowed(path_and_query);
    }
    let mut out = String::with_capacity(path_and_query.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => out.push('/'),
            "." => {}
            ".." => {
                out.truncate(out.rfind('/').unwrap_or(0));
                if last {
                    out.push('/');
                }
            }
            s => {
                out.push('/');
                out.push_str(s);
            }
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    out.push_str(query);
    Cow::Owned(out)
}

fn has_dot_segment(path: &str) -> bool {
    let b = path.as_bytes();
    // Almost every path is settled by the first test.
    b.windows(2).any(|w| w == b"/.") && path.split('/').any(|s| s == "." || s == "..")
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
