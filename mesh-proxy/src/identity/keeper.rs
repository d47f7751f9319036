//! Gets the certificate and keeps it fresh.
//!
//! A node proves itself by its certificate while that holds, else by its pod's service-account token where it has one,
//! else by its join token. It does so when two thirds of the certificate's life are over, and at once when a controller
//! does not know it any more or the mesh has another CA.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use mesh_api::model::{JoinRequest, JoinResponse};
use mesh_ca::JoinToken;
use mesh_net::tls::{self, Credentials, Expect, NodeTls, TlsError};
use mesh_tunnel::NodeKey;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    Identity, IdentityError,
    files::{MAX_CAS, Request, StateFiles},
};
use crate::{
    config::Config,
    controller::{self, ALPN},
};

/// First pause after a failure; it doubles.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A clock that is wrong must not make renewal spin.
const RENEW_AT_LEAST_AFTER: Duration = Duration::from_secs(5);

/// Pauses that double, with a random part so that a thousand nodes do not come back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(BACKOFF_FIRST)
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..1.5));
        self.0 = (self.0 * 2).min(BACKOFF_MAX);
        pause
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }
}

/// Somebody's doubts whether the certificate is still good for anything. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doubts(Arc<(Notify, AtomicBool)>);

impl Doubts {
    /// A controller has refused it, or is of a CA that this node does not know.
    pub(crate) fn refused(&self) {
        self.0.1.store(true, Ordering::Relaxed);
        self.0.0.notify_one();
    }

    /// No controller can be spoken to: it may have another CA now.
    pub(crate) fn unreachable(&self) {
        self.0.0.notify_one();
    }

    async fn arise(&self) {
        self.0.0.notified().await;
    }

    fn take_refused(&self) -> bool {
        self.0.1.swap(false, Ordering::Relaxed)
    }
}

/// What a node shows of itself.
#[derive(Default)]
struct Proof {
    token: String,
    service_account_token: String,
}

/// Joins and renews.
pub struct Keeper {
    config: Arc<Config>,
    files: StateFiles,
    tunnel_key: NodeKey,
    tls: watch::Sender<Option<NodeTls>>,
    doubts: Doubts,
    metrics: Metrics,
}

struct Metrics {
    expires: prometheus::IntGauge,
    failures: prometheus::IntCounter,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("tunnel_key", &self.tunnel_key).finish_non_exhaustive()
    }
}

impl Keeper {
    /// A keeper of what was found on disk.
    pub fn new(
        config: Arc<Config>,
        identity: Identity,
        registry: &prometheus::Registry,
    ) -> Result<Self, prometheus::Error> {
        let metrics = Metrics {
            expires: prometheus::IntGauge::new(
                "selvage_certificate_expires_seconds",
                "End of the node certificate, seconds since 1970; 0 = there is none",
            )?,
            failures: prometheus::IntCounter::new(
                "selvage_certificate_failures_total",
                "Attempts to get a certificate that failed",
            )?,
        };
        registry.register(Box::new(metrics.expires.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        let Identity { tunnel_key, tls, files } = identity;
        Ok(Self {
            config,
            files,
            tunnel_key,
            tls: watch::Sender::new(tls),
            doubts: Doubts::default(),
            metrics,
        })
    }

    /// The TLS identity: none until the node has joined. Renewal replaces its content, not the value.
    pub fn tls(&self) -> watch::Receiver<Option<NodeTls>> {
        self.tls.subscribe()
    }

    /// Where doubts are said.
    pub(crate) fn doubts(&self) -> Doubts {
        self.doubts.clone()
    }

    /// Runs for as long as the process does.
    pub async fn run(self) {
        let mut backoff = Backoff::new();
        loop {
            // Doubts that turn out to be none must not put it off.
            let due = Instant::now() + self.until_due();
            while Instant::now() < due && !self.is_doubted_before(due).await {}
            match self.obtain().await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    let pause = backoff.next();
                    self.metrics.failures.inc();
                    let joined = self.tls.borrow().is_some();
                    tracing::warn!(error = %crate::chain(&error), joined, retry_in = ?pause, "no certificate");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Waits until the certificate is due; `false` when a doubt came up that turned out to be none.
    async fn is_doubted_before(&self, due: Instant) -> bool {
        tokio::select! {
            () = tokio::time::sleep_until(due) => true,
            () = self.doubts.arise() => {
                let founded = self.doubts.take_refused() || self.ca_is_another();
                // However often it is doubted, not all the time is spent on that.
                tokio::time::sleep(BACKOFF_FIRST.mul_f64(rand::random_range(0.5..1.5))).await;
                founded
            }
        }
    }

    /// Whether the mounted CA is not the one of the certificate: the mesh was set up anew.
    fn ca_is_another(&self) -> bool {
        let Ok(mounted) = self.mounted_cas() else { return false };
        match self.files.credentials() {
            Ok(Some(held)) => !mounted.is_empty() && !held.roots.iter().any(|ca| mounted.contains(ca)),
            _ => false,
        }
    }

    /// Time until the certificate is to be renewed; zero when there is none.
    fn until_due(&self) -> Duration {
        let Some(tls) = self.tls.borrow().clone() else { return Duration::ZERO };
        let (from, to) = tls.validity();
        let seconds = to.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.metrics.expires.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        due_in(from, to, SystemTime::now()).max(RENEW_AT_LEAST_AFTER)
    }

    /// Renews with the certificate that holds; proves itself anew when there is none, when the controller does not know it
    /// any more, or when the mesh has another CA.
    async fn obtain(&self) -> Result<(), IdentityError> {
        let current = self.tls.borrow().clone();
        let holds = |tls: &NodeTls| tls.validity().1 > SystemTime::now();
        let Some(tls) = current.as_ref().filter(|t| holds(t) && !self.ca_is_another()) else {
            return self.join(&current).await;
        };
        let client = tls.client_config(Expect::Controller, ALPN)?;
        match self.ask(&client, Proof::default()).await {
            Ok((request, answer)) => self.take(&current, &request, answer, None),
            Err(IdentityError::Call(error)) if error.is_refusal() && self.can_join() => {
                tracing::warn!(error = %crate::chain(&error), "certificate is not renewed: joining again");
                self.join(&current).await
            }
            // Away for so long that a CA has come and gone meanwhile, or the mesh was set up anew.
            Err(IdentityError::Call(error)) if error.is_of_unknown_ca() => {
                let joined = self.join(&current).await;
                joined.map_err(|error| IdentityError::FormerCa(Box::new(error)))
            }
            Err(error) => Err(error),
        }
    }

    async fn join(&self, current: &Option<NodeTls>) -> Result<(), IdentityError> {
        if self.config.identity.service_account_token_file.is_some() {
            self.join_as_pod(current).await?;
        } else {
            let (text, token) = self.token().map_err(|error| expired_or(error, current.as_ref()))?;
            let client = self.pinned(token.ca_sha256)?;
            let (request, answer) = self.ask(&client, Proof { token: text, ..Proof::default() }).await?;
            self.take(current, &request, answer, Some(&[token.ca_sha256]))?;
        }
        self.files.save_controllers(&super::controllers(&self.config, &self.files))
    }

    /// By the token that the cluster has given to this pod; both files are read at each use.
    async fn join_as_pod(&self, current: &Option<NodeTls>) -> Result<(), IdentityError> {
        let file = self.config.identity.service_account_token_file.clone().unwrap_or_default();
        let token = std::fs::read_to_string(&file).map_err(|source| IdentityError::File {
            operation: "read service-account token",
            path: file,
            source,
        })?;
        let pins: Vec<[u8; 32]> = self.mounted_cas()?.iter().map(tls::fingerprint).collect();
        let mut last = IdentityError::NoCa;
        for pin in &pins {
            let client = self.pinned(*pin)?;
            let proof = Proof { service_account_token: token.trim().to_owned(), ..Proof::default() };
            match self.ask(&client, proof).await {
                Ok((request, answer)) => return self.take(current, &request, answer, Some(&pins)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The CAs of the mesh as mounted into this pod; more than one while one replaces another.
    fn mounted_cas(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let Some(path) = &self.config.identity.ca_file else { return Ok(Vec::new()) };
        let at = |source| IdentityError::File { operation: "read CA", path: path.clone(), source };
        let pem = std::fs::read(path).map_err(at)?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).take(MAX_CAS).collect();
        all.map_err(|e| at(std::io::Error::other(e)))
    }

    async fn ask(
        &self,
        client: &Arc<ClientConfig>,
        proof: Proof,
    ) -> Result<(Request, JoinResponse), IdentityError> {
        let addresses = super::controllers(&self.config, &self.files);
        let request = self.files.request()?;
        let key = |source| IdentityError::Key { path: "tunnel.key".into(), source };
        let call = JoinRequest {
            node: self.config.node.clone(),
            token: proof.token,
            service_account_token: proof.service_account_token,
            csr_der: request.csr.clone(),
            peer_public_key: self.tunnel_key.public_protobuf(),
            peer_signature: self.tunnel_key.sign_join(&request.csr).map_err(key)?,
        };
        let answer = first_answer(&addresses, client, &call).await?;
        Ok((request, answer))
    }

    fn take(
        &self,
        current: &Option<NodeTls>,
        request: &Request,
        answer: JoinResponse,
        pins: Option<&[[u8; 32]]>,
    ) -> Result<(), IdentityError> {
        let key = request.key.serialized_der();
        let mut roots = vec![CertificateDer::from(answer.ca_der)];
        let others = answer.roots_der.into_iter().map(CertificateDer::from);
        roots.extend(others.filter(|ca| *ca != roots[0]).take(MAX_CAS - 1).collect::<Vec<_>>());
        // Any of them: a token may be older than the CA that signs.
        if pins.is_some_and(|pins| !roots.iter().any(|ca| pins.contains(&tls::fingerprint(ca)))) {
            return Err(IdentityError::WrongCa);
        }
        let leaf = CertificateDer::from(answer.certificate_der);
        let found = tls::identity_of(&leaf).map_err(TlsError::Identity)?;
        if found.node() != Some(self.config.node.as_str()) {
            let found = found.node().map(str::to_owned);
            return Err(IdentityError::NotOurs { found, node: self.config.node.clone() });
        }
        let private = PrivateKeyDer::Pkcs8(key.to_vec().into());
        let credentials = Credentials { chain: vec![leaf.clone()], key: private, roots: roots.clone() };
        match current {
            Some(tls) => {
                tls.replace(credentials)?;
                self.files.save_credentials(key, &leaf, &roots)?;
                self.tls.send_modify(|_| {});
                tracing::info!("certificate renewed");
            }
            None => {
                let tls = NodeTls::new(&self.config.trust_domain, credentials)?;
                self.files.save_credentials(key, &leaf, &roots)?;
                self.tls.send_replace(Some(tls));
                tracing::info!("joined the mesh");
            }
        }
        Ok(())
    }

    fn can_join(&self) -> bool {
        self.config.identity.service_account_token_file.is_some()
            || token_text(&self.config).is_ok_and(|t| !t.is_empty())
    }

    fn token(&self) -> Result<(String, JoinToken), IdentityError> {
        let text = token_text(&self.config)?;
        if text.is_empty() {
            return Err(IdentityError::NoToken);
        }
        let token = JoinToken::parse(&text)?;
        if token.node.as_str() != self.config.node {
            return Err(IdentityError::WrongNode {
                token: token.node.to_string(),
                node: self.config.node.clone(),
            });
        }
        Ok((text, token))
    }

    fn pinned(&self, ca_sha256: [u8; 32]) -> Result<Arc<ClientConfig>, IdentityError> {
        Ok(tls::join_client_config(&self.config.trust_domain, ca_sha256, ALPN)?)
    }
}

/// A node that was away for longer than its certificate holds is told that, rather than that it has no token.
fn expired_or(error: IdentityError, tls: Option<&NodeTls>) -> IdentityError {
    let since = tls.and_then(|t| SystemTime::now().duration_since(t.validity().1).ok());
    match (error, since) {
        (IdentityError::NoToken, Some(since)) => IdentityError::Expired { seconds: since.as_secs() },
        (error, _) => error,
    }
}

/// The join token as configured, read from its file if it is in one.
pub(crate) fn token_text(config: &Config) -> Result<String, IdentityError> {
    let text = config.join_token.expose().trim();
    let Some(file) = text.strip_prefix('@') else { return Ok(text.to_owned()) };
    let read = std::fs::read_to_string(file).map_err(|source| IdentityError::File {
        operation: "read join token",
        path: file.into(),
        source,
    })?;
    Ok(read.trim().to_owned())
}

/// Renewal begins when two thirds of the life are over.
pub(crate) fn due_in(from: SystemTime, to: SystemTime, now: SystemTime) -> Duration {
    let life = to.duration_since(from).unwrap_or_default();
    let due = from + life * 2 / 3;
    due.duration_since(now).unwrap_or_default()
}

async fn first_answer(
    addresses: &[String],
    client: &Arc<ClientConfig>,
    call: &JoinRequest,
) -> Result<JoinResponse, IdentityError> {
    let mut last = IdentityError::NoController;
    for address in addresses {
        let attempt = async {
            let channel = controller::connect(address, client.clone()).await?;
            controller::join(channel, call.clone()).await
        };
        match attempt.await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}
