//! Tells the managers how this node is doing: which revision it shows, which flows draining
//! backends have left, and which IPv6 addresses it has.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    context::Context, count::draining::DrainingFlows, follow::Cluster, reconcile::Reconciler,
};
use crate::{
    api::{Heartbeat, HeartbeatAnswer, NodeAddresses, Request},
    datapath::Datapath,
    link::Links,
    model::{Node, reachable6},
};

/// Between two heartbeats; one more goes out whenever something was applied.
const HEARTBEAT: Duration = Duration::from_millis(500);

const REPORTING: &str = "reporting to the managers";
const TELLING: &str = "telling the managers of the host's IPv6 addresses";

/// Reports to the managers.
pub struct Reporter<D, L> {
    pub context: Arc<Context<D, L>>,
    pub cluster: Arc<Cluster>,
    pub reconciler: Arc<Reconciler<D, L>>,
    pub draining: Arc<DrainingFlows<D, L>>,
}

impl<D: Datapath, L: Links> Reporter<D, L> {
    /// Tells the managers, every half second and after every apply, which revision the maps show.
    pub async fn heartbeat_loop(self: Arc<Self>) {
        let mut progress = self.reconciler.progress();
        // Not before the maps show something: a node that is heard of counts as ready. The sender
        // lives as long as the agent, so that waiting cannot fail.
        let _ = progress.wait_for(|revision| *revision > 0).await;
        loop {
            let applied = *progress.borrow_and_update();
            let (node, draining) = (self.context.node().clone(), self.draining.flows());
            let heartbeat = Request::Heartbeat(Heartbeat { node, applied, draining });
            let answer = self.context.call::<HeartbeatAnswer>(heartbeat).await;
            self.context.conditions.note(REPORTING, answer.map(drop));
            let _ = timeout(HEARTBEAT, progress.changed()).await;
        }
    }

    /// Tells the managers the host's IPv6 addresses whenever the state shows others. This is no
    /// part of the heartbeats, which must not wait until the managers have written something.
    pub async fn addresses_loop(self: Arc<Self>) {
        let mut progress = self.reconciler.progress();
        let _ = progress.wait_for(|revision| *revision > 0).await;
        loop {
            progress.borrow_and_update();
            self.tell_addresses().await;
            let _ = timeout(HEARTBEAT, progress.changed()).await;
        }
    }

    async fn tell_addresses(&self) {
        let addresses6 = reachable6(&self.reconciler.facts().addresses6);
        let (state, node) = (self.cluster.state(), self.context.node());
        if state.nodes.get(node).is_none_or(|known| known.addresses6 == addresses6) {
            return;
        }
        let told = Request::NodeAddresses(NodeAddresses { node: node.clone(), addresses6 });
        let answer = self.context.call::<Node>(told).await;
        self.context.conditions.note(TELLING, answer.map(drop));
    }
}
