//! TLS towards an endpoint, as a DestinationRule orders it.

use mesh_api::model;

/// TLS towards the endpoint, as a DestinationRule orders it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum ClientTlsMode {
    /// Nothing ordered: the mesh chooses.
    #[default]
    Auto,
    /// Plaintext.
    Disable,
    /// Server authentication only.
    Simple,
    /// With own certificate.
    Mutual,
    /// With the mesh's certificate.
    IstioMutual,
}

/// All of the block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct ClientTls {
    /// Mode.
    pub mode: ClientTlsMode,
    /// Name to send as SNI; empty = the request's host.
    pub sni: Box<str>,
    /// The server shows one of these names; empty = the SNI.
    pub subject_alt_names: Box<[Box<str>]>,
    /// File of the own certificate.
    pub certificate: Box<str>,
    /// File of its key.
    pub private_key: Box<str>,
    /// File of the authorities; empty = the system's.
    pub ca: Box<str>,
    /// File of revoked certificates.
    pub crl: Box<str>,
    /// Name of a Secret resource instead of files; empty = none.
    pub secret: Box<str>,
    /// The server's certificate is not looked at.
    pub skip_verify: bool,
}

impl ClientTls {
    pub(super) fn compile(m: &model::ClientTls) -> Self {
        Self {
            mode: mode(m.mode()),
            sni: m.sni.as_str().into(),
            subject_alt_names: m.subject_alt_names.iter().map(|s| s.as_str().into()).collect(),
            certificate: m.client_certificate.as_str().into(),
            private_key: m.private_key.as_str().into(),
            ca: m.ca_certificates.as_str().into(),
            crl: m.ca_crl.as_str().into(),
            secret: m.secret.as_str().into(),
            skip_verify: m.insecure_skip_verify,
        }
    }

    /// Whether connections begin with a handshake of ours.
    pub const fn originates(&self) -> bool {
        matches!(self.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual | ClientTlsMode::IstioMutual)
    }
}

fn mode(mode: model::client_tls::Mode) -> ClientTlsMode {
    use model::client_tls::Mode;
    match mode {
        Mode::Unspecified => ClientTlsMode::Auto,
        Mode::Disable => ClientTlsMode::Disable,
        Mode::Simple => ClientTlsMode::Simple,
        Mode::Mutual => ClientTlsMode::Mutual,
        Mode::IstioMutual => ClientTlsMode::IstioMutual,
    }
}
