//! Gateway: the listeners of gateway workloads.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Listeners that gateway workloads open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// The listeners.
    pub servers: Vec<Server>,
    /// Labels of the workloads; all gateways when empty.
    pub selector: BTreeMap<String, String>,
}

/// One listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["hosts", "port"]))]
pub struct Server {
    /// Port and protocol.
    pub port: Option<GatewayPort>,
    /// Address to listen at.
    pub bind: String,
    /// Names that it answers to, `namespace/name` or `name`.
    pub hosts: Vec<String>,
    /// TLS.
    pub tls: Option<ServerTlsSettings>,
    /// Where traffic goes by default; without effect, as in Istio.
    pub default_endpoint: String,
    /// Name, unique among all servers.
    pub name: String,
}

/// Port and protocol of a listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["number", "protocol", "name"]))]
pub struct GatewayPort {
    /// Number.
    pub number: u32,
    /// HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP, TLS and others.
    pub protocol: String,
    /// Name.
    pub name: String,
    /// Deprecated, without effect.
    pub target_port: u32,
}

/// TLS of a listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTlsSettings {
    /// Answer plaintext requests with a redirect to https.
    pub https_redirect: bool,
    /// Kind of TLS.
    pub mode: Option<ServerTlsMode>,
    /// File with the certificate.
    pub server_certificate: String,
    /// File with the key.
    pub private_key: String,
    /// File with certificates trusted for clients.
    pub ca_certificates: String,
    /// File with revoked certificates.
    pub ca_crl: String,
    /// Secret with key and certificates.
    pub credential_name: String,
    /// Several of them.
    #[schemars(length(min = 1, max = 2))]
    pub credential_names: Vec<String>,
    /// Secret with certificates trusted for clients.
    pub ca_cert_credential_name: String,
    /// Several files with keys and certificates.
    #[schemars(length(min = 1, max = 2))]
    pub tls_certificates: Vec<TlsCertificate>,
    /// Names of which a client must show one.
    pub subject_alt_names: Vec<String>,
    /// Hashes of clients' keys.
    pub verify_certificate_spki: Vec<String>,
    /// Hashes of clients' certificates.
    pub verify_certificate_hash: Vec<String>,
    /// Lowest version.
    pub min_protocol_version: Option<TlsProtocol>,
    /// Highest version.
    pub max_protocol_version: Option<TlsProtocol>,
    /// Cipher suites, OpenSSL names.
    pub cipher_suites: Vec<String>,
    /// Accept any certificate of a client.
    #[schemars(extend("x-keep-nullable" = true))]
    pub insecure_skip_verify: Option<bool>,
}

/// Files with a key and its certificate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsCertificate {
    /// File with the certificate.
    pub server_certificate: String,
    /// File with the key.
    pub private_key: String,
    /// File with certificates trusted for clients.
    pub ca_certificates: String,
}

/// Kind of TLS of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerTlsMode {
    /// Routed by server name, not opened.
    #[default]
    Passthrough,
    /// The server shows a certificate.
    Simple,
    /// Both sides do.
    Mutual,
    /// As passthrough, to the service that the server name spells.
    AutoPassthrough,
    /// Both sides do, with the mesh's own.
    IstioMutual,
    /// The client may show one.
    OptionalMutual,
}

/// Version of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsProtocol {
    /// As is good.
    #[default]
    #[serde(rename = "TLS_AUTO")]
    Auto,
    /// 1.0
    #[serde(rename = "TLSV1_0")]
    V1_0,
    /// 1.1
    #[serde(rename = "TLSV1_1")]
    V1_1,
    /// 1.2
    #[serde(rename = "TLSV1_2")]
    V1_2,
    /// 1.3
    #[serde(rename = "TLSV1_3")]
    V1_3,
}
