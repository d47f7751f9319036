//! `meshctl ca`: the CAs of a mesh, and having the next one made.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;

use crate::{
    Outcome,
    args::{self, CaCommand},
    output, place,
    token::{now, span},
};

/// A CA that is trusted.
#[derive(Debug, Serialize)]
struct Trusted {
    /// SHA-256 of the certificate, as join tokens carry it.
    sha256: String,
    /// It signs; the others are trusted because the next one or a former one signs for some.
    signs: bool,
    /// Seconds since 1970.
    made: i64,
    ends: i64,
}

pub(crate) fn run(args: &args::Ca) -> Result<Outcome> {
    match &args.command {
        CaCommand::Status { place, output } => {
            let all = trusted(&place::open(place)?.ca_certificates(now())?)?;
            output::print(output.format, &all, || table(&all, now()))?;
        }
        CaCommand::Renew { place } => {
            place::open(place)?.renew_ca(now())?;
            eprintln!(
                "a controller makes the next CA within seconds; it signs after the life of a node certificate (meshctl ca \
                 status shows both)"
            );
        }
    }
    Ok(Outcome::Fine)
}

fn trusted(pem: &str) -> Result<Vec<Trusted>> {
    let mut all = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.context("read the certificates of the CAs")?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).context("read the certificates of the CAs")?;
        let mut sha256 = String::new();
        for byte in mesh_net::tls::fingerprint(&der) {
            // Writing to a String cannot fail.
            let _ = write!(sha256, "{byte:02x}");
        }
        let validity = parsed.validity();
        let made = validity.not_before.timestamp() + i64::try_from(mesh_ca::BACKDATE).unwrap_or(0);
        all.push(Trusted { sha256, signs: all.is_empty(), made, ends: validity.not_after.timestamp() });
    }
    Ok(all)
}

fn table(all: &[Trusted], now: u64) -> String {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let time = |seconds: i64| span(u64::try_from(seconds).unwrap_or(0));
    let signs = all.first().map_or(0, |ca| ca.made);
    let rows: Vec<_> = all
        .iter()
        .map(|ca| {
            let role = match (ca.signs, ca.made >= signs) {
                (true, _) => "signs",
                (false, true) => "next",
                (false, false) => "former",
            };
            let left = if ca.ends > now { time(ca.ends - now) } else { "ended".to_owned() };
            vec![ca.sha256.clone(), role.to_owned(), time(now - ca.made), left]
        })
        .collect();
    output::table(&["sha256", "role", "age", "left"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_and_the_former_are_told_apart() {
        let ca = |sha256: &str, signs, made| Trusted { sha256: sha256.to_owned(), signs, made, ends: 1000 };
        let text = table(&[ca("b", true, 100), ca("c", false, 200), ca("a", false, 10)], 300);
        let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["b", "signs", "3m20s", "11m40s"]);
        assert_eq!((rows[1][1], rows[2][1]), ("next", "former"));
        assert!(table(&[ca("b", true, 100)], 2000).contains("ended"));
    }
}
