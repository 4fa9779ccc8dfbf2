//! Identities of nodes: the cluster's certificate authority, the nodes' keys and certificates, join
//! tokens, and the TLS configurations that use them.
//!
//! A node's certificate has the node's id as common name and its role as organization. There is no
//! revocation list: managers reject a node that is no longer in the cluster's state.

mod ca;
mod tls;
mod token;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

pub use ca::{Authority, CertificateFor, NodeKey};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
pub use tls::{MANAGER_NAME, pinned_client_config};
pub use token::{JoinToken, SecretHash, TokenError, secret_hash};

use crate::{file::write_atomically, model::Id};

/// Why keys or certificates cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A key or certificate is malformed or does not match.
    #[error("{what} cannot be used: {reason}")]
    Damaged {
        /// The key or certificate.
        what: String,
        /// The reason.
        reason: String,
    },
    /// A signing request is rejected.
    #[error("the certificate signing request cannot be used: {0}")]
    Request(String),
    /// Making a key or a certificate failed.
    #[error("making a key or certificate failed: {0}")]
    Crypto(String),
}

/// A node's credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct NodePki {
    /// Certificate of the cluster's authority, PEM.
    pub ca_pem: String,
    /// The node's certificate, PEM.
    pub cert_pem: String,
    /// The node's private key, PEM (PKCS #8).
    pub key_pem: String,
}

const CA_FILE: &str = "ca.pem";
const CERT_FILE: &str = "node.pem";
const KEY_FILE: &str = "node-key.pem";

impl NodePki {
    /// Writes the three files. The directory gets mode 0700, the files get mode 0600.
    ///
    /// # Errors
    /// [`PkiError::Io`] names the file.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| PkiError::Io { path: dir.to_owned(), source })?;
        let files =
            [(CA_FILE, &self.ca_pem), (KEY_FILE, &self.key_pem), (CERT_FILE, &self.cert_pem)];
        for (name, text) in files {
            let path = dir.join(name);
            write_atomically(&path, text.as_bytes())
                .map_err(|source| PkiError::Io { path, source })?;
        }
        Ok(())
    }

    /// Reads the three files and checks that they belong together.
    ///
    /// # Errors
    /// [`PkiError::Io`] names the missing file, [`PkiError::Damaged`] the part that does not match.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|source| PkiError::Io { path, source })
        };
        let pki =
            Self { ca_pem: read(CA_FILE)?, cert_pem: read(CERT_FILE)?, key_pem: read(KEY_FILE)? };
        pki.client_config()?;
        Ok(pki)
    }

    /// Returns the node that the certificate is for.
    ///
    /// # Errors
    /// [`PkiError::Damaged`] if the certificate names no node.
    pub fn node(&self) -> Result<Id, PkiError> {
        node_of(&certificate("the node's certificate", &self.cert_pem)?)
    }
}

impl fmt::Debug for NodePki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodePki").field("node", &self.node().ok()).finish_non_exhaustive()
    }
}

/// Returns the node that a certificate is for, which is its common name.
///
/// # Errors
/// [`PkiError::Damaged`] if it names no node.
pub fn node_of(certificate: &CertificateDer<'_>) -> Result<Id, PkiError> {
    let damaged = |reason: String| PkiError::Damaged { what: "the certificate".to_owned(), reason };
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate.as_ref())
        .map_err(|e| damaged(e.to_string()))?;
    let mut names = parsed.subject().iter_common_name();
    match (names.next().map(|name| name.as_str()), names.next()) {
        (Some(Ok(name)), None) if !name.is_empty() => Ok(Id::from_text(name)),
        _ => Err(damaged("it names no node".to_owned())),
    }
}

/// Returns the SHA-256 of a certificate's DER, in lower-case hexadecimal. Tokens contain it for the
/// CA's certificate.
///
/// # Errors
/// [`PkiError::Damaged`] if the text contains no certificate.
pub fn fingerprint(certificate_pem: &str) -> Result<String, PkiError> {
    Ok(hex(&Sha256::digest(certificate("the certificate", certificate_pem)?)))
}

fn certificate(what: &str, pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| PkiError::Damaged { what: what.to_owned(), reason: e.to_string() })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::model::Role;

    fn pki() -> NodePki {
        let authority = Authority::new(&Id::random()).expect("an authority");
        let key = NodeKey::generate().expect("a key");
        let node = Id::from_text("node1");
        let addresses = ["172.16.1.10".parse().expect("an address")];
        let request = CertificateFor { node: &node, role: Role::Manager, addresses: &addresses };
        let cert_pem = authority.sign(&key.csr_pem, request).expect("a certificate");
        NodePki { ca_pem: authority.certificate_pem, cert_pem, key_pem: key.key_pem }
    }

    #[test]
    fn saved_keys_read_back_the_same_and_only_their_owner_can_read_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path().join("pki");
        let pki = pki();
        pki.save(&dir).expect("saved");
        assert_eq!(NodePki::load(&dir).expect("loaded"), pki);
        let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join(KEY_FILE))), (0o700, 0o600));
        assert_eq!(pki.node().expect("a node"), Id::from_text("node1"));
        assert!(!format!("{pki:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_missing_file_is_named_and_keys_that_do_not_fit_are_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let error = NodePki::load(dir.path()).expect_err("nothing there").to_string();
        assert!(error.contains(CA_FILE), "{error}");
        NodePki { key_pem: pki().key_pem, ..pki() }.save(dir.path()).expect("saved");
        assert!(matches!(NodePki::load(dir.path()), Err(PkiError::Damaged { .. })));
        NodePki { cert_pem: "no".to_owned(), ..pki() }.save(dir.path()).expect("saved");
        assert!(matches!(NodePki::load(dir.path()), Err(PkiError::Damaged { .. })));
    }

    #[test]
    fn the_fingerprint_is_the_digest_of_the_der() {
        let ca = pki().ca_pem;
        let der = certificate("it", &ca).expect("a certificate");
        assert_eq!(fingerprint(&ca).expect("a digest"), hex(&Sha256::digest(der)));
        assert_eq!(hex(&[0, 0x0f, 0xff]), "000fff");
    }
}
