//! Which backends a service's scheduler picks from.

use overlay_common::maps::{
    self, BACKEND_COUNTED, LB_HASH_ADDRESS, LB_HASH_FLOW, LB_LEAST, LB_MAGLEV, LB_ROUND_ROBIN,
    LB_SOURCE_HASH, LB_WEIGHTED, SERVICE_DSR, SERVICE_RESETS, SlotKey, TableKey,
};

use crate::{
    datapath::{DatapathState, Filling, LbTable},
    model::{Balance, HashBy, OnLoss, ReturnPath, Scheduler},
};

/// Adds a service with the backends that take new flows, numbers and weights, of which those of
/// weight 0 do not. A plain list goes to `slots`, where one more backend is one more entry; what
/// takes more is a table, which is replaced as a whole.
pub fn add_service(
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
pub fn backend_flags(balance: &Balance) -> u16 {
    if balance.scheduler == Scheduler::Lc { BACKEND_COUNTED } else { 0 }
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
}
