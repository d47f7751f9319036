//! Connections as bytes: route, cluster, connect, copy.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use mesh_api::model::tunnel_open::Kind;
use mesh_core::{Client, Cluster, L4Outcome, Source, Tables, policy::HashKey, sticky::of_address};
use mesh_net::{
    Prefixed,
    copy::{CopyError, CopyOptions, Observe, Side, copy_bidirectional, copy_tcp},
};

use super::{
    cluster::{Choice, ClusterState, Limit},
    connect::{self, Wanted},
    connection::{ClientIo, Connection},
    connector::{Early, Purpose},
    external::{self, Asked},
    failure::FailureClass,
    prologue::Ends,
    stream::Upstream,
    tls::Alpn,
    worker::WorkerState,
};
use crate::{
    gateway::Binding,
    telemetry::{
        Flags,
        access_log::Entry,
        local::{Connections, Held, Parties},
    },
};

/// Serves a connection as bytes. `sni` is there if it begins with a TLS hello, and empty if that names nobody.
pub(crate) async fn serve(connection: Connection, client: ClientIo, sni: Option<String>) {
    let mut log = ConnectionLog::new(&connection, sni.as_deref());

    // 1. Who calls, and where do the rules send it?
    let tables = connection.worker.tables();
    let source = connection.source(&tables);
    let caller = connection.caller(source.as_ref().map(|s| s.get()));
    log.parties.source = connection.party(source.as_ref());
    let routed = match &connection.gateway {
        None => route(&connection, &tables, &caller, sni.as_deref()),
        Some(binding) => at_gateway(&connection, binding, &tables),
    };
    let (cluster, pinned, own) = match routed {
        Ok(found) => found,
        Err(class) => {
            if class == FailureClass::Blackhole {
                log.parties.cluster = Some(Held::new(&connection.worker.externals.blackhole()));
            }
            return log.failed(class);
        }
    };
    drop(tables);

    // 2. What is behind the destination?
    let asked = Asked { addr: connection.target.addr, host: sni.as_deref().unwrap_or_default() };
    let state = match resolve(&connection.worker, &cluster, asked).await {
        Ok(state) => state,
        Err(class) => return log.failed(class),
    };
    log.parties.cluster = Some(Rc::clone(&state.cluster));
    let max = state.cluster.policy.pool.max_connections;
    let Ok(_permit) = state.limits.take(Limit::Connections, max) else {
        return log.failed(FailureClass::Overflow);
    };

    // 3. Connect to one of its endpoints.
    let key = &state.cluster.key;
    let kind = Kind::Tcp;
    let early = early(&client, &state, pinned.is_some());
    let purpose = Purpose {
        source: source.as_ref().map(|s| s.get()),
        host: &key.host,
        subset: &key.subset,
        kind,
        early: early.as_ref(),
    };
    let hashed = state.cluster.policy.balancing.hash.as_ref();
    let hash = hashed.filter(|h| h.key == HashKey::SourceIp).map(|_| of_address(connection.client.ip()));
    let ends = Ends {
        client: Some(connection.client),
        called: connection.target.addr,
        host: sni.as_deref().unwrap_or_default(),
        alpn: Alpn::Nothing,
        own: &own,
    };
    let choice = Choice { hash, remote: false };
    let wanted =
        Wanted { worker: &connection.worker, state: &state, purpose, pinned, first: None, choice, ends };
    let connected = Box::pin(connect::connect(wanted, &mut Vec::new())).await;
    let (index, upstream) = match connected {
        Ok(c) => (c.index, c.stream),
        Err(e) => {
            tracing::debug!(error = &e as &dyn std::error::Error, host = %key.host, "no connection");
            return log.failed(e.class());
        }
    };
    let _load = state.endpoints[index].busy();
    let endpoint = &state.cluster.endpoints[index];
    log.parties.destination = Some(Rc::clone(&state.workloads[index]));
    log.upstream(endpoint.addr);

    // 4. Copy until both sides are done.
    log.opened();
    let client = match early.map_or(0, |e| e.sent.get()) {
        0 => client,
        sent => {
            log.a_to_b(sent as u64);
            client.without(sent)
        }
    };
    let idle = state.cluster.policy.pool.tcp_idle_timeout;
    let options = CopyOptions { idle: (!idle.is_zero()).then_some(idle), ..CopyOptions::default() };
    let life = state.cluster.policy.pool.max_connection_duration;
    let result = tokio::select! {
        result = copy(client, upstream, options, &log) => result,
        () = over(life) => Err(CopyError::Idle),
    };

    // 5. Say how it went.
    log.ended(result);
}

/// What the client has said already, if it may go with the question for a connection: there is one endpoint only, and
/// its connection begins with nothing else.
fn early(client: &ClientIo, state: &ClusterState, pinned: bool) -> Option<Early> {
    let ClientIo::Plain(client) = client else { return None };
    let alone = pinned || state.endpoints.len() == 1;
    let bytes = client.prefix();
    (alone && state.prologue.is_none() && !bytes.is_empty())
        .then(|| Early { bytes: Bytes::copy_from_slice(bytes), ..Early::default() })
}

/// The cluster that the rules choose, the endpoint if only one will do, and the secret that a gateway shows to it.
type RoutedTo = (Arc<Cluster>, Option<mesh_core::balance::EndpointId>, Box<str>);

/// What the rules of the mesh choose.
fn route(
    connection: &Connection,
    tables: &Tables,
    caller: &Client<'_>,
    sni: Option<&str>,
) -> Result<RoutedTo, FailureClass> {
    let target = &connection.target;
    let found = target.find(tables, caller);
    let vip = found.vip();
    let to = target.addr.map(|a| a.ip());
    let port = vip.map_or(target.port, |v| v.port.number);
    let mut dice = connection.worker.dice();
    let decision = match sni {
        Some(sni) => tables.route_tls(caller, to, vip.as_ref(), (port, sni), &mut dice),
        None => tables.route_tcp(caller, to, vip.as_ref(), port, &mut dice),
    };
    match decision.outcome {
        L4Outcome::Forward { destination, cluster } => {
            Ok((Arc::clone(cluster), found.pinned(cluster, destination.is_some()), Box::default()))
        }
        L4Outcome::UnknownCluster(_) => Err(FailureClass::ClusterNotFound),
        L4Outcome::Blackhole => Err(FailureClass::Blackhole),
        L4Outcome::Passthrough => match target.addr {
            Some(addr) if connection.worker.connector.is_own(addr) => {
                connection.worker.shared.telemetry.edges.loops.inc();
                Err(FailureClass::ConnectFailure)
            }
            // A virtual address that no service answers for any more leads nowhere.
            Some(addr) if !target.leads_nowhere(tables, caller) => {
                Ok((connection.worker.externals.passthrough(addr), None, Box::default()))
            }
            Some(_) | None => Err(FailureClass::NoRoute),
        },
    }
}

/// What the rules of a gateway choose.
fn at_gateway(connection: &Connection, binding: &Binding, tables: &Tables) -> Result<RoutedTo, FailureClass> {
    let (servers, port) = binding.servers();
    let decision = binding.route(tables, &servers, port, &mut connection.worker.dice());
    match decision.outcome {
        L4Outcome::Forward { cluster, .. } => {
            let own = decision.gateway.and_then(|gateway| tables.client_secret(gateway));
            Ok((Arc::clone(cluster), None, own.unwrap_or_default().into()))
        }
        L4Outcome::UnknownCluster(_) => Err(FailureClass::ClusterNotFound),
        L4Outcome::Blackhole | L4Outcome::Passthrough => Err(FailureClass::NoRoute),
    }
}

/// The worker's state of a cluster; what is outside the mesh is looked for first.
pub(crate) async fn resolve(
    worker: &Rc<WorkerState>,
    cluster: &Arc<Cluster>,
    asked: Asked<'_>,
) -> Result<Rc<ClusterState>, FailureClass> {
    if cluster.source == Source::List {
        return Ok(worker.cluster(cluster));
    }
    match Box::pin(external::resolve(worker, cluster, asked)).await {
        Ok(resolved) => Ok(worker.cluster(&resolved)),
        Err(e) => {
            tracing::debug!(error = %e, host = %cluster.key.host, "no endpoint outside");
            Err(FailureClass::NoHealthyUpstream)
        }
    }
}

/// The end of a connection's life; none = it has none.
async fn over(life: Option<std::time::Duration>) {
    match life {
        Some(life) => Box::pin(tokio::time::sleep(life)).await,
        None => std::future::pending().await,
    }
}

/// The copying of this kind of connection, as large as that kind needs: it is what is held for hours.
fn copy(
    client: ClientIo,
    upstream: Upstream,
    options: CopyOptions,
    log: &ConnectionLog,
) -> LocalBoxFuture<'_, Result<(), CopyError>> {
    match (client, upstream) {
        (ClientIo::Plain(mut client), Upstream::Tcp(socket)) => Box::pin(async move {
            let mut upstream = Prefixed::from(socket);
            copy_tcp(&mut client, &mut upstream, options, log).await.map(drop)
        }),
        (ClientIo::Plain(mut client), Upstream::Tunnel(mut stream) | Upstream::Tls(mut stream)) => Box::pin(
            async move { copy_bidirectional(&mut client, &mut stream, options, log).await.map(drop) },
        ),
        (ClientIo::Tls(mut client), mut upstream) => {
            Box::pin(
                async move { copy_bidirectional(&mut client, &mut upstream, options, log).await.map(drop) },
            )
        }
    }
}

/// What is said of a connection: counters while it lives, one line when it ends. Counts also when it is dropped.
struct ConnectionLog {
    worker: Rc<WorkerState>,
    parties: Parties,
    start: Instant,
    sent: Cell<u64>,
    received: Cell<u64>,
    series: Option<Rc<Connections>>,
    flags: Flags,
    details: &'static str,
    entry: Option<Box<Entry>>,
}

impl ConnectionLog {
    fn new(connection: &Connection, sni: Option<&str>) -> Self {
        let worker = Rc::clone(&connection.worker);
        let entry = worker.shared.access_log.enabled().then(|| {
            Box::new(Entry {
                start: Some(SystemTime::now()),
                destination: connection.target.addr,
                client: Some(connection.client),
                server_name: sni.unwrap_or_default().to_owned(),
                ..Entry::default()
            })
        });
        Self {
            worker,
            parties: Parties::default(),
            start: Instant::now(),
            sent: Cell::new(0),
            received: Cell::new(0),
            series: None,
            flags: Flags::NONE,
            details: "",
            entry,
        }
    }

    fn upstream(&mut self, addr: std::net::SocketAddr) {
        if let Some(entry) = &mut self.entry {
            entry.upstream = Some(addr);
        }
    }

    fn resolve_series(&mut self) {
        let trust_domain = || self.worker.trust_domain();
        self.series = self.worker.telemetry.tcp(&self.parties, self.flags, trust_domain);
    }

    fn opened(&mut self) {
        self.resolve_series();
        if let Some(series) = &self.series {
            series.opened();
        }
    }

    /// The connection ended before a byte was copied; the client sees it closed.
    fn failed(mut self, class: FailureClass) {
        let appearance = class.appearance();
        self.flags = appearance.flags;
        self.details = appearance.details;
        self.resolve_series();
        if let Some(series) = &self.series {
            series.opened();
        }
    }

    fn ended(mut self, result: Result<(), CopyError>) {
        self.details = match result {
            Ok(()) => "",
            Err(CopyError::Idle) => "idle_timeout",
            Err(CopyError::Read(Side::A, _) | CopyError::Write(Side::A, _)) => "downstream_reset",
            Err(CopyError::Read(Side::B, _) | CopyError::Write(Side::B, _)) => "upstream_reset",
        };
    }
}

impl Observe for ConnectionLog {
    fn a_to_b(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
        if let Some(series) = &self.series {
            series.received(bytes);
        }
    }

    fn b_to_a(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
        if let Some(series) = &self.series {
            series.sent(bytes);
        }
    }
}

impl Drop for ConnectionLog {
    fn drop(&mut self) {
        if let Some(series) = &self.series {
            series.closed();
        }
        let Some(mut entry) = self.entry.take() else { return };
        if self.worker.shared.access_log.wants(self.worker.roll(), 0, self.flags) {
            entry.flags = self.flags;
            entry.details = self.details;
            entry.received = self.received.get();
            entry.sent = self.sent.get();
            entry.duration = self.start.elapsed();
            if let Some(cluster) = &self.parties.cluster {
                entry.cluster = super::cluster_name(cluster);
            }
            if self.worker.telemetry.logs(
                self.parties.source.as_ref().map(|s| s.get()),
                &self.worker.shared.access_log,
                &entry,
            ) {
                self.worker.shared.access_log.write(&entry);
            }
        }
    }
}
