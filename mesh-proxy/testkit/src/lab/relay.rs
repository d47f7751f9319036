//! Fixed delay on a link of the public segment: a TUN device at its far end through which both directions are
//! routed, and a small program that holds every packet for a while.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{LabError, Nat, World, plan::Uplink};

/// Packets held at most: at 1,500 bytes each, 100 Mbit/s for 4 s. More are lost, as in a full queue.
const HELD: usize = 32_768;
/// Longest packet.
const LONGEST: usize = 65_536;

/// Starts and stops relays so that the delays are as wanted.
pub(crate) fn apply(
    world: &World,
    before: &BTreeMap<String, u32>,
    now: &BTreeMap<String, u32>,
) -> Result<(), LabError> {
    for at in before.keys().filter(|at| now.get(*at) != before.get(*at)) {
        stop(world, at)?;
    }
    for (at, ms) in now.iter().filter(|(at, ms)| before.get(*at) != Some(*ms)) {
        start(world, at, *ms)?;
    }
    Ok(())
}

/// The place's link, if it can be delayed.
pub(crate) fn link_of(world: &World, at: &str) -> Result<Uplink, LabError> {
    let uplink = world.uplink(at)?;
    if uplink.bridged {
        return Err(LabError::Invalid(vec![format!(
            "{at} is inside a site or node: delay the site, or a node on the public segment"
        )]));
    }
    Ok(uplink)
}

fn rules(world: &World, at: &str, uplink: &Uplink, verb: &str) -> Result<String, LabError> {
    let number = uplink.outer_device.trim_start_matches('w');
    let table = format!("1{number:0>4}");
    let (tun, outer) = (format!("d{number}"), &uplink.outer_device);
    let mut prefixes = vec![format!("{}/32", world.place(at)?.info().address)];
    let site = world.spec().sites.get(at).filter(|s| s.nat.kind == Nat::None);
    prefixes.extend(site.map(|s| s.lan.to_string()));
    // What leaves the place is held first; then what goes to it, unless it has been held already.
    let mut lines = format!("rule {verb} pref 92 iif {outer} lookup {table}\n");
    for prefix in prefixes {
        lines += &format!("rule {verb} pref 90 iif {tun} to {prefix} lookup main\n");
        lines += &format!("rule {verb} pref 95 to {prefix} lookup {table}\n");
    }
    if verb == "add" {
        lines = format!("link set dev {tun} up\nroute add default dev {tun} table {table}\n{lines}");
    }
    Ok(lines)
}

fn start(world: &World, at: &str, ms: u32) -> Result<(), LabError> {
    let uplink = link_of(world, at)?;
    let tun = uplink.outer_device.replacen('w', "d", 1);
    let pid_file = world.files().run().join(format!("delay-{at}.pid"));
    let log_path = world.files().logs().join(format!("delay-{at}.log"));
    let log = File::create(&log_path).map_err(LabError::file("create", &log_path))?;
    let lab = crate::bins::find("lab").map_err(LabError::Up)?;
    let mut command = world.enter(&uplink.outer, Some(&pid_file));
    command.arg(&lab).arg("__delay").arg(&tun).arg(ms.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut child = command.spawn().map_err(LabError::file("run", &lab))?;
    let deadline = Instant::now() + Duration::from_secs(3);
    while world.run_in(&uplink.outer, "ip", &["link", "show", "dev", &tun], "").is_err() {
        if Instant::now() > deadline || !matches!(child.try_wait(), Ok(None)) {
            let why = fs::read_to_string(&log_path).unwrap_or_default();
            return Err(LabError::Process(format!("the delay relay did not start: {}", why.trim())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // It lives until it is stopped or the world ends; nobody waits for it.
    drop(child);
    world.run_in(&uplink.outer, "ip", &["-batch", "-"], &rules(world, at, &uplink, "add")?).map(drop)
}

fn stop(world: &World, at: &str) -> Result<(), LabError> {
    let uplink = link_of(world, at)?;
    world.run_in(&uplink.outer, "ip", &["-batch", "-"], &rules(world, at, &uplink, "del")?)?;
    let pid_file = world.files().run().join(format!("delay-{at}.pid"));
    if let Some(pid) = fs::read_to_string(&pid_file).ok().and_then(|t| t.trim().parse().ok()) {
        // Its device, and the route over it, go with it.
        let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _left_for_the_end = fs::remove_file(&pid_file);
    let tun = uplink.outer_device.replacen('w', "d", 1);
    let deadline = Instant::now() + Duration::from_secs(3);
    while world.run_in(&uplink.outer, "ip", &["link", "show", "dev", &tun], "").is_ok() {
        if Instant::now() > deadline {
            return Err(LabError::Process(format!("{tun} did not go")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The relay: holds every packet of a new TUN device for `delay`, and hands it back.
///
/// # Errors
/// When there is no such device to be had.
pub fn delay_main(device: &str, delay: Duration) -> Result<(), LabError> {
    let mut tun = open(device)?;
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0_u8; LONGEST];
    loop {
        let wait = held.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        let timeout = match wait {
            None => PollTimeout::NONE,
            Some(left) => PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX),
        };
        let mut fds = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(LabError::system("waiting for packets")(e)),
        }
        let readable = fds[0].any().unwrap_or(false);
        if readable {
            let n = tun.read(&mut buffer).map_err(LabError::file("read", Path::new("/dev/net/tun")))?;
            if held.len() < HELD {
                held.push_back((Instant::now() + delay, buffer[..n].to_vec()));
            }
        }
        while let Some((_, packet)) = held.pop_front_if(|(due, _)| *due <= Instant::now()) {
            // The device may be down for a moment: the packet is lost, as packets are.
            let _lost = tun.write(&packet);
        }
    }
}

nix::ioctl_write_ptr_bad!(
    /// Makes a TUN device of this file.
    tun_set_interface,
    libc::TUNSETIFF,
    libc::ifreq
);

#[expect(unsafe_code, reason = "no safe interface makes a TUN device")]
fn open(device: &str) -> Result<File, LabError> {
    let path = Path::new("/dev/net/tun");
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(LabError::file("open", path))?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
        *to = from.cast_signed();
    }
    let flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap_or_default();
    let request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: the descriptor is open, and the request is a whole, initialised structure that outlives the call.
    unsafe { tun_set_interface(file.as_raw_fd(), &raw const request) }
        .map_err(LabError::system(format!("making the TUN device {device}")))?;
    Ok(file)
}
