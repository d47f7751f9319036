use super::*;

struct Call;

impl Values for Call {
    fn write(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        let header = |name: &str| match name {
            ":method" => Some("GET"),
            ":path" => Some("/a?b=c"),
            "x-umlaut" => Some("aé"),
            _ => None,
        };
        match operator {
            Operator::StartTime(form) => form.write(1_769_862_896, 789_000_001, out),
            Operator::ResponseCode => out.extend_from_slice(b"200"),
            Operator::Header { name, or, .. } => {
                let Some(value) = header(name).or_else(|| or.as_deref().and_then(header)) else {
                    return false;
                };
                out.extend_from_slice(value.as_bytes());
            }
            _ => return false,
        }
        true
    }
}

fn text(format: &str) -> String {
    Format::parse(format).unwrap().text(&Call, "-")
}

#[test]
fn operators_are_replaced() {
    assert_eq!(text(""), "");
    assert_eq!(text("plain"), "plain");
    assert_eq!(text("100%% %RESPONSE_CODE%"), "100% 200");
    assert_eq!(text("%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%"), "GET /a?b=c -");
    assert_eq!(text("%REQ(:PATH):2%|%REQ(:PATH):0%|%REQ(:PATH):99%"), "/a||/a?b=c");
    assert_eq!(text("%REQ(X-UMLAUT):2%"), "a", "a character is not cut in two");
    assert_eq!(text("%DYNAMIC_METADATA(istio:x):10%"), "-", "known to Envoy, without a value here");
}

#[test]
fn istios_forms_are_understood() {
    let line = Format::parse(ISTIO_TEXT).unwrap();
    assert_eq!(line.operators().count(), 24);
    for (key, text) in ISTIO_JSON {
        let format = Format::parse(text).unwrap();
        assert!(format.single().is_some(), "{key}");
    }
    assert!(line.text(&Call, "-").starts_with("[2026-01-31T12:34:56.789Z] \"GET /a?b=c -\" 200 - "));
}

#[test]
fn times_have_many_forms() {
    for (form, expected) in [
        ("", "2026-01-31T12:34:56.789Z"),
        ("%Y/%m/%dT%H:%M:%S%z", "2026/01/31T12:34:56+0000"),
        ("%s.%3f|%6f|%9f|%f", "1769862896.789|789000|789000001|789000001"),
        ("%d/%b/%Y:%T", "31/Jan/2026:12:34:56"),
        ("%A %a %B %j %E3S %F %y%%", "Saturday Sat January 031 56.789 2026-01-31 26%"),
    ] {
        assert_eq!(text(&format!("%START_TIME({form})%")), expected, "{form}");
    }
    // 29 February of a leap year, and the last second of another year.
    let at = |seconds, form: &str| {
        let mut out = Vec::new();
        TimeFormat::parse(form).unwrap().write(seconds, 0, &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(at(1_709_164_800, "%F %j"), "2024-02-29 060");
    assert_eq!(at(1_709_251_200, "%F %j"), "2024-03-01 061");
    assert_eq!(at(1_767_225_599, "%F %T %j"), "2025-12-31 23:59:59 365");
    assert_eq!(at(0, "%F %T %A"), "1970-01-01 00:00:00 Thursday");
}

#[test]
fn what_is_not_understood_is_named() {
    for (format, said) in [
        ("%FOO%", "at 0: %FOO% is no known operator"),
        ("ab %REQUEST_CODE%", "at 3: %REQUEST_CODE% is no known operator"),
        ("%REQ%", "%REQ% needs an argument"),
        ("%REQ()%", "%REQ% needs an argument"),
        ("%REQ(a b)%", "\"a b\" is no name of a header"),
        ("%REQ(X?)%", "\"\" is no name of a header"),
        ("%REQ(X", "the ) of %REQ( is missing"),
        ("%REQ(X)", "the closing % of %REQ is missing"),
        ("%REQ(X):a%", "the length of %REQ is no number"),
        ("%RESPONSE_CODE(x)%", "%RESPONSE_CODE% takes no argument"),
        ("%START_TIME(%Q)%", "\"%Q\" is no part of a time"),
        ("%GRPC_STATUS(X)%", "is none of NUMBER"),
        ("50% off", "begins no operator"),
        ("%", "begins no operator"),
    ] {
        let error = Format::parse(format).unwrap_err().to_string();
        assert!(error.contains(said), "{format}: {error}");
    }
    assert!(Format::parse(&"x".repeat(MAX_LENGTH + 1)).is_err());
    assert!(Format::parse(&"%DURATION%".repeat(MAX_COMMANDS + 1)).is_err());
}

#[test]
fn any_text_is_parsed_or_refused() {
    // Pieces that meet in ways that nobody writes: no panic, and what is parsed can be written.
    let pieces = ["%", "%%", "REQ", "(", ")", ":", "3", "é", "?", "START_TIME", "%REQ(", ")%", " "];
    let mut state = 1_u64;
    for _ in 0..20_000 {
        let mut format = String::new();
        for _ in 0..6 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            format.push_str(pieces[(state >> 33) as usize % pieces.len()]);
        }
        if let Ok(parsed) = Format::parse(&format) {
            let _written = parsed.text(&Call, "-");
        }
    }
}

#[test]
fn no_operator_is_known_twice() {
    // The parser asks the two tables in turn; a name in both would hide one entry.
    assert!(matches!(Format::parse("%UNIQUE_ID%").unwrap().parts(), [Part::Command(c)]
        if c.operator == Operator::Unavailable("UNIQUE_ID")));
    assert_eq!(Format::parse("%ROUTE_NAME%").unwrap().single().unwrap().operator, Operator::RouteName);
}
