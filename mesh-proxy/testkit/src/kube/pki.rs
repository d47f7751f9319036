//! The cluster's certificates: one authority, the API server's certificate, client certificates, and the key that signs
//! service account tokens.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::KubeError;

pub(super) struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Makes all keys and certificates in `dir`.
    pub(super) fn create(dir: &Path, address: IpAddr) -> Result<Self, KubeError> {
        std::fs::create_dir_all(dir).map_err(KubeError::io(format!("create {}", dir.display())))?;
        let failed = |source| KubeError::Certificate { name: "selvage-test-ca".into(), source };
        let ca_key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("selvage-test-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca = params.self_signed(&ca_key).map_err(failed)?;
        let pki = Self { dir: dir.to_owned(), issuer: Issuer::new(params, ca_key) };
        pki.write("ca.crt", &ca.pem())?;

        let mut server = CertificateParams::default();
        server.subject_alt_names = vec![
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(address),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1))),
        ];
        for host in ["localhost", "kubernetes", "kubernetes.default.svc"] {
            let host =
                host.try_into().map_err(|source| KubeError::Certificate { name: host.into(), source })?;
            server.subject_alt_names.push(SanType::DnsName(host));
        }
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        pki.leaf("apiserver", None, server)?;
        pki.client("admin", Some("system:masters"))?;
        pki.client("system:kube-controller-manager", None)?;

        let key = KeyPair::generate()
            .map_err(|source| KubeError::Certificate { name: "service account key".into(), source })?;
        pki.write("service-account.key", &key.serialize_pem())?;
        pki.write("service-account.pub", &key.public_key_pem())?;
        Ok(pki)
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The administrator, as the `user` of a kubeconfig.
    pub(super) fn admin(&self) -> serde_json::Value {
        self.user("admin")
    }

    pub(super) fn controller_manager(&self) -> serde_json::Value {
        self.user("system:kube-controller-manager")
    }

    /// The `user` of a kubeconfig whose certificate was made.
    pub(super) fn user(&self, name: &str) -> serde_json::Value {
        let file = file_name(name);
        serde_json::json!({
            "client-certificate": self.path(&format!("{file}.crt")),
            "client-key": self.path(&format!("{file}.key")),
        })
    }

    /// Makes a certificate for a client.
    pub(super) fn client(&self, name: &str, group: Option<&str>) -> Result<(), KubeError> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.leaf(name, group, params)
    }

    fn leaf(
        &self,
        common_name: &str,
        group: Option<&str>,
        mut params: CertificateParams,
    ) -> Result<(), KubeError> {
        let failed = |source| KubeError::Certificate { name: common_name.to_owned(), source };
        params.distinguished_name = name(common_name, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let file = file_name(common_name);
        self.write(&format!("{file}.crt"), &certificate.pem())?;
        self.write(&format!("{file}.key"), &key.serialize_pem())
    }

    fn write(&self, file: &str, pem: &str) -> Result<(), KubeError> {
        let path = self.path(file);
        std::fs::write(&path, pem).map_err(KubeError::io(format!("write {}", path.display())))
    }
}

fn file_name(common_name: &str) -> String {
    common_name.replace(':', "-")
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut out = DistinguishedName::new();
    out.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        out.push(DnType::OrganizationName, organization);
    }
    out
}
