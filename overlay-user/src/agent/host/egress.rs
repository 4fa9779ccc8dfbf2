//! The ways out of this host: the programs on the interfaces that lead outside, and how many flows
//! containers have there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use overlay_common::{
    Be32,
    flow::is_expired,
    maps::{CONNTRACK_MASQUERADE, Conntrack, ConntrackKey, Link, SNAT_USAGE_UNCOUNTED, SnatUsage},
};

use crate::{
    agent::{
        Agent, AgentError, attach::adopt::is_endpoint_link, host::OWN_PREFIX, lock,
        show::tables::monotonic_ns,
    },
    datapath::Datapath,
    link::{Links, WayOut},
};

const ATTACHING: &str = "attaching to the interfaces that lead outside";
const COUNTING: &str = "counting flows to the outside";
const PORTS: &str = "choosing source ports for flows to the outside";

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Attaches to the interfaces by which packets come from outside. Returns those by which flows may
    /// leave, with their addresses: one that refuses the program would give nothing back.
    pub(in crate::agent) fn attach_ways_out(&self, ways: &[WayOut]) -> BTreeMap<u32, Ipv4Addr> {
        let mut failures = Vec::new();
        let mut usable = BTreeMap::new();
        for way in ways {
            // The underlay's interface has a program of its own.
            if way.name != self.config.iface
                && let Err(error) = self.datapath.attach_outside(&way.name)
            {
                failures.push(error.to_string());
                continue;
            }
            usable.extend(way.address.map(|address| (way.ifindex, address)));
        }
        if failures.is_empty() {
            self.overcome(ATTACHING);
        } else {
            self.trouble(ATTACHING, failures.join("; "));
        }
        usable
    }

    /// Detaches from interfaces that lead outside no more.
    ///
    /// # Errors
    /// [`AgentError::Datapath`] when a pin cannot be removed.
    pub(in crate::agent) fn detach_former_ways_out(
        &self,
        ways: &[WayOut],
    ) -> Result<(), AgentError> {
        let now: BTreeSet<&str> = ways.iter().map(|way| way.name.as_str()).collect();
        for name in self.datapath.attachments()? {
            let ours = name == self.config.iface
                || name.starts_with(OWN_PREFIX)
                || is_endpoint_link(&name);
            if !ours && !now.contains(name.as_str()) {
                tracing::info!("{name} leads outside no more");
                self.datapath.detach(&name)?;
            }
        }
        Ok(())
    }

    /// Tells when the host's own sockets may be given ports that flows to the outside use.
    pub(in crate::agent) fn check_outside_ports(&self) {
        let [first, last] = self.config.outside_ports;
        match self.host.local_ports() {
            Some((low, high)) if low <= last && first <= high => self.trouble(
                PORTS,
                format!(
                    "containers' flows leave from the ports {first} to {last}, and the kernel \
                     gives sockets of the host those from {low} to {high} \
                     (net.ipv4.ip_local_port_range): change one of the two (`\"outside_ports\"` \
                     in agent.json)"
                ),
            ),
            _ => self.overcome(PORTS),
        }
    }

    /// Corrects the numbers of flows by which the programs keep the limit.
    pub(in crate::agent) async fn count_flows(self: &Arc<Self>) {
        let agent = self.clone();
        // A full table takes a while to be listed.
        let done = tokio::task::spawn_blocking(move || agent.count_flows_now()).await;
        match done {
            Ok(Ok(())) => self.overcome(COUNTING),
            Ok(Err(error)) => self.trouble(COUNTING, error),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// # Errors
    /// [`AgentError::Datapath`] when a map cannot be read or written.
    pub(in crate::agent) fn count_flows_now(&self) -> Result<(), AgentError> {
        let before = self.datapath.snat_usage()?;
        if before.is_empty() {
            return Ok(());
        }
        let links = match &lock(&self.applied).known {
            Some(known) => known.links.clone(),
            None => self.datapath.read()?.links,
        };
        let now = monotonic_ns();
        // Far from the limit the exact number does not matter.
        let crowded = before.values().any(|usage| usage.flows >= self.config.outside_flows / 2);
        let (flows, after) = if crowded {
            let limit = usize::try_from(self.config.conntrack_size).unwrap_or(usize::MAX);
            let flows = live_flows(&self.datapath.conntrack(limit)?, now);
            (Some(flows), self.datapath.snat_usage()?)
        } else {
            (None, before.clone())
        };
        for (ifindex, then) in &before {
            let Some(link) = links.get(ifindex) else {
                self.datapath.set_snat_usage(*ifindex, None)?;
                continue;
            };
            let after = after.get(ifindex).copied().unwrap_or_default();
            if let Some(usage) = corrected(then, &after, (flows.as_ref(), link), now) {
                self.datapath.set_snat_usage(*ifindex, Some(usage))?;
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

/// What an endpoint's number must be: the live flows and those that were opened while they were
/// counted. Without a count only the time is brought up to date, so that the programs know that
/// somebody watches.
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
