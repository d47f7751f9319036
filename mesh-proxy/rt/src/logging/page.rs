//! `/logging`: which targets log how much, and changes to that, for a time if one is given.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use super::{LogControl, LogError, levels::Levels};
use crate::{AdminRequest, AdminResponse, AdminServer, Tasks, json_response, text_response};

/// Longest time after which a change is undone.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl AdminServer {
    /// Adds `/logging` for the log of this process, if one was set up.
    #[must_use]
    pub fn process_logging(self, tasks: &Tasks) -> Self {
        match LogControl::installed() {
            Some(log) => self.logging(log, tasks.clone()),
            None => self,
        }
    }

    /// Adds `/logging`, in the manner of Envoy: `GET` shows the levels, `POST ?level=debug` sets all of them,
    /// `?target=mesh_proxy::dns&level=debug` or `?mesh_proxy::dns=debug` one, `?paths=a:debug,b:info` some; `&for=10m` undoes
    /// it after that time, `?reset` at once.
    #[must_use]
    pub fn logging(self, log: LogControl, tasks: Tasks) -> Self {
        let show = log.clone();
        self.route("GET", "/logging", move |request| std::future::ready(levels(&show, &request))).route(
            "POST",
            "/logging",
            move |request| {
                let changed = log.apply(request.uri().query().unwrap_or_default());
                let answer = match changed {
                    Ok(change) => {
                        if let Some((change, after)) = change {
                            log.reset_after(change, after, &tasks);
                        }
                        levels(&log, &request)
                    }
                    Err(error) => text_response(StatusCode::BAD_REQUEST, format!("{error}\n")),
                };
                std::future::ready(answer)
            },
        )
    }
}

fn levels(log: &LogControl, request: &AdminRequest) -> AdminResponse {
    let levels = Levels::of(&log.current());
    if request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "format=json")) {
        let all: serde_json::Map<_, _> = levels.list().map(|(t, l)| (t.to_owned(), json!(l))).collect();
        return json_response(StatusCode::OK, &json!({ "filter": log.current(), "levels": all }));
    }
    let mut text = "active loggers:\n".to_owned();
    for (target, level) in levels.list() {
        text.push_str(&format!("  {target}: {level}\n"));
    }
    text_response(StatusCode::OK, text)
}

impl LogControl {
    /// Changes levels as a query says; all of it or nothing. Gives the change and when it is to be undone.
    fn apply(&self, query: &str) -> Result<Option<(u64, Duration)>, LogError> {
        let mut levels = Levels::of(&self.current());
        let (mut target, mut level, mut after) = (String::new(), None, None);
        for (name, value) in query.split('&').filter(|p| !p.is_empty()).map(pair) {
            match (name.as_str(), value) {
                ("reset", _) => levels = Levels::of(&self.lock().configured),
                ("format", _) => {}
                ("level", Some(value)) => level = Some(value),
                ("target", Some(value)) => target = value,
                ("for", Some(value)) => after = Some(time(&value)?),
                ("paths", Some(value)) => {
                    for one in value.split(',') {
                        // Targets hold colons themselves; the level comes after the last one.
                        let (target, level) =
                            one.rsplit_once(':').ok_or_else(|| LogError::Target(one.to_owned()))?;
                        levels.set(target, level)?;
                    }
                }
                (target, Some(level)) => levels.set(target, &level)?,
                (name, None) => return Err(LogError::Parameter(name.to_owned())),
            }
        }
        match (target.as_str(), level) {
            (_, None) if target.is_empty() => {}
            (target, None) => return Err(LogError::Level(format!("(none for {target})"))),
            ("", Some(level)) if level.contains([',', '=']) => levels = Levels::of(&level),
            ("", Some(level)) => levels.set_all(&level)?,
            (target, Some(level)) => levels.set(target, &level)?,
        }
        let change = self.change(&levels.filter())?;
        Ok(after.map(|after| (change, after)))
    }

    /// Goes back to the configured levels after that time, unless they are changed before.
    fn reset_after(&self, change: u64, after: Duration, tasks: &Tasks) {
        let log = self.clone();
        tasks.spawn("log level", async move {
            tokio::time::sleep(after).await;
            if log.is_last(change)
                && let Err(error) = log.reset()
            {
                tracing::warn!(%error, "log levels stay as they are");
            }
        });
    }
}

fn pair(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((name, value)) => (decode(name), Some(decode(value))),
        None => (decode(text), None),
    }
}

/// `%3A` and the like; what is none stays.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(b) = bytes.get(at) {
        let digits = text.get(at + 1..at + 3).filter(|_| *b == b'%');
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if *b == b'+' { b' ' } else { *b });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn time(text: &str) -> Result<Duration, LogError> {
    let bad = || LogError::Time(text.to_owned());
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(bad()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds)).ok_or_else(bad)?;
    let time = Duration::from_secs(seconds);
    if time.is_zero() || time > LONGEST { Err(bad()) } else { Ok(time) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Called by the one test that installs a subscriber: there is only one in a process.
    pub(crate) fn pages_change_levels(log: &LogControl) {
        let said = |query: &str| log.apply(query).unwrap_err().to_string();
        let filter = |query: &str| {
            log.apply(query).unwrap();
            log.current()
        };
        assert_eq!(filter("level=debug"), "debug");
        assert_eq!(filter("target=mesh_proxy%3A%3Adns&level=trace"), "debug,mesh_proxy::dns=trace");
        assert_eq!(filter("mesh_tunnel=info"), "debug,mesh_proxy::dns=trace,mesh_tunnel=info");
        assert_eq!(
            filter("paths=mesh_proxy::dns:warn,hyper:off"),
            "debug,mesh_tunnel=info,mesh_proxy::dns=warn,hyper=off"
        );
        assert_eq!(filter("level=info,a=debug"), "info,a=debug");
        assert_eq!(filter("reset"), "warn", "what the process started with");
        assert_eq!(
            said("level=loud"),
            "\"loud\" is no level; levels are off, error, warn, info, debug, trace"
        );
        assert!(said("a%20b=info").contains("no target"));
        assert!(said("target=a").contains("no level"));
        assert!(said("level=debug&for=1w").contains("no time"));
        assert!(said("level=debug&for=0").contains("no time"));
        assert!(said("louder").contains("no parameter"));
        assert_eq!(log.current(), "warn", "a wrong word changes nothing");

        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.unwrap().block_on(async {
            let tasks = Tasks::new(crate::Drain::new());
            let (change, after) = log.apply("level=trace&for=10m").unwrap().unwrap();
            assert_eq!((after, log.current().as_str()), (Duration::from_secs(600), "trace"));
            log.reset_after(change, Duration::from_millis(1), &tasks);
            let undone = async {
                while log.current() != "warn" {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), undone).await.unwrap();
            let (change, _) = log.apply("level=trace&for=10s").unwrap().unwrap();
            log.apply("level=debug").unwrap();
            log.reset_after(change, Duration::from_millis(1), &tasks);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(log.current(), "debug", "a later change stays");
        });
    }
}
