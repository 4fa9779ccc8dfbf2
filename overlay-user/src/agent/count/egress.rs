//! The flows of containers to addresses outside the cluster, of which each endpoint may have so
//! many.

use std::{collections::BTreeMap, sync::Arc};

use overlay_common::{
    Be32,
    flow::is_expired,
    maps::{CONNTRACK_MASQUERADE, Conntrack, ConntrackKey, Link, SNAT_USAGE_UNCOUNTED, SnatUsage},
};

use crate::{
    agent::{
        blocking::blocking, clock::monotonic_ns, context::Context, error::AgentError,
        reconcile::Reconciler,
    },
    datapath::Datapath,
    link::Links,
};

const COUNTING: &str = "counting flows to the outside";

/// Corrects the counts by which the programs keep the limit.
pub struct EgressFlows<D, L> {
    context: Arc<Context<D, L>>,
    reconciler: Arc<Reconciler<D, L>>,
}

impl<D: Datapath, L: Links> EgressFlows<D, L> {
    /// Counts nothing yet.
    pub fn new(context: Arc<Context<D, L>>, reconciler: Arc<Reconciler<D, L>>) -> Self {
        Self { context, reconciler }
    }

    /// Corrects the counts.
    pub async fn count(self: &Arc<Self>) {
        let counter = self.clone();
        // A full table takes a while to be listed.
        let done = blocking(move || counter.count_now()).await;
        self.context.conditions.note(COUNTING, done);
    }

    /// # Errors
    /// [`AgentError::Datapath`] when a map cannot be read or written.
    pub fn count_now(&self) -> Result<(), AgentError> {
        let datapath = &self.context.datapath;
        let before = datapath.snat_usage()?;
        if before.is_empty() {
            return Ok(());
        }
        let links = match self.reconciler.applied(|held| held.links.clone()) {
            Some(links) => links,
            None => datapath.read()?.links,
        };
        let now = monotonic_ns();
        // Far from the limit the exact number does not matter.
        let near = self.context.config.outside_flows / 2;
        let (flows, after) = if before.values().any(|usage| usage.flows >= near) {
            let entries = datapath.conntrack(self.context.conntrack_size())?;
            (Some(live_flows(&entries, now)), datapath.snat_usage()?)
        } else {
            (None, before.clone())
        };
        for (ifindex, then) in &before {
            let Some(link) = links.get(ifindex) else {
                datapath.set_snat_usage(*ifindex, None)?;
                continue;
            };
            let after = after.get(ifindex).copied().unwrap_or_default();
            if let Some(usage) = corrected(then, &after, (flows.as_ref(), link), now) {
                datapath.set_snat_usage(*ifindex, Some(usage))?;
            }
        }
        Ok(())
    }
}

/// Live flows to the outside by the endpoint's network and address.
type Flows = BTreeMap<(u32, Be32), u32>;

fn live_flows(entries: &[(ConntrackKey, Conntrack)], now: u64) -> Flows {
    let mut flows = Flows::new();
    for (key, entry) in entries {
        if entry.action == CONNTRACK_MASQUERADE && !is_expired(key, entry, now) {
            *flows.entry((key.vni, key.saddr)).or_default() += 1;
        }
    }
    flows
}

/// The new count of an endpoint: the live flows, plus the flows that were opened during the count.
/// Without a count only the time is renewed, which shows the programs that an agent runs.
fn corrected(
    before: &SnatUsage,
    after: &SnatUsage,
    (flows, link): (Option<&Flows>, &Link),
    now: u64,
) -> Option<SnatUsage> {
    let Some(flows) = flows else {
        let due = now.saturating_sub(before.counted) > SNAT_USAGE_UNCOUNTED / 2;
        return due.then_some(SnatUsage { counted: now, ..*before });
    };
    let live = flows.get(&(link.vni, link.ip)).copied().unwrap_or_default();
    let opened = after.flows.saturating_sub(before.flows);
    Some(SnatUsage { flows: live.saturating_add(opened), pad: 0, counted: now })
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::{flow, maps::CONNTRACK_UNMASQUERADE, wire::PROTO_UDP};

    const NOW: u64 = 1_000 * 1_000_000_000;

    fn link(last: u8) -> Link {
        Link { vni: 4097, ip: Be32::from_octets([10, 0, 1, last]), ..Link::default() }
    }

    fn entry(link: &Link, action: u8, age: u64) -> (ConntrackKey, Conntrack) {
        let proto = PROTO_UDP;
        let key = ConntrackKey { saddr: link.ip, vni: link.vni, proto, ..ConntrackKey::default() };
        (key, Conntrack { action, last_seen: NOW - age, ..Conntrack::default() })
    }

    #[test]
    fn only_live_flows_from_the_endpoint_are_counted() {
        let (a, b) = (link(2), link(3));
        let flows = live_flows(
            &[
                entry(&a, CONNTRACK_MASQUERADE, 0),
                entry(&a, CONNTRACK_MASQUERADE, flow::UDP),
                entry(&a, CONNTRACK_MASQUERADE, flow::UDP + 1),
                entry(&a, CONNTRACK_UNMASQUERADE, 0),
                entry(&b, CONNTRACK_MASQUERADE, 0),
            ],
            NOW,
        );
        assert_eq!(flows, [((4097, a.ip), 2), ((4097, b.ip), 1)].into());
    }

    #[test]
    fn flows_that_are_opened_during_the_count_are_added() {
        let a = link(2);
        let usage = |flows| SnatUsage { flows, pad: 0, counted: 7 };
        let flows: Flows = [((4097, a.ip), 5)].into();
        let count = |before, after| {
            corrected(&usage(before), &usage(after), (Some(&flows), &a), NOW).map(|u| u.flows)
        };
        assert_eq!(count(9, 9), Some(5));
        assert_eq!(count(9, 12), Some(8));
        assert_eq!(count(9, 4), Some(5), "the programs have halved it meanwhile");
        let none = Flows::new();
        let gone = corrected(&usage(9), &usage(9), (Some(&none), &a), NOW);
        assert_eq!(gone, Some(SnatUsage { flows: 0, pad: 0, counted: NOW }));
    }

    #[test]
    fn without_a_count_only_the_time_moves() {
        let at = |counted| SnatUsage { flows: 3, pad: 0, counted };
        let a = link(2);
        assert_eq!(corrected(&at(NOW - 1), &at(0), (None, &a), NOW), None);
        assert_eq!(corrected(&at(0), &at(0), (None, &a), NOW), Some(at(NOW)));
    }
}
