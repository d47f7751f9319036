//! The part of rustls' verifiers that is the same in all of ours: signatures of handshakes are checked by the provider.

/// The methods about signatures of `ServerCertVerifier` and `ClientCertVerifier`, for a type with a field `provider`.
/// `only_tls13`: those of TLS 1.2 are refused.
#[macro_export]
macro_rules! signatures_by_provider {
    (only_tls13) => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &::rustls_pki_types::CertificateDer<'_>,
            _dss: &::rustls::DigitallySignedStruct,
        ) -> Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            Err(::rustls::Error::General("only TLS 1.3 is spoken here".into()))
        }

        $crate::signatures_by_provider!(@rest);
    };
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &::rustls_pki_types::CertificateDer<'_>,
            dss: &::rustls::DigitallySignedStruct,
        ) -> Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            ::rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
        }

        $crate::signatures_by_provider!(@rest);
    };
    (@rest) => {
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &::rustls_pki_types::CertificateDer<'_>,
            dss: &::rustls::DigitallySignedStruct,
        ) -> Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            ::rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<::rustls::SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}
