//! The program around the table. A pair of devices joins it to its router's kernel: what the kernel routes into
//! one end is read at the other, translated, and sent back the same way. No device file is needed, so it works
//! for every user that may have a world at all.

use std::{
    io::Write as _,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
            sockopt,
        },
    },
};

use super::{Config, Router, Verdict};
use crate::lab::{LabError, tools};

/// The end that the kernel routes into.
pub(crate) const DEVICE: &str = "nat0";
const FAR: &str = "nat1";
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x10];
const FAR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x11];
const ETHERNET: usize = 14;
const LONGEST: usize = 65_536 + ETHERNET;
/// Room for packets that wait while this program does: some ten milliseconds of a fast link.
const BUFFER: usize = 8 << 20;

/// Runs until it is killed; says `ready` when packets pass. SIGHUP makes it forget its mappings.
///
/// # Errors
/// When the devices or the socket cannot be had.
pub(crate) fn nat_main(config: &str) -> Result<(), LabError> {
    let config: Config = serde_json::from_str(config)
        .map_err(|e| LabError::Invalid(vec![format!("the router's settings: {e}")]))?;
    let mut set = SigSet::empty();
    set.add(Signal::SIGHUP);
    set.thread_block().map_err(LabError::system("blocking SIGHUP"))?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK)
        .map_err(LabError::system("listening for SIGHUP"))?;
    let socket = open()?;
    println!("ready");
    // Whoever waited for that may be gone.
    let _gone = std::io::stdout().flush();
    let mut router = Router::new(config, Instant::now());
    let mut counts = std::collections::BTreeMap::<Verdict, u64>::new();
    let mut said = Instant::now();
    let mut frame = vec![0_u8; LONGEST];
    loop {
        let mut fds =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(10_000_u16)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(LabError::system("waiting for packets")(e)),
        }
        if matches!(signals.read_signal(), Ok(Some(_))) {
            eprintln!("restarted with {} mappings", router.len());
            router.restart(Instant::now());
        }
        let now = Instant::now();
        loop {
            let length = match recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                // Down for a moment, or nothing more.
                Err(_) => break,
            };
            let Some(packet) = frame.get_mut(ETHERNET..length) else { continue };
            let verdict = router.handle(now, packet);
            *counts.entry(verdict).or_default() += 1;
            if verdict == Verdict::Pass {
                frame[..6].copy_from_slice(&MAC);
                frame[6..12].copy_from_slice(&FAR_MAC);
                // A full queue loses packets, as a router does.
                let _lost = send(socket.as_raw_fd(), &frame[..length], MsgFlags::MSG_DONTWAIT);
            }
        }
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            eprintln!("{} mappings, packets {counts:?}", router.len());
        }
    }
}

fn open() -> Result<OwnedFd, LabError> {
    let mac = |m: [u8; 6]| m.map(|b| format!("{b:02x}")).join(":");
    let batch = format!(
        "link add dev {DEVICE} address {} type veth peer name {FAR} address {}\n\
         link set dev {DEVICE} arp off up\nlink set dev {FAR} arp off up\n",
        mac(MAC),
        mac(FAR_MAC)
    );
    tools::run("router", "ip", &["-batch", "-"], &batch)?;
    // Whole packets with their checksums, as they would be on a wire.
    for device in [DEVICE, FAR] {
        offload_off(device)?;
        // Neighbour discovery has no use here; where there is no IPv6 there is nothing to switch off.
        let _absent = std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1");
    }
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None::<SockProtocol>,
    )
    .map_err(LabError::system("opening a packet socket"))?;
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        // Without root, as much as the system allows.
        let _smaller = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
    }
    bind(&socket)?;
    Ok(socket)
}

#[expect(unsafe_code, reason = "no safe interface binds a packet socket to a device")]
fn bind(socket: &OwnedFd) -> Result<(), LabError> {
    let index = nix::net::if_::if_nametoindex(FAR).map_err(LabError::system(format!("finding {FAR}")))?;
    // SAFETY: all-zero bytes are a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = u16::try_from(libc::ETH_P_IP).unwrap_or_default().to_be();
    address.sll_ifindex = index.cast_signed();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: the descriptor is open, and the address is whole and as long as is said.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(done).map(drop).map_err(LabError::system("binding the packet socket"))
}

/// Switches checksum offload off, and with it packets longer than the wire's.
#[expect(unsafe_code, reason = "no safe interface asks for this")]
fn offload_off(device: &str) -> Result<(), LabError> {
    const SET_TX_CHECKSUM: u32 = 0x17;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command: SET_TX_CHECKSUM, data: 0 };
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
        *to = from.cast_signed();
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru };
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(LabError::system("opening a socket"))?;
    // SAFETY: the descriptor is open; the request and the value it points to outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    Errno::result(done).map(drop).map_err(LabError::system(format!("switching offload of {device} off")))
}
