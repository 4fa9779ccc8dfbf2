//! The manager: it owns the cluster's state and answers calls about it.
//!
//! Every mutation is a pure function from state and request to changes (`plan/`). The changes are
//! committed if no other writer has committed in between. Otherwise the mutation is decided again.
//! The agents' heartbeats (`liveness`) stay in memory; the store sees only nodes that change
//! between ready and down.

mod authorize;
pub mod client;
mod error;
mod follow;
mod http;
mod limits;
mod liveness;
mod plan;
mod shared;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

pub use client::{Controller, JoinRequest, RemoteManager, join};
use futures_util::Stream;
pub use http::ServerHandle;
use jiff::Timestamp;
pub use plan::init::{InitCluster, Initialized};
use serde::Serialize;
use serde_json::Value;

use self::{
    error::{internal, invalid},
    plan::{Planned, endpoint, network, node, service, token},
    shared::Shared,
};
use crate::{
    api::{
        ApiError, ContainerRef, FlowsLeft, Heartbeat, HeartbeatAnswer, Identity, NodeRemove,
        Request, Sync, SyncAnswer,
    },
    model::{ClusterState, Endpoint, EndpointState, NodeState, WatchEvent},
    pki::NodePki,
    store::Store,
};

/// Longest time that `sync` waits.
const MAX_SYNC: Duration = Duration::from_secs(600);

/// A cluster's manager.
pub struct Manager {
    shared: Arc<Shared>,
}

impl Manager {
    /// Makes a cluster in an empty store: the cluster object, this node, the networks ingress and
    /// bridge, and the certificate authority. Makes all of them or none. The node is down until its
    /// agent reports.
    ///
    /// # Errors
    /// `Invalid` or `Conflict` if the request is impossible, `Conflict` if the store already holds
    /// a cluster.
    pub fn init(store: &dyn Store, init: InitCluster) -> Result<Initialized, ApiError> {
        let state = store.load()?;
        let (plan, initialized) = plan::init::init(&state, &init, Timestamp::now())?;
        store.commit(state.revision, plan.changes, plan.secrets)?;
        Ok(initialized)
    }

    /// Opens a store that holds a cluster. Spawns two background tasks, which end with the last
    /// reference to the manager: one follows the store, the other marks nodes down that have been
    /// silent for too long. Every node has the full timeout before the first check.
    ///
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// `Internal` if the store cannot be read or holds no cluster.
    pub fn open(store: Arc<dyn Store>) -> Result<Arc<Self>, ApiError> {
        let shared = Arc::new(Shared::open(store)?);
        shared::spawn_follower(&shared);
        liveness::spawn_watchdog(&shared);
        Ok(Arc::new(Self { shared }))
    }

    /// Returns the current state.
    pub fn state(&self) -> Arc<ClusterState> {
        self.shared.state()
    }

    /// Answers a call if the caller may make it.
    ///
    /// # Errors
    /// The errors in the description of the call, `Unauthenticated` or `Forbidden`.
    pub async fn call(&self, who: &Identity, request: Request) -> Result<Value, ApiError> {
        authorize::authorize(&self.state(), who, &request)?;
        match request {
            Request::State {} => json(&*self.state()),
            Request::NetworkCreate(r) => {
                self.write(move |s, now| network::create(s, &r, now)).await
            }
            Request::NetworkRemove(r) => {
                self.write(move |s, now| network::remove(s, &r, now)).await
            }
            Request::ServiceCreate(r) => {
                self.write(move |s, now| service::create(s, &r, now)).await
            }
            Request::ServiceUpdate(r) => {
                self.write(move |s, now| service::update(s, &r, now)).await
            }
            Request::ServiceRemove(r) => {
                self.write(move |s, now| service::remove(s, &r, now)).await
            }
            Request::NodeUpdate(r) => self.write(move |s, now| node::update(s, &r, now)).await,
            Request::NodeAddresses(r) => {
                self.write(move |s, now| node::addresses(s, &r, now)).await
            }
            Request::NodeRemove(r) => self.remove_node(who, r).await,
            Request::EndpointCreate(r) => {
                self.write(move |s, now| endpoint::create(s, &r, now)).await
            }
            Request::EndpointUpdate(r) => {
                let node = authorize::node(who)?.clone();
                self.write(move |s, now| endpoint::update(s, &node, &r, now)).await
            }
            Request::EndpointHealth(r) => {
                let node = authorize::node(who)?.clone();
                self.write(move |s, now| endpoint::judge(s, &node, &r, now)).await
            }
            Request::EndpointWeight(r) => {
                self.write(move |s, now| endpoint::weigh(s, &r, now)).await
            }
            Request::EndpointRemove(r) => {
                let node = authorize::node(who)?.clone();
                self.write(move |s, now| endpoint::remove(s, &node, &r, now)).await
            }
            Request::Heartbeat(r) => json(&self.heartbeat(r).await?),
            Request::FlowsLeft(r) => json(&self.flows_left(&r)),
            Request::Sync(r) => json(&self.sync(r).await?),
            Request::TokenCreate(_)
            | Request::TokenList {}
            | Request::TokenRemove(_)
            | Request::Join(_) => self.membership(request).await,
        }
    }

    /// Answers the calls that need secrets.
    async fn membership(&self, request: Request) -> Result<Value, ApiError> {
        let store = Arc::clone(&self.shared.store);
        match request {
            Request::TokenCreate(r) => {
                let plan = move |_: &ClusterState, now| {
                    let ca = shared::authority(&*store)?;
                    token::create(&token::load(&*store)?, &ca.certificate_pem, &r, now)
                };
                self.write(plan).await
            }
            Request::TokenRemove(r) => {
                self.write(move |_, _| token::remove(&token::load(&*store)?, &r)).await
            }
            Request::Join(r) => {
                let plan = move |state: &ClusterState, now| {
                    token::check(&token::load(&*store)?, &r.secret, now)?;
                    node::join(state, &r, &shared::authority(&*store)?, now)
                };
                self.write(plan).await
            }
            _ => {
                let load = move || token::load(&*store).map(token::list);
                json(&tokio::task::spawn_blocking(load).await.map_err(internal)??)
            }
        }
    }

    async fn remove_node(&self, who: &Identity, request: NodeRemove) -> Result<Value, ApiError> {
        let by_itself = matches!(who, Identity::Node(_));
        self.write(move |s, now| node::remove(s, &request, by_itself, now)).await
    }

    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<HeartbeatAnswer, ApiError> {
        self.shared.liveness.heard(&heartbeat);
        let state = self.state();
        let is_down = state.nodes.get(&heartbeat.node).is_some_and(|n| n.state == NodeState::Down);
        if is_down && self.shared.liveness.is_back(&heartbeat) {
            let nodes = [heartbeat.node.clone()];
            self.write(move |s, now| node::mark(s, &nodes, NodeState::Ready, now)).await?;
            self.shared.liveness.found(&heartbeat.node);
        }
        Ok(HeartbeatAnswer { revision: self.state().revision })
    }

    fn flows_left(&self, which: &ContainerRef) -> FlowsLeft {
        let state = self.state();
        let drains =
            |e: &&Endpoint| e.container == which.container && e.state == EndpointState::Draining;
        let numbers: Vec<u32> = state.endpoints.values().filter(drains).map(|e| e.number).collect();
        FlowsLeft { flows: self.shared.liveness.flows_left(&state, &numbers) }
    }

    async fn sync(&self, sync: Sync) -> Result<SyncAnswer, ApiError> {
        let current = self.state().revision;
        let revision = sync.revision.unwrap_or(current);
        if revision > current {
            return Err(invalid(format!(
                "there is no revision {revision} to wait for: the state is at {current}"
            )));
        }
        let wait = Duration::from_millis(sync.timeout_ms).min(MAX_SYNC);
        let deadline = tokio::time::Instant::now() + wait;
        let mut heard = self.shared.liveness.changes();
        loop {
            let lagging = self.shared.liveness.lagging(&self.state(), revision);
            if lagging.is_empty() {
                return Ok(SyncAnswer { revision, lagging });
            }
            // The state can also change during the wait (nodes go down), so check again at
            // intervals.
            let look_again = deadline.min(tokio::time::Instant::now() + Duration::from_millis(200));
            let _ = tokio::time::timeout_at(look_again, heard.changed()).await;
            if tokio::time::Instant::now() >= deadline {
                let lagging = self.shared.liveness.lagging(&self.state(), revision);
                return Ok(SyncAnswer { revision, lagging });
            }
        }
    }

    /// Returns a stream of the state and its changes: a snapshot first, then the changes, and a
    /// sign of life every half second. A watcher that falls behind gets a new snapshot.
    pub fn watch(&self) -> impl Stream<Item = WatchEvent> + Send + 'static + use<> {
        use futures_util::StreamExt as _;
        follow::follow(&self.shared).map(|followed| followed.into_event())
    }

    /// Serves the API over mutual TLS. `listen` may have port 0. The server ends when the handle is
    /// dropped.
    ///
    /// # Errors
    /// `Conflict` if the address is in use, `Internal` if the keys cannot be used.
    pub async fn serve(
        self: &Arc<Self>,
        listen: SocketAddr,
        pki: &NodePki,
    ) -> Result<ServerHandle, ApiError> {
        http::serve(Arc::clone(self), listen, pki).await
    }

    /// Decides a mutation and commits it, on a thread that may block.
    async fn write<T, P>(&self, plan: P) -> Result<Value, ApiError>
    where
        T: Serialize + Send + 'static,
        P: Fn(&ClusterState, Timestamp) -> Planned<T> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let written = tokio::task::spawn_blocking(move || shared.write(plan));
        json(&written.await.map_err(internal)??)
    }
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("revision", &self.state().revision).finish_non_exhaustive()
    }
}

fn json(answer: &impl Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(answer).map_err(internal)
}
