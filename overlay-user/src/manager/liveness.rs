//! Records when each agent was last heard. This stays in memory: with a thousand nodes, a write per
//! heartbeat would keep the store fully busy.
//!
//! There are two kinds of silence. If the agent is silent but its host answers, the agent restarts,
//! hangs or is slow, and the datapath forwards without it. The node is down after the cluster's
//! node timeout, or after six times that timeout if this manager has not heard the agent since it
//! started ([`starting`]). If the host does not answer either, it is dead or cut off. The node is
//! then down after a part of the timeout ([`fn@unreachable`]). The host's kernel shows that the
//! host is alive: it accepts or rejects a TCP connection no matter what the processes do.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{plan::node, shared::Shared};
use crate::{
    api::Heartbeat,
    model::{ClusterState, Id, Node, NodeState},
};

/// Port of the managers if the state has none.
const DEFAULT_PORT: u16 = 2377;

/// The last sign of life of each node.
pub(super) struct Liveness {
    known: Mutex<Known>,
    changed: watch::Sender<()>,
}

struct Known {
    /// When this manager started to listen. It cannot know of a longer silence.
    since: Instant,
    nodes: HashMap<Id, Heard>,
}

#[derive(Default)]
struct Heard {
    /// When the agent was last heard.
    agent: Option<Instant>,
    /// When the host last answered while the agent was silent.
    host: Option<Instant>,
    /// Highest revision that the node's maps show.
    applied: u64,
    /// Number of the node's flows to each draining backend, by backend number.
    draining: BTreeMap<u32, u64>,
    /// The revision that marked the node down; reset when the node is ready again.
    lost: Option<u64>,
}

impl Known {
    /// Returns true if this manager has heard the agent.
    fn has_heard(&self, node: &Id) -> bool {
        self.nodes.get(node).is_some_and(|heard| heard.agent.is_some())
    }

    /// Returns how long the agent has been silent.
    fn agent_silent(&self, node: &Id) -> Duration {
        self.nodes
            .get(node)
            .and_then(|heard| heard.agent)
            .unwrap_or(self.since)
            .max(self.since)
            .elapsed()
    }

    /// Returns how long both the agent and its host have been silent.
    fn host_silent(&self, node: &Id) -> Duration {
        let host = self.nodes.get(node).and_then(|heard| heard.host);
        let host = host.map_or(Duration::MAX, |at| at.max(self.since).elapsed());
        self.agent_silent(node).min(host)
    }
}

impl Liveness {
    pub fn new() -> Self {
        let known = Known { since: Instant::now(), nodes: HashMap::new() };
        Self { known: Mutex::new(known), changed: watch::channel(()).0 }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a heartbeat.
    pub fn heard(&self, heartbeat: &Heartbeat) {
        let mut known = self.known();
        let heard = known.nodes.entry(heartbeat.node.clone()).or_default();
        heard.agent = Some(Instant::now());
        heard.applied = heartbeat.applied;
        heard.draining.clone_from(&heartbeat.draining);
        drop(known);
        self.changed.send_replace(());
    }

    /// Records that a host answers.
    fn reached(&self, node: Id) {
        self.known().nodes.entry(node).or_default().host = Some(Instant::now());
    }

    /// Records that nodes were marked down.
    fn lost(&self, nodes: &[Id], revision: u64) {
        let mut known = self.known();
        for node in nodes {
            known.nodes.entry(node.clone()).or_default().lost = Some(revision);
        }
    }

    /// Returns true if a down node may be ready again. A node that was marked down has missed the
    /// changes since then. Other nodes must not send it flows before its maps show that revision.
    pub fn is_back(&self, heartbeat: &Heartbeat) -> bool {
        let lost = self.known().nodes.get(&heartbeat.node).and_then(|heard| heard.lost);
        lost.is_none_or(|revision| heartbeat.applied >= revision)
    }

    /// Records that a node is ready.
    pub fn found(&self, node: &Id) {
        if let Some(heard) = self.known().nodes.get_mut(node) {
            heard.lost = None;
        }
    }

    /// Resets the silence of all nodes, because this process could not hear them.
    fn was_away(&self) {
        self.known().since = Instant::now();
    }

    /// Returns a channel that reports every recorded sign of life.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns the names of the ready nodes that have not applied a revision.
    pub fn lagging(&self, state: &ClusterState, revision: u64) -> Vec<String> {
        let known = self.known();
        let applied = |node: &Node| known.nodes.get(&node.id).map_or(0, |heard| heard.applied);
        let lags = |node: &&Node| applied(node) < revision;
        ready(state).filter(lags).map(|n| n.name.clone()).collect()
    }

    /// Returns how many flows the ready nodes have to draining backends. Returns `None` until every
    /// node has counted the flows of each backend.
    pub fn flows_left(&self, state: &ClusterState, backends: &[u32]) -> Option<u64> {
        let known = self.known();
        let mut sum: u64 = 0;
        for node in ready(state) {
            let counted = &known.nodes.get(&node.id)?.draining;
            for backend in backends {
                sum = sum.saturating_add(*counted.get(backend)?);
            }
        }
        Some(sum)
    }

    /// Returns the ready nodes that are silent for too long. Forgets removed nodes.
    fn silent(&self, state: &ClusterState, timeout: Duration) -> Vec<Id> {
        let mut known = self.known();
        known.nodes.retain(|id, _| state.nodes.contains_key(id));
        let is_silent = |id: &Id| {
            let limit = if known.has_heard(id) { timeout } else { starting(timeout) };
            known.agent_silent(id) > limit || known.host_silent(id) > unreachable(timeout)
        };
        ready(state).map(|n| &n.id).filter(|id| is_silent(id)).cloned().collect()
    }

    /// Returns the ready nodes with agents that are silent for long enough to probe their hosts.
    fn suspects<'a>(&self, state: &'a ClusterState, timeout: Duration) -> Vec<&'a Node> {
        let known = self.known();
        ready(state).filter(|n| known.agent_silent(&n.id) > suspicious(timeout)).collect()
    }
}

fn ready(state: &ClusterState) -> impl Iterator<Item = &Node> {
    state.nodes.values().filter(|n| n.state == NodeState::Ready)
}

/// Longest silence of an agent that this manager has never heard, if its host answers: 30 s for a
/// node timeout of 5 s. When all daemons start at once, for example after an update, each one loads
/// its programs first, the manager's own daemon too. The datapaths forward in the meantime. If
/// every node were down, every service would reject its flows.
fn starting(timeout: Duration) -> Duration {
    timeout.saturating_mul(6)
}

/// Longest silence of a host: 1.5 s for a node timeout of 5 s.
fn unreachable(timeout: Duration) -> Duration {
    timeout / 10 * 3
}

/// Silence of an agent after which its host is probed: 1 s for a node timeout of 5 s, which is two
/// heartbeats.
fn suspicious(timeout: Duration) -> Duration {
    timeout / 5
}

/// Marks silent nodes down, until the manager is gone.
pub(super) fn spawn_watchdog(shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        let mut questions = Questions::default();
        loop {
            let Some(timeout) = shared.upgrade().map(|s| node_timeout(&s.state())) else { return };
            let pause = (timeout / 40).clamp(Duration::from_millis(25), Duration::from_secs(1));
            let turn = Instant::now() + pause;
            sleep_until(turn).await;
            let Some(shared) = shared.upgrade() else { return };
            if turn.elapsed() > suspicious(timeout) {
                tracing::warn!("this manager stood still for {:?}", turn.elapsed());
                shared.liveness.was_away();
            }
            let state = shared.state();
            questions.ask(&shared, &state, timeout);
            if !shared.liveness.silent(&state, timeout).is_empty() {
                drop(state);
                mark_silent(shared, timeout).await;
            }
        }
    });
}

async fn mark_silent(shared: Arc<Shared>, timeout: Duration) {
    let marked = tokio::task::spawn_blocking(move || {
        let marked = shared.write(|state, now| {
            // Checks again, because some nodes may have been heard in the meantime.
            let silent = shared.liveness.silent(state, timeout);
            let (plan, ()) = node::mark(state, &silent, NodeState::Down, now)?;
            Ok((plan, silent))
        })?;
        shared.liveness.lost(&marked, shared.state().revision);
        Ok::<_, crate::api::ApiError>(())
    });
    if let Ok(Err(e)) = marked.await {
        tracing::error!("marking silent nodes down: {e}");
    }
}

/// The probes under way of hosts with silent agents.
#[derive(Default)]
struct Questions {
    tasks: JoinSet<Id>,
    asked: HashSet<Id>,
}

impl Questions {
    /// Probes the hosts that have no probe under way.
    fn ask(&mut self, shared: &Arc<Shared>, state: &ClusterState, timeout: Duration) {
        while let Some(answered) = self.tasks.try_join_next() {
            match answered {
                Ok(id) => drop(self.asked.remove(&id)),
                // A probe panicked. It is unknown which one it was, so every host may be probed
                // again.
                Err(_) => self.asked.clear(),
            }
        }
        let port = state.nodes.values().find_map(|n| n.api_addr).map_or(DEFAULT_PORT, |a| a.port());
        for node in shared.liveness.suspects(state, timeout) {
            if !self.asked.insert(node.id.clone()) {
                continue;
            }
            let (id, shared) = (node.id.clone(), Arc::downgrade(shared));
            let address = SocketAddr::new(node.data_path_addr, port);
            let within = suspicious(timeout) / 3;
            self.tasks.spawn(async move {
                if answers(address, within).await
                    && let Some(shared) = shared.upgrade()
                {
                    shared.liveness.reached(id.clone());
                }
                id
            });
        }
    }
}

/// Returns true if a kernel answers at an address. The probe uses the managers' port, because hosts
/// can reach it on each other and no service may publish it. A host without a manager rejects the
/// connection.
async fn answers(address: SocketAddr, within: Duration) -> bool {
    match timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(e)) => e.kind() == std::io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

fn node_timeout(state: &ClusterState) -> Duration {
    Duration::from_millis(state.cluster.as_ref().map_or(u64::MAX, |c| c.node_timeout_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Availability, Role};

    fn state(nodes: &[(&str, NodeState)]) -> ClusterState {
        let mut cluster = ClusterState::default();
        for (name, state) in nodes {
            let id = Id::from_text(*name);
            let node = Node {
                id: id.clone(),
                name: (*name).to_owned(),
                role: Role::Agent,
                created: jiff::Timestamp::UNIX_EPOCH,
                data_path_addr: [172, 16, 1, 10].into(),
                api_addr: None,
                ingress_ip: [10, 255, 0, 2].into(),
                state: *state,
                availability: Availability::Active,
                addresses6: Vec::new(),
            };
            cluster.nodes.insert(id, node);
        }
        cluster
    }

    fn heard(liveness: &Liveness, name: &str, applied: u64) {
        let node = Id::from_text(name);
        liveness.heard(&Heartbeat { node, applied, ..Heartbeat::default() });
    }

    #[test]
    fn nodes_not_heard_of_yet_are_silent_since_the_start_and_not_for_ever() {
        let liveness = Liveness::new();
        let state = state(&[("a", NodeState::Ready), ("b", NodeState::Down)]);
        assert!(liveness.silent(&state, Duration::from_secs(3600)).is_empty());
        assert_eq!(liveness.silent(&state, Duration::ZERO), [Id::from_text("a")]);
    }

    #[test]
    fn what_was_heard_of_nodes_that_are_gone_is_forgotten() {
        let liveness = Liveness::new();
        heard(&liveness, "a", 1);
        heard(&liveness, "gone", 1);
        liveness.silent(&state(&[("a", NodeState::Ready)]), Duration::ZERO);
        assert_eq!(liveness.known().nodes.keys().collect::<Vec<_>>(), [&Id::from_text("a")]);
    }

    #[test]
    fn ready_nodes_lag_until_they_say_that_they_applied_the_revision() {
        let liveness = Liveness::new();
        let nodes = [("a", NodeState::Ready), ("b", NodeState::Ready), ("c", NodeState::Down)];
        let state = state(&nodes);
        heard(&liveness, "a", 7);
        assert_eq!(liveness.lagging(&state, 7), ["b"]);
        heard(&liveness, "b", 6);
        assert_eq!(liveness.lagging(&state, 7), ["b"]);
        heard(&liveness, "b", 8);
        assert!(liveness.lagging(&state, 7).is_empty());
        // An agent that has just started reports no revision until it has reconciled.
        heard(&liveness, "a", 0);
        assert_eq!(liveness.lagging(&state, 7), ["a"]);
    }

    /// Returns the liveness of a manager that has listened for `listened`, with the last signs of
    /// life of node `a` and its host.
    fn after(listened: u64, agent: Option<u64>, host: Option<u64>) -> Liveness {
        let ago = |ms: u64| Instant::now() - Duration::from_millis(ms);
        let liveness = Liveness::new();
        let mut known = liveness.known();
        known.since = ago(listened);
        let heard = Heard { agent: agent.map(ago), host: host.map(ago), ..Heard::default() };
        known.nodes.insert(Id::from_text("a"), heard);
        drop(known);
        liveness
    }

    #[test]
    fn flows_left_are_known_when_every_ready_node_has_counted_them() {
        let liveness = Liveness::new();
        let nodes = [("a", NodeState::Ready), ("b", NodeState::Ready), ("c", NodeState::Down)];
        let state = state(&nodes);
        let count = |name: &str, draining: &[(u32, u64)]| {
            let draining = draining.iter().copied().collect();
            let node = Id::from_text(name);
            liveness.heard(&Heartbeat { node, draining, ..Heartbeat::default() });
        };
        count("a", &[(7, 2), (8, 1)]);
        assert_eq!(liveness.flows_left(&state, &[7]), None);
        count("b", &[(8, 0)]);
        assert_eq!(liveness.flows_left(&state, &[7]), None, "it does not know of this one");
        count("b", &[(7, 3), (8, 0)]);
        assert_eq!(liveness.flows_left(&state, &[7]), Some(5));
        assert_eq!(liveness.flows_left(&state, &[7, 8]), Some(6));
        count("a", &[(7, 0)]);
        count("b", &[(7, 0)]);
        assert_eq!(liveness.flows_left(&state, &[7]), Some(0));
    }

    #[tokio::test]
    async fn a_host_that_does_not_answer_is_down_sooner_than_one_whose_agent_is_silent() {
        let state = state(&[("a", NodeState::Ready)]);
        let timeout = Duration::from_secs(50);
        for (listened, agent, host, down) in [
            (99_000, Some(14_000), None, false),
            (99_000, Some(16_000), None, true),
            // The host answers, so the agent may be silent for longer.
            (99_000, Some(16_000), Some(9_000), false),
            (99_000, Some(40_000), Some(14_000), false),
            (99_000, Some(40_000), Some(16_000), true),
            (99_000, Some(51_000), Some(1_000), true),
            // The agent was silent when this manager started: all daemons may be starting.
            (51_000, None, Some(1_000), false),
            (299_000, None, Some(1_000), false),
            (301_000, None, Some(1_000), true),
            (51_000, None, Some(16_000), true),
            // The time before this manager listened does not count as silence.
            (9_000, Some(90_000), None, false),
            (9_000, None, None, false),
            (16_000, Some(90_000), Some(90_000), true),
        ] {
            let liveness = after(listened, agent, host);
            let silent = liveness.silent(&state, timeout);
            assert_eq!(!silent.is_empty(), down, "{listened} {agent:?} {host:?}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_is_silent_for_two_heartbeats_is_suspect() {
        let state = state(&[("a", NodeState::Ready)]);
        let timeout = Duration::from_secs(50);
        assert!(after(99_000, Some(9_000), None).suspects(&state, timeout).is_empty());
        assert_eq!(after(99_000, Some(11_000), Some(0)).suspects(&state, timeout).len(), 1);
    }

    #[test]
    fn a_node_that_was_lost_is_back_when_its_maps_show_that_it_was() {
        let liveness = Liveness::new();
        let node = || Id::from_text("a");
        let beat = |applied| Heartbeat { node: node(), applied, ..Heartbeat::default() };
        assert!(liveness.is_back(&beat(0)), "it was never lost");
        heard(&liveness, "a", 5);
        liveness.lost(&[Id::from_text("a")], 8);
        assert!(!liveness.is_back(&beat(5)));
        heard(&liveness, "a", 5);
        assert!(!liveness.is_back(&beat(7)), "a heartbeat changes nothing about that");
        assert!(liveness.is_back(&beat(8)));
        liveness.found(&Id::from_text("a"));
        assert!(liveness.is_back(&beat(0)));
    }

    #[tokio::test]
    async fn a_kernel_answers_whether_or_not_somebody_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        assert!(answers(address, Duration::from_secs(5)).await);
        drop(listener);
        assert!(answers(address, Duration::from_secs(5)).await);
    }
}
