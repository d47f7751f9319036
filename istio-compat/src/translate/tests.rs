use mesh_api::model::http_rule::Action;

use super::*;
use crate::{
    parse,
    types::{Meta, Resource},
    yaml,
};

const HOST: &str = "reviews.shop.svc.cluster.local";

fn objects(text: &str) -> (Vec<VirtualService>, Vec<DestinationRule>) {
    let (mut services, mut rules) = (Vec::new(), Vec::new());
    for document in yaml::documents(text).unwrap() {
        match parse(&document).unwrap().resource {
            Resource::VirtualService(o) => services.push(o),
            Resource::DestinationRule(o) => rules.push(o),
            other => panic!("{}", other.kind()),
        }
    }
    (services, rules)
}

/// A VirtualService in short: `namespace/name@year hosts exportTo`.
fn claim(namespace: &str, name: &str, year: u32, hosts: &str, export_to: &str) -> VirtualService {
    let (mut list, _) = objects(&format!(
        "{{apiVersion: networking.istio.io/v1, kind: VirtualService, \
         metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: \"{year}-01-01T00:00:00Z\"}}, \
         spec: {{hosts: {hosts}, exportTo: {export_to}, http: [{{route: [{{destination: {{host: reviews}}}}]}}]}}}}"
    ));
    list.remove(0)
}

fn order(host: &str, registered: bool, list: &[VirtualService]) -> Vec<String> {
    let refs: Vec<_> = list.iter().collect();
    virtual_hosts(host, registered, &refs, &Context::default(), &no_delegates)
        .into_iter()
        .map(|v| v.source)
        .collect()
}

#[test]
fn precedence_is_specific_then_private_then_old() {
    let list = [
        claim("shop", "wild", 2019, "[\"*.local\"]", "[]"),
        claim("shop", "public-old", 2020, "[reviews]", "[\"*\"]"),
        claim("shop", "public-new", 2021, "[reviews]", "[]"),
        claim("shop", "named", 2022, "[reviews]", "[front, shop]"),
        claim("shop", "private", 2023, "[reviews]", "[.]"),
        claim("shop", "longer", 2024, "[\"*.shop.svc.cluster.local\"]", "[]"),
        claim("shop", "other-host", 2018, "[ratings]", "[]"),
        claim("shop", "nobody", 2018, "[reviews]", "[\"~\"]"),
    ];
    let want =
        ["private", "named", "public-old", "public-new", "longer", "wild"].map(|n| format!("shop/{n}"));
    assert_eq!(order(HOST, true, &list), want);
}

#[test]
fn hosts_that_nobody_knows_are_claimed_literally_only() {
    let list = [
        claim("shop", "exact", 2020, "[a.example.com]", "[]"),
        claim("shop", "wild", 2020, "[\"*.example.com\"]", "[]"),
    ];
    assert_eq!(order("a.example.com", false, &list), ["shop/exact"]);
    assert_eq!(order("*.example.com", false, &list), ["shop/wild"]);
}

#[test]
fn short_names_are_relative_to_the_object_and_dots_stay() {
    let vs = claim("front", "x", 2020, "[reviews, reviews.shop, Example.COM.]", "[]");
    let hosts: Vec<_> =
        virtual_service(&vs, &Context::default(), &no_delegates).into_iter().map(|(h, _)| h).collect();
    assert_eq!(hosts, ["reviews.front.svc.cluster.local", "reviews.shop", "example.com"]);
    let domain = Context { cluster_domain: "mesh.test".to_owned(), ..Context::default() };
    assert_eq!(hosts_of(&vs, &domain)[0], "reviews.front.svc.mesh.test");
}

#[test]
fn visibility_does_not_include_the_own_namespace_unasked() {
    let seen = |export_to: &str| {
        let vs = claim("shop", "x", 2020, "[reviews]", export_to);
        virtual_service(&vs, &Context::default(), &no_delegates).pop().map(|(_, v)| v.visible_to)
    };
    assert_eq!(seen("[]"), Some(vec![]));
    assert_eq!(seen("[front]"), Some(vec!["front".to_owned()]));
    assert_eq!(seen("[., front]"), Some(vec!["front".to_owned(), "shop".to_owned()]));
    assert_eq!(seen("[front, \"*\"]"), Some(vec![]));
    assert_eq!(seen("[\"~\"]"), None);
}

#[test]
fn gateways_have_one_spelling() {
    let meta = Meta { namespace: "shop".to_owned(), ..Meta::default() };
    let names = ["mesh", "edge", "./edge", "other/edge", "edge.other.svc.cluster.local"].map(str::to_owned);
    assert_eq!(
        route::gateways(&names, &meta),
        ["mesh", "shop/edge", "shop/edge", "other/edge", "other/edge"]
    );
}

const DELEGATES: &str = "
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: root, namespace: shop}, spec: {
  hosts: [reviews], http: [
    {name: root, match: [{uri: {prefix: /a}}, {uri: {exact: /only}}], timeout: 5s, mirror: {host: copies},
     delegate: {name: leaf, namespace: team}},
    {match: [{uri: {prefix: /gone}}], delegate: {name: missing}},
    {route: [{destination: {host: reviews}}]}]}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: leaf, namespace: team}, spec: {
  http: [
    {name: x, match: [{uri: {prefix: /a/x}, headers: {k: {exact: v}}}], route: [{destination: {host: backend}}]},
    {name: conflict, match: [{uri: {prefix: /b}}], route: [{destination: {host: backend}}]},
    {name: all, timeout: 1s, route: [{destination: {host: backend}}]}]}}
";

#[test]
fn a_delegate_continues_the_rule() {
    let (list, _) = objects(DELEGATES);
    let ctx = Context::default();
    let find = |namespace: &str, name: &str| {
        list.iter().find(|v| v.meta.namespace == namespace && v.meta.name == name)
    };
    let (_, host) = virtual_service(&list[0], &ctx, &find).pop().unwrap();
    let names: Vec<_> = host.http.iter().map(|r| (r.index, r.name.as_str(), r.matches.len())).collect();
    assert_eq!(names, [(0, "root-x", 1), (0, "root-all", 2), (2, "", 0)]);
    let timeouts: Vec<_> = host.http.iter().map(|r| r.timeout.map(|t| t.value)).collect();
    assert_eq!(timeouts, [Some(5000), Some(1000), None]);
    let Some(Action::Forward(to)) = &host.http[0].action else { panic!() };
    let destination = to.destinations[0].destination.as_ref().unwrap();
    assert_eq!(destination.host, "backend.team.svc.cluster.local");
    let mirror = host.http[0].mirrors[0].destination.as_ref().unwrap();
    assert_eq!(mirror.host, "copies.shop.svc.cluster.local");
    assert_eq!(delegates_of(&list[0]), [("shop".into(), "missing".into()), ("team".into(), "leaf".into())]);
    assert!(virtual_service(&list[1], &ctx, &find).is_empty(), "a delegate claims nothing by itself");
}

fn rules(text: &str) -> Vec<model::DestinationPolicy> {
    let (_, rules) = objects(text);
    let refs: Vec<_> = rules.iter().collect();
    policies(HOST, "shop", &refs, &Context::default())
}

fn rule(namespace: &str, name: &str, year: u32, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: {name}, \
         namespace: {namespace}, creationTimestamp: \"{year}-01-01T00:00:00Z\"}}, spec: {{{spec}}}}}\n"
    )
}

/// The rule that applies to a client, as a node chooses it.
fn choice(list: &[model::DestinationPolicy], namespace: &str, app: &str) -> String {
    list.iter()
        .find(|p| {
            (p.visible_to.is_empty() || p.visible_to.iter().any(|n| n == namespace))
                && p.workload_selector.get("app").is_none_or(|a| a == app)
        })
        .map(|p| p.source.clone())
        .unwrap_or_default()
}

#[test]
fn the_namespace_counts_before_the_host() {
    let text = [
        rule("front", "wild", 2020, "host: \"*.local\", trafficPolicy: {loadBalancer: {simple: RANDOM}}"),
        rule("shop", "exact", 2020, &format!("host: {HOST}")),
        rule("istio-system", "mesh", 2020, "host: \"*\""),
        rule("istio-system", "own", 2020, "host: \"*\", exportTo: [.]"),
        rule("elsewhere", "foreign", 2020, &format!("host: {HOST}")),
    ]
    .concat();
    let list = rules(&text);
    assert_eq!(choice(&list, "front", ""), "front/wild");
    assert_eq!(choice(&list, "shop", ""), "shop/exact");
    assert_eq!(choice(&list, "third", ""), "shop/exact");
    assert_eq!(choice(&list, "elsewhere", ""), "elsewhere/foreign");
    assert_eq!(choice(&list, "istio-system", ""), "istio-system/own");
}

#[test]
fn a_private_rule_leaves_other_clients_to_the_root_namespace() {
    let text = [
        rule("shop", "private", 2020, &format!("host: {HOST}, exportTo: [.]")),
        rule("shop", "wild", 2020, "host: \"*.local\""),
        rule("istio-system", "mesh", 2020, "host: \"*\""),
    ]
    .concat();
    let list = rules(&text);
    assert_eq!(choice(&list, "shop", ""), "shop/private");
    assert_eq!(choice(&list, "third", ""), "shop/wild");
}

#[test]
fn chosen_workloads_come_first_and_the_newest_rule_last() {
    let selector = "host: reviews, workloadSelector: {matchLabels: {app: a}}";
    let text = [
        rule("shop", "chosen", 2022, selector),
        rule("shop", "old", 2020, "host: reviews, exportTo: [.]"),
        rule("shop", "new", 2021, "host: reviews"),
    ]
    .concat();
    let list = rules(&text);
    assert_eq!(choice(&list, "shop", "a"), "shop/chosen");
    assert_eq!(choice(&list, "shop", "b"), "shop/new");
    assert_eq!(choice(&list, "third", "a"), "shop/new");
    // Without a rule for the others they have none, not even the root namespace's.
    let list = rules(
        &[rule("shop", "chosen", 2022, selector), rule("istio-system", "mesh", 2020, "host: \"*\"")].concat(),
    );
    assert_eq!(choice(&list, "shop", "b"), "");
    assert_eq!(choice(&list, "third", "b"), "istio-system/mesh");
}

#[test]
fn rules_of_one_host_are_merged() {
    let v = |name: &str, app: &str| format!("subsets: [{{name: {name}, labels: {{version: {app}}}}}]");
    let text = [
        rule("shop", "first", 2020, &format!("host: reviews, {}", v("v1", "one"))),
        rule(
            "shop",
            "second",
            2021,
            &format!("host: reviews, trafficPolicy: {{tls: {{}}}}, {}", v("v1", "two")),
        ),
        rule("shop", "third", 2022, &format!("host: {HOST}, {}", v("v2", "three"))),
    ]
    .concat();
    let list = rules(&text);
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].source, "shop/first");
    assert!(list[0].policy.is_some(), "the first policy that there is");
    let subsets: Vec<_> =
        list[0].subsets.iter().map(|s| (s.name.as_str(), s.labels["version"].as_str())).collect();
    assert_eq!(subsets, [("v1", "one"), ("v2", "three")]);
}

#[test]
fn percentages_left_out_mean_never_for_faults_and_always_for_mirrors() {
    let (list, _) = objects(
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: x, namespace: shop}, spec: {
          hosts: [reviews], http: [{
            fault: {delay: {fixedDelay: 1s}, abort: {httpStatus: 503}}, mirror: {host: copies},
            route: [{destination: {host: reviews}}]}]}}",
    );
    let (_, host) = virtual_service(&list[0], &Context::default(), &no_delegates).remove(0);
    let fault = host.http[0].fault.unwrap();
    assert_eq!(fault.delay.unwrap().parts_per_million, 0);
    assert_eq!(fault.abort.unwrap().parts_per_million, 0);
    assert_eq!(host.http[0].mirrors[0].parts_per_million, 1_000_000);
}

#[test]
fn retries_replace_the_default_conditions() {
    let policy = |text: &str| {
        retry::policy(&serde_json::from_value(yaml::documents(text).unwrap().remove(0)).unwrap(), 1)
    };
    let default = policy("{attempts: 1}");
    assert_eq!(default.retry_on, retry::DEFAULT_RETRY_ON);
    assert!(!default.retry_on.contains(&"5xx".to_owned()));
    let own = policy("{attempts: 1, retryOn: \"503,reset\"}");
    assert_eq!(
        (own.retry_on, own.status_codes),
        (vec!["reset".into(), "retriable-status-codes".into()], vec![503])
    );
    assert_eq!(policy("{attempts: 0}").attempts, 0);
}

#[test]
fn conditions_of_root_and_delegate_conflict_as_in_istio() {
    let root_and_leaf = |root: &str, leaf: &str| {
        let (list, _) = objects(&format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: root, namespace: shop}}, \
             spec: {{hosts: [reviews], http: [{{match: [{root}], delegate: {{name: leaf, namespace: team}}}}]}}}}\n---\n\
             {{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: leaf, namespace: team}}, \
             spec: {{http: [{{match: [{leaf}], route: [{{destination: {{host: backend}}}}]}}]}}}}"
        ));
        let find = |_: &str, name: &str| list.iter().find(|v| v.meta.name == name);
        virtual_service(&list[0], &Context::default(), &find).remove(0).1.http.len() == 1
    };
    for (root, leaf) in [
        ("{uri: {prefix: /a}}", "{uri: {prefix: /a/b}}"),
        ("{uri: {prefix: /a}}", "{uri: {exact: /ab}}"),
        ("{uri: {exact: /a}}", "{uri: {exact: /a}}"),
        ("{uri: {prefix: /a}}", "{headers: {x: {}}}"),
        ("{headers: {x: {exact: a}}}", "{headers: {y: {regex: a}}}"),
        ("{gateways: [mesh, other/edge]}", "{gateways: [mesh]}"),
        ("{gateways: [team/edge]}", "{gateways: [edge]}"),
        ("{port: 80}", "{sourceLabels: {app: a}}"),
        ("{sourceNamespace: a}", "{sourceNamespace: a}"),
    ] {
        assert!(root_and_leaf(root, leaf), "{root} and {leaf}");
    }
    for (root, leaf) in [
        ("{uri: {prefix: /a/b}}", "{uri: {prefix: /a}}"),
        ("{uri: {exact: /a}}", "{uri: {prefix: /a}}"),
        ("{uri: {regex: /a}}", "{uri: {prefix: /a}}"),
        ("{uri: {prefix: /a}}", "{uri: {regex: /a}}"),
        ("{uri: {prefix: \"\"}}", "{uri: {prefix: /a}}"),
        ("{headers: {x: {}}}", "{headers: {x: {exact: a}}}"),
        ("{uri: {prefix: /a}, ignoreUriCase: true}", "{uri: {prefix: /a}}"),
        ("{port: 80}", "{port: 81}"),
        ("{sourceNamespace: a}", "{}"),
        ("{sourceLabels: {app: a}}", "{sourceLabels: {app: b}}"),
        ("{gateways: [mesh]}", "{gateways: [other/edge]}"),
        ("{gateways: [edge]}", "{gateways: [edge]}"),
    ] {
        assert!(!root_and_leaf(root, leaf), "{root} and {leaf}");
    }
}
