//! The cluster's certificate authority.

use std::{
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde::{Deserialize, Serialize};

use super::{MANAGER_NAME, PkiError};
use crate::model::{Id, Role};

const DAY: u64 = 24 * 3600;
const AUTHORITY_DAYS: u64 = 7300;
/// Lifetime of a node's certificate. It is long for two reasons: the cluster's state decides about
/// membership on every call, not the expiry; and a cluster must not stop because it was not
/// maintained for a while.
const NODE_DAYS: u64 = 3650;
/// How far the clock of another host may be behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// The authority with its key, which only managers have.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate_pem: String,
    key_pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// Contents of a certificate.
#[derive(Clone, Copy, Debug)]
pub struct CertificateFor<'a> {
    /// The node, as common name.
    pub node: &'a Id,
    /// Its role, as organization. Certificates of managers are valid for [`MANAGER_NAME`].
    pub role: Role,
    /// Its addresses, as subject alternative names.
    pub addresses: &'a [IpAddr],
}

impl Authority {
    /// Makes a new authority for a cluster.
    ///
    /// # Errors
    /// [`PkiError::Crypto`] if no key can be made.
    pub fn new(cluster: &Id) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(crypto)?;
        let mut params = params(AUTHORITY_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = name(&format!("overlay CA {cluster}"), "overlay");
        let certificate_pem = params.self_signed(&key).map_err(crypto)?.pem();
        Ok(Self { certificate_pem, key_pem: key.serialize_pem() })
    }

    /// Signs the public key of a request. Everything else in the certificate is decided here and
    /// not taken from the request.
    ///
    /// # Errors
    /// [`PkiError::Request`] if the request is malformed or not signed with its own key.
    pub fn sign(&self, csr_pem: &str, subject: CertificateFor<'_>) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| PkiError::Request(e.to_string()))?;
        let damaged = |e: rcgen::Error| PkiError::Damaged {
            what: "the cluster's certificate authority".to_owned(),
            reason: e.to_string(),
        };
        let key = KeyPair::from_pem(&self.key_pem).map_err(damaged)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, key).map_err(damaged)?;

        let mut params = params(NODE_DAYS);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name = name(subject.node.as_str(), role_name(subject.role));
        params.subject_alt_names =
            subject.addresses.iter().map(|address| SanType::IpAddress(*address)).collect();
        if subject.role == Role::Manager {
            let name = MANAGER_NAME.try_into().map_err(crypto)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        Ok(params.signed_by(&request.public_key, &issuer).map_err(crypto)?.pem())
    }
}

/// A node's new key and its signing request.
pub struct NodeKey {
    /// Private key, PEM (PKCS #8).
    pub key_pem: String,
    /// Certificate signing request, PEM.
    pub csr_pem: String,
}

impl NodeKey {
    /// Generates a new key (ECDSA, P-256).
    ///
    /// # Errors
    /// [`PkiError::Crypto`] if no key can be made.
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(crypto)?;
        let mut params = CertificateParams::default();
        // The authority decides about names, so the request has an empty subject.
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(crypto)?;
        Ok(Self { key_pem: key.serialize_pem(), csr_pem: csr.pem().map_err(crypto)? })
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Agent => "agent",
    }
}

fn params(days: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_epoch;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::from_secs(days * DAY);
    params
}

fn name(common: &str, organization: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name.push(DnType::OrganizationName, organization);
    name
}

fn crypto(error: impl fmt::Display) -> PkiError {
    PkiError::Crypto(error.to_string())
}

#[cfg(test)]
mod tests {
    use x509_parser::{
        extensions::GeneralName, pem::parse_x509_pem, prelude::X509Certificate,
        public_key::PublicKey,
    };

    use super::*;

    fn with_certificate<R>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> R) -> R {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).expect("PEM");
        look(&pem.parse_x509().expect("a certificate"))
    }

    fn sign(authority: &Authority, csr_pem: &str, role: Role) -> Result<String, PkiError> {
        let node = Id::from_text("node1");
        let addresses = ["172.16.1.10".parse().expect("an address")];
        authority.sign(csr_pem, CertificateFor { node: &node, role, addresses: &addresses })
    }

    #[test]
    fn a_node_certificate_says_who_it_is_and_what_it_is_good_for() {
        let authority = Authority::new(&Id::random()).expect("an authority");
        let key = NodeKey::generate().expect("a key");
        for (role, organization) in [(Role::Manager, "manager"), (Role::Agent, "agent")] {
            let pem = sign(&authority, &key.csr_pem, role).expect("signed");
            with_certificate(&pem, |certificate| {
                let subject = certificate.subject().to_string();
                assert!(subject.contains("CN=node1"), "{subject}");
                assert!(subject.contains(&format!("O={organization}")), "{subject}");
                let usage = certificate.extended_key_usage().expect("valid").expect("given").value;
                assert!(usage.client_auth && usage.server_auth && !usage.any);
                assert!(!certificate.is_ca());
                let sans = certificate.subject_alternative_name().expect("valid").expect("given");
                let sans = &sans.value.general_names;
                assert!(sans.contains(&GeneralName::IPAddress(&[172, 16, 1, 10])));
                let manager = sans.contains(&GeneralName::DNSName(MANAGER_NAME));
                assert_eq!(manager, role == Role::Manager);
                assert!(certificate.validity().is_valid());
                let now = x509_parser::time::ASN1Time::now().timestamp();
                assert!(certificate.validity().not_before.timestamp() <= now - 3590);
                assert!(matches!(
                    certificate.public_key().parsed(),
                    Ok(PublicKey::EC(point)) if point.key_size() == 256
                ));
            });
        }
    }

    #[test]
    fn what_a_request_asks_for_beyond_its_key_is_not_granted() {
        let authority = Authority::new(&Id::random()).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let mut params =
            CertificateParams::new(vec![MANAGER_NAME.to_owned(), "10.9.9.9".to_owned()])
                .expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = name("another", "manager");
        let csr = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        let pem = sign(&authority, &csr, Role::Agent).expect("signed");
        with_certificate(&pem, |certificate| {
            assert!(!certificate.is_ca());
            assert!(!certificate.subject().to_string().contains("another"));
            let sans = certificate.subject_alternative_name().expect("valid").expect("given");
            assert_eq!(sans.value.general_names, [GeneralName::IPAddress(&[172, 16, 1, 10])]);
        });
    }

    #[test]
    fn a_request_that_is_malformed_or_signed_by_another_key_is_refused() {
        let authority = Authority::new(&Id::random()).expect("an authority");
        let good = NodeKey::generate().expect("a key").csr_pem;
        // A letter shortly before the end is part of the signature.
        let at = good.find("\n-----END").expect("PEM") - 8;
        let letter = if &good[at..=at] == "A" { "B" } else { "A" };
        let mut forged = good.clone();
        forged.replace_range(at..=at, letter);
        for csr in [String::new(), "x".to_owned(), good.replace('M', "N"), forged] {
            assert!(
                matches!(sign(&authority, &csr, Role::Agent), Err(PkiError::Request(_))),
                "{csr}"
            );
        }
        sign(&authority, &good, Role::Agent).expect("the same request unharmed");
    }
}
