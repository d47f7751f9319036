use mesh_api::model;

use super::*;
use crate::{HttpOutcome, fixtures::*};

const WEB: &str = "web.default.svc.cluster.local";

fn with(rules: Vec<model::HttpRule>) -> Tables {
    let mut s = service("web", "default", "10.0.0.1", &[80, 8080]);
    s.vips.push("fd00::1".into());
    s.virtual_hosts = vec![virtual_host("default/vs", rules)];
    tables(vec![set(s)])
}

fn rewritten(m: Vec<model::HttpMatch>, rewrite: model::Rewrite, path: &str) -> Option<String> {
    let t = with(vec![model::HttpRule { rewrite: Some(rewrite), ..rule(m, vec![to(WEB, "", 0)]) }]);
    let d = t.route_http(&Client::in_namespace("default"), 80, None, &get("web", path), &mut dice(0.0));
    d.rule.expect("a rule").rewritten_path(d.matched.map(|m| m.1), path)
}

#[test]
fn a_rewrite_replaces_what_matched() {
    let r = |uri: &str| model::Rewrite { uri: uri.into(), ..Default::default() };
    let at = |m: Option<model::StringMatch>, new: &str, path: &str| {
        rewritten(m.map(uri).into_iter().collect(), r(new), path).unwrap()
    };
    assert_eq!(at(Some(prefix("/foo")), "/bar", "/foo/x?q=1"), "/bar/x?q=1");
    assert_eq!(at(Some(prefix("/foo")), "/", "/foo/x"), "//x");
    assert_eq!(at(Some(exact("/foo")), "/bar", "/foo?q=1"), "/bar?q=1");
    assert_eq!(at(Some(regex("/f.*")), "/bar", "/foo/deep"), "/bar");
    assert_eq!(at(None, "/new", "/x/y"), "/newx/y");
    let m = model::HttpMatch { uri: Some(prefix("/FOO")), ignore_uri_case: true, ..Default::default() };
    assert_eq!(rewritten(vec![m], r("/bar"), "/foo/x").unwrap(), "/bar/x");
}

#[test]
fn a_regular_expression_rewrites_the_path_only() {
    let r = |regex: &str, new: &str| model::Rewrite {
        regex: regex.into(),
        regex_rewrite: new.into(),
        ..Default::default()
    };
    let at = |r, path: &str| rewritten(vec![], r, path);
    assert_eq!(
        at(r("^/service/([^/]+)(/.*)$", "\\2/instance/\\1"), "/service/foo/v1/api?a=/service/x/y").unwrap(),
        "/v1/api/instance/foo?a=/service/x/y"
    );
    assert_eq!(at(r("a", "$1b"), "/aa").unwrap(), "/$1b$1b");
    assert_eq!(at(r("^/nothing", "/x"), "/y"), None);
}

fn location(m: Vec<model::HttpMatch>, redirect: model::Redirect, authority: &str, path: &str) -> String {
    let t = with(vec![model::HttpRule {
        matches: m,
        action: Some(model::http_rule::Action::Redirect(redirect)),
        ..Default::default()
    }]);
    let request = get(authority, path);
    let d = t.route_http(&Client::in_namespace("default"), 8080, None, &request, &mut dice(0.0));
    let HttpOutcome::Redirect(r) = d.outcome else { panic!("{d:?}") };
    r.location(d.matched.map(|m| m.1), &request, 8080)
}

#[test]
fn redirects() {
    use model::redirect::PortSource as P;
    let r = |f: &dyn Fn(&mut model::Redirect)| {
        let mut r = model::Redirect::default();
        f(&mut r);
        r
    };
    let at = |f: &dyn Fn(&mut model::Redirect), authority: &str, path: &str| {
        location(vec![], r(f), authority, path)
    };
    assert_eq!(at(&|r| r.uri = "/new".into(), "web", "/old?a=1"), "http://web/new?a=1");
    assert_eq!(at(&|r| r.uri = "/new?x=9".into(), "web", "/old?a=1"), "http://web/new?x=9");
    assert_eq!(at(&|r| r.uri = "/n".into(), "web:8080", "/"), "http://web:8080/n");
    let https = |r: &mut model::Redirect| r.scheme = "https".into();
    assert_eq!(at(&https, "web:80", "/p"), "https://web/p");
    assert_eq!(at(&https, "web:8080", "/p"), "https://web:8080/p");
    assert_eq!(at(&|r| (https(r), r.port_source = Some(P::Port(443))).0, "web", "/p"), "https://web/p");
    assert_eq!(at(&|r| (https(r), r.port_source = Some(P::Port(8443))).0, "web", "/p"), "https://web:8443/p");
    let other = |r: &mut model::Redirect| r.authority = "example.com".into();
    assert_eq!(at(&|r| (other(r), r.port_source = Some(P::Port(80))).0, "web", "/p"), "http://example.com/p");
    assert_eq!(
        at(&|r| (other(r), r.port_source = Some(P::ProtocolDefault(true))).0, "web:8080", "/p"),
        "http://example.com/p"
    );
    assert_eq!(
        at(&|r| (other(r), r.port_source = Some(P::FromRequestPort(true))).0, "web", "/p"),
        "http://example.com:8080/p"
    );
    assert_eq!(at(&|r| r.uri = "/n".into(), "[fd00::1]:8080", "/"), "http://[fd00::1]:8080/n");
    let foo = vec![uri(prefix("/foo"))];
    assert_eq!(
        location(foo, r(&|r| r.prefix_rewrite = "/bar".into()), "web", "/foo/baz?q=1"),
        "http://web/bar/baz?q=1"
    );
}

#[test]
fn faults_are_drawn_by_their_share() {
    let t = with(vec![model::HttpRule {
        fault: Some(model::Fault {
            delay: Some(model::fault::Delay {
                parts_per_million: 500_000,
                fixed: Some(model::Millis { value: 2000 }),
            }),
            abort: Some(model::fault::Abort { parts_per_million: 0, http_status: 500, grpc: None }),
        }),
        ..rule(vec![], vec![to(WEB, "", 0)])
    }]);
    let r = &t.service(WEB).unwrap().virtual_hosts[0].http[0];
    assert_eq!(r.delay(&mut dice(0.49)), Some(Duration::from_secs(2)));
    assert_eq!(r.delay(&mut dice(0.5)), None);
    assert_eq!(r.abort(&mut dice(0.0)), None, "no share is never");
}

#[test]
fn header_changes_and_authority() {
    let v = |n: &str, v: &str| model::HeaderValue { name: n.into(), value: v.into() };
    let op = |set: Vec<model::HeaderValue>| model::HeaderOps {
        request: Some(model::HeaderOp { set, add: vec![v("X-Add", "100%%")], remove: vec!["X-Old".into()] }),
        response: None,
    };
    let mut d = to(WEB, "", 0);
    d.headers = Some(op(vec![v("Host", "dest.example"), v("X-A", "dest")]));
    let t =
        with(vec![model::HttpRule { headers: Some(op(vec![v("x-a", "rule")])), ..rule(vec![], vec![d]) }]);
    let d = t.route_http(&Client::in_namespace("default"), 80, None, &get("web", "/"), &mut dice(0.0));
    let HttpOutcome::Forward { destination, .. } = d.outcome else { panic!("{d:?}") };
    assert_eq!(d.rule.unwrap().rewritten_authority(destination), Some("dest.example"));
    let [rule, dest] = header_ops(&d, destination, false);
    assert_eq!(rule.unwrap().set[0].1.text(), "rule");
    let dest = dest.unwrap();
    assert_eq!(dest.set.iter().map(|s| &*s.0).collect::<Vec<_>>(), ["x-a"], "the host is no ordinary header");
    assert_eq!((&*dest.add[0].0, dest.add[0].1.text(), &*dest.remove[0]), ("x-add", "100%", "x-old"));
}

/// Browsers take `*` for a name when a request has credentials.
#[test]
fn with_credentials_a_star_becomes_what_is_asked_for() {
    for (credentials, methods, headers) in [(true, "PUT", "x-a, x-b"), (false, "*", "*")] {
        let cors = model::Cors {
            allow_origins: vec![exact("https://example.com")],
            allow_methods: vec!["*".into()],
            allow_headers: vec!["*".into()],
            allow_credentials: credentials,
            ..Default::default()
        };
        let t = with(vec![model::HttpRule { cors: Some(cors), ..rule(vec![], vec![to(WEB, "", 0)]) }]);
        let r = &t.service(WEB).unwrap().virtual_hosts[0].http[0];
        let preflight = get("web", "/").method("OPTIONS").with("origin", "https://example.com");
        let preflight = preflight
            .with("access-control-request-method", "PUT")
            .with("access-control-request-headers", "x-a, x-b");
        let CorsOutcome::Preflight(h) = r.cors(&preflight) else { panic!("not a preflight") };
        let said = |n: &str| h.iter().find(|(k, _)| *k == n).map(|(_, v)| v.to_string());
        assert_eq!(said("access-control-allow-methods").as_deref(), Some(methods));
        assert_eq!(said("access-control-allow-headers").as_deref(), Some(headers));
    }
}

#[test]
fn cross_origin() {
    let cors = model::Cors {
        allow_origins: vec![exact("https://example.com")],
        allow_methods: vec!["GET".into(), "POST".into()],
        expose_headers: vec!["X-Exp".into()],
        max_age: Some(model::Millis { value: 86_400_000 }),
        allow_credentials: true,
        ..Default::default()
    };
    let t = with(vec![model::HttpRule { cors: Some(cors), ..rule(vec![], vec![to(WEB, "", 0)]) }]);
    let r = &t.service(WEB).unwrap().virtual_hosts[0].http[0];
    let preflight = get("web", "/").method("OPTIONS").with("access-control-request-method", "DELETE");
    let CorsOutcome::Preflight(h) = r.cors(&preflight.clone().with("origin", "https://example.com")) else {
        panic!("not a preflight")
    };
    let get_header = |n: &str| h.iter().find(|(k, _)| *k == n).map(|(_, v)| v.to_string());
    assert_eq!(get_header("access-control-allow-origin").as_deref(), Some("https://example.com"));
    assert_eq!(get_header("access-control-allow-methods").as_deref(), Some("GET,POST"));
    assert_eq!(get_header("access-control-max-age").as_deref(), Some("86400"));
    assert_eq!(get_header("access-control-expose-headers").as_deref(), Some("X-Exp"));
    assert_eq!(r.cors(&preflight.with("origin", "https://evil.com")), CorsOutcome::None);
    assert_eq!(r.cors(&get("web", "/")), CorsOutcome::None);
    let CorsOutcome::Actual(h) = r.cors(&get("web", "/").with("origin", "https://example.com")) else {
        panic!("not an actual request")
    };
    assert!(h.iter().any(|(k, v)| *k == "access-control-expose-headers" && v == "X-Exp"));
}

#[test]
fn a_header_is_a_text_or_made_of_what_a_call_says() {
    use crate::{command::Format, route::HeaderText};

    let value = |name: &str, value: &str| model::HeaderValue { name: name.into(), value: value.into() };
    let set = vec![
        value("X-Plain", "100%%"),
        value("x-made", "%REQ(x-a?x-b)%-%START_TIME(%Y)%"),
        // No value while headers are set, and no operator at all.
        value("x-flags", "%RESPONSE_FLAGS%"),
        value("x-odd", "50% of %%"),
        value(":authority", "a.example.com"),
    ];
    let op = crate::route::compile::header_op(Some(&model::HeaderOp { set, ..Default::default() }));
    let texts: Vec<_> = op.set.iter().map(|(n, t)| (&**n, t.text())).collect();
    assert_eq!(
        texts,
        [
            ("x-plain", "100%"),
            ("x-made", "%REQ(x-a?x-b)%-%START_TIME(%Y)%"),
            ("x-flags", "%RESPONSE_FLAGS%"),
            ("x-odd", "50% of %"),
        ]
    );
    assert!(matches!(op.set[1].1, HeaderText::Made(_)) && matches!(op.set[2].1, HeaderText::Plain(_)));
    assert_eq!(op.made().flat_map(Format::operators).count(), 2);
    assert_eq!(op.authority.as_deref(), Some("a.example.com"));
}
