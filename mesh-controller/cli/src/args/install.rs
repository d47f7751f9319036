//! Bringing the mesh into a cluster, and out of it.

use std::{path::PathBuf, time::Duration};

use clap::Args as ClapArgs;

use super::{Output, mesh::Kube, mesh::span};

/// The Helm that does the work.
#[derive(Debug, Clone, ClapArgs)]
pub struct Helm {
    /// The helm program.
    #[arg(long, value_name = "PROGRAM", env = "HELM", default_value = "helm")]
    pub helm: PathBuf,
    /// Name of the release.
    #[arg(long, default_value = "mesh")]
    pub release: String,
    /// Limit for Helm's waiting.
    #[arg(long, value_name = "TIME", default_value = "7m", value_parser = span)]
    pub timeout: Duration,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until programs run, or are gone.
    #[arg(long)]
    pub no_wait: bool,
}

/// `meshctl install`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Looks whether the cluster can run the mesh (`meshctl check --before`), then runs `helm upgrade --install` with the chart of this
meshctl's version, waits, and looks again. Installed already, it is upgraded: values of before stay. Exit code 1 when a check
refuses or Helm fails.

Examples:
  meshctl install
  meshctl install --set image.registry=registry.example.com --set relay.enabled=true
  meshctl install -f values.yaml --dry-run
  meshctl install --chart charts/mesh --helm /opt/helm/helm --context prod -n mesh")]
pub struct Install {
    /// Chart: a directory or an archive; without it the one that is in this meshctl.
    #[arg(long, value_name = "DIR|ARCHIVE")]
    pub chart: Option<PathBuf>,
    /// File of values; any number of times.
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// One value; any number of times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// One value that is a text, whatever it looks like; any number of times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set_string: Vec<String>,
    /// Checks whose refusal does not count.
    #[arg(long, value_name = "CHECK,...", value_delimiter = ',')]
    pub ignore: Vec<String>,
    /// Helm.
    #[command(flatten)]
    pub helm: Helm,
    /// The cluster.
    #[command(flatten)]
    pub kube: Kube,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}

/// `meshctl uninstall`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Calls go on without the mesh: each proxy gives the node's network back before it ends. CRDs stay, and all rules with them,
unless --purge-crds is given; it removes only definitions that came with this chart.

Examples:
  meshctl uninstall
  meshctl uninstall --dry-run
  meshctl uninstall --purge-crds --yes            rules are deleted with their definitions")]
pub struct Uninstall {
    /// Remove the definitions that came with the chart, too, and with them all rules of their kinds.
    #[arg(long)]
    pub purge_crds: bool,
    /// Delete rules together with their definitions without asking.
    #[arg(long)]
    pub yes: bool,
    /// Helm.
    #[command(flatten)]
    pub helm: Helm,
    /// The cluster.
    #[command(flatten)]
    pub kube: Kube,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}
