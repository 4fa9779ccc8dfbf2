//! Joins a cluster: the token tells which CA to trust, and the answer contains a certificate.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{connection::Connection, remote::split};
use crate::{
    api::{ApiError, Join, Joined, Request},
    manager::error::{invalid, unauthenticated},
    pki::{JoinToken, NodeKey, NodePki, fingerprint, pinned_client_config},
};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Description of a new node.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// Its name.
    pub name: String,
    /// Its VTEP.
    pub data_path_addr: IpAddr,
}

/// Joins the cluster of a manager with a token. The key is made on this host and never leaves it.
/// The secret of the token is sent only to a manager if its CA certificate has the digest in the
/// token.
///
/// # Errors
/// `Invalid` for a malformed token; `Unauthenticated` for a wrong or expired token, or for a
/// manager of another cluster; `Unavailable` if the manager does not answer; `Conflict` if the name
/// or the address is taken.
pub async fn join(
    manager: SocketAddr,
    token: &str,
    join: JoinRequest,
) -> Result<(Joined, NodePki), ApiError> {
    let token: JoinToken = token.parse().map_err(|e: crate::pki::TokenError| {
        invalid(e.to_string()).hint("`overlay token create` on the manager prints one")
    })?;
    let tls = pinned_client_config(&token.ca_digest)?;
    let key = NodeKey::generate()?;
    let request = Request::Join(Join {
        secret: token.credential(),
        name: join.name,
        data_path_addr: join.data_path_addr,
        csr_pem: key.csr_pem,
    });
    let (method, params) = split(&request)?;
    let mut connection = Connection::open(manager, &tls).await?;
    let joined: Joined = connection.post(&method, params, ANSWER_TIMEOUT).await?;
    if fingerprint(&joined.ca_pem)? != token.ca_digest {
        return Err(unauthenticated(format!(
            "the manager at {manager} answered with a CA that the token does not name"
        )));
    }
    let pki = NodePki {
        ca_pem: joined.ca_pem.clone(),
        cert_pem: joined.certificate_pem.clone(),
        key_pem: key.key_pem,
    };
    // Fails if the certificate was not made for our key.
    pki.client_config()?;
    Ok((joined, pki))
}
