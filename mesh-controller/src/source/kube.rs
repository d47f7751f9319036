//! Objects from a Kubernetes API server.

use std::path::PathBuf;

use node_rt::Tasks;
use tokio::sync::mpsc;

use super::{Health, Op};

/// Connects and starts one watch for each kind.
pub(crate) async fn start(
    _kubeconfig: Option<PathBuf>,
    _sender: mpsc::Sender<Vec<Op>>,
    _health: Health,
    _tasks: &Tasks,
) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
