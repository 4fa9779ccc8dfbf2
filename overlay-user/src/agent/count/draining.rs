//! How many flows draining backends have left on this node. A flow is in the conntrack table of the
//! node that translates it, or in the table of sockets of the node that made the connection. Both
//! may be other nodes than the backend's, so every node counts and reports with its heartbeat.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use overlay_common::{
    flow::is_expired,
    maps::{
        CONNTRACK_FORWARD, CONNTRACK_REPLY, Conntrack, ConntrackKey, TCP_SEEN_FIN, TCP_SEEN_RST,
    },
};
use tokio::time::sleep;

use super::by_backend;
use crate::{
    agent::{
        blocking::blocking, clock::monotonic_ns, context::Context, error::AgentError,
        follow::Cluster, reconcile::Reconciler,
    },
    datapath::{Datapath, DatapathState},
    link::Links,
    lock::lock,
    model::{ClusterState, EndpointState},
};

const COUNTING: &str = "counting flows of draining backends";
/// How often they are counted while a backend of the cluster drains.
const COUNT_EVERY: Duration = Duration::from_millis(250);
/// A full conntrack takes a while to be listed: at most one part in so many of the time.
const SHARE: u32 = 20;

/// Counts the flows that draining backends have left here.
pub struct DrainingFlows<D, L> {
    context: Arc<Context<D, L>>,
    cluster: Arc<Cluster>,
    reconciler: Arc<Reconciler<D, L>>,
    /// By the backends' numbers.
    flows: Mutex<BTreeMap<u32, u64>>,
}

impl<D: Datapath, L: Links> DrainingFlows<D, L> {
    /// Counts nothing yet.
    pub fn new(
        context: Arc<Context<D, L>>,
        cluster: Arc<Cluster>,
        reconciler: Arc<Reconciler<D, L>>,
    ) -> Self {
        Self { context, cluster, reconciler, flows: Mutex::default() }
    }

    /// The last counts, by the backends' numbers.
    pub fn flows(&self) -> BTreeMap<u32, u64> {
        lock(&self.flows).clone()
    }

    /// Counts for as long as the agent runs, whenever a backend drains somewhere.
    pub async fn count_loop(self: Arc<Self>) {
        let mut states = self.cluster.states();
        loop {
            states.borrow_and_update();
            let begun = Instant::now();
            let counter = self.clone();
            let counted = blocking(move || counter.count_now()).await;
            self.context.conditions.note(COUNTING, counted);
            if draining_backends(&self.cluster.state()).is_empty() {
                // The sender lives as long as the agent: an error cannot happen.
                let _ = states.changed().await;
            } else {
                sleep(COUNT_EVERY.max(begun.elapsed() * SHARE)).await;
            }
        }
    }

    fn count_now(&self) -> Result<(), AgentError> {
        let state = self.cluster.state();
        let draining = draining_backends(&state);
        if draining.is_empty() {
            lock(&self.flows).clear();
            return Ok(());
        }
        // Before the maps show it, new flows may still begin.
        if *self.reconciler.progress().borrow() < state.revision {
            return Ok(());
        }
        let mut flows: BTreeMap<u32, u64> = draining.iter().map(|number| (*number, 0)).collect();
        let held = |maps: &DatapathState| draining.iter().any(|n| maps.backends.contains_key(n));
        // Where a backend is in no map, no flow goes to it.
        if self.reconciler.applied(held) != Some(false) {
            let datapath = &self.context.datapath;
            let entries = datapath.conntrack(self.context.conntrack_size())?;
            for (number, live) in live_flows(&entries, &draining, monotonic_ns()) {
                flows.insert(number, live);
            }
            for (number, live) in by_backend(&datapath.sockets()?) {
                flows.entry(number).and_modify(|flows| *flows += u64::from(live));
            }
        }
        *lock(&self.flows) = flows;
        Ok(())
    }
}

fn draining_backends(state: &ClusterState) -> BTreeSet<u32> {
    let drains = state.endpoints.values().filter(|e| e.state == EndpointState::Draining);
    drains.map(|endpoint| endpoint.number).collect()
}

/// Flows of each backend that are alive: a TCP connection until both sides have ended it or one has
/// reset it, any other flow until it has been idle for too long.
fn live_flows(
    entries: &[(ConntrackKey, Conntrack)],
    backends: &BTreeSet<u32>,
    now: u64,
) -> BTreeMap<u32, u64> {
    let mine = || entries.iter().filter(|(_, entry)| backends.contains(&entry.backend));
    let is = |action: u8| mine().filter(move |(_, entry)| entry.action == action);
    let replies: HashMap<ConntrackKey, u32> =
        is(CONNTRACK_REPLY).map(|(key, entry)| (*key, entry.flags)).collect();
    let mut live = BTreeMap::new();
    for (key, entry) in is(CONNTRACK_FORWARD) {
        let reply = ConntrackKey {
            saddr: entry.daddr,
            daddr: entry.saddr,
            sport: entry.dport,
            dport: entry.sport,
            vni: entry.vni,
            proto: key.proto,
            ..ConntrackKey::default()
        };
        let back = replies.get(&reply).copied().unwrap_or(entry.flags);
        let reset = (entry.flags | back) & TCP_SEEN_RST != 0;
        let closed = entry.flags & back & TCP_SEEN_FIN != 0;
        if !reset && !closed && !is_expired(key, entry, now) {
            *live.entry(entry.backend).or_default() += 1;
        }
    }
    live
}

#[cfg(test)]
mod tests {
    use overlay_common::{Be16, Be32, flow, maps::VNI_FLAG_IPV6, wire::PROTO_TCP};

    use super::*;

    const NOW: u64 = 1 << 50;

    /// The two entries of a flow to backend 7 that ends like that.
    fn flow(sport: u16, client: u32, server: u32) -> [(ConntrackKey, Conntrack); 2] {
        let [client_ip, vip, backend_ip] =
            [[10, 0, 1, 9], [10, 0, 1, 200], [10, 0, 1, 21]].map(Be32::from_octets);
        let key = ConntrackKey {
            saddr: client_ip,
            daddr: vip,
            sport: Be16::new(sport),
            dport: Be16::new(80),
            vni: 4098,
            proto: PROTO_TCP,
            ..ConntrackKey::default()
        };
        let entry = Conntrack {
            saddr: client_ip,
            daddr: backend_ip,
            sport: Be16::new(sport),
            dport: Be16::new(8080),
            vni: 4098,
            backend: 7,
            action: CONNTRACK_FORWARD,
            flags: client,
            last_seen: NOW,
            ..Conntrack::default()
        };
        let back = ConntrackKey {
            saddr: backend_ip,
            daddr: client_ip,
            sport: Be16::new(8080),
            dport: Be16::new(sport),
            ..key
        };
        let reply = Conntrack { action: CONNTRACK_REPLY, flags: server, ..entry };
        [(key, entry), (back, reply)]
    }

    fn live(entries: &[[(ConntrackKey, Conntrack); 2]], now: u64) -> Option<u64> {
        let entries = entries.concat();
        live_flows(&entries, &BTreeSet::from([7]), now).get(&7).copied()
    }

    #[test]
    fn a_connection_is_over_when_both_sides_ended_it_or_one_reset_it() {
        assert_eq!(live(&[flow(1, 0, 0), flow(2, 0, 0)], NOW), Some(2));
        assert_eq!(live(&[flow(1, TCP_SEEN_FIN, 0)], NOW), Some(1), "the answer is on its way");
        assert_eq!(live(&[flow(1, 0, TCP_SEEN_FIN)], NOW), Some(1));
        assert_eq!(live(&[flow(1, TCP_SEEN_FIN, TCP_SEEN_FIN)], NOW), None);
        assert_eq!(live(&[flow(1, TCP_SEEN_RST, 0)], NOW), None);
        assert_eq!(live(&[flow(1, 0, TCP_SEEN_RST)], NOW), None);
        assert_eq!(live(&[flow(1, 0, 0)], NOW + flow::TCP_ESTABLISHED + 1), None, "it has expired");
    }

    #[test]
    fn the_two_directions_of_an_ipv6_flow_belong_together() {
        let ipv6 = |flow: [(ConntrackKey, Conntrack); 2]| {
            flow.map(|(key, entry)| {
                let entry = Conntrack { vni: entry.vni | VNI_FLAG_IPV6, ..entry };
                (ConntrackKey { vni: key.vni | VNI_FLAG_IPV6, ..key }, entry)
            })
        };
        assert_eq!(live(&[flow(1, 0, 0), ipv6(flow(1, 0, 0))], NOW), Some(2));
        let ended = flow(1, TCP_SEEN_FIN, TCP_SEEN_FIN);
        assert_eq!(live(&[flow(1, 0, 0), ipv6(ended)], NOW), Some(1), "the other family's");
    }

    #[test]
    fn flows_of_other_backends_are_not_counted() {
        let entries = flow(1, 0, 0);
        assert!(live_flows(&entries, &BTreeSet::from([8]), NOW).is_empty());
    }
}
