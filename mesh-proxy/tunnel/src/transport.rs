//! The transport stack: TCP (one encryption layer: libp2p TLS) under a muxer, QUIC, WebSocket, and circuits, which
//! carry the same TLS and muxer from end to end. DNS names are resolved for what is dialled straight; the address of a
//! relay is resolved when the relay itself is dialled.

use std::{io, time::Duration};

use libp2p::{
    PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, OrTransport},
        upgrade::Version,
    },
    dns, quic, relay, tcp,
};

use crate::{
    config::{Limits, TunnelConfig},
    error::StartError,
    identity::NodeKey,
    mux,
    security::Security,
    socket::Socket,
    tunnel::Shared,
    ws::WsTransport,
};

pub(crate) fn build(
    config: &TunnelConfig,
    circuits: relay::client::Transport,
    shared: &Shared,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let (locals, lives) = (shared.locals.clone(), shared.lives.clone());
    let TunnelConfig { key, limits, timeouts, proxy, .. } = config;
    let security = Security::new(key.keypair()).map_err(StartError::Certificate)?;
    // Both directions of opening, and streams that are being refused.
    let muxer =
        mux::Config { max_streams: limits.streams_per_peer.saturating_mul(3), ..mux::Config::default() };
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |stream, _| {
            if let (Ok(remote), Ok(local)) = (stream.0.peer_addr(), stream.0.local_addr()) {
                locals.note(remote, local.port());
            }
            Socket::new(stream.0, &lives)
        })
        .upgrade(Version::V1Lazy)
        .authenticate(security.clone())
        .multiplex(muxer)
        .timeout(timeouts.dial);
    let ws = WsTransport::new(&security, muxer, (timeouts.dial, shared.lives.clone()), proxy.clone())
        .map_err(StartError::Resolver)?;
    let circuits =
        circuits.upgrade(Version::V1Lazy).authenticate(security).multiplex(muxer).timeout(timeouts.dial);
    if std::env::var_os("SSLKEYLOGFILE").is_some() {
        // Ours is off; the one inside libp2p-quic cannot be switched off from here.
        tracing::error!("SSLKEYLOGFILE is set: keys of QUIC connections are written there");
    }
    let quic = quic::tokio::Transport::new(quic_config(key, limits, timeouts.dial));
    let both = OrTransport::new(
        quic.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))),
        tcp.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))),
    )
    .map(|either, _| either.into_inner());
    let named = dns::tokio::Transport::system(both).map_err(|e| StartError::Resolver(io::Error::other(e)))?;
    let straight = OrTransport::new(ws, named).map(|either, _| either.into_inner());
    let all = OrTransport::new(circuits.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))), straight);
    Ok(all.map(|either, _| either.into_inner()).boxed())
}

/// Streams that a peer may have open on one QUIC connection. quinn makes two table entries for each at once, used or
/// not: 32,768 of them would cost an idle connection 3 MiB, these cost 140 KiB (the next table has 8,192 buckets).
const QUIC_STREAMS: u32 = 3_500;

fn quic_config(key: &NodeKey, limits: &Limits, handshake: Duration) -> quic::Config {
    let mut config = quic::Config::new(key.keypair());
    config.handshake_timeout = handshake;
    // Both directions of opening, and streams that are closing. What is beyond waits until others have ended.
    let streams = u32::try_from(limits.streams_per_peer.saturating_mul(2)).unwrap_or(u32::MAX);
    config.max_concurrent_stream_limit = streams.min(QUIC_STREAMS);
    config.max_stream_data = 2 << 20;
    config.max_connection_data = 32 << 20;
    config
}
