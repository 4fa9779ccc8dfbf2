//! The manager as a whole: calls in this process, and the server with real connections.

mod calls;
mod server;
mod watching;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{InitCluster, JoinRequest, Manager, RemoteManager, ServerHandle, join};
use crate::{
    api::{
        ApiError, EndpointCreate, ErrorCode, Heartbeat, HeartbeatAnswer, Identity, Joined,
        NetworkCreate, Request, Token, TokenCreate,
    },
    model::{Id, Network},
    pki::NodePki,
    store::{MemoryStore, Store},
};

pub(super) const DAY: u64 = 24 * 3600;

pub(super) fn init(node_timeout_ms: u64) -> InitCluster {
    InitCluster {
        name: "h1".to_owned(),
        data_path_addr: [172, 16, 1, 10].into(),
        api_addr: "172.16.1.10:2377".parse().expect("an address"),
        default_pool: "10.0.0.0/8".parse().expect("a subnet"),
        pool_prefix: 24,
        data_path_port: 4789,
        ingress_subnet: None,
        bridge_subnet: "172.17.0.0/16".parse().expect("a subnet"),
        node_timeout_ms,
    }
}

/// A manager over a store in memory.
pub(super) struct Cluster {
    pub store: Arc<dyn Store>,
    pub manager: Arc<Manager>,
    pub node: Id,
    pub pki: NodePki,
}

impl Cluster {
    pub fn new() -> Self {
        // Long, so that no test depends on the load of the machine.
        Self::with_timeout(3_600_000)
    }

    pub fn with_timeout(node_timeout_ms: u64) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let initialized = Manager::init(&*store, init(node_timeout_ms)).expect("a cluster");
        let manager = Manager::open(Arc::clone(&store)).expect("a manager");
        Self { store, manager, node: initialized.node.id, pki: initialized.pki }
    }

    pub async fn serve(&self) -> ServerHandle {
        self.manager.serve(loopback(), &self.pki).await.expect("a server")
    }

    pub async fn admin<R: DeserializeOwned>(&self, request: Request) -> Result<R, ApiError> {
        self.call(&Identity::Administrator, request).await
    }

    pub async fn call<R: DeserializeOwned>(
        &self,
        who: &Identity,
        request: Request,
    ) -> Result<R, ApiError> {
        let answer = self.manager.call(who, request).await?;
        Ok(serde_json::from_value(answer).expect("an answer of the right form"))
    }

    pub async fn token(&self) -> String {
        let request = Request::TokenCreate(TokenCreate { ttl_secs: DAY });
        self.admin::<Token>(request).await.expect("a token").token
    }

    pub async fn network(&self, name: &str) -> Result<Network, ApiError> {
        self.admin(network(name)).await
    }

    /// Joins over the network, which is the only way to get a node certificate.
    pub async fn join(&self, server: &ServerHandle, name: &str, last: u8) -> (Joined, NodePki) {
        join(server.addr, &self.token().await, node(name, last)).await.expect("joined")
    }
}

pub(super) fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

pub(super) fn node(name: &str, last: u8) -> JoinRequest {
    JoinRequest { name: name.to_owned(), data_path_addr: [172, 16, 1, last].into() }
}

pub(super) fn network(name: &str) -> Request {
    Request::NetworkCreate(NetworkCreate {
        name: name.to_owned(),
        attachable: true,
        ..Default::default()
    })
}

pub(super) fn endpoint(node: &Id, name: &str, network: &str) -> Request {
    Request::EndpointCreate(EndpointCreate {
        node: node.clone(),
        container: Id::random(),
        name: name.to_owned(),
        networks: vec![network.to_owned()],
        ..Default::default()
    })
}

pub(super) fn heartbeat(node: &Id, applied: u64) -> Request {
    Request::Heartbeat(Heartbeat { node: node.clone(), applied, ..Heartbeat::default() })
}

pub(super) async fn beat(remote: &RemoteManager, node: &Id, applied: u64) -> HeartbeatAnswer {
    remote.call(heartbeat(node, applied)).await.expect("an answer")
}

pub(super) fn refused<T>(result: Result<T, ApiError>, code: ErrorCode, words: &[&str]) {
    let Err(error) = result else { panic!("must be refused: {words:?}") };
    assert_eq!(error.code, code, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}
