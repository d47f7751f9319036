//! HTTP requests.

use std::collections::BTreeMap;

use mesh_core::{
    Client, HttpDecision, HttpOutcome, HttpRule, RequestView, Tables, actions,
    actions::CorsOutcome,
    retry::RetryPolicy,
    route::{Action, HeaderOp, WeightedDestination},
};

use super::{
    FixedDice, Request, View,
    answer::{
        Answer, CorsAnswer, HeaderEdit, MirrorTo, RedirectTo, RequestEdit, ResponseEdit, Retries, Target, go,
    },
    gateway, policy, why,
};

const MOVED: u16 = 301;
const NOT_FOUND: u16 = 404;
const MISDIRECTED: u16 = 421;
const BAD_GATEWAY: u16 = 502;
const UNAVAILABLE: u16 = 503;
const DEFAULT_PORT: u16 = 80;

pub(super) fn decide(
    tables: &Tables,
    client: &Client<'_>,
    request: &Request,
    view: &View<'_>,
    dice: &mut FixedDice<'_>,
) -> Answer {
    let port = request.port.unwrap_or(DEFAULT_PORT);
    let original =
        request.address.and_then(|ip| tables.by_vip_for(ip, port, |s| tables.sees(client, s, port)));
    let taken = client.gateway.map(|_| gateway::taken(tables, request, port));
    if taken.as_ref().is_some_and(|t| t.redirects) {
        return to_https(view);
    }
    let decision = match &taken {
        None => tables.route_http(client, port, original.as_ref(), view, dice),
        Some(taken) => tables.route_gateway_http(client, &taken.servers, port, view, dice),
    };
    let unrouted = matches!(decision.outcome, HttpOutcome::NoRoute);
    if taken.as_ref().is_some_and(|t| t.is_misdirected(view.authority(), unrouted)) {
        return misdirected(request);
    }
    let mut answer = Answer { why: why::http(&decision, client, port, view), ..Answer::default() };
    if let Some(host) = decision.virtual_host {
        answer.virtual_service = Some(host.source.to_string());
    }
    let context = Context { tables, client, view, port };
    if let Some(rule) = decision.rule {
        context.rule(&mut answer, &decision, rule, dice);
    }
    context.outcome(&mut answer, &decision, request.protocol == "grpc", dice);
    answer
}

/// A plaintext server that only redirects.
fn to_https(view: &View<'_>) -> Answer {
    let location = format!("https://{}{}", view.authority(), view.path_and_query());
    Answer {
        outcome: "redirect",
        redirect: Some(RedirectTo { code: MOVED, location }),
        why: vec!["the server redirects every plaintext request to https".to_owned()],
        ..Answer::default()
    }
}

/// The host is another server's than the one that the handshake named: a new connection would reach it.
fn misdirected(request: &Request) -> Answer {
    let sni = if request.sni.is_empty() { &request.host } else { &request.sni };
    Answer {
        outcome: "not_found",
        status: Some(MISDIRECTED),
        why: vec![format!("the handshake named {sni}, and host {} is of another server", request.host)],
        ..Answer::default()
    }
}

struct Context<'a> {
    tables: &'a Tables,
    client: &'a Client<'a>,
    view: &'a View<'a>,
    port: u16,
}

impl Context<'_> {
    fn rule(
        &self,
        answer: &mut Answer,
        decision: &HttpDecision<'_>,
        rule: &HttpRule,
        dice: &mut FixedDice<'_>,
    ) {
        answer.route = Some(format!("http[{}]", rule.index));
        answer.match_index = decision.matched.map(|(i, _)| i);
        let matched = decision.matched.map(|(_, m)| &*m.name).filter(|n| !n.is_empty());
        let names: Vec<&str> = [&*rule.name].into_iter().filter(|n| !n.is_empty()).chain(matched).collect();
        answer.route_name = (!names.is_empty()).then(|| names.join("."));
        answer.timeout = rule.timeout.map(go);
        answer.delay = rule.delay(dice).map(go);
        answer.response = response_edit(decision, chosen(decision));
        answer.cors = match rule.cors(self.view) {
            CorsOutcome::None => rule.cors.is_some().then(|| cors("none", Vec::new())),
            CorsOutcome::Preflight(headers) => Some(cors("preflight", headers)),
            CorsOutcome::Actual(headers) => Some(cors("actual", headers)),
        };
        if let Action::Forward(to) = &rule.action {
            answer.destinations = to.all.iter().map(|d| Target::of_rule(d, self.port_of(d))).collect();
            answer.mirrors = rule
                .mirrors
                .iter()
                .map(|m| MirrorTo {
                    target: Target {
                        weight: None,
                        ..Target::of_rule(&m.destination, self.port_of(&m.destination))
                    },
                    percentage: f64::from(m.parts_per_million) / 10_000.0,
                })
                .collect();
        }
    }

    /// The port that a destination leads to.
    fn port_of(&self, d: &WeightedDestination) -> u16 {
        match self.tables.cluster_of(self.client, d, self.port, self.client.gateway.is_some()) {
            Ok(cluster) => cluster.key.port,
            Err(missing) => missing.port,
        }
    }

    fn outcome(
        &self,
        answer: &mut Answer,
        decision: &HttpDecision<'_>,
        grpc: bool,
        dice: &mut FixedDice<'_>,
    ) {
        if let Some(abort) = decision.rule.and_then(|r| r.abort(dice)) {
            answer.outcome = "abort";
            answer.status = Some(if grpc && abort.grpc_status.is_some() { 200 } else { abort.http_status });
            answer.grpc_status = abort.grpc_status.filter(|_| grpc);
            answer.body = Some("fault filter abort".to_owned());
            return;
        }
        if answer.cors.as_ref().is_some_and(|c| c.outcome == "preflight") {
            answer.outcome = "direct_response";
            answer.status = Some(200);
            return;
        }
        match &decision.outcome {
            HttpOutcome::Forward { destination, cluster } => {
                answer.outcome = "forward";
                answer.destination = Some(Target::of_cluster(cluster));
                answer.policy = Some(policy::value(&cluster.policy));
                answer.request = Some(self.request_edit(decision, *destination));
                let mesh = self.tables.mesh();
                let retries = match decision.rule {
                    Some(rule) => rule.retry_policy(mesh),
                    None => Some(&mesh.default_retry),
                };
                answer.retries = retries.map(retry);
            }
            HttpOutcome::Redirect(to) => {
                answer.outcome = "redirect";
                let location = to.location(decision.matched.map(|(_, m)| m), self.view, self.port);
                answer.redirect = Some(RedirectTo { code: to.code, location });
            }
            HttpOutcome::Direct(to) => {
                answer.outcome = "direct_response";
                answer.status = Some(to.status);
                answer.body = Some(String::from_utf8_lossy(&to.body).into_owned());
            }
            HttpOutcome::NoRoute => (answer.outcome, answer.status) = ("not_found", Some(NOT_FOUND)),
            HttpOutcome::UnknownCluster(missing) => {
                let status = decision.rule.map_or(UNAVAILABLE, |r| r.missing_status);
                (answer.outcome, answer.status) = ("not_found", Some(status));
                answer.destination = Some(Target::of_missing(missing));
            }
            HttpOutcome::Passthrough(cluster) => {
                answer.outcome = "passthrough";
                answer.destination = cluster.map(|c| Target::of_cluster(c));
            }
            HttpOutcome::Blackhole => (answer.outcome, answer.status) = ("blackhole", Some(BAD_GATEWAY)),
        }
    }

    fn request_edit(&self, decision: &HttpDecision<'_>, to: Option<&WeightedDestination>) -> RequestEdit {
        let rule = decision.rule;
        let path = self.view.path_and_query();
        RequestEdit {
            authority: rule
                .and_then(|r| r.rewritten_authority(to))
                .unwrap_or(self.view.authority())
                .to_owned(),
            path: rule
                .and_then(|r| r.rewritten_path(decision.matched.map(|(_, m)| m), path))
                .unwrap_or_else(|| path.to_owned()),
            headers: edit(actions::header_ops(decision, to, false)),
        }
    }
}

fn chosen<'t>(decision: &HttpDecision<'t>) -> Option<&'t WeightedDestination> {
    match decision.outcome {
        HttpOutcome::Forward { destination, .. } => destination,
        _ => None,
    }
}

fn response_edit(decision: &HttpDecision<'_>, to: Option<&WeightedDestination>) -> Option<ResponseEdit> {
    let headers = edit(actions::header_ops(decision, to, true));
    (headers != HeaderEdit::default()).then_some(ResponseEdit { headers })
}

/// Both levels together: all removals first, then the rule's changes, then the destination's.
fn edit(levels: [Option<&HeaderOp>; 2]) -> HeaderEdit {
    let mut out = HeaderEdit::default();
    for level in levels.into_iter().flatten() {
        out.remove.extend(level.remove.iter().map(ToString::to_string));
        for (name, value) in &level.set {
            // What was appended before is overwritten.
            out.add.remove(&**name);
            out.set.insert(name.to_string(), value.text().to_owned());
        }
        for (name, value) in &level.add {
            out.add.entry(name.to_string()).or_default().push(value.text().to_owned());
        }
    }
    out
}

fn cors(outcome: &'static str, headers: Vec<(&'static str, std::borrow::Cow<'_, str>)>) -> CorsAnswer {
    let headers: BTreeMap<_, _> = headers.into_iter().map(|(n, v)| (n.to_owned(), v.into_owned())).collect();
    CorsAnswer { outcome, headers }
}

fn retry(policy: &RetryPolicy) -> Retries {
    let words = policy.on.names().map(str::to_owned);
    Retries {
        attempts: policy.attempts,
        per_try_timeout: policy.per_try_timeout.map(go),
        retry_on: words.chain(policy.status_codes.iter().map(ToString::to_string)).collect(),
        backoff: go(policy.backoff),
    }
}
