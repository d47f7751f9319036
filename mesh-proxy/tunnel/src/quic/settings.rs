//! What quinn is told: keys, windows, congestion control.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use libp2p::identity::Keypair;
use quinn::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
    congestion::{ControllerFactory, CubicConfig, NewRenoConfig},
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::congestion::Factory;
use crate::{
    config::{Congestion, Limits},
    error::StartError,
    identity::NodeKey,
    security::Security,
};

/// Streams that a peer may have open on one connection. quinn makes two table entries for each that is allowed, used or
/// not: 140 KiB for these (the next table has 8,192 buckets). So a connection begins with [`FIRST_STREAMS`].
const STREAMS: u32 = 3_500;
/// What a connection allows before it is used, and all that one costs which is still being tried: 9 KiB of tables. While
/// a node looks for a path there are dozens of those, and a relay keeps one to each of its nodes.
const FIRST_STREAMS: u32 = 224;
/// What a stream may send before its reader has taken any: 100 ms of 300 Mbit/s.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for all streams of a connection.
const WINDOW: u32 = 32 << 20;
/// Sent bytes that are kept until the peer has them, all streams together.
const SEND_WINDOW: u64 = 8 << 20;
/// Silence after which a connection ends; the keep-alive makes sure that a living peer is not silent.
const IDLE: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Packets that the peer may take before it acknowledges them. Each acknowledgement costs both sides a datagram; loss is
/// told at once all the same.
const ACKNOWLEDGE_AFTER: u32 = 10;
/// Room in the kernel for datagrams that wait for their thread. Less is lost under load as if the line had lost it.
const SOCKET_BUFFER: usize = 2 << 20;

/// Largest datagrams that are tried: what Ethernet carries below the headers of IPv4 or IPv6, and of UDP.
const LARGEST: u16 = 1_472;
const LARGEST_V6: u16 = 1_452;

/// For all connections of a node.
pub(super) struct Settings {
    /// For IPv4 and for IPv6.
    clients: [ClientConfig; 2],
    servers: [ServerConfig; 2],
    pub(super) endpoint: EndpointConfig,
    pub(super) bounds: Bounds,
}

/// Of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Time for its handshake.
    pub(super) handshake: Duration,
    /// Streams that the peer may open at first, and at most.
    pub(super) streams: (u32, u32),
}

impl Settings {
    pub(super) fn new(
        key: &NodeKey,
        security: &Security,
        (limits, congestion): (&Limits, &Congestion),
        handshake: Duration,
    ) -> Result<Self, StartError> {
        let (server, client) = security.configs();
        let none = |_| StartError::Certificate("QUIC needs AES-128-GCM, which is missing".to_owned());
        let (server, client) = (
            QuicServerConfig::try_from(server).map_err(none)?,
            QuicClientConfig::try_from(client).map_err(none)?,
        );
        let (client, server) = (Arc::new(client), Arc::new(server));
        let controllers = controllers(congestion);
        let both = [LARGEST, LARGEST_V6].map(|largest| {
            let mut transport = transport(limits, controllers.clone());
            let mut mtu = MtuDiscoveryConfig::default();
            mtu.upper_bound(largest);
            transport.mtu_discovery_config(Some(mtu));
            let transport = Arc::new(transport);
            let mut client = ClientConfig::new(client.clone());
            client.transport_config(transport.clone());
            let mut server = ServerConfig::with_crypto(server.clone());
            server.transport_config(transport);
            // A peer whose address changes is followed, once it has answered from there.
            server.migration(true);
            (client, server)
        });
        let [(client, server), (client_v6, server_v6)] = both;
        let (clients, servers) = ([client, client_v6], [server, server_v6]);
        let most = streams(limits);
        let bounds = Bounds { handshake, streams: (FIRST_STREAMS.min(most), most) };
        Ok(Self { clients, servers, endpoint: endpoint(key.keypair()), bounds })
    }

    pub(super) fn client(&self, is_ipv6: bool) -> ClientConfig {
        self.clients[usize::from(is_ipv6)].clone()
    }

    pub(super) fn server(&self, is_ipv6: bool) -> ServerConfig {
        self.servers[usize::from(is_ipv6)].clone()
    }
}

fn controllers(congestion: &Congestion) -> Arc<dyn ControllerFactory + Send + Sync> {
    match congestion.name() {
        Some("cubic") => Arc::new(CubicConfig::default()),
        Some("reno") => Arc::new(NewRenoConfig::default()),
        _ => Arc::new(Factory),
    }
}

fn transport(limits: &Limits, controllers: Arc<dyn ControllerFactory + Send + Sync>) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.datagram_receive_buffer_size(None);
    config.max_concurrent_bidi_streams(VarInt::from_u32(FIRST_STREAMS.min(streams(limits))));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    config.receive_window(VarInt::from_u32(WINDOW));
    config.send_window(SEND_WINDOW);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config.max_idle_timeout(IdleTimeout::try_from(IDLE).ok());
    config.allow_spin(false);
    config.congestion_controller_factory(controllers);
    let mut acknowledge = AckFrequencyConfig::default();
    acknowledge.ack_eliciting_threshold(VarInt::from_u32(ACKNOWLEDGE_AFTER));
    config.ack_frequency_config(Some(acknowledge));
    config
}

/// Both directions of opening, and streams that are closing. What is beyond waits until others have ended.
fn streams(limits: &Limits) -> u32 {
    u32::try_from(limits.streams_per_peer.saturating_mul(2)).unwrap_or(u32::MAX).min(STREAMS)
}

/// The key of stateless resets follows from the node's: a restarted node can end what its predecessor has left.
fn endpoint(key: &Keypair) -> EndpointConfig {
    let reset = key.derive_secret(b"libp2p quic stateless reset key");
    let mut config = reset.map_or_else(EndpointConfig::default, |secret| {
        EndpointConfig::new(Arc::new(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret)))
    });
    config.supported_versions(vec![1]);
    config
}

/// A socket for one family.
pub(super) fn socket(at: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    for grown in [socket.set_recv_buffer_size(SOCKET_BUFFER), socket.set_send_buffer_size(SOCKET_BUFFER)] {
        if let Err(error) = grown {
            tracing::debug!(%error, "buffers of a QUIC socket");
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}
