//! Limits that the system sets for a process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the number of descriptors that the process may have open to what the system allows it.
/// The usual soft limit of 1,024 is meant for programs that use select(2); a proxy with it is full
/// at 500 connections. Returns the limit in force.
pub fn raise_descriptor_limit() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(error) => {
                tracing::warn!(%error, limit = soft, "the limit of open descriptors stays");
                soft
            }
        },
        Ok((soft, _)) => soft,
        Err(error) => {
            tracing::warn!(%error, "the limit of open descriptors is not known");
            0
        }
    }
}
