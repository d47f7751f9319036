//! On which machine this is: what a restarted or upgraded proxy has in common with the one before it, and a copied disk
//! does not have in common with its original.

use std::{fs, path::Path};

const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const HOST: &str = "/proc/sys/kernel/hostname";
const NETWORK: &str = "/proc/self/ns/net";

/// Host name, boot and network namespace; what cannot be read is left out.
pub(crate) fn name() -> String {
    let boot = fs::read_to_string(BOOT).unwrap_or_default();
    let network = fs::read_link(Path::new(NETWORK)).unwrap_or_default();
    let host = fs::read_to_string(HOST).unwrap_or_default();
    compose(host.trim(), boot.trim(), &network.to_string_lossy())
}

fn compose(host: &str, boot: &str, network: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || *c == '-' || *c == '.';
    let host: String = host.chars().filter(plain).take(64).collect();
    let boot: String = boot.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    let network: String = network.chars().filter(char::is_ascii_digit).take(20).collect();
    format!("{host}/{boot}-{network}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_at_each_call_and_fit_for_a_header() {
        assert_eq!(name(), name());
        assert_eq!(
            compose("edge-ä\n", "0f3c7a52-91be-4d1c-9f0a-000000000000", "net:[4026531840]"),
            "edge-/0f3c7a5291be-4026531840"
        );
    }
}
