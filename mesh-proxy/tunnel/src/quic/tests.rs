use super::*;

#[test]
fn only_quic_addresses_are_taken() {
    let of = |text: &str| socket_of(&text.parse().unwrap()).map(|a| a.to_string());
    let peer = PeerId::random();
    assert_eq!(of("/ip4/1.2.3.4/udp/5/quic-v1").unwrap(), "1.2.3.4:5");
    assert_eq!(of(&format!("/ip6/::1/udp/5/quic-v1/p2p/{peer}")).unwrap(), "[::1]:5");
    for other in ["/ip4/1.2.3.4/tcp/5", "/ip4/1.2.3.4/udp/5", "/dns4/a.b/udp/5/quic-v1"] {
        assert_eq!(of(other), None, "{other}");
    }
    let circuit = format!("/ip4/1.2.3.4/udp/5/quic-v1/p2p/{peer}/p2p-circuit");
    assert_eq!(of(&circuit), None);
    let back: SocketAddr = "[2001:db8::1]:7".parse().unwrap();
    assert_eq!(socket_of(&address_of(back)), Some(back));
}
