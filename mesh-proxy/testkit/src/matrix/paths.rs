//! What a proxy says of its paths, over one connection to its admin pages.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use serde_json::Value;

use crate::{lab::LabError, mesh::Mesh};

/// The path in use to a peer, as `meshctl paths` shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PathView {
    /// `lan`, `direct`, `punched` or `relayed`; empty: none.
    pub path: String,
    /// `quic`, `tcp` or `ws`.
    pub transport: String,
    /// The relay, if relayed.
    pub relay: Option<String>,
    /// Punches that were tried.
    pub attempts: Option<u64>,
    /// What became of the last one.
    pub outcome: Option<String>,
    /// Why it is not better.
    pub why: String,
}

/// A connection to a proxy's admin pages. Made again when it breaks: the proxy may restart.
#[derive(Debug)]
pub struct Paths<'m> {
    mesh: &'m Mesh,
    node: String,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The longest answer.
const LONGEST: usize = 1 << 20;

impl<'m> Paths<'m> {
    /// The admin pages of a node.
    #[must_use]
    pub fn of(mesh: &'m Mesh, node: &str) -> Self {
        Self { mesh, node: node.to_owned(), open: None }
    }

    /// The path to a peer; nothing when there is none, or the proxy does not answer.
    pub fn to(&mut self, peer: &str) -> Option<PathView> {
        self.all().into_iter().find(|(name, _)| name == peer).map(|(_, view)| view)
    }

    /// The paths to all peers, by name.
    pub fn all(&mut self) -> Vec<(String, PathView)> {
        for _ in 0..2 {
            if self.open.is_none() {
                self.open = connect(self.mesh, &self.node).ok();
            }
            match self.open.as_mut().map(ask) {
                Some(Ok(Value::Array(all))) => return all.iter().map(view).collect(),
                Some(Ok(_)) => return Vec::new(),
                Some(Err(_)) | None => self.open = None,
            }
        }
        Vec::new()
    }
}

fn connect(mesh: &Mesh, node: &str) -> Result<Open, LabError> {
    let mut command: Command = mesh.pipe(node, "127.0.0.1:15000")?;
    command.stderr(std::process::Stdio::null());
    let failed = |e| LabError::Process(format!("the admin pages of {node}: {e}"));
    let mut child = command.spawn().map_err(failed)?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(LabError::Process("a pipe without ends".to_owned()));
    };
    Ok(Open { child, input, output: BufReader::new(output) })
}

fn ask(open: &mut Open) -> std::io::Result<Value> {
    let bad = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    open.input.write_all(b"GET /paths HTTP/1.1\r\nHost: admin\r\n\r\n")?;
    open.input.flush()?;
    let mut length = None;
    let mut status = String::new();
    open.output.read_line(&mut status)?;
    loop {
        let mut line = String::new();
        if open.output.read_line(&mut line)? == 0 {
            return Err(bad());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse::<usize>().ok();
        }
    }
    let length = length.filter(|l| *l <= LONGEST).ok_or_else(bad)?;
    let mut body = vec![0; length];
    open.output.read_exact(&mut body)?;
    if !status.contains(" 200 ") {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body).map_err(|_| bad())
}

fn view(value: &Value) -> (String, PathView) {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let punch = &value["last_punch"];
    let view = PathView {
        path: text("path"),
        transport: text("transport"),
        relay: value["relay"].as_str().map(str::to_owned),
        attempts: punch["attempts"].as_u64(),
        outcome: punch["outcome"].as_str().map(str::to_owned),
        why: text("why_not_better"),
    };
    (text("peer"), view)
}
