//! The transport stack: TCP (one encryption layer: libp2p TLS) under a muxer, and QUIC, with DNS names resolved.

use std::{io, time::Duration};

use libp2p::{
    PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, OrTransport},
        upgrade::Version,
    },
    dns, quic, tcp, tls, yamux,
};

use crate::{
    config::{Limits, Timeouts},
    error::StartError,
    identity::NodeKey,
};

/// Most streams that yamux allows under its total window of 1 GiB.
const YAMUX_STREAMS: usize = 4096;

pub(crate) fn build(
    key: &NodeKey,
    limits: &Limits,
    timeouts: &Timeouts,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let keypair = key.keypair();
    let security = tls::Config::new(keypair).map_err(|e| StartError::Certificate(e.to_string()))?;
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(YAMUX_STREAMS);
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(security)
        .multiplex(muxer)
        .timeout(timeouts.dial);
    let quic = quic::tokio::Transport::new(quic_config(key, limits, timeouts.dial));
    let both = OrTransport::new(
        quic.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))),
        tcp.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))),
    )
    .map(|either, _| either.into_inner());
    match dns::tokio::Transport::system(both) {
        Ok(named) => Ok(named.boxed()),
        Err(e) => Err(StartError::Resolver(io::Error::other(e))),
    }
}

fn quic_config(key: &NodeKey, limits: &Limits, handshake: Duration) -> quic::Config {
    let mut config = quic::Config::new(key.keypair());
    config.handshake_timeout = handshake;
    // Both directions of opening, and streams that are closing.
    config.max_concurrent_stream_limit = u32::try_from(limits.streams_per_peer.saturating_mul(2)).unwrap_or(u32::MAX);
    config.max_stream_data = 2 << 20;
    config.max_connection_data = 32 << 20;
    config
}
