//! From text to an expression, by recursive descent with a bound on depth.

use super::{Attribute, BadExpression, MAX_DEPTH, MAX_LENGTH, NAMES, Node, Operand, Operator, Test};
use crate::strings;

pub(super) fn parse(text: &str) -> Result<Node> {
    let mut p = Parser { text, at: 0, depth: 0 };
    if text.len() > MAX_LENGTH {
        return Err(p.bad(&format!("longer than {MAX_LENGTH} bytes")));
    }
    let node = p.either()?;
    p.blanks();
    if p.at < text.len() {
        return Err(p.bad("the end was expected"));
    }
    Ok(node)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

type Result<T> = std::result::Result<T, BadExpression>;

impl<'a> Parser<'a> {
    fn bad(&self, reason: &str) -> BadExpression {
        BadExpression { at: self.at, reason: reason.to_owned() }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    /// Takes a token if it is next.
    fn takes(&mut self, token: &str) -> bool {
        self.blanks();
        let hit = self.rest().starts_with(token);
        self.at += if hit { token.len() } else { 0 };
        hit
    }

    fn needs(&mut self, token: &str) -> Result<()> {
        if self.takes(token) { Ok(()) } else { Err(self.bad(&format!("{token:?} was expected"))) }
    }

    fn either(&mut self) -> Result<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.bad("nested too deeply"));
        }
        let mut node = self.both()?;
        while self.takes("||") {
            node = Node::Or(Box::new(node), Box::new(self.both()?));
        }
        self.depth -= 1;
        Ok(node)
    }

    fn both(&mut self) -> Result<Node> {
        let mut node = self.one()?;
        while self.takes("&&") {
            node = Node::And(Box::new(node), Box::new(self.one()?));
        }
        Ok(node)
    }

    fn one(&mut self) -> Result<Node> {
        self.blanks();
        if self.rest().starts_with('!') && !self.rest().starts_with("!=") {
            self.at += 1;
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(self.bad("nested too deeply"));
            }
            let node = self.one()?;
            self.depth -= 1;
            return Ok(Node::Not(Box::new(node)));
        }
        if self.takes("(") {
            let node = self.either()?;
            self.needs(")")?;
            return Ok(node);
        }
        if let Some(node) = self.constant() {
            return Ok(node);
        }
        if self.takes("has(") {
            let name = self.word();
            let attribute = self.attribute(name)?;
            self.needs(")")?;
            return Ok(Node::Has(attribute));
        }
        let left = self.operand()?;
        if let Operand::Attribute(_) = left
            && self.takes(".")
        {
            return self.call(left);
        }
        let Some(operator) = self.operator() else { return Err(self.bad("a comparison was expected")) };
        Ok(Node::Compare(operator, left, self.operand()?))
    }

    fn constant(&mut self) -> Option<Node> {
        for (word, value) in [("true", true), ("false", false)] {
            let after = self.rest().strip_prefix(word);
            if after
                .is_some_and(|a| !a.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.'))
            {
                self.at += word.len();
                return Some(Node::Constant(value));
            }
        }
        None
    }

    fn call(&mut self, on: Operand) -> Result<Node> {
        let name = self.word();
        self.needs("(")?;
        let argument = self.quoted()?;
        self.needs(")")?;
        let test = match name {
            "startsWith" => Test::StartsWith,
            "endsWith" => Test::EndsWith,
            "contains" => Test::Contains,
            "matches" => {
                let regex = strings::anywhere(&argument).map_err(|e| self.bad(&e.to_string()))?;
                return Ok(Node::Matches(on, regex));
            }
            other => return Err(self.bad(&format!("function {other:?} is not known"))),
        };
        Ok(Node::Test(test, on, argument.into()))
    }

    fn operator(&mut self) -> Option<Operator> {
        let all = [
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        all.into_iter().find(|(token, _)| self.takes(token)).map(|(_, op)| op)
    }

    fn operand(&mut self) -> Result<Operand> {
        self.blanks();
        match self.rest().chars().next() {
            Some('\'' | '"') => Ok(Operand::Text(self.quoted()?.into())),
            Some(c) if c.is_ascii_digit() || c == '-' => self.number(),
            _ if self.takes("duration(") => {
                let text = self.quoted()?;
                self.needs(")")?;
                match millis(&text) {
                    Some(ms) => Ok(Operand::Number(ms)),
                    None => Err(self.bad(&format!("{text:?} is not a duration"))),
                }
            }
            _ => {
                let name = self.path();
                self.attribute(name).map(Operand::Attribute)
            }
        }
    }

    fn number(&mut self) -> Result<Operand> {
        let digits = self.rest().strip_prefix('-').unwrap_or(self.rest());
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let len = self.rest().len() - digits.len() + end;
        let parsed = self.rest()[..len].parse();
        let Ok(n) = parsed else { return Err(self.bad("a number was expected")) };
        self.at += len;
        Ok(Operand::Number(n))
    }

    fn quoted(&mut self) -> Result<String> {
        self.blanks();
        let Some(quote) = self.rest().chars().next().filter(|c| matches!(c, '\'' | '"')) else {
            return Err(self.bad("a text was expected"));
        };
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => out.extend(chars.next().map(|(_, c)| c)),
                c => out.push(c),
            }
        }
        Err(self.bad("the text has no end"))
    }

    /// Letters, digits, `_` and dots.
    fn word(&mut self) -> &'a str {
        self.blanks();
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')));
        let word = &rest[..end.unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// The longest known attribute here: what follows a dot may be a function.
    fn path(&mut self) -> &'a str {
        let start = self.at;
        let word = self.word();
        let known = NAMES
            .iter()
            .map(|(n, _)| *n)
            .filter(|n| word == *n || word.strip_prefix(n).is_some_and(|after| after.starts_with('.')));
        if let Some(name) = known.max_by_key(|n| n.len()) {
            self.at = start + name.len();
            return &word[..name.len()];
        }
        word
    }

    fn attribute(&self, name: &str) -> Result<Attribute> {
        let found = NAMES.iter().find(|(n, _)| *n == name);
        found.map(|(_, a)| *a).ok_or_else(|| self.bad(&format!("attribute {name:?} is not known")))
    }
}

/// A duration such as `1.5s`, `200ms`, `2m`.
fn millis(text: &str) -> Option<i64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let n: f64 = text[..unit].parse().ok()?;
    let factor = match &text[unit..] {
        "ms" => 1.0,
        "s" => 1000.0,
        "m" => 60_000.0,
        "h" => 3_600_000.0,
        _ => return None,
    };
    #[allow(clippy::cast_possible_truncation, reason = "a saturating cast of a time that nobody waits for")]
    Some((n * factor) as i64)
}
