//! A gateway from the files of a controller: listeners, rules and keys arrive, and changes of them take effect.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use mesh_proxy::gateway::GatewayConfig;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Controller, Proxy, backend, config, pod, service};

struct Ca(String, Issuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(params.self_signed(&key).unwrap().pem(), Issuer::new(params, key))
    }

    /// A Secret with a certificate for the shop.
    fn secret(&self) -> String {
        use base64::Engine;
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["shop.example.com".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.1).unwrap().pem();
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: shop, namespace: istio-system}}\n\
             type: kubernetes.io/tls\ndata:\n  tls.crt: {}\n  tls.key: {}\n",
            encode(&certificate),
            encode(&key.serialize_pem())
        )
    }

    async fn get(&self, to: SocketAddr) -> Option<String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.0.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("shop.example.com").unwrap();
        let stream = TcpStream::connect(to).await.ok()?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
        ask(stream).await
    }
}

async fn ask(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> Option<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop.example.com\r\nconnection: close\r\n\r\n").await.ok()?;
    let mut text = String::new();
    let _ended = stream.read_to_string(&mut text).await;
    Some(text)
}

/// Asks until the answer is as wanted.
async fn until<F: Future<Output = Option<String>>>(
    what: &str,
    ask: impl Fn() -> F,
    wanted: impl Fn(&str) -> bool,
) {
    let mut last = None;
    for _ in 0..400 {
        last = ask().await;
        if last.as_deref().is_some_and(&wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}: {last:?}");
}

const GATEWAY: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ['shop.example.com']
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ['shop.example.com']
    tls: {mode: SIMPLE, credentialName: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: gw-0, namespace: istio-system, labels: {istio: ingressgateway}}
spec: {nodeName: edge-a}
status: {podIP: 127.0.0.9, phase: Running, conditions: [{type: Ready, status: 'True'}]}
";

fn rule(prefix: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: shop, namespace: default}}\nspec:\n  \
         hosts: [shop.example.com]\n  gateways: [istio-system/edge]\n  http:\n  \
         - match: [{{uri: {{prefix: {prefix}}}}}]\n    route: [{{destination: {{host: web}}}}]\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_serves_what_the_controller_says() {
    let v1 = backend("v1", "127.0.0.2:0").await;
    let web = service("web", "10.96.0.1", v1.port()) + &pod("web", "v1", &v1.ip().to_string(), "edge-a");
    let (old, new) = (Ca::new(), Ca::new());
    let controller = Controller::start(&[
        ("world.yaml", web),
        ("gateway.yaml", GATEWAY.to_owned()),
        ("rule.yaml", rule("/")),
        ("secret.yaml", old.secret()),
    ])
    .await;
    let state = tempfile::tempdir().unwrap();
    let mut wanted = config("edge-a", state.path());
    wanted.join_token = controller.token("edge-a").into();
    let ports: BTreeMap<u16, u16> =
        [80, 443].map(|p| (p, mesh_testkit::ports::free_port())).into_iter().collect();
    wanted.gateway = Some(GatewayConfig {
        labels: [("istio".to_owned(), "ingressgateway".to_owned())].into(),
        ports: ports.clone(),
        ..GatewayConfig::default()
    });
    let proxy = Proxy::start(wanted).await;
    proxy.ready(Duration::from_secs(10)).await;
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], ports[&port]));
    let plain = || async { ask(TcpStream::connect(at(80)).await.ok()?).await };
    until("plaintext", plain, |t| t.starts_with("HTTP/1.1 200") && t.ends_with("v1")).await;
    until("TLS", || old.get(at(443)), |t| t.starts_with("HTTP/1.1 200")).await;
    controller.write("rule.yaml", &rule("/other"));
    until("another rule", plain, |t| t.starts_with("HTTP/1.1 404")).await;
    controller.write("rule.yaml", &rule("/"));
    controller.write("secret.yaml", &new.secret());
    until("another certificate", || new.get(at(443)), |t| t.starts_with("HTTP/1.1 200")).await;
    controller.write("gateway.yaml", "");
    for _ in 0..400 {
        if TcpStream::connect(at(80)).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the port of a Gateway that is gone stays open");
}
