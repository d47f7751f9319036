use proptest::prelude::*;

use super::*;

/// A ClientHello message with these names, in one record.
fn hello(sni: Option<&str>, alpn: &[&str]) -> Vec<u8> {
    record(&hello_message(sni, alpn))
}

fn hello_message(sni: Option<&str>, alpn: &[&str]) -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, content: Vec<u8>| {
        extensions.extend_from_slice(&kind.to_be_bytes());
        extensions.extend_from_slice(&vector16(&content));
    };
    extension(43, vec![2, 3, 4]);
    if let Some(name) = sni {
        extension(0, vector16(&[&[0][..], &vector16(name.as_bytes())].concat()));
    }
    if !alpn.is_empty() {
        let list: Vec<u8> =
            alpn.iter().flat_map(|name| [&[name.len() as u8][..], name.as_bytes()].concat()).collect();
        extension(16, vector16(&list));
    }
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend_from_slice(&vector16(&extensions));
    let mut message = vec![1];
    message.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend_from_slice(&body);
    message
}

fn vector16(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes(), content].concat()
}

fn record(payload: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &vector16(payload)].concat()
}

#[test]
fn names_of_a_hello() {
    let found = client_hello(&hello(Some("Shop.Example.com"), &["h2", "http/1.1"])).unwrap().unwrap();
    assert_eq!(found.sni.as_deref(), Some("shop.example.com"));
    assert_eq!(found.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert_eq!(client_hello(&hello(None, &[])), Ok(Some(ClientHello::default())));
    // What is no host name is treated as no name, so that it cannot match one.
    for odd in ["a b", "a/b", "", "ä.example"] {
        assert_eq!(client_hello(&hello(Some(odd), &[])).unwrap().unwrap().sni, None, "{odd}");
    }
    assert_eq!(
        client_hello(&hello(Some("a.example."), &[])).unwrap().unwrap().sni.as_deref(),
        Some("a.example")
    );
}

#[test]
fn a_hello_of_rustls_is_read() {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = "reviews.default.svc.cluster.local".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    let Sniff::Tls(found) = sniff(&bytes) else { panic!("{:?}", sniff(&bytes)) };
    assert_eq!(found.sni.as_deref(), Some("reviews.default.svc.cluster.local"));
    assert_eq!(found.alpn, [b"h2".to_vec()]);
    for cut in 0..bytes.len() {
        assert_eq!(sniff(&bytes[..cut]), Sniff::NeedMore, "cut at {cut}");
    }
}

#[test]
fn a_hello_cut_into_records_of_any_size_is_the_same_hello() {
    let message = hello_message(Some("a.example"), &["h2"]);
    for size in 1..message.len() {
        let cut: Vec<u8> = message.chunks(size).flat_map(record).collect();
        let found = client_hello(&cut).unwrap().unwrap();
        assert_eq!(found.sni.as_deref(), Some("a.example"), "records of {size} bytes");
        assert_eq!(client_hello(&cut[..cut.len() - 1]), Ok(None));
    }
}

#[test]
fn what_is_not_a_hello_is_refused_as_soon_as_it_is_clear() {
    assert_eq!(client_hello(&[23]), Err(HelloError::NotHandshake));
    assert_eq!(client_hello(&[22, 2]), Err(HelloError::NotHandshake));
    assert_eq!(client_hello(&[22, 3, 1, 0, 0]), Err(HelloError::NotHandshake));
    assert_eq!(client_hello(&record(&[2, 0, 0, 0])), Err(HelloError::NotClientHello));
    assert_eq!(client_hello(&record(&[1, 0xff, 0, 0])), Err(HelloError::TooLong));
    let mut broken = hello_message(Some("a.example"), &[]);
    let session_length = 4 + 2 + 32;
    broken[session_length] = 255;
    assert_eq!(client_hello(&record(&broken)), Err(HelloError::Malformed));
    // One byte a record, for ever: bounded by the caller's limit on bytes.
    let drip: Vec<u8> = std::iter::repeat_n(record(&[1]), MAX_SNIFF).flatten().collect();
    assert!(matches!(sniff(&drip), Sniff::Opaque | Sniff::Tls(_)));
}

#[test]
fn request_lines() {
    let yes = [
        "GET / HTTP/1.1",
        "OPTIONS * HTTP/1.0",
        "\r\nGET / HTTP/1.1",
        "CONNECT a:1 HTTP/1.1",
        "M-SEARCH * HTTP/1.1\r\n",
    ];
    for line in yes {
        assert_eq!(request_line(line.as_bytes()), Match::Yes, "{line}");
        for cut in 0..line.trim_end().len() {
            assert_eq!(request_line(&line.as_bytes()[..cut]), Match::NeedMore, "{line} cut at {cut}");
        }
    }
    let no = [
        "GET key\r\n",
        "SET a b\r\n",
        " GET / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET / HTTP/2.0",
        "GET / HTTX",
        "*1\r\n$4",
        "SSH-2.0-x\r\n",
        "GET / HTTP/1.x",
    ];
    for line in no {
        assert_eq!(request_line(line.as_bytes()), Match::No, "{line}");
        assert_eq!(sniff(line.as_bytes()), Sniff::Opaque, "{line}");
    }
    assert_eq!(request_line(&[b'A'; 33]), Match::No);
}

#[test]
fn the_h2_preface_is_not_taken_for_http1() {
    for cut in 1..H2_PREFACE.len() {
        assert_eq!(sniff(&H2_PREFACE[..cut]), Sniff::NeedMore, "cut at {cut}");
    }
    assert_eq!(sniff(&[H2_PREFACE, b"\0\0\0"].concat()), Sniff::Http2);
    assert_eq!(sniff(b"PRI * HTTP/1.1\r\n"), Sniff::Http1);
    assert_eq!(sniff(b"PRI * HTTP/2.0\r\n\r\nXX"), Sniff::Opaque);
}

proptest! {
    /// A verdict, once given, does not change with more bytes: what is split over reads is judged
    /// as what arrives at once.
    #[test]
    fn a_verdict_is_final(bytes in interesting()) {
        let whole = sniff(&bytes);
        for cut in 0..bytes.len() {
            let part = sniff(&bytes[..cut]);
            prop_assert!(part == Sniff::NeedMore || part == whole, "cut at {}: {:?} then {:?}", cut, part, whole);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = sniff(&bytes);
        let _ = client_hello(&bytes);
        let _ = client_hello(&record(&bytes));
        let _ = request_line(&bytes);
        let _ = h2_preface(&bytes);
    }

    #[test]
    fn any_host_name_is_found(name in "[a-z0-9]{1,20}(\\.[a-z0-9-]{1,20}){0,4}", size in 1usize..300) {
        let message = hello_message(Some(&name), &["h2", "x"]);
        let cut: Vec<u8> = message.chunks(size).flat_map(record).collect();
        prop_assert_eq!(client_hello(&cut).unwrap().unwrap().sni, Some(name));
    }
}

/// Beginnings of real protocols, with one byte changed or not.
fn interesting() -> impl Strategy<Value = Vec<u8>> {
    let seed = prop_oneof![
        Just(b"GET /a/b?c=d HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        Just(H2_PREFACE.to_vec()),
        Just(hello(Some("a.example"), &["h2"])),
        Just(hello_message(Some("a.example"), &["h2"]).chunks(9).flat_map(record).collect()),
    ];
    (seed, any::<prop::sample::Index>(), proptest::option::of(any::<u8>())).prop_map(
        |(mut bytes, at, change)| {
            if let Some(change) = change {
                let at = at.index(bytes.len());
                bytes[at] = change;
            }
            bytes
        },
    )
}
