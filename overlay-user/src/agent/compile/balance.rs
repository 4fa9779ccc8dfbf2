//! Which backends a service's scheduler picks from.

use clap::ValueEnum as _;
use overlay_common::maps::{
    self, BACKEND_COUNTED, LB_HASH_ADDRESS, LB_HASH_FLOW, LB_LEAST, LB_MAGLEV, LB_ROUND_ROBIN,
    LB_SOURCE_HASH, LB_WEIGHTED, SERVICE_DSR, SERVICE_RESETS, SlotKey, TableKey,
};

use crate::{
    datapath::{DatapathState, Filling, LbTable},
    model::{Balance, HashBy, OnLoss, ReturnPath, Scheduler},
};

/// Adds a service with its backends, given as numbers and weights. Backends of weight 0 take no
/// new flows. A plain list goes to `slots`, where one more backend is one more entry. If a list is
/// not enough, the service gets a table, which is replaced as a whole.
pub fn add_service(
    number: u32,
    service: maps::Service,
    balance: &Balance,
    backends: &[(u32, u16)],
    out: &mut DatapathState,
) {
    let mut backends: Vec<_> = backends.iter().copied().filter(|(_, w)| *w > 0).collect();
    backends.sort_unstable();
    let &Balance {
        scheduler,
        hash: _, // `hashed` below has it.
        affinity_secs,
        tcp_idle_secs,
        udp_idle_secs,
        on_loss,
        return_path,
    } = balance;
    let traits = traits(scheduler);
    let service = maps::Service {
        scheduler: traits.number,
        hash: match balance.hashed() {
            Some(HashBy::Flow) => LB_HASH_FLOW,
            Some(HashBy::Address) => LB_HASH_ADDRESS,
            None => traits.draws_by,
        },
        affinity: affinity_secs,
        flags: flags(on_loss, return_path),
        tcp_idle: tcp_idle_secs,
        udp_idle: udp_idle_secs,
        ..service
    };
    let Some(filling) = filling(traits.entries, &backends) else {
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

/// A scheduler as the maps describe it.
struct Traits {
    /// `LB_*`.
    number: u8,
    /// The set that it picks from.
    entries: Entries,
    /// The hash input that tells flows apart if the scheduler itself hashes nothing: `LB_HASH_*`.
    draws_by: u8,
    /// Whether it needs the number of flows of each backend.
    counts_flows: bool,
}

/// The set that a scheduler picks from.
#[derive(Clone, Copy)]
enum Entries {
    /// A list of the backends, whatever their weights.
    List,
    /// A list where all weights are equal, a table in which each has its turns where they are not.
    ListOrTurns,
    /// Always a table.
    Table(Filling),
}

const fn traits(scheduler: Scheduler) -> Traits {
    let (number, entries) = match scheduler {
        Scheduler::Rr => (LB_ROUND_ROBIN, Entries::List),
        Scheduler::Wrr => (LB_WEIGHTED, Entries::ListOrTurns),
        Scheduler::Lc => {
            return Traits {
                number: LB_LEAST,
                entries: Entries::ListOrTurns,
                // The two backends that are compared are drawn for each flow.
                draws_by: LB_HASH_FLOW,
                counts_flows: true,
            };
        }
        Scheduler::Sh => (LB_SOURCE_HASH, Entries::Table(Filling::Turns)),
        Scheduler::Maglev => (LB_MAGLEV, Entries::Table(Filling::Maglev)),
    };
    Traits { number, entries, draws_by: LB_HASH_ADDRESS, counts_flows: false }
}

/// The scheduler with this number in the maps.
pub fn scheduler_of(number: u8) -> Option<Scheduler> {
    Scheduler::value_variants().iter().copied().find(|s| traits(*s).number == number)
}

/// How the table is filled; `None` where a list of the backends does.
fn filling(entries: Entries, backends: &[(u32, u16)]) -> Option<Filling> {
    let equal = backends.windows(2).all(|pair| pair[0].1 == pair[1].1);
    match entries {
        Entries::List => None,
        Entries::ListOrTurns => (!equal).then_some(Filling::Turns),
        Entries::Table(filling) => Some(filling),
    }
}

fn flags(on_loss: OnLoss, return_path: ReturnPath) -> u16 {
    let resets = match on_loss {
        OnLoss::Reset => SERVICE_RESETS,
        OnLoss::Drop => 0,
    };
    let dsr = match return_path {
        ReturnPath::Ingress => 0,
        ReturnPath::Dsr => SERVICE_DSR,
    };
    resets | dsr
}

/// Flags of a service's backends in their map.
pub fn backend_flags(balance: &Balance) -> u16 {
    if traits(balance.scheduler).counts_flows { BACKEND_COUNTED } else { 0 }
}

#[cfg(test)]
mod tests {
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
            (OnLoss::Reset, ReturnPath::Ingress, SERVICE_RESETS),
            (OnLoss::Reset, ReturnPath::Dsr, SERVICE_RESETS | SERVICE_DSR),
            (OnLoss::Drop, ReturnPath::Dsr, SERVICE_DSR),
            (OnLoss::Drop, ReturnPath::Ingress, 0),
        ] {
            assert_eq!(flags(on_loss, return_path), expected, "{on_loss:?} {return_path:?}");
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
}
