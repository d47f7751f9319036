use std::net::{Ipv4Addr, TcpListener};

use super::*;
use crate::backend;

#[test]
fn an_answer_in_pieces_is_whole_at_its_last_byte() {
    let text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    for cut in 1..text.len() {
        let mut buffer = vec![0; 64];
        let mut answer = Answer::default();
        buffer[..cut].copy_from_slice(&text[..cut]);
        assert_eq!(answer.feed(&buffer, cut).unwrap(), None, "{cut}");
        let at = answer.kept();
        let rest = &text[cut..];
        buffer[at..at + rest.len()].copy_from_slice(rest);
        assert_eq!(answer.feed(&buffer, rest.len()).unwrap(), Some(true), "{cut}");
    }
}

#[test]
fn other_answers_are_not_successes() {
    let text = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    let mut buffer = text.to_vec();
    buffer.resize(100, 0);
    assert_eq!(Answer::default().feed(&buffer, text.len()).unwrap(), Some(false));
    let text = b"HTTP/1.1 200 OK\r\n\r\n";
    assert!(Answer::default().feed(text, text.len()).is_err(), "no length, no end");
}

/// Backend and calibrator on threads that end with the test process; returns the calibrator's addresses.
fn relayed() -> (SocketAddr, SocketAddr) {
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let (http, bulk, from_http, from_bulk) = (free(), free(), free(), free());
    let local = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || LocalSet::new().block_on(&local(), backend::serve(http, bulk)));
    for (from, to) in [(from_http, http), (from_bulk, bulk)] {
        std::thread::spawn(move || local().block_on(backend::relay(from, to)));
    }
    for address in [http, bulk, from_http, from_bulk] {
        while std::net::TcpStream::connect(address).is_err() {
            std::thread::yield_now();
        }
    }
    (from_http, from_bulk)
}

#[test]
fn every_kind_of_load_passes_the_calibrator() {
    let (http, bulk) = relayed();
    let length = Duration::from_millis(200);
    for (kind, target) in [
        (Kind::KeepAlive(4), http),
        (Kind::NewConnections(2), http),
        (Kind::Rate(200, 4), http),
        (Kind::Bulk(1), bulk),
    ] {
        let outcome = run(kind, target, "test", length).unwrap();
        assert_eq!(outcome.failed, 0, "{kind:?}");
        assert!(outcome.done >= 10, "{kind:?}: {}", outcome.done);
        if let Kind::Rate(rate, _) = kind {
            assert_eq!(outcome.done, u64::from(rate) / 5, "as many as planned");
            assert!(outcome.latency.quantile_us(0.5).unwrap() > 1.0);
        }
    }
    let (seen, held) = hold(50, http, "test", || 7).unwrap();
    assert_eq!((seen, held), (7, 50));
}

#[test]
fn a_dead_target_is_counted_as_failures() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    for kind in [Kind::KeepAlive(1), Kind::NewConnections(1), Kind::Bulk(1), Kind::Rate(100, 2)] {
        let outcome = run(kind, nobody, "test", Duration::from_millis(50)).unwrap();
        assert!(outcome.failed > 0 && outcome.done == 0, "{kind:?}");
    }
    assert_eq!(hold(3, nobody, "test", || ()).unwrap().1, 0);
}
