//! One crypto provider for the process, chosen before anything can ask for a default.

/// Makes aws-lc-rs the process default. The first thing in every main: libraries that ask rustls
/// for its default panic when two providers are compiled in and none is installed.
pub fn install_crypto_provider() {
    // An error means that a provider is installed already, which is what we want.
    let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
