//! The few system tools that a world needs: found, installed when missing and possible, run with their
//! complaints kept.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use super::LabError;

const NEEDED: [(&str, &str); 3] = [("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables")];
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The full path of a tool: unprivileged users often have no `/usr/sbin` in their PATH.
pub(crate) fn path(tool: &str) -> Option<String> {
    FOLDERS.iter().map(|f| format!("{f}/{tool}")).find(|p| Path::new(p).exists())
}

/// Makes sure that all tools are there, with what this world needs beyond the usual; root on a Debian machine gets them
/// installed.
pub(crate) fn ensure(more: &[(&'static str, &'static str)]) -> Result<(), LabError> {
    for (tool, package) in NEEDED.iter().chain(more).copied() {
        if path(tool).is_some() {
            continue;
        }
        if nix::unistd::geteuid().is_root() && path("apt-get").is_some() {
            eprintln!("lab: {tool} is missing, installing {package}");
            let _checked_below = Command::new("apt-get")
                .args(["install", "-y", "-q", "--no-install-recommends", package])
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdout(Stdio::null())
                .status();
        }
        if path(tool).is_none() {
            return Err(LabError::Tool { tool, package });
        }
    }
    Ok(())
}

/// Runs a tool in the current network namespace with `input` on its standard input.
pub(crate) fn run(place: &str, tool: &'static str, args: &[&str], input: &str) -> Result<String, LabError> {
    let program = path(tool).ok_or(LabError::Tool { tool, package: "iproute2 or nftables" })?;
    let mut command = Command::new(program);
    command.args(args);
    feed(place, &mut command, &format!("{tool} {}", args.join(" ")), input)
}

/// Runs a prepared command with `input` on its standard input; its output, or its complaint.
pub(crate) fn feed(place: &str, command: &mut Command, name: &str, input: &str) -> Result<String, LabError> {
    let failed =
        |detail: String| LabError::Command { command: name.to_owned(), place: place.to_owned(), detail };
    let mut child = (command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // The tools read all of their input before they answer; a short write shows in the exit status.
        let _shows_in_status = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if tool_line(&detail).is_some() && !input.is_empty() {
        detail.push_str("\n(input)\n");
        detail.push_str(input);
    }
    Err(failed(detail))
}

/// Whether a complaint points at a line of the input.
fn tool_line(detail: &str) -> Option<&str> {
    detail.lines().find(|l| l.contains("Command failed") || l.contains("/dev/stdin") || l.contains("Error:"))
}
