//! The headers that carry a trace from hop to hop: W3C's `traceparent`, and Zipkin's B3 in one header or in several.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Propagation, TraceIds};

/// W3C: `00-TRACE-SPAN-FLAGS`.
pub(in crate::telemetry) const TRACEPARENT: &str = "traceparent";
/// B3 in one header: `TRACE-SPAN-SAMPLED-PARENT`.
pub(in crate::telemetry) const B3: &str = "b3";
/// B3 in several headers.
pub(in crate::telemetry) const B3_SPAN: &str = "x-b3-spanid";
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What a request says about its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Context {
    /// The trace, and the span that called.
    pub ids: Option<TraceIds>,
    /// Whether it is recorded; none = the next hop decides.
    pub sampled: Option<bool>,
    forms: Forms,
}

/// The forms in which a context travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forms {
    w3c: bool,
    b3: bool,
    b3_multi: bool,
    /// Its trace has 64 bits, as old Zipkin clients make them.
    short: bool,
}

impl Context {
    /// Reads the headers; none if none of them is there or makes sense.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        Self::find(|name: &str| headers.get(name).and_then(|v| v.to_str().ok()))
    }

    /// The same, for a head that is no map: `text` gives the value of a header.
    pub(in crate::telemetry) fn find<'h>(text: impl Fn(&str) -> Option<&'h str>) -> Option<Self> {
        let w3c = text(TRACEPARENT).and_then(traceparent);
        let b3 = text(B3).and_then(single);
        let multi = multiple(&text);
        let first = w3c.or(b3).or(multi)?;
        // Whoever reads another form further on is to see the same trace.
        let forms = Forms {
            w3c: w3c.is_some(),
            b3: b3.is_some(),
            b3_multi: multi.is_some(),
            short: w3c.is_none() && first.forms.short,
        };
        Some(Self { forms, ..first })
    }

    /// The forms in which it came.
    pub const fn forms(&self) -> Forms {
        self.forms
    }
}

impl From<Propagation> for Forms {
    fn from(p: Propagation) -> Self {
        match p {
            Propagation::TraceContext => Self { w3c: true, ..Self::default() },
            Propagation::B3 => Self { b3: true, ..Self::default() },
            Propagation::B3Multi => Self { b3_multi: true, ..Self::default() },
        }
    }
}

impl Forms {
    /// Writes a sampled span into a request, as the parent of whatever comes next.
    pub fn write(self, ids: TraceIds, parent: Option<u64>, headers: &mut HeaderMap) {
        let TraceIds { trace, span } = ids;
        let mut set = |name: HeaderName, text: String| {
            if let Ok(mut value) = HeaderValue::try_from(text) {
                // It is of no use to a later request, and HTTP/2 then writes it out each time: the endpoint's node puts
                // its own span there.
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        };
        let b3_trace = if self.short {
            format!("{:016x}", trace & u128::from(u64::MAX))
        } else {
            format!("{trace:032x}")
        };
        if self.w3c {
            set(HeaderName::from_static(TRACEPARENT), format!("00-{trace:032x}-{span:016x}-01"));
        }
        if self.b3 {
            let parent = parent.map(|p| format!("-{p:016x}")).unwrap_or_default();
            set(HeaderName::from_static(B3), format!("{b3_trace}-{span:016x}-1{parent}"));
        }
        if self.b3_multi {
            set(B3_TRACE, b3_trace);
            set(HeaderName::from_static(B3_SPAN), format!("{span:016x}"));
            set(B3_SAMPLED, "1".to_owned());
            if let Some(parent) = parent {
                set(B3_PARENT, format!("{parent:016x}"));
            }
        }
        if parent.is_none() {
            // The state of a trace that could not be read is not this one's.
            headers.remove(TRACESTATE);
        }
    }
}

/// `00-TRACE-SPAN-FLAGS`; of later versions what is known of them.
fn traceparent(text: &str) -> Option<Context> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version = hex(version, 2)?;
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let ids = ids(hex(trace, 32)?, hex(span, 16)?)?;
    let sampled = Some(hex(flags, 2)? & 1 == 1);
    Some(Context { ids: Some(ids), sampled, forms: Forms::default() })
}

/// `TRACE-SPAN[-SAMPLED[-PARENT]]`, or only the decision.
fn single(text: &str) -> Option<Context> {
    let Some((trace, rest)) = text.split_once('-') else {
        return Some(Context { ids: None, sampled: Some(decision(text)?), forms: Forms::default() });
    };
    let mut rest = rest.split('-');
    let span = rest.next()?;
    let sampled = match rest.next() {
        None => None,
        Some(text) => Some(decision(text)?),
    };
    let (ids, short) = b3_ids(trace, span)?;
    Some(Context { ids: Some(ids), sampled, forms: Forms { short, ..Forms::default() } })
}

fn multiple<'a>(text: &impl Fn(&str) -> Option<&'a str>) -> Option<Context> {
    let debug = text(B3_FLAGS.as_str()) == Some("1");
    let sampled = if debug { Some(true) } else { text(B3_SAMPLED.as_str()).and_then(decision) };
    let both = text(B3_TRACE.as_str()).zip(text(B3_SPAN)).and_then(|(t, s)| b3_ids(t, s));
    let (ids, short) = match both {
        Some((ids, short)) => (Some(ids), short),
        None => (None, false),
    };
    let found = ids.is_some() || sampled.is_some();
    found.then_some(Context { ids, sampled, forms: Forms { short, ..Forms::default() } })
}

fn decision(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn b3_ids(trace: &str, span: &str) -> Option<(TraceIds, bool)> {
    let short = trace.len() == 16;
    let trace = hex(trace, if short { 16 } else { 32 })?;
    Some((ids(trace, hex(span, 16)?)?, short))
}

fn ids(trace: u128, span: u128) -> Option<TraceIds> {
    let span = u64::try_from(span).ok()?;
    (trace != 0 && span != 0).then_some(TraceIds { trace, span })
}

/// So many hexadecimal digits in lower case.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let plain = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if plain { u128::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap())).collect()
    }

    fn read(list: &[(&'static str, &str)]) -> Option<(Option<TraceIds>, Option<bool>)> {
        Context::read(&headers(list)).map(|c| (c.ids, c.sampled))
    }

    fn ids() -> Option<TraceIds> {
        Some(TraceIds { trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, span: 0xb7ad_6b71_6920_3331 })
    }

    #[test]
    fn every_form_is_read() {
        let w3c = |flags: &str| format!("00-{TRACE}-{SPAN}-{flags}");
        assert_eq!(read(&[("traceparent", &w3c("01"))]), Some((ids(), Some(true))));
        assert_eq!(read(&[("traceparent", &w3c("00"))]), Some((ids(), Some(false))));
        assert_eq!(
            read(&[("traceparent", &format!("cc-{TRACE}-{SPAN}-03-more"))]),
            Some((ids(), Some(true)))
        );
        assert_eq!(read(&[("b3", &format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"))]), Some((ids(), Some(true))));
        assert_eq!(read(&[("b3", &format!("{TRACE}-{SPAN}"))]), Some((ids(), None)));
        assert_eq!(read(&[("b3", "0")]), Some((None, Some(false))));
        assert_eq!(
            read(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")]),
            Some((ids(), Some(true)))
        );
        assert_eq!(
            read(&[("x-b3-traceid", &TRACE[16..]), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")]).unwrap().1,
            Some(true)
        );
    }

    #[test]
    fn what_makes_no_sense_is_no_trace() {
        let zeros = "0".repeat(32);
        for wrong in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-x"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}0-{SPAN}-01"),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
        ] {
            assert_eq!(read(&[("traceparent", &wrong)]), None, "{wrong}");
        }
        for wrong in ["", "x", "a-b", "1-2-3-4"] {
            assert_eq!(read(&[("b3", wrong)]), None, "{wrong}");
        }
        assert_eq!(read(&[("x-b3-traceid", TRACE)]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_context_goes_on_in_the_forms_it_came_in() {
        let mut map = headers(&[
            ("traceparent", &format!("00-{TRACE}-{SPAN}-01")),
            ("tracestate", "a=b"),
            ("b3", &format!("{TRACE}-{SPAN}-1")),
        ]);
        let context = Context::read(&map).unwrap();
        let next = TraceIds { trace: context.ids.unwrap().trace, span: 7 };
        context.forms().write(next, context.ids.map(|i| i.span), &mut map);
        assert_eq!(map["traceparent"], format!("00-{TRACE}-0000000000000007-01"));
        assert_eq!(map["b3"], format!("{TRACE}-0000000000000007-1-{SPAN}"));
        assert_eq!(map["tracestate"], "a=b");
        assert!(!map.contains_key("x-b3-traceid"));

        let short = headers(&[("x-b3-traceid", &TRACE[16..]), ("x-b3-spanid", SPAN)]);
        let context = Context::read(&short).unwrap();
        let mut map = HeaderMap::new();
        context.forms().write(next, Some(9), &mut map);
        assert_eq!(map["x-b3-traceid"], TRACE[16..]);
        assert_eq!(
            (&map["x-b3-spanid"], &map["x-b3-sampled"]),
            (&"0000000000000007".parse().unwrap(), &"1".parse().unwrap())
        );
        assert_eq!(map["x-b3-parentspanid"], "0000000000000009");

        let mut map = headers(&[("tracestate", "of=another")]);
        Forms::from(Propagation::TraceContext).write(next, None, &mut map);
        assert_eq!(Context::read(&map).unwrap().ids, Some(next));
        assert!(!map.contains_key("tracestate"));
    }
}
