//! The keeper: makes the namespaces of a world and holds them until its owner goes.
//!
//! Two stages, because a pid namespace starts with the first child: stage one unshares and waits, stage two
//! is process 1 of the world, builds it and reaps what its processes leave.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getgid, getuid, setsid},
};
use serde_json::Value;

use super::{
    LabError, PlaceInfo,
    plan::{INTERNET, Plan, plan},
    state::{Files, KeeperId, write_json},
    tools,
};

/// Stage one. `user` adds a user namespace, which is what makes a world possible without root.
///
/// # Errors
/// When the kernel refuses the namespaces.
pub fn keep_main(dir: &Path, user: bool, detached: bool) -> Result<(), LabError> {
    let files = Files::at(dir);
    // The keeper outlives a Ctrl-C that is meant for its owner; the closed pipe ends it.
    let _already_leader = setsid();
    let host = net_inode("/proc/self/ns/net")?;
    let (uid, gid) = (getuid(), getgid());
    let mut flags = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if user {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(LabError::system("making namespaces (are user namespaces allowed?)"))?;
    if user {
        for (file, text) in [
            ("/proc/self/setgroups", "deny".to_owned()),
            ("/proc/self/uid_map", format!("0 {uid} 1")),
            ("/proc/self/gid_map", format!("0 {gid} 1")),
        ] {
            fs::write(file, text).map_err(LabError::file("write", Path::new(file)))?;
        }
    }
    let exe = std::env::current_exe().map_err(LabError::file("find", Path::new("/proc/self/exe")))?;
    let mut command = Command::new(exe);
    command.arg("__world").arg(dir).args(["--host-net", &host.to_string()]);
    if detached {
        command.arg("--detached");
    }
    let mut child = command.spawn().map_err(LabError::file("run", Path::new("/proc/self/exe")))?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    if let Some(id) = KeeperId::of(pid) {
        let (path, new) = (files.keeper(), dir.join("keeper.new"));
        let written = fs::write(&new, format!("{} {}", id.pid, id.started));
        written.and_then(|()| fs::rename(&new, &path)).map_err(LabError::file("write", &path))?;
    }
    let status = child.wait().map_err(LabError::file("wait for", Path::new("keeper")))?;
    if !detached && status.success() {
        // The owner is gone without a word; its world's files are of no use to anyone.
        files.remove();
    }
    if status.success() { Ok(()) } else { Err(LabError::Up(format!("keeper: {status}"))) }
}

/// Stage two: builds the world, says `ready`, and stays until standard input ends (or for ever, `detached`).
///
/// # Errors
/// When any step of building fails; the kernel then removes what was built.
pub fn world_main(dir: &Path, host_net: u64, detached: bool) -> Result<(), LabError> {
    set_pdeathsig(Signal::SIGKILL).map_err(LabError::system("binding to the first stage"))?;
    let files = Files::at(dir);
    let spec = files.read_spec()?;
    let plan = plan(&spec)?;
    private_mounts(&files)?;
    let mut places = plan.places.clone();
    let handles = make_namespaces(&files, &mut places)?;
    if let Some(bad) = places.values().find(|p| p.inode == host_net) {
        return Err(LabError::NotClosed(format!("{} is the machine's own network", bad.name)));
    }
    configure(&files, &plan, &handles)?;
    for place in places.values() {
        enter(&handles, &place.name)?;
        check_devices(place, &tools::run(&place.name, "ip", &["-d", "-j", "link", "show"], "")?)?;
        let path = files.resolv(&place.name);
        fs::write(&path, &place.resolv).map_err(LabError::file("write", &path))?;
    }
    write_json(&files.places(), &places)?;
    // Only the first stage knows this process by the number that others can use.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !files.keeper().exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut out = std::io::stdout();
    // An owner that is gone already shows as the end of standard input below.
    let _owner_gone = writeln!(out, "ready").and_then(|()| out.flush());
    let signals = block_signals()?;
    if !detached {
        std::thread::spawn(|| {
            let mut sink = [0_u8; 64];
            while matches!(std::io::stdin().read(&mut sink), Ok(n) if n > 0) {}
            // Process 1 ends, and the kernel ends the world with it.
            std::process::exit(0);
        });
    }
    reap_until_told(&signals)
}

fn net_inode(path: &str) -> Result<u64, LabError> {
    let path = Path::new(path);
    fs::metadata(path).map(|m| m.ino()).map_err(LabError::file("read", path))
}

/// Mounts made from here on are this world's own.
fn private_mounts(files: &Files) -> Result<(), LabError> {
    // Not in the first stage, which needs the machine's own /proc to name this process.
    unshare(CloneFlags::CLONE_NEWNS).map_err(LabError::system("making mounts of its own"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(LabError::system("making mounts private"))?;
    // Some containers refuse a new /proc; the old one serves, with the machine's process numbers.
    let _old_one_serves = mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none);
    mount(Some("lab"), &files.namespaces(), Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=4m"))
        .map_err(LabError::system("mounting the folder of namespaces"))
}

fn make_namespaces(
    files: &Files,
    places: &mut BTreeMap<String, PlaceInfo>,
) -> Result<BTreeMap<String, File>, LabError> {
    let mut handles = BTreeMap::new();
    for (name, place) in places {
        unshare(CloneFlags::CLONE_NEWNET).map_err(LabError::system(format!("making namespace {name}")))?;
        let path = files.namespaces().join(name);
        File::create(&path).map_err(LabError::file("create", &path))?;
        let none: Option<&str> = None;
        mount(Some("/proc/self/ns/net"), &path, none, MsFlags::MS_BIND, none)
            .map_err(LabError::system(format!("keeping namespace {name}")))?;
        let file = File::open(&path).map_err(LabError::file("open", &path))?;
        place.inode = file.metadata().map_err(LabError::file("read", &path))?.ino();
        handles.insert(name.clone(), file);
    }
    Ok(handles)
}

fn enter(handles: &BTreeMap<String, File>, name: &str) -> Result<(), LabError> {
    let Some(file) = handles.get(name) else {
        return Err(LabError::Up(format!("no namespace {name}")));
    };
    setns(file, CloneFlags::CLONE_NEWNET).map_err(LabError::system(format!("entering {name}")))
}

fn configure(files: &Files, plan: &Plan, handles: &BTreeMap<String, File>) -> Result<(), LabError> {
    enter(handles, INTERNET)?;
    let ns = files.namespaces();
    let mut links = String::new();
    for link in &plan.links {
        let (a, b) = (&link.a, &link.b);
        links.push_str(&format!(
            "link add dev {} netns {} type veth peer name {} netns {}\n",
            a.1,
            ns.join(&a.0).display(),
            b.1,
            ns.join(&b.0).display()
        ));
    }
    tools::run("links", "ip", &["-batch", "-"], &links)?;
    for (name, setup) in &plan.setup {
        enter(handles, name)?;
        for (key, value) in &setup.sysctl {
            let path = Path::new("/proc/sys").join(key.trim_start_matches('-'));
            if path.exists() || !key.starts_with('-') {
                fs::write(&path, value).map_err(LabError::file("write", &path))?;
            }
        }
        tools::run(name, "ip", &["-batch", "-"], &(setup.ip.join("\n") + "\n"))?;
        if !setup.nft.is_empty() {
            tools::run(name, "nft", &["-f", "-"], &setup.nft)?;
        }
        for (i, program) in setup.programs.iter().enumerate() {
            let log = files.logs().join(format!("{name}-{}-{i}.log", program[0].trim_start_matches('_')));
            start(&log, program)?;
        }
        if !setup.late.is_empty() {
            tools::run(name, "ip", &["-batch", "-"], &(setup.late.join("\n") + "\n"))?;
        }
    }
    Ok(())
}

/// Tells a program of the lab where its files go.
pub(super) const LOGS: &str = "LAB_LOGS";

/// Starts a program of the lab in the namespace that is entered, and waits until it is ready. It ends with the world.
fn start(log: &Path, args: &[String]) -> Result<(), LabError> {
    let exe = std::env::current_exe().map_err(LabError::file("find", Path::new("/proc/self/exe")))?;
    let err = File::create(log).map_err(LabError::file("create", log))?;
    let mut command = Command::new(&exe);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(err);
    if let Some(logs) = log.parent() {
        command.env(LOGS, logs);
    }
    let mut child = command.spawn().map_err(LabError::file("run", &exe))?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        // An unreadable pipe is an empty answer, which is reported below.
        let _empty = BufReader::new(out).read_line(&mut line);
    }
    if line.trim() == "ready" {
        return Ok(());
    }
    let why = fs::read_to_string(log).unwrap_or_default();
    Err(LabError::Up(format!("{} did not start: {}", args.join(" "), why.trim())))
}

/// Devices that some kernels put into every namespace; they lead nowhere.
const FALLBACK: [&str; 9] =
    ["tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"];

/// Refuses any device that the lab did not plan, except kinds that cannot reach out of a namespace.
pub(crate) fn check_devices(place: &PlaceInfo, json: &str) -> Result<(), LabError> {
    let links: Vec<Value> = serde_json::from_str(json)
        .map_err(|e| LabError::NotClosed(format!("{}: cannot list devices: {e}", place.name)))?;
    for link in links {
        let name = link.get("ifname").and_then(Value::as_str).unwrap_or("?");
        let kind = link.pointer("/linkinfo/info_kind").and_then(Value::as_str).unwrap_or("physical");
        let planned = place.devices.contains(name) && (name == "lo" || matches!(kind, "veth" | "bridge"));
        let harmless = FALLBACK.contains(&name) || matches!(kind, "tun" | "dummy" | "bridge");
        if !planned && !harmless {
            return Err(LabError::NotClosed(format!("{} has {name} ({kind})", place.name)));
        }
    }
    Ok(())
}

fn block_signals() -> Result<SigSet, LabError> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        set.add(signal);
    }
    set.thread_block().map_err(LabError::system("blocking signals"))?;
    Ok(set)
}

fn reap_until_told(signals: &SigSet) -> Result<(), LabError> {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                    if status == WaitStatus::StillAlive {
                        break;
                    }
                }
            }
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(LabError::system("waiting for signals")(e)),
        }
    }
}

/// Binds a world's resolver file over `/etc/resolv.conf`, in the caller's private mounts.
pub(crate) fn bind_resolver(files: &Files, place: &str) -> Result<(), LabError> {
    let none: Option<&str> = None;
    let target = Path::new("/etc/resolv.conf");
    // A link is followed: the bind goes over what it points to.
    let Ok(target) = target.canonicalize() else { return Ok(()) };
    mount(Some(&files.resolv(place)), &target, none, MsFlags::MS_BIND, none)
        .map_err(LabError::system("binding /etc/resolv.conf"))
}

/// Gives the caller's private mounts a `/sys` that shows its own network namespace, where allowed.
pub(crate) fn fresh_sys() {
    let none: Option<&str> = None;
    // Only `/sys/class/net` would be stale; nothing in a world depends on it.
    if umount2("/sys", MntFlags::MNT_DETACH).is_ok() {
        let _stale_is_fine = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none);
    }
}
