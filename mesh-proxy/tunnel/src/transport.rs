//! The transport stack: TCP (one encryption layer: libp2p TLS) under a muxer, QUIC, WebSocket, and circuits, which
//! carry the same TLS and muxer from end to end. DNS names are resolved for what is dialled straight; the address of a
//! relay is resolved when the relay itself is dialled.

use std::io;

use libp2p::{
    PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, OrTransport},
        upgrade::Version,
    },
    dns, relay, tcp,
};

use crate::{
    ahead::Ahead, config::TunnelConfig, error::StartError, foreign::Own, mux, quic::QuicTransport,
    security::Security, socket::Sockets, tunnel::Shared, ws::WsTransport,
};

pub(crate) fn build(
    config: &TunnelConfig,
    circuits: relay::client::Transport,
    shared: &Shared,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let locals = shared.locals.clone();
    let TunnelConfig { key, limits, timeouts, proxy, congestion, .. } = config;
    let sockets = Sockets::new(shared.lives.clone(), congestion.clone());
    let of_web = sockets.clone();
    let security = Security::new(key.keypair()).map_err(StartError::Certificate)?;
    // Both directions of opening, and streams that are being refused.
    let muxer =
        mux::Config { max_streams: limits.streams_per_peer.saturating_mul(3), ..mux::Config::default() };
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |stream, _| {
            if let (Ok(remote), Ok(local)) = (stream.0.peer_addr(), stream.0.local_addr()) {
                locals.note(remote, local.port());
            }
            sockets.take(stream.0)
        })
        .upgrade(Version::V1Lazy)
        .authenticate(security.clone())
        .multiplex(muxer)
        .timeout(timeouts.dial);
    let ws = WsTransport::new(&security, muxer, (timeouts.dial, of_web), proxy.clone())
        .map_err(StartError::Resolver)?;
    let circuits = circuits
        .map(|circuit, _| Ahead::new(circuit))
        .upgrade(Version::V1Lazy)
        .authenticate(security.clone())
        .multiplex(muxer)
        .timeout(timeouts.dial);
    let quic =
        QuicTransport::new((key, &security), (limits, congestion), timeouts.dial, shared.placement.clone())?;
    let both = OrTransport::new(
        quic.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))),
        tcp.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))),
    )
    .map(|either, _| either.into_inner());
    let named = dns::tokio::Transport::system(both).map_err(|e| StartError::Resolver(io::Error::other(e)))?;
    let straight = OrTransport::new(ws, named).map(|either, _| either.into_inner());
    let all = OrTransport::new(circuits.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))), straight);
    Ok(Own::new(all.map(|either, _| either.into_inner()).boxed()).boxed())
}
