//! Options of TCP sockets that no crate here knows.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

/// Since Linux 6.15; libc has no name for it yet.
const TCP_RTO_MAX_MS: libc::c_int = 44;
/// What the kernel takes.
const LEAST: u128 = 1_000;
const MOST: u128 = 120_000;

/// Bounds the pause after which the kernel sends again what was not acknowledged. It doubles each time, up to two minutes
/// when nobody says otherwise: after an outage a connection then stays silent for up to as long again. Older kernels refuse.
pub fn set_retransmission_max(socket: &impl AsFd, longest: Duration) -> io::Result<()> {
    let millis = longest.as_millis().clamp(LEAST, MOST) as libc::c_int;
    #[allow(unsafe_code, reason = "no crate here knows TCP_RTO_MAX_MS")]
    // SAFETY: the descriptor is open for the whole call, and the pointer and length describe `millis`, an initialised c_int
    // that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const millis).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that were given to the kernel and that the other end has not acknowledged.
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    #[allow(unsafe_code, reason = "no crate here knows SIOCOUTQ")]
    // SAFETY: the descriptor is open for the whole call, and the pointer is to `bytes`, a c_int that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(usize::try_from(bytes).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// Where `struct tcp_info` has the shortest round trip of the last five minutes, and `struct tcp_bbr_info` its own.
const INFO_SHORTEST: usize = 148;
const BBR_SHORTEST: usize = 8;

/// The shortest round trip of the last five minutes, and the one that BBR goes by. None when the kernel does not say.
pub fn shortest_round_trips(socket: &impl AsFd) -> Option<(Duration, Duration)> {
    let of = |option, at: usize| {
        let mut words = [0_u32; 64];
        let mut length = size_of_val(&words) as libc::socklen_t;
        #[allow(unsafe_code, reason = "no crate here knows these")]
        // SAFETY: the descriptor is open for the whole call, and the pointers describe `words` and `length`, which outlive it.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                option,
                words.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let known = result == 0 && length as usize >= at + size_of::<u32>();
        let micros = words[at / size_of::<u32>()];
        // What was never measured has all bits set.
        (known && micros != u32::MAX).then(|| Duration::from_micros(micros.into()))
    };
    Some((of(libc::TCP_INFO, INFO_SHORTEST)?, of(libc::TCP_CC_INFO, BBR_SHORTEST)?))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn of(socket: &impl AsFd) -> libc::c_int {
        let (mut millis, mut length) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        #[allow(unsafe_code, reason = "no crate here knows TCP_RTO_MAX_MS")]
        // SAFETY: the descriptor is open for the whole call, and the pointers describe `millis` and `length`, which outlive it.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                TCP_RTO_MAX_MS,
                (&raw mut millis).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        millis
    }

    #[test]
    fn what_waits_for_the_other_end_is_counted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
        assert_eq!(unacknowledged(&near).unwrap(), 0);
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65_536]).is_ok() {}
        assert!(unacknowledged(&near).unwrap() > 0);
    }

    #[test]
    fn the_shortest_round_trips_are_those_of_the_line() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        if let Err(error) = socket2::SockRef::from(&near).set_tcp_congestion(b"bbr") {
            eprintln!("this kernel has no BBR: {error}");
            return;
        }
        let (mut far, _) = listener.accept().unwrap();
        // BBR has measured nothing before the first acknowledgement, which may wait for more to acknowledge.
        let measured = (0..200).find_map(|_| {
            near.write_all(b"x").unwrap();
            far.read_exact(&mut [0]).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            shortest_round_trips(&near)
        });
        let (shortest, bbr) = measured.unwrap();
        // A loop within this machine, however busy.
        assert!(!shortest.is_zero() && shortest < Duration::from_secs(5), "{shortest:?}");
        assert!(!bbr.is_zero() && bbr < Duration::from_secs(5), "{bbr:?}");
    }

    #[test]
    fn the_pause_is_bounded_where_the_kernel_can() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        if let Err(error) = set_retransmission_max(&stream, Duration::from_secs(2)) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{error}");
            eprintln!("this kernel is older than 6.15");
            return;
        }
        assert_eq!(of(&stream), 2_000);
        set_retransmission_max(&stream, Duration::from_millis(10)).unwrap();
        assert_eq!(of(&stream), 1_000, "no less than the kernel takes");
        set_retransmission_max(&stream, Duration::from_secs(9_999)).unwrap();
        assert_eq!(of(&stream), 120_000);
    }
}
