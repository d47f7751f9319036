//! The `lab` program: worlds for a person to play with.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, Parser, Subcommand};
use serde_json::json;

use super::{
    Kind, LabError, Spec, World, edge,
    enter::{Enter, enter_main, run_main},
    keeper::{keep_main, world_main},
    mapping, nat, relay, socket, state,
    world::Options,
};

/// Closed test networks on one machine: sites, routers, nodes and pods as network namespaces.
#[derive(Debug, Parser)]
#[command(name = "lab", version, arg_required_else_help = true)]
pub struct Cli {
    /// The world; needed only when more than one is up.
    #[arg(short, long, global = true, env = "LAB_WORLD")]
    world: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Brings a world up
    Up {
        /// Its description; `-` reads standard input
        file: PathBuf,
        /// Stay until Ctrl-C, and take the world down then
        #[arg(long)]
        foreground: bool,
        /// Use a user namespace even as root
        #[arg(long)]
        unprivileged: bool,
        /// Only say whether the description is usable
        #[arg(long)]
        check: bool,
    },
    /// Runs a command on a node, in a pod, or on a site's router
    Exec {
        /// Where
        at: String,
        /// What
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Cuts two places off each other; one place off everything without the second
    Cut {
        /// A node, pod or site
        a: String,
        /// Another, or `all`
        b: Option<String>,
    },
    /// Ends all faults, those of one place, or the cut between two
    Heal {
        /// A place
        a: Option<String>,
        /// Another
        b: Option<String>,
    },
    /// Loses a share of the packets on a place's link
    Loss {
        /// A node, pod or site
        at: String,
        /// Percent; 0 ends it
        percent: f64,
    },
    /// Limits what a place's link carries
    Rate {
        /// A node, pod or site
        at: String,
        /// Kilobits per second; 0 ends it
        kbit: u32,
        /// How long a packet may wait, in milliseconds
        #[arg(long, default_value_t = 100)]
        queue: u32,
    },
    /// Makes a place's link longer
    Delay {
        /// A node, pod or site
        at: String,
        /// Milliseconds one way; 0 ends it
        ms: u32,
    },
    /// Ends every process in a place at once, as a power cut would
    Kill {
        /// A node or pod
        at: String,
    },
    /// Shows a world's places and faults
    Status {
        /// `json` for programs
        #[arg(short, long)]
        output: Option<String>,
    },
    /// Lists the worlds that are up
    List,
    /// Takes a world down
    Down,
    /// Prints shell completion
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
    #[command(name = "__keep", hide = true)]
    Keep {
        dir: PathBuf,
        #[arg(long)]
        user: bool,
        #[arg(long)]
        detached: bool,
    },
    #[command(name = "__world", hide = true)]
    World {
        dir: PathBuf,
        #[arg(long)]
        host_net: u64,
        #[arg(long)]
        detached: bool,
    },
    #[command(name = "__enter", hide = true)]
    Enter {
        dir: PathBuf,
        at: String,
        #[arg(long)]
        pid_file: Option<PathBuf>,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    #[command(name = "__delay", hide = true)]
    DelayRelay { device: String, ms: u64 },
    #[command(name = "__nat", hide = true)]
    Nat { config: String },
    #[command(name = "__connect-proxy", hide = true)]
    ConnectProxy { listen: std::net::SocketAddr },
    #[command(name = "__flap", hide = true)]
    Flap { family: String, device: String, up_ms: u64, down_ms: u64 },
    #[command(name = "__mapping", hide = true)]
    Mapping { settings: String },
    #[command(name = "__socket", hide = true)]
    Socket { kind: String, port: u16 },
    #[command(name = "__run", hide = true)]
    Run {
        dir: PathBuf,
        at: String,
        keeper: i32,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Runs the program; the exit code.
#[must_use]
pub fn main() -> i32 {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {}", error.full());
            if matches!(error, LabError::Invalid(_) | LabError::NoSuchWorld(_) | LabError::NoSuchPlace { .. })
            {
                2
            } else {
                1
            }
        }
    }
}

fn run(cli: Cli) -> Result<i32, LabError> {
    let world = || open(cli.world.as_deref());
    match cli.verb {
        Verb::Keep { dir, user, detached } => keep_main(&dir, user, detached).map(|()| 0),
        Verb::World { dir, host_net, detached } => world_main(&dir, host_net, detached).map(|()| 0),
        Verb::Enter { dir, at, pid_file, command } => enter_main(&Enter { dir, at, pid_file, argv: command }),
        Verb::DelayRelay { device, ms } => {
            relay::delay_main(&device, std::time::Duration::from_millis(ms)).map(|()| 0)
        }
        Verb::Nat { config } => nat::nat_main(&config).map(|()| 0),
        Verb::ConnectProxy { listen } => edge::connect_proxy_main(listen).map(|()| 0),
        Verb::Flap { family, device, up_ms, down_ms } => {
            let ms = std::time::Duration::from_millis;
            edge::flap_main(&family, &device, ms(up_ms), ms(down_ms)).map(|()| 0)
        }
        Verb::Mapping { settings } => mapping::mapping_main(&settings).map(|()| 0),
        Verb::Socket { kind, port } => socket::socket_main(&kind, port).map(|()| 0),
        Verb::Run { dir, at, keeper, command } => run_main(&dir, &at, keeper, &command),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "lab", &mut std::io::stdout());
            Ok(0)
        }
        Verb::List => {
            state::janitor();
            let names: Vec<String> =
                state::all().into_iter().filter(|(_, f)| f.alive()).map(|(n, _)| n).collect();
            say(&if names.is_empty() { "no world is up".to_owned() } else { names.join("\n") });
            Ok(0)
        }
        Verb::Up { file, check: true, .. } => {
            let spec = read(&file)?;
            let plan = super::plan::plan(&spec)?;
            say(&format!("{}: usable, {} namespaces", spec.name, plan.places.len()));
            Ok(0)
        }
        Verb::Up { file, foreground, unprivileged, check: false } => {
            up(&file, cli.world.as_deref(), foreground, unprivileged).map(|()| 0)
        }
        Verb::Exec { at, command } => {
            let world = world()?;
            let dir = world.place(&at)?.info().name.clone();
            enter_main(&Enter { dir: world.dir().to_owned(), at: dir, pid_file: None, argv: command })
        }
        Verb::Cut { a, b } => world()?.cut(&a, b.as_deref()).map(|()| 0),
        Verb::Heal { a: None, .. } => world()?.heal().map(|()| 0),
        Verb::Heal { a: Some(a), b } => world()?.heal_one(&a, b.as_deref()).map(|()| 0),
        Verb::Loss { at, percent } => world()?.loss(&at, percent).map(|()| 0),
        Verb::Rate { at, kbit, queue } => world()?.rate(&at, kbit, queue).map(|()| 0),
        Verb::Delay { at, ms } => world()?.delay(&at, ms).map(|()| 0),
        Verb::Kill { at } => {
            say(&format!("{} processes ended", world()?.place(&at)?.kill_all()));
            Ok(0)
        }
        Verb::Status { output } => {
            status(&world()?, output.as_deref() == Some("json"));
            Ok(0)
        }
        Verb::Down => {
            world()?.down();
            Ok(0)
        }
    }
}

fn open(name: Option<&str>) -> Result<World, LabError> {
    let mut alive: Vec<_> = state::all().into_iter().filter(|(_, f)| f.alive()).collect();
    if let Some(name) = name {
        alive.retain(|(n, _)| n == name);
        return match alive.first() {
            Some((_, files)) => World::attach(files),
            None => Err(LabError::NoSuchWorld(format!("no world called {name} is up"))),
        };
    }
    match alive.as_slice() {
        [(_, files)] => World::attach(files),
        [] => Err(LabError::NoSuchWorld("no world is up: lab up WORLD.yaml".to_owned())),
        many => {
            let names: Vec<&str> = many.iter().map(|(n, _)| n.as_str()).collect();
            Err(LabError::NoSuchWorld(format!("choose a world with -w: {}", names.join(", "))))
        }
    }
}

fn read(file: &Path) -> Result<Spec, LabError> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        fs::read_to_string(file)
    };
    Spec::parse(&text.map_err(LabError::file("read", file))?)
}

fn up(file: &Path, name: Option<&str>, foreground: bool, unprivileged: bool) -> Result<(), LabError> {
    let mut spec = read(file)?;
    if let Some(name) = name {
        name.clone_into(&mut spec.name);
    }
    let world = World::up_with(&spec, Options { detached: !foreground, unprivileged })?;
    status(&world, false);
    if !foreground {
        say(&format!("\nlab -w {0} exec NODE -- CMD to work in it, lab -w {0} down to end it", spec.name));
        return Ok(());
    }
    say("\nCtrl-C takes it down");
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::Signal::SIGINT);
    set.add(nix::sys::signal::Signal::SIGTERM);
    set.thread_block().map_err(LabError::system("blocking signals"))?;
    set.wait().map_err(LabError::system("waiting for Ctrl-C"))?;
    drop(world);
    Ok(())
}

fn status(world: &World, as_json: bool) {
    if as_json {
        let name = world.dir().file_name().map(|n| n.to_string_lossy().into_owned());
        let value = json!({ "world": name, "places": world.places(), "faults": world.faults() });
        say(&format!("{value:#}"));
        return;
    }
    for place in world.places().values() {
        let kind = match place.kind {
            Kind::Internet => "public segment".to_owned(),
            Kind::Router => router(world, &place.name),
            Kind::Node => format!("node, site {}", place.site.as_deref().unwrap_or("-")),
            Kind::Pod => format!("pod on {}", place.node.as_deref().unwrap_or("-")),
        };
        let v4 = Some(place.address).filter(|a| !a.is_unspecified()).map(|a| a.to_string());
        let all: Vec<String> = v4.into_iter().chain(place.address6.map(|a| a.to_string())).collect();
        say(&format!("{:<24} {:<16} {kind}", place.name, all.join(" ")));
    }
    for fault in world.faults() {
        say(&format!("fault: {}", json!(fault)));
    }
    if let Err(error) = world.check_closed() {
        say(&format!("WARNING: {}", error.full()));
    }
}

/// What a router does, in a few words.
fn router(world: &World, name: &str) -> String {
    let Some(site) = world.spec().sites.get(name) else { return "router".to_owned() };
    let mut text = format!("router, {}", site.nat.kind.as_str());
    if site.nat.hairpin {
        text += ", hairpin";
    }
    if site.egress != super::Egress::Any {
        text += &format!(", lets out: {}", site.egress.as_str());
    }
    if let Some(carrier) = &site.behind {
        text += &format!(", behind {carrier}");
    }
    text
}

/// A reader that closes early is no error of ours.
fn say(text: &str) {
    let _reader_gone = writeln!(std::io::stdout(), "{text}");
}
