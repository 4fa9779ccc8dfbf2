//! TLS configurations: version 1.3 only, with certificates of the cluster's authority on both
//! sides.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use sha2::{Digest as _, Sha256};

use super::{NodePki, PkiError, certificate, hex};

/// The name that managers' certificates are valid for. Clients check for this name and not for the
/// address that they connect to. So an agent cannot pose as a manager with its own certificate, and
/// a manager may have addresses that its certificate does not list.
pub const MANAGER_NAME: &str = "manager.overlay.internal";

const ALPN: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn damaged(what: &str, reason: impl std::fmt::Display) -> PkiError {
    PkiError::Damaged { what: what.to_owned(), reason: reason.to_string() }
}

impl NodePki {
    /// Returns the configuration of a manager. The client may show a certificate, which must then
    /// be of this cluster. The chain contains the CA, so that a client that knows only the CA's
    /// digest can verify it.
    ///
    /// # Errors
    /// [`PkiError::Damaged`] if the key and the certificates do not match.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| damaged("the CA's certificate", e))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| damaged("TLS 1.3", e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.key()?)
            .map_err(|e| damaged("the node's certificate", e))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Without session resumption, each connection shows its certificate again.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// Returns the configuration of a node. It shows the node's certificate and accepts managers of
    /// this cluster.
    ///
    /// # Errors
    /// [`PkiError::Damaged`] if the key and the certificates do not match.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| damaged("TLS 1.3", e))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.key()?)
            .map_err(|e| damaged("the node's certificate", e))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate("the CA's certificate", &self.ca_pem)?)
            .map_err(|e| damaged("the CA's certificate", e))?;
        Ok(Arc::new(roots))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, PkiError> {
        Ok(vec![
            certificate("the node's certificate", &self.cert_pem)?,
            certificate("the CA's certificate", &self.ca_pem)?,
        ])
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|e| damaged("the node's key", e))
    }
}

/// Returns the configuration of a joining node. The node has no certificate yet. It knows the CA by
/// the digest in its token (SHA-256 of the DER, lower-case hexadecimal).
///
/// # Errors
/// [`PkiError::Damaged`] if TLS cannot be set up.
pub fn pinned_client_config(ca_digest: &str) -> Result<Arc<ClientConfig>, PkiError> {
    let verifier = PinnedCa { digest: ca_digest.to_owned(), provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| damaged("TLS 1.3", e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Accepts servers if their certificate chain leads to the CA with a given digest.
#[derive(Debug)]
struct PinnedCa {
    digest: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| hex(&Sha256::digest(certificate)) == self.digest)
            .ok_or(CertificateError::ApplicationVerificationFailure)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
