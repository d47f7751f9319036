//! `meshctl logs`: what the programs of the mesh say, each line with its node.
//!
//! - [`line`]: a line as text, with its time and level. Pure.

pub(crate) mod line;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream::SelectAll};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::LogParams};

use crate::{
    Outcome,
    args::{self, Format, Program as Kind},
    reach::{self, PodFacts, cluster},
};
use line::Line;

/// Bytes of one program's log that are asked for when nothing is followed.
const MAX_BYTES: i64 = 16 << 20;
/// Longest line that is shown; the rest of it is cut off.
const MAX_LINE: usize = 64 << 10;
/// How often a look is taken for programs that are new.
const LOOK: Duration = Duration::from_secs(3);
/// Programs whose logs are followed at a time.
const MOST: usize = 500;

/// A program and its lines.
type Lines = futures::stream::BoxStream<'static, (String, std::io::Result<String>)>;

pub(crate) fn run(args: &args::Logs) -> Result<Outcome> {
    let limit = if args.follow { Duration::from_secs(366 * 86_400) } else { args.timeout };
    reach::within(limit, "logs of the mesh", async {
        let client = tokio::time::timeout(args.timeout, cluster::client(&args.kube)).await;
        let Ok(client) = client else {
            bail!("the API server gave no answer within {}", reach::span(args.timeout))
        };
        let client = client?;
        if args.follow { follow(args, &client).await } else { once(args, &client).await }
    })
}

/// The pods that are meant. A name that nobody has is an error.
async fn chosen(args: &args::Logs, client: &Client) -> Result<Vec<(Kind, PodFacts)>> {
    let all = cluster::pods(client, &args.kube.namespace).await?;
    let is = |pod: &PodFacts, name: &str| pod.name == name || pod.node == name;
    for name in &args.names {
        if !all.iter().any(|(_, pod)| is(pod, name)) {
            bail!(
                "no program of the mesh runs on a node or in a pod called {name}; `meshctl proxies` lists them"
            );
        }
    }
    let wanted = |(kind, pod): &(Kind, PodFacts)| {
        args.only.is_none_or(|only| only == *kind)
            && (args.names.is_empty() || args.names.iter().any(|n| is(pod, n)))
    };
    Ok(all.into_iter().filter(wanted).collect())
}

/// `edge-a/proxy`, `cloud/controller mesh-controller-5d8-x`: replicas of one node are told apart.
fn title(kind: Kind, pod: &PodFacts) -> String {
    let node = if pod.node.is_empty() { "?" } else { &pod.node };
    match kind {
        Kind::Proxy => format!("{node}/proxy"),
        _ => format!("{node}/{}", pod.name),
    }
}

fn params(args: &args::Logs, follow: bool, tail: bool) -> LogParams {
    LogParams {
        follow,
        previous: args.previous,
        since_seconds: args.since.map(|s| i64::try_from(s.as_secs().max(1)).unwrap_or(i64::MAX)),
        tail_lines: tail.then_some(i64::from(args.tail)),
        limit_bytes: (!follow).then_some(MAX_BYTES),
        ..LogParams::default()
    }
}

async fn once(args: &args::Logs, client: &Client) -> Result<Outcome> {
    let pods = chosen(args, client).await?;
    if pods.is_empty() {
        bail!("no program of the mesh runs in namespace {}: name another with -n", args.kube.namespace);
    }
    let (mut lines, mut failed) = (Vec::new(), 0);
    for (title, answer) in read(client, &args.kube.namespace, &pods, &params(args, false, true)).await {
        match answer {
            Ok(text) => lines.extend(text.lines().map(|l| Line::read(&title, cut(l)))),
            Err(error) => {
                failed += 1;
                eprintln!("meshctl: {title}: {error:#}");
            }
        }
    }
    lines.retain(|l| l.is_at_least(args.level));
    // A line without a time stays behind the one before it.
    line::in_order(&mut lines);
    for line in &lines {
        if !print(args.output.format, line)? {
            break;
        }
    }
    Ok(if failed == 0 { Outcome::Fine } else { Outcome::Findings })
}

/// The logs of some pods, all at once.
pub(crate) async fn read(
    client: &Client,
    namespace: &str,
    pods: &[(Kind, PodFacts)],
    params: &LogParams,
) -> Vec<(String, Result<String>)> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let each = pods.iter().map(|(kind, pod)| {
        let (api, title) = (api.clone(), title(*kind, pod));
        async move {
            let text = api.logs(&pod.name, params).await;
            (title, text.map_err(|e| cluster::mend(e, &format!("logs of pod {}", pod.name))))
        }
    });
    futures::stream::iter(each).buffered(8).collect().await
}

async fn follow(args: &args::Logs, client: &Client) -> Result<Outcome> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &args.kube.namespace);
    let (mut known, mut first, mut all) = (BTreeSet::new(), true, SelectAll::<Lines>::new());
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = look.tick() => {
                let pods = match tokio::time::timeout(args.timeout, chosen(args, client)).await {
                    Ok(Ok(pods)) => pods,
                    Ok(Err(error)) if first => return Err(error),
                    Err(_) if first => bail!("the API server gave no answer within {}", reach::span(args.timeout)),
                    // What is followed goes on.
                    _ => continue,
                };
                for (kind, pod) in pods {
                    let restarted = (pod.name.clone(), pod.restarts);
                    if known.contains(&restarted) || all.len() >= MOST {
                        continue;
                    }
                    let title = title(kind, &pod);
                    // Of programs that are new every line counts.
                    match api.log_stream(&pod.name, &params(args, true, first)).await {
                        Ok(stream) => {
                            known.insert(restarted);
                            all.push(lines(title, stream.lines()));
                        }
                        Err(error) if first => eprintln!("meshctl: {title}: {error}"),
                        // A container that starts has no log yet.
                        Err(_) => {}
                    }
                }
                if first && all.is_empty() {
                    eprintln!("meshctl: nothing runs yet; waiting");
                }
                first = false;
            }
            Some((title, line)) = all.next() => match line {
                Ok(text) => {
                    let line = Line::read(&title, cut(&text));
                    if line.is_at_least(args.level) && !print(args.output.format, &line)? {
                        return Ok(Outcome::Fine);
                    }
                }
                Err(error) => eprintln!("meshctl: {title}: {error}"),
            },
        }
    }
}

fn lines(
    title: String,
    stream: impl futures::Stream<Item = std::io::Result<String>> + Send + 'static,
) -> Lines {
    let ended = futures::stream::once(std::future::ready(Ok("(its log has ended)".to_owned())));
    stream.into_stream().chain(ended).map(move |line| (title.clone(), line)).boxed()
}

fn cut(line: &str) -> &str {
    let mut end = line.len().min(MAX_LINE);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    &line[..end]
}

/// Prints a line; false when nobody reads any more.
fn print(format: Format, line: &Line) -> Result<bool> {
    use std::io::Write;
    let text = match format {
        Format::Table => line.text(),
        Format::Json => serde_json::to_string(line)?,
        Format::Yaml => format!("---\n{}", serde_saphyr::to_string(line)?.trim_end()),
    };
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}
