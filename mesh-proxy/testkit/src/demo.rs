//! The main job, shown and checked: rules that everyone knows steer calls between services at different sites, each
//! behind a router of another kind, and calls go on when the cloud is gone.

mod checks;
mod nats;
mod steps;

use std::{path::PathBuf, time::Instant};

use anyhow::Context as _;
use clap::Parser;

use crate::{
    lab::{Nat, Spec},
    mesh::{App, Mesh, Plan, manifest},
};
use checks::Screen;

/// Brings a mesh up in a closed test network, walks through what it does, and checks every step.
#[derive(Debug, Parser)]
#[command(name = "demo", version)]
pub struct Args {
    /// Leave the world up to play with
    #[arg(long)]
    keep: bool,
    /// Use a user namespace even as root
    #[arg(long)]
    unprivileged: bool,
    /// The folder with bookinfo.yaml and networking/
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/bookinfo"))]
    examples: PathBuf,
}

/// Runs the demo; true when every check holds.
///
/// # Errors
/// When the world or a part of the mesh does not come up at all.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let start = Instant::now();
    let mut screen = Screen::new();
    let result = walk(args, &mut screen);
    if let Err(error) = &result {
        screen.check("the demo runs to its end", false, &format!("{error:#}"));
    }
    let ok = screen.table(start.elapsed());
    match result {
        Ok(mesh) if args.keep => {
            let world = mesh.leave();
            screen.keep_help(&world);
        }
        // Dropping it takes everything down.
        Ok(_) | Err(_) => {}
    }
    screen.last_line();
    Ok(ok)
}

fn walk(args: &Args, screen: &mut Screen) -> anyhow::Result<Mesh> {
    let read = |file: &str| {
        let path = args.examples.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let plan = plan(args, read("bookinfo.yaml")?);
    let mut mesh = steps::bring_up(&plan, screen)?;
    let rules = |name: &str| read(&format!("networking/{name}.yaml"));
    steps::name_lookup(&mesh, screen)?;
    nats::paths(&mesh, screen)?;
    steps::across_sites(&mesh, screen)?;
    nats::other_calls(&mesh, screen)?;
    steps::splits(&mesh, screen, &rules)?;
    steps::faults(&mesh, screen, &rules)?;
    steps::metrics(&mesh, screen)?;
    steps::without_cloud(&mut mesh, screen)?;
    Ok(mesh)
}

fn plan(args: &Args, services: String) -> Plan {
    let prefix = |text: &str| text.parse().unwrap_or_default();
    // Two kinds of routers, and no port forwarded: only the relay and the cloud can be called.
    let mut world = Spec::named("demo")
        .site("shop", prefix("192.168.10.0/24"), Nat::PortRestricted)
        .site("plant", prefix("192.168.20.0/24"), Nat::FullCone)
        .node("cloud", None, Some(prefix("10.244.0.0/24")))
        .node("relay", None, None)
        .node("edge-a", Some("shop"), Some(prefix("10.244.1.0/24")))
        .node("edge-b", Some("plant"), Some(prefix("10.244.2.0/24")))
        .pod("operator", "cloud")
        .pod("shopper", "edge-a")
        .pod("web-0", "edge-b");
    let mut apps = Vec::new();
    for (pod, node, app, version) in [
        ("productpage-v1", "edge-a", "productpage", "v1"),
        ("reviews-v1", "edge-a", "reviews", "v1"),
        ("details-v1", "edge-b", "details", "v1"),
        ("reviews-v2", "edge-b", "reviews", "v2"),
        ("reviews-v3", "edge-b", "reviews", "v3"),
        ("ratings-v1", "edge-b", "ratings", "v1"),
    ] {
        world = world.pod(pod, node);
        apps.push(App::new(pod, app, version, &["--app", app, "--http", "9080"]));
    }
    apps.push(App::new("web-0", "web", "v1", &["--http", "8080", "--udp", "9000"]));
    let sensor = manifest::service("sensor", "web", &[("readings", 9000, "UDP")]);
    Plan {
        world,
        controller: "cloud".to_owned(),
        apps,
        manifests: vec![services, sensor],
        relays: vec!["relay".to_owned()],
        detached: args.keep,
        unprivileged: args.unprivileged,
        ..Plan::default()
    }
}
