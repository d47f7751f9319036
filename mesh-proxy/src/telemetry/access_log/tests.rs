use std::time::SystemTime;

use super::*;

fn config(yaml: &str) -> AccessLogConfig {
    serde_saphyr::from_str(yaml).unwrap()
}

fn request() -> http::Request<()> {
    http::Request::get("/a?b=%22&user=eve")
        .header("host", "web.shop")
        .header("user-agent", "a\"b")
        .header("x-team", "red")
        .body(())
        .unwrap()
}

fn entry(config: &AccessLogConfig) -> (Program, Entry) {
    let program = Program::compile(config).unwrap();
    let mut http = Http::of(&request(), program.wanted());
    let mut headers = http::HeaderMap::new();
    headers.insert("server", http::HeaderValue::from_bytes(b"caf\xe9").unwrap());
    http.see_response(&headers, program.wanted());
    let entry = Entry {
        start: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_769_862_896_789)),
        http: Some(Box::new(http)),
        protocol: "HTTP/1.1",
        status: 503,
        flags: Flags::CONNECT_FAILURE.with(Flags::RETRY_LIMIT),
        details: "upstream_reset_before_response_started",
        received: 3,
        sent: 4,
        duration: Duration::from_millis(12),
        upstream_time: Some(Duration::from_millis(9)),
        upstream: Some("10.1.0.7:9080".parse().unwrap()),
        cluster: "outbound|80||web.shop.svc.cluster.local".into(),
        destination: Some("10.96.0.1:80".parse().unwrap()),
        client: Some("10.1.0.2:4711".parse().unwrap()),
        route: "main".into(),
        ..Entry::default()
    };
    (program, entry)
}

fn line(yaml: &str) -> String {
    let (program, entry) = entry(&config(yaml));
    let mut out = Vec::new();
    program.write(&entry, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_default_line_is_istios() {
    assert_eq!(
        line("format: text"),
        "[2026-01-31T12:34:56.789Z] \"GET /a?b=%22&user=eve HTTP/1.1\" 503 UF,URX \
         upstream_reset_before_response_started - \"upstream_reset_before_response_started\" 3 4 12 9 \"-\" \"a'b\" \
         \"-\" \"web.shop\" \"10.1.0.7:9080\" outbound|80||web.shop.svc.cluster.local - 10.96.0.1:80 10.1.0.2:4711 - main"
    );
}

#[test]
fn json_keeps_types() {
    let value: serde_json::Value = serde_json::from_str(&line("format: json")).unwrap();
    assert_eq!(value["response_code"], 503);
    assert_eq!(value["user_agent"], "a\"b");
    assert_eq!(value["requested_server_name"], serde_json::Value::Null);
    assert_eq!(value["path"], "/a?b=%22&user=eve");
    let own = line(
        "format: json\njson:\n  who: '%REQ(X-TEAM)%/%REQ(X-NONE)%'\n  n: {took: '%DURATION%', v: 1, on: true}\n  s: '%RESP(SERVER)%'",
    );
    let value: serde_json::Value = serde_json::from_str(&own).unwrap();
    assert_eq!(
        value,
        serde_json::json!({"who": "red/-", "n": {"took": 12, "v": 1, "on": true}, "s": "caf\u{fffd}"})
    );
}

#[test]
fn operators_have_their_values() {
    for (text, expected) in [
        ("%RESPONSE_FLAGS_LONG%", "UpstreamConnectionFailure,UpstreamRetryLimitExceeded"),
        ("%UPSTREAM_REMOTE_PORT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "9080 10.1.0.2"),
        ("%REQ_WITHOUT_QUERY(:PATH)% %QUERY_PARAM(user)% %REQ(:AUTHORITY)%", "/a eve web.shop"),
        ("%RESPONSE_DURATION% %RESPONSE_TX_DURATION% %RESP(:STATUS)%", "9 3 503"),
        ("%EMIT_TIME(%s.%3f)%", "1769862896.801"),
        ("%TRACE_ID% %GRPC_STATUS% %UPSTREAM_LOCAL_ADDRESS% %STREAM_ID%", "- - - -"),
        ("%ENVIRONMENT(SELVAGE_NOT_SET)%", "-"),
    ] {
        assert_eq!(line(&format!("{{format: text, text: '{text}'}}")), expected);
    }
}

#[test]
fn wrong_settings_are_named() {
    let said = |yaml: &str| config(yaml).validate().join("; ");
    assert!(said("{sample: 2}").contains("access_log.sample: 2"));
    assert!(
        said("{text: '%REQUEST_CODE%'}")
            .contains("access_log.text: at 0: %REQUEST_CODE% is no known operator")
    );
    assert!(said("{format: text, json: {a: {b: '%X%'}}}").contains("access_log.json.a.b: at 0: %X%"));
    assert!(said("{json: {a: [1]}}").contains("access_log.json.a: a list"));
    assert!(said("{path: x.log}").contains("no absolute path"));
    assert_eq!(said("{format: json, json: {a: '%TRACE_ID%'}, path: /var/log/a.log}"), "");
}

#[test]
fn nothing_that_a_client_sends_breaks_a_line() {
    let config = config("format: text\ntext: '%REQ(X-A)% %REQ(X-A):3%'");
    let program = Program::compile(&config).unwrap();
    for value in [&b"a\"b\tc"[..], b"\xff\xfe", &[b'x'; 10_000]] {
        let mut request = request();
        request.headers_mut().insert("x-a", http::HeaderValue::from_bytes(value).unwrap());
        let http = Some(Box::new(Http::of(&request, program.wanted())));
        let mut out = Vec::new();
        program.write(&Entry { http, ..Entry::default() }, &mut out);
        assert!(!out.iter().any(u8::is_ascii_control) && !out.contains(&b'"'));
        assert!(out.len() < 2100, "{}", out.len());
    }
}

#[test]
fn a_log_that_is_off_may_be_asked_for() {
    let log = AccessLog::start(&AccessLogConfig::default(), std::io::sink()).unwrap();
    assert!(!log.enabled() && !log.wants(0.0, 200, Flags::NONE));
    log.asked_for(true);
    assert!(log.enabled() && log.wants(0.0, 200, Flags::NONE) && !log.by_default());
    log.asked_for(false);
    assert!(!log.enabled());
}
