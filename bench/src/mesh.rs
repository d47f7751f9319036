//! The mesh in the bench.

use std::path::Path;

use anyhow::Result;

use crate::{
    report::Report,
    subject::{Backend, Group},
};

/// The mesh's own programs.
pub(crate) struct Mesh;

/// Starts controller and proxies.
pub(crate) fn start(_dir: &Path, _backend: Backend) -> Result<(Mesh, Vec<Group>)> {
    Ok((Mesh, Vec::new()))
}

impl Mesh {
    /// How long a changed rule takes to steer traffic.
    pub(crate) fn apply_to_effect(&mut self, _rounds: usize, _report: &mut Report) -> Result<()> {
        Ok(())
    }
}
