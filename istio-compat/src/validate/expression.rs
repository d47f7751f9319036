//! Whether a text is an expression in the common expression language. Only its form counts: which names there are, and
//! of which types, is known to whoever evaluates it.

/// Deepest nesting; nobody writes more, and each level costs stack.
const MAX_DEPTH: usize = 64;

/// Whether the whole text is one expression.
pub(super) fn is_well_formed(text: &str) -> bool {
    let Some(tokens) = tokens(text) else { return false };
    let mut p = Parser { tokens: &tokens, at: 0, depth: 0 };
    p.expression().is_some() && p.at == tokens.len()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'a> {
    Name(&'a str),
    Literal,
    Sign(&'a str),
}

const SIGNS: [&str; 26] = [
    "||", "&&", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}", "=", "&",
];

fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if let Some(comment) = rest.strip_prefix("//") {
            2 + comment.find('\n').unwrap_or(comment.len())
        } else if let Some(length) = string(rest) {
            out.push(Token::Literal);
            length?
        } else if first.is_ascii_digit() {
            out.push(Token::Literal);
            number(rest)
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            out.push(Token::Name(&rest[..end]));
            end
        } else {
            let sign = SIGNS.into_iter().find(|s| rest.starts_with(s))?;
            out.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest.get(length..)?.trim_start();
    }
    Some(out)
}

/// Length of a number: `1`, `1.5e-3`, `0x1F`, `7u`.
fn number(text: &str) -> usize {
    let mut before = ' ';
    text.find(|c: char| {
        let exponent = matches!(c, '+' | '-') && matches!(before, 'e' | 'E');
        before = c;
        !c.is_ascii_alphanumeric() && c != '.' && !exponent
    })
    .unwrap_or(text.len())
}

/// Length of a quoted text that begins here, its prefixes included: `"a"`, `'b'`, `r"c"`, `b'''d'''`. The inner `None` is
/// one without an end.
fn string(text: &str) -> Option<Option<usize>> {
    let start = text.find(['"', '\''])?;
    let prefix = &text[..start];
    if start > 2 || !prefix.chars().all(|c| "rRbB".contains(c)) {
        return None;
    }
    let raw = prefix.contains(['r', 'R']);
    let (quoted, one) = (&text[start..], &text[start..=start]);
    let quote = if quoted.starts_with(&one.repeat(3)) { one.repeat(3) } else { one.to_owned() };
    let mut at = quote.len();
    Some(loop {
        let Some(rest) = quoted.get(at..).filter(|r| !r.is_empty()) else { break None };
        if rest.starts_with(&quote) {
            break Some(start + at + quote.len());
        }
        let next = rest.chars().next().map_or(1, char::len_utf8);
        at += if rest.starts_with('\\') && !raw {
            1 + rest[1..].chars().next().map_or(1, char::len_utf8)
        } else {
            next
        };
    })
}

struct Parser<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn takes(&mut self, sign: &str) -> bool {
        let hit = self.tokens.get(self.at) == Some(&Token::Sign(sign));
        self.at += usize::from(hit);
        hit
    }

    fn needs(&mut self, sign: &str) -> Option<()> {
        self.takes(sign).then_some(())
    }

    fn expression(&mut self) -> Option<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.binary()?;
        if self.takes("?") {
            self.binary()?;
            self.needs(":")?;
            self.expression()?;
        }
        self.depth -= 1;
        Some(())
    }

    /// Which operator binds closer does not decide what is well formed.
    fn binary(&mut self) -> Option<()> {
        const OPERATORS: [&str; 13] = ["||", "&&", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%"];
        loop {
            while self.takes("!") || self.takes("-") {}
            self.member()?;
            let is_in = self.tokens.get(self.at) == Some(&Token::Name("in"));
            self.at += usize::from(is_in);
            if !is_in && !OPERATORS.iter().any(|o| self.takes(o)) {
                return Some(());
            }
        }
    }

    fn member(&mut self) -> Option<()> {
        self.primary()?;
        loop {
            if self.takes(".") {
                self.name()?;
                if self.takes("(") {
                    self.list(")")?;
                }
            } else if self.takes("[") {
                self.expression()?;
                self.needs("]")?;
            } else {
                return Some(());
            }
        }
    }

    fn name(&mut self) -> Option<()> {
        let Token::Name(name) = self.tokens.get(self.at)? else { return None };
        self.at += 1;
        (*name != "in").then_some(())
    }

    fn primary(&mut self) -> Option<()> {
        if self.takes("(") {
            self.expression()?;
            return self.needs(")");
        }
        if self.takes("[") {
            return self.list("]");
        }
        if self.takes("{") {
            return self.pairs();
        }
        if self.tokens.get(self.at) == Some(&Token::Literal) {
            self.at += 1;
            return Some(());
        }
        self.takes(".");
        self.name()?;
        if self.takes("(") { self.list(")") } else { Some(()) }
    }

    fn list(&mut self, end: &str) -> Option<()> {
        if self.takes(end) {
            return Some(());
        }
        loop {
            self.expression()?;
            if self.takes(end) {
                return Some(());
            }
            self.needs(",")?;
        }
    }

    fn pairs(&mut self) -> Option<()> {
        if self.takes("}") {
            return Some(());
        }
        loop {
            self.expression()?;
            self.needs(":")?;
            self.expression()?;
            if self.takes("}") {
                return Some(());
            }
            self.needs(",")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for good in [
            "response.code >= 400",
            "response.code >= 400 && (request.url_path.startsWith('/a') || !has(request.headers['x']))",
            "connection.mtls",
            "request.headers[\"a\\\"b\"] == r'\\d' ? 1 : -2.5e-3",
            "'a' in ['a', \"b\"]",
            "{'a': 1}['a'] == 1u",
            "xds.route_name != ''",
            "!true",
            "a == b // why",
            "\"\"\"three \" quotes\"\"\" == x",
        ] {
            assert!(is_well_formed(good), "{good}");
        }
        for bad in [
            "",
            "a &&",
            "response.code >=",
            "(a",
            "a b",
            "a = b",
            "a & b",
            "'open",
            "f(a,",
            "a ? b",
            "a..b",
            "@",
        ] {
            assert!(!is_well_formed(bad), "{bad}");
        }
        assert!(!is_well_formed(&"(".repeat(10_000)));
    }
}
