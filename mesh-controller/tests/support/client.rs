//! A controller in this process and a discovery client written by hand, so that the tests share no code with the proxy.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use mesh_api::{
    ResourceType, model,
    xds::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};
use mesh_ca::{NodeName, StateDir, TrustDomain};
use mesh_controller::{app, config::Config, peer_id, source::SourceKind};
use mesh_net::tls::{Credentials, Expect, NodeTls, any_name, join_client_config};
use node_rt::{Drain, DrainConfig, Readiness, Reason, Tasks};
use rcgen::{CertificateParams, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    client::Grpc,
    codegen::http::{Uri, uri::PathAndQuery},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

const DOMAIN: &str = "cluster.local";

pub(crate) fn service_yaml(name: &str, vip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: {vip}\n  \
         selector: {{app: {name}}}\n  ports: [{{name: http, port: 9080}}]\n---\n"
    )
}

fn pod_yaml(name: &str, version: &str, ip: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-{version}, labels: {{app: {name}, version: {version}}}}}\n\
         spec: {{nodeName: {node}}}\nstatus: {{podIP: {ip}, phase: Running}}\n---\n"
    )
}

/// One service with two pods on two nodes.
pub(crate) fn world() -> String {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: edge-a, labels: {topology.kubernetes.io/zone: zone-1}}\n---\n";
    service_yaml("reviews", "10.96.0.10")
        + &pod_yaml("reviews", "v1", "10.1.0.1", "edge-a")
        + &pod_yaml("reviews", "v2", "10.1.0.2", "edge-b")
        + node
}

pub(crate) fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|r| r.name.clone()).collect()
}

/// The node in a response.
pub(crate) fn node_in(response: &DeltaDiscoveryResponse, name: &str) -> Option<model::Node> {
    let resource = response.resources.iter().find(|r| r.name == name)?;
    Some(prost::Message::decode(&*resource.resource.as_ref()?.value).unwrap())
}

pub(crate) struct Controller {
    dir: tempfile::TempDir,
    config: Config,
    running: app::Running,
    drain: Drain,
    tasks: Tasks,
    readiness: Readiness,
}

impl Controller {
    pub(crate) async fn start(files: &[(&str, &str)]) -> Self {
        Self::start_with(files, |_| {}).await
    }

    pub(crate) async fn start_with(files: &[(&str, &str)], change: impl FnOnce(&mut Config)) -> Self {
        node_rt::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let manifests = dir.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        for (name, text) in files {
            std::fs::write(manifests.join(name), text).unwrap();
        }
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config {
            source: SourceKind::Dir(manifests),
            state_dir: dir.path().join("state"),
            listen: any,
            metrics_listen: any,
            admin_listen: any,
            ..Config::default()
        };
        change(&mut config);
        let (drain, readiness) = (Drain::new(), Readiness::new());
        let tasks = Tasks::new(drain.clone());
        let running = app::start(&config, &tasks, &readiness).await.unwrap();
        Self { dir, config, running, drain, tasks, readiness }
    }

    pub(crate) async fn restart(&mut self) {
        self.drain.begin(Reason::Requested("test"));
        let report = self.drain.run(DrainConfig::default(), &self.readiness, &self.tasks).await;
        assert!(report.stuck.is_empty(), "{report:?}");
        self.drain = Drain::new();
        self.tasks = Tasks::new(self.drain.clone());
        self.readiness = Readiness::new();
        self.running = app::start(&self.config, &self.tasks, &self.readiness).await.unwrap();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.listen
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("manifests").join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn state_dir(&self) -> StateDir {
        StateDir::new(self.config.state_path())
    }

    /// As `meshctl node remove` does it, on the same directory.
    pub(crate) fn remove_record(&self, node: &str) {
        let records = std::fs::read_dir(self.state_dir().nodes()).unwrap().map(|e| e.unwrap().path());
        let mut of_node = records.filter(|p| p.file_stem().is_some_and(|stem| stem == node));
        std::fs::remove_file(of_node.next().unwrap()).unwrap();
    }

    /// As `meshctl token create` does it, on the same directory.
    pub(crate) fn token(&self, node: &str, ttl: u64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let authority = self.state_dir().authority(&TrustDomain::new(DOMAIN).unwrap(), now).unwrap();
        let node = NodeName::new(node).unwrap();
        let tokens = self.state_dir().tokens().unwrap();
        tokens.create(&node, ttl, authority.fingerprint(), Vec::new(), now).unwrap().encode()
    }

    pub(crate) async fn join(&self, node: &str) -> Node {
        self.join_with(node, &self.token(node, 600)).await.unwrap()
    }

    pub(crate) async fn join_with(&self, name: &str, token: &str) -> Result<Node, Status> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let authority = self.state_dir().authority(&TrustDomain::new(DOMAIN).unwrap(), now).unwrap();
        let node = Node {
            address: self.running.listen,
            ca_sha256: authority.fingerprint(),
            ca: Vec::new(),
            name: name.to_owned(),
            identity: None,
            peer_id: String::new(),
            machine: None,
        };
        node.join_request(name, token).await
    }

    /// A controller with this configuration, which may be one of several.
    pub(crate) async fn start_as(config: Config) -> Self {
        node_rt::install_crypto_provider();
        let (drain, readiness) = (Drain::new(), Readiness::new());
        let tasks = Tasks::new(drain.clone());
        let running = app::start(&config, &tasks, &readiness).await.unwrap();
        Self { dir: tempfile::tempdir().unwrap(), config, running, drain, tasks, readiness }
    }

    /// Stops as the program does on SIGTERM; the report comes when all is ended.
    pub(crate) async fn stop(&self) {
        self.drain.begin(Reason::Requested("test"));
        let limits = DrainConfig { not_ready_for: self.config.handover(), ..DrainConfig::default() };
        let report = self.drain.run(limits, &self.readiness, &self.tasks).await;
        assert!(report.stuck.is_empty(), "{report:?}");
    }

    pub(crate) async fn metrics(&self) -> String {
        http(self.running.metrics, "GET", "/metrics").await
    }

    pub(crate) async fn state(&self) -> serde_json::Value {
        serde_json::from_str(&http(self.running.admin, "GET", "/state").await).unwrap()
    }

    pub(crate) async fn delete_node(&self, node: &str) {
        let answer = http(self.running.admin, "DELETE", &format!("/nodes/{node}")).await;
        assert!(answer.contains("removed"), "{answer}");
    }

    pub(crate) async fn state_when(
        &self,
        condition: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        for _ in 0..200 {
            let state = self.state().await;
            if condition(&state) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("condition never held: {}", self.state().await);
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.drain.force();
    }
}

async fn http(address: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    body.to_owned()
}

pub(crate) fn csr() -> Vec<u8> {
    CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

/// The key of a node: the same one each time that it joins.
fn peer_key(node: &str) -> Ed25519KeyPair {
    let mut seed = [7; 32];
    for (slot, byte) in seed.iter_mut().zip(node.bytes()) {
        *slot = byte;
    }
    Ed25519KeyPair::from_seed_unchecked(&seed).unwrap()
}

pub(crate) fn peer_key_protobuf(node: &str) -> Vec<u8> {
    [&[0x08, 0x01, 0x12, 0x20], peer_key(node).public_key().as_ref()].concat()
}

/// What a node has after joining.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    pub(crate) ca_sha256: [u8; 32],
    pub(crate) ca: Vec<u8>,
    pub(crate) name: String,
    /// Certificate and key, DER.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) peer_id: String,
    /// On which machine it says it runs.
    pub(crate) machine: Option<String>,
}

impl Node {
    async fn channel(&self) -> Result<Channel, Status> {
        let alpn: &[&[u8]] = &[b"h2"];
        let config = match &self.identity {
            None => join_client_config(DOMAIN, self.ca_sha256, alpn).unwrap(),
            Some((certificate, key)) => {
                let credentials = Credentials {
                    chain: vec![certificate.clone().into()],
                    key: rustls_pki_types::PrivatePkcs8KeyDer::from(key.clone()).into(),
                    roots: vec![self.ca.clone().into()],
                };
                NodeTls::new(DOMAIN, credentials).unwrap().client_config(Expect::Controller, alpn).unwrap()
            }
        };
        let address = self.address;
        let connect = tower::service_fn(move |_: Uri| {
            let config = Arc::clone(&config);
            async move {
                let tcp = TcpStream::connect(address).await?;
                let tls = tokio_rustls::TlsConnector::from(config).connect(any_name(), tcp).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tls))
            }
        });
        let endpoint = Endpoint::from_static("http://controller").timeout(Duration::from_secs(10));
        endpoint.connect_with_connector(connect).await.map_err(|e| Status::unavailable(format!("{e:?}")))
    }

    async fn unary<M, R>(&self, path: &'static str, message: M) -> Result<R, Status>
    where
        M: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel().await?);
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let path = PathAndQuery::from_static(path);
        let answer = grpc.unary(tonic::Request::new(message), path, ProstCodec::<M, R>::default()).await?;
        Ok(answer.into_inner())
    }

    pub(crate) async fn raw_join(&self, request: model::JoinRequest) -> Result<model::JoinResponse, Status> {
        self.unary("/selvage.mesh.v1.NodeAgent/Join", request).await
    }

    /// Joins with a fresh key; the result has the new certificate.
    pub(crate) async fn join_request(&self, name: &str, token: &str) -> Result<Node, Status> {
        self.join_with_key_of(name, name, token).await
    }

    pub(crate) async fn join_with_key_of(
        &self,
        owner: &str,
        name: &str,
        token: &str,
    ) -> Result<Node, Status> {
        self.join_by(owner, name, |request| token.clone_into(&mut request.token)).await
    }

    /// Joins as the pod that this service-account token is of.
    pub(crate) async fn join_as_pod(&self, owner: &str, name: &str, token: &str) -> Result<Node, Status> {
        self.join_by(owner, name, |request| token.clone_into(&mut request.service_account_token)).await
    }

    async fn join_by(
        &self,
        owner: &str,
        name: &str,
        prove: impl FnOnce(&mut model::JoinRequest),
    ) -> Result<Node, Status> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let signature = peer_key(owner).sign(&peer_id::signed_message(&csr)).as_ref().to_vec();
        let id = peer_id::verify(&peer_key_protobuf(owner), &signature, &csr).unwrap();
        let mut request = model::JoinRequest {
            node: name.to_owned(),
            csr_der: csr,
            peer_public_key: peer_key_protobuf(owner),
            peer_signature: signature,
            ..model::JoinRequest::default()
        };
        prove(&mut request);
        let answer = self.raw_join(request).await?;
        assert_eq!(answer.trust_domain, DOMAIN);
        Ok(Node {
            ca: answer.ca_der,
            identity: Some((answer.certificate_der, key.serialize_der())),
            peer_id: id,
            name: name.to_owned(),
            ..self.clone()
        })
    }

    pub(crate) async fn report(
        &self,
        node: &str,
        addresses: &[&str],
    ) -> Result<model::ReportResponse, Status> {
        let request = model::ReportRequest {
            node: node.to_owned(),
            addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
            version: "test".to_owned(),
            ..model::ReportRequest::default()
        };
        self.unary("/selvage.mesh.v1.NodeAgent/Report", request).await
    }

    /// The node as it is before it has joined: it knows where a controller is, and its CA.
    pub(crate) fn new(address: SocketAddr, ca_sha256: [u8; 32], name: &str) -> Self {
        let (name, ca, peer_id) = (name.to_owned(), Vec::new(), String::new());
        Self { address, ca_sha256, ca, name, identity: None, peer_id, machine: None }
    }

    /// The same node, calling another controller.
    pub(crate) fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    async fn open(
        &self,
    ) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>), Status> {
        let endpoint = self.channel().await?;
        let mut grpc = Grpc::new(endpoint).max_decoding_message_size(16 << 20);
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let (sender, receiver) = mpsc::channel(16);
        let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        if let Some(machine) = &self.machine {
            request.metadata_mut().insert("selvage-machine", machine.parse().unwrap());
        }
        let answer = grpc.streaming(request, PathAndQuery::from_static(path), codec).await?;
        Ok((sender, answer.into_inner()))
    }

    /// The same node, on a machine.
    pub(crate) fn on(&self, machine: &str) -> Self {
        Self { machine: Some(machine.to_owned()), ..self.clone() }
    }

    pub(crate) async fn ads(&self) -> Ads {
        let (sender, responses) = self.open().await.unwrap();
        Ads { sender, responses, node: self.name.clone(), named: false }
    }

    /// How a stream that claims `node` ends.
    pub(crate) async fn ads_error(&self, kind: ResourceType, node: &str) -> Status {
        let (sender, responses) = match self.open().await {
            Ok(open) => open,
            Err(status) => return status,
        };
        let mut ads = Ads { sender, responses, node: node.to_owned(), named: false };
        ads.subscribe(kind, &[]).await;
        ads.end(Duration::from_secs(5)).await
    }
}

pub(crate) struct Ads {
    sender: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: String,
    named: bool,
}

impl Ads {
    pub(crate) async fn send(&mut self, mut request: DeltaDiscoveryRequest) {
        if !std::mem::replace(&mut self.named, true) {
            let node = xds::Node { id: self.node.clone(), ..xds::Node::default() };
            request.node = Some(node);
        }
        self.sender.send(request).await.unwrap();
    }

    pub(crate) async fn subscribe(&mut self, kind: ResourceType, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await;
    }

    pub(crate) async fn answer(&mut self, response: &DeltaDiscoveryResponse, error: Option<xds::Status>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await;
    }

    pub(crate) async fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.answer(response, None).await;
    }

    pub(crate) async fn next(&mut self, within: Duration) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(within, self.responses.message()).await;
        next.expect("a response in time").expect("no error").expect("the stream goes on")
    }

    /// Takes responses until one fulfils the condition; all are acknowledged.
    pub(crate) async fn until(
        &mut self,
        within: Duration,
        condition: impl Fn(&DeltaDiscoveryResponse) -> bool,
    ) -> DeltaDiscoveryResponse {
        let found = tokio::time::timeout(within, async {
            loop {
                let response = self.next(within).await;
                self.ack(&response).await;
                if condition(&response) {
                    return response;
                }
            }
        });
        found.await.expect("the response in time")
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn quiet_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.responses.message()).await.is_err()
    }

    /// How the stream ends.
    pub(crate) async fn end(&mut self, within: Duration) -> Status {
        let ended = tokio::time::timeout(within, async {
            loop {
                match self.responses.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok("ended"),
                    Err(status) => return status,
                }
            }
        });
        ended.await.expect("the stream ends")
    }
}
