//! Which backends a service's scheduler picks from, and how many flows they have.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use overlay_common::{
    flow::is_expired,
    maps::{
        self, BACKEND_COUNTED, CONNTRACK_FORWARD, Conntrack, ConntrackKey, LB_HASH_ADDRESS,
        LB_HASH_FLOW, LB_LEAST, LB_MAGLEV, LB_ROUND_ROBIN, LB_SOURCE_HASH, LB_WEIGHTED,
        SERVICE_DSR, SERVICE_RESETS, SlotKey, TCP_SEEN_FIN, TCP_SEEN_RST, TableKey,
    },
};

use crate::{
    agent::{Agent, AgentError, count::sockets::by_backend, lock, show::tables::monotonic_ns},
    datapath::{Datapath, DatapathState, Filling, LbTable},
    link::Links,
    model::{Balance, HashBy, OnLoss, ReturnPath, Scheduler},
};

const COUNTING: &str = "counting flows of services that balance by them";
/// A full conntrack takes a while to be listed: at most one part in so many of the time.
const COUNTING_SHARE: u32 = 20;

/// Adds a service with the backends that take new flows, numbers and weights, of which those of
/// weight 0 do not. A plain list goes to `slots`, where one more backend is one more entry; what
/// takes more is a table, which is replaced as a whole.
pub(in crate::agent) fn add_service(
    number: u32,
    service: maps::Service,
    balance: &Balance,
    backends: &[(u32, u16)],
    out: &mut DatapathState,
) {
    let mut backends: Vec<_> = backends.iter().copied().filter(|(_, w)| *w > 0).collect();
    backends.sort_unstable();
    let service = maps::Service {
        scheduler: scheduler(balance.scheduler),
        hash: match balance.hashed() {
            Some(HashBy::Flow) => LB_HASH_FLOW,
            // What makes two flows differ is the chance by which two backends are compared.
            None if balance.scheduler == Scheduler::Lc => LB_HASH_FLOW,
            Some(HashBy::Address) | None => LB_HASH_ADDRESS,
        },
        affinity: balance.affinity_secs,
        flags: flags(balance),
        tcp_idle: balance.tcp_idle_secs,
        udp_idle: balance.udp_idle_secs,
        ..service
    };
    let Some(filling) = filling(balance.scheduler, &backends) else {
        let mut slots = 0;
        for (backend, _) in backends {
            out.slots.insert(SlotKey { service: number, index: slots }, backend);
            slots += 1;
        }
        out.services.insert(number, maps::Service { slots, ..service });
        return;
    };
    let table = LbTable::new(filling, &backends);
    let slots = table.size();
    if slots == 0 {
        out.services.insert(number, service);
        return;
    }
    let key = TableKey { service: number, table: table.digest() };
    out.services.insert(number, maps::Service { slots, table: key.table, ..service });
    out.tables.insert(key, table);
}

/// How the scheduler's table is filled; `None` where a list of the backends does.
fn filling(scheduler: Scheduler, backends: &[(u32, u16)]) -> Option<Filling> {
    let equal = backends.windows(2).all(|pair| pair[0].1 == pair[1].1);
    match scheduler {
        Scheduler::Rr => None,
        Scheduler::Wrr | Scheduler::Lc => (!equal).then_some(Filling::Turns),
        Scheduler::Sh => Some(Filling::Turns),
        Scheduler::Maglev => Some(Filling::Maglev),
    }
}

fn flags(balance: &Balance) -> u16 {
    let resets = match balance.on_loss {
        OnLoss::Reset => SERVICE_RESETS,
        OnLoss::Drop => 0,
    };
    let direct = match balance.return_path {
        ReturnPath::Asked => 0,
        ReturnPath::Direct => SERVICE_DSR,
    };
    resets | direct
}

fn scheduler(scheduler: Scheduler) -> u8 {
    match scheduler {
        Scheduler::Rr => LB_ROUND_ROBIN,
        Scheduler::Wrr => LB_WEIGHTED,
        Scheduler::Lc => LB_LEAST,
        Scheduler::Sh => LB_SOURCE_HASH,
        Scheduler::Maglev => LB_MAGLEV,
    }
}

/// Flags of a service's backends in their map.
pub(in crate::agent) fn backend_flags(balance: &Balance) -> u16 {
    if balance.scheduler == Scheduler::Lc { BACKEND_COUNTED } else { 0 }
}

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Corrects the numbers of flows that least connections go by: flows end also without a word.
    pub(in crate::agent) async fn count_active(self: &Arc<Self>) {
        let agent = self.clone();
        // A full table takes a while to be listed.
        let done = tokio::task::spawn_blocking(move || agent.count_active_now()).await;
        match done {
            Ok(Ok(())) => self.overcome(COUNTING),
            Ok(Err(error)) => self.trouble(COUNTING, error),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// # Errors
    /// [`AgentError::Datapath`] when a map cannot be read or written.
    pub(in crate::agent) fn count_active_now(&self) -> Result<(), AgentError> {
        let counted = |known: &DatapathState| {
            known.backends.values().any(|backend| backend.flags & BACKEND_COUNTED != 0)
        };
        if !lock(&self.applied).known.as_ref().is_some_and(counted) {
            return Ok(());
        }
        let start = Instant::now();
        if lock(&self.count_due).is_some_and(|due| start < due) {
            return Ok(());
        }
        let before = self.datapath.active()?;
        let limit = usize::try_from(self.config.conntrack_size).unwrap_or(usize::MAX);
        let mut live = open_flows(&self.datapath.conntrack(limit)?, monotonic_ns());
        for (backend, flows) in by_backend(&self.datapath.sockets()?) {
            *live.entry(backend).or_default() += flows;
        }
        for (backend, after) in self.datapath.active()? {
            let flows = corrected(
                before.get(&backend).copied().unwrap_or_default(),
                after,
                live.get(&backend).copied().unwrap_or_default(),
            );
            if flows != after {
                self.datapath.set_active(backend, flows)?;
            }
        }
        let due = Instant::now() + start.elapsed() * COUNTING_SHARE;
        *lock(&self.count_due) = Some(due);
        Ok(())
    }
}

/// The live flows, as they stand in a listing, and those that began during it.
fn corrected(before: u32, after: u32, live: u32) -> u32 {
    live.saturating_add(after.saturating_sub(before))
}

/// How many flows to each backend are live and not ended by their client.
fn open_flows(entries: &[(ConntrackKey, Conntrack)], now: u64) -> BTreeMap<u32, u32> {
    let mut flows = BTreeMap::new();
    for (key, entry) in entries {
        let is_open = entry.action == CONNTRACK_FORWARD
            && entry.backend != 0
            && entry.flags & (TCP_SEEN_FIN | TCP_SEEN_RST) == 0
            && !is_expired(key, entry, now);
        if is_open {
            *flows.entry(entry.backend).or_default() += 1;
        }
    }
    flows
}

#[cfg(test)]
mod tests {
    use overlay_common::{flow, maps::CONNTRACK_REPLY, wire::PROTO_TCP};

    use super::*;

    fn compiled(scheduler: Scheduler, backends: &[(u32, u16)]) -> (maps::Service, DatapathState) {
        let mut out = DatapathState::default();
        let balance = Balance { scheduler, ..Balance::default() };
        add_service(7, maps::Service::default(), &balance, backends, &mut out);
        (out.services[&7], out)
    }

    #[test]
    fn the_programs_are_told_what_becomes_of_lost_connections_and_which_way_replies_take() {
        for (on_loss, return_path, expected) in [
            (OnLoss::Reset, ReturnPath::Asked, SERVICE_RESETS),
            (OnLoss::Reset, ReturnPath::Direct, SERVICE_RESETS | SERVICE_DSR),
            (OnLoss::Drop, ReturnPath::Direct, SERVICE_DSR),
            (OnLoss::Drop, ReturnPath::Asked, 0),
        ] {
            let balance = Balance { on_loss, return_path, ..Balance::default() };
            assert_eq!(flags(&balance), expected, "{balance:?}");
        }
    }

    #[test]
    fn a_list_will_do_where_all_weights_are_equal_and_nothing_is_hashed() {
        for scheduler in [Scheduler::Rr, Scheduler::Wrr, Scheduler::Lc] {
            let (service, out) = compiled(scheduler, &[(9, 3), (4, 3), (5, 0)]);
            assert_eq!((service.slots, service.table), (2, 0), "{scheduler}");
            assert_eq!(out.slots.into_values().collect::<Vec<_>>(), [4, 9]);
            assert!(out.tables.is_empty());
        }
    }

    #[test]
    fn weights_and_hashes_need_a_table_that_the_service_refers_to() {
        let sizes = [
            (Scheduler::Wrr, 4),
            (Scheduler::Lc, 4),
            (Scheduler::Sh, 4),
            (Scheduler::Maglev, 16_381),
        ];
        for (scheduler, size) in sizes {
            let (service, out) = compiled(scheduler, &[(4, 6), (9, 2)]);
            assert_eq!(service.slots, size, "{scheduler}");
            assert!(out.slots.is_empty());
            let table = &out.tables[&TableKey { service: 7, table: service.table }];
            assert_eq!(table.size(), size);
        }
    }

    #[test]
    fn another_backend_makes_another_table_and_none_at_all_makes_none() {
        let (one, _) = compiled(Scheduler::Maglev, &[(4, 1)]);
        let (two, _) = compiled(Scheduler::Maglev, &[(4, 1), (9, 1)]);
        assert_ne!(one.table, two.table);
        for scheduler in [Scheduler::Rr, Scheduler::Wrr, Scheduler::Sh, Scheduler::Maglev] {
            let (none, out) = compiled(scheduler, &[(4, 0)]);
            assert_eq!((none.slots, none.table), (0, 0));
            assert!(out.tables.is_empty() && out.slots.is_empty());
        }
    }

    #[test]
    fn open_flows_are_live_ones_of_the_clients_direction() {
        const NOW: u64 = 10_000 * 1_000_000_000;
        let key = ConntrackKey { proto: PROTO_TCP, ..ConntrackKey::default() };
        let entry = |backend, action, state, age| {
            (
                key,
                Conntrack {
                    backend,
                    action,
                    flags: state,
                    last_seen: NOW - age,
                    ..Conntrack::default()
                },
            )
        };
        let flows = open_flows(
            &[
                entry(1, CONNTRACK_FORWARD, 0, 0),
                entry(1, CONNTRACK_FORWARD, 0, flow::TCP_OPENING + 1),
                entry(1, CONNTRACK_FORWARD, TCP_SEEN_FIN, 0),
                entry(1, CONNTRACK_REPLY, 0, 0),
                entry(2, CONNTRACK_FORWARD, 0, 0),
                entry(0, CONNTRACK_FORWARD, 0, 0),
            ],
            NOW,
        );
        assert_eq!(flows, BTreeMap::from([(1, 1), (2, 1)]));
    }

    #[test]
    fn flows_that_begin_during_the_count_are_added() {
        assert_eq!(corrected(9, 9, 5), 5);
        assert_eq!(corrected(9, 12, 5), 8);
        assert_eq!(corrected(9, 7, 5), 5, "some have ended meanwhile");
    }
}
