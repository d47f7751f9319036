//! `echo call`: calls a URL once or many times, and counts who answered with what.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use http::Uri;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use super::{
    client::{Mode, Target},
    load::{Plan, Report, run},
};

/// What `echo call` is told.
#[derive(Clone, Debug, Args)]
pub struct CallArgs {
    /// Where: http://, https://, ws://, tcp://, tls://, udp://
    pub url: String,
    /// Number of calls [default: 1, or no limit with --duration]
    #[arg(short = 'n', long)]
    pub count: Option<u64>,
    /// Seconds to go on for
    #[arg(short, long)]
    pub duration: Option<f64>,
    /// Calls each second [default: as fast as answers come]
    #[arg(short, long)]
    pub rate: Option<f64>,
    /// Callers, each with its connection
    #[arg(short, long, default_value_t = 1)]
    pub concurrency: usize,
    /// HTTP/2 without upgrade
    #[arg(long, group = "protocol")]
    pub h2: bool,
    /// A gRPC unary call of the echo service
    #[arg(long, group = "protocol")]
    pub grpc: bool,
    /// A WebSocket message
    #[arg(long, group = "protocol")]
    pub ws: bool,
    /// A TCP connection
    #[arg(long, group = "protocol")]
    pub tcp: bool,
    /// A datagram
    #[arg(long, group = "protocol")]
    pub udp: bool,
    /// Method
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: http::Method,
    /// A header, `Name: value`
    #[arg(short = 'H', long = "header")]
    pub headers: Vec<String>,
    /// Size of a made-up body
    #[arg(long, default_value_t = 0)]
    pub body_bytes: usize,
    /// Connect there, whatever the host says
    #[arg(long)]
    pub connect: Option<SocketAddr>,
    /// Seconds until a call has failed
    #[arg(long, default_value_t = 10.0)]
    pub timeout: f64,
    /// A new connection for each call
    #[arg(long)]
    pub no_keep_alive: bool,
    /// `json` for programs
    #[arg(short, long)]
    pub output: Option<String>,
}

/// Runs it; true when no call failed.
///
/// # Errors
/// When the arguments make no sense together.
pub async fn call(args: CallArgs) -> anyhow::Result<bool> {
    let target = Arc::new(target(&args)?);
    let is_single = args.count.unwrap_or(1) == 1 && args.duration.is_none();
    let plan = Plan {
        count: args.count.unwrap_or(if args.duration.is_some() { u64::MAX } else { 1 }),
        duration: args.duration.map(Duration::from_secs_f64),
        rate: args.rate,
        concurrency: args.concurrency.clamp(1, 10_000),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    let tasks = TaskTracker::new();
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tasks.spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        on_signal.store(true, Ordering::Relaxed);
    });
    let report = run(target, plan, stop).await;
    let text = if args.output.as_deref() == Some("json") {
        serde_json::to_string(&report)? + "\n"
    } else if is_single {
        single(&report)
    } else {
        table(&report)
    };
    // A reader that closes early is no error of ours.
    let _reader_gone = std::io::stdout().write_all(text.as_bytes());
    Ok(report.failed == 0)
}

fn target(args: &CallArgs) -> anyhow::Result<Target> {
    let uri: Uri = args.url.parse().with_context(|| format!("{} is not a URL", args.url))?;
    let Some(scheme) = uri.scheme_str() else { bail!("{} has no scheme, such as http://", args.url) };
    let mode = match scheme {
        _ if args.grpc => Mode::Grpc,
        _ if args.h2 => Mode::Http2,
        _ if args.ws => Mode::WebSocket,
        _ if args.tcp => Mode::Tcp,
        _ if args.udp => Mode::Udp,
        "ws" | "wss" => Mode::WebSocket,
        "tcp" | "tls" => Mode::Tcp,
        "udp" => Mode::Udp,
        "http" | "https" => Mode::Http1,
        other => bail!("{other}:// is not known"),
    };
    let mut headers = Vec::new();
    for header in &args.headers {
        let Some((name, value)) = header.split_once(':') else { bail!("{header:?} is not `Name: value`") };
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(Target {
        uri,
        mode,
        connect: args.connect,
        method: args.method.clone(),
        headers,
        body_bytes: args.body_bytes,
        timeout: Duration::from_secs_f64(args.timeout.clamp(0.001, 3600.0)),
        keep_alive: !args.no_keep_alive,
    })
}

fn single(report: &Report) -> String {
    let status = report.by_status.keys().next();
    let mut text = match status {
        Some(status) => format!("status {status}  {:.1} ms\n", report.latency_ms.max),
        None => String::new(),
    };
    for why in report.errors.keys() {
        text += &format!("failed: {why}\n");
    }
    text += report.last_body.trim_end();
    text += "\n";
    text
}

fn table(report: &Report) -> String {
    let mut text = format!("{} calls in {:.1} s, {} failed\n", report.sent, report.seconds, report.failed);
    let share = |count: u64| 100.0 * count as f64 / report.sent.max(1) as f64;
    for (status, count) in &report.by_status {
        text += &format!("  status {status:<18} {count:>7}  {:>5.1} %\n", share(*count));
    }
    for (label, map) in
        [("version", &report.by_version), ("name", &report.by_name), ("node", &report.by_node)]
    {
        for (key, count) in map {
            text += &format!("  {label} {key:<17} {count:>7}  {:>5.1} %\n", share(*count));
        }
    }
    for (why, count) in &report.errors {
        text += &format!("  failed: {why}  {count}\n");
    }
    let l = report.latency_ms;
    text += &format!("  ms: p50 {:.1}  p90 {:.1}  p99 {:.1}  max {:.1}\n", l.p50, l.p90, l.p99, l.max);
    text
}
