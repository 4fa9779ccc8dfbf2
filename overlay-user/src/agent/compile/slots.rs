//! Counter indexes: the index of each endpoint of this node in `endpoint_counters`.
//!
//! The maps remember them: an interface keeps the index that its entry in `links` has, also after
//! a restart of the daemon. They are assigned after compiling.

use std::collections::{BTreeMap, BTreeSet};

use overlay_common::{
    Be32,
    maps::{ENDPOINT_LOCAL, Link},
    observe::COUNTER_INDEXES,
};

use crate::datapath::DatapathState;

/// Gives the endpoints of `target` their counter indexes: those that they have in `held`, or the
/// lowest free ones. A released index is free once the maps show that it is. Returns the new
/// indexes: their counters still have another endpoint's numbers.
///
/// If all indexes are taken, endpoints have index 0 and no counters of their own.
pub fn assign(held: &BTreeMap<u32, Link>, target: &mut DatapathState) -> BTreeSet<u32> {
    let mut taken: BTreeSet<u32> = held.values().map(|link| link.counter).collect();
    let mut given = BTreeSet::new();
    let mut fresh = BTreeSet::new();
    let last = u32::try_from(COUNTER_INDEXES).unwrap_or(u32::MAX) - 1;
    let mut free = 1..=last;
    for (ifindex, link) in &mut target.links {
        let kept = held
            .get(ifindex)
            .map(|link| link.counter)
            .filter(|counter| (1..=last).contains(counter));
        // A number that two have, as no daemon writes it, is only the first one's.
        link.counter = match kept.filter(|counter| given.insert(*counter)) {
            Some(counter) => counter,
            None => free.find(|counter| taken.insert(*counter)).unwrap_or(0),
        };
        if kept != Some(link.counter) && link.counter != 0 {
            given.insert(link.counter);
            fresh.insert(link.counter);
        }
    }
    let slots: BTreeMap<u32, u32> =
        target.links.iter().map(|(i, link)| (*i, link.counter)).collect();
    let counter_of = |ifindex| slots.get(&ifindex).copied().unwrap_or(0);
    let addresses = target.endpoints.values_mut().chain(target.endpoints6.values_mut());
    for endpoint in addresses.filter(|e| e.kind == ENDPOINT_LOCAL) {
        endpoint.counter = counter_of(endpoint.ifindex);
    }
    for backend in target.backends.values_mut().filter(|b| b.node == Be32::ZERO) {
        backend.counter = counter_of(backend.ifindex);
    }
    fresh
}

#[cfg(test)]
mod tests {
    use overlay_common::{
        Ip6,
        maps::{Backend, Endpoint, Endpoint6Key, EndpointKey},
    };

    use super::*;

    fn links(slots: &[(u32, u32)]) -> BTreeMap<u32, Link> {
        slots
            .iter()
            .map(|(i, counter)| (*i, Link { counter: *counter, ..Link::default() }))
            .collect()
    }

    fn wanted(interfaces: &[u32]) -> DatapathState {
        let mut target = DatapathState::default();
        for ifindex in interfaces {
            target.links.insert(*ifindex, Link::default());
            let ip = Be32::from_octets([10, 0, 1, *ifindex as u8]);
            let endpoint =
                Endpoint { kind: ENDPOINT_LOCAL, ifindex: *ifindex, ..Endpoint::default() };
            target.endpoints.insert(EndpointKey { vni: 4097, ip }, endpoint);
            let ip = Ip6::from_octets(u128::from(*ifindex).to_be_bytes());
            let key = Endpoint6Key { vni: 4097, ip };
            target.endpoints6.insert(key, endpoint);
            let backend = Backend { ifindex: *ifindex, ..Backend::default() };
            target.backends.insert(*ifindex, backend);
        }
        target
    }

    fn slots(target: &DatapathState) -> Vec<u32> {
        target.links.values().map(|link| link.counter).collect()
    }

    #[test]
    fn endpoints_get_the_lowest_slots_and_their_addresses_and_backends_the_same() {
        let mut target = wanted(&[7, 9]);
        assert_eq!(assign(&BTreeMap::new(), &mut target), BTreeSet::from([1, 2]));
        assert_eq!(slots(&target), [1, 2]);
        assert_eq!(target.endpoints.values().map(|e| e.counter).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(target.endpoints6.values().map(|e| e.counter).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(target.backends.values().map(|b| b.counter).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_is_elsewhere_has_none() {
        let mut target = wanted(&[7]);
        for endpoint in target.endpoints.values_mut() {
            endpoint.kind = overlay_common::maps::ENDPOINT_REMOTE;
        }
        for backend in target.backends.values_mut() {
            backend.node = Be32::from_octets([172, 16, 1, 11]);
        }
        assign(&BTreeMap::new(), &mut target);
        assert!(target.endpoints.values().all(|e| e.counter == 0));
        assert!(target.backends.values().all(|b| b.counter == 0));
    }

    #[test]
    fn an_interface_keeps_its_slot_and_one_given_up_is_not_given_at_once() {
        let mut target = wanted(&[9, 12]);
        let fresh = assign(&links(&[(7, 1), (9, 2)]), &mut target);
        assert_eq!(slots(&target), [2, 3], "counter 1 still counts for interface 7");
        assert_eq!(fresh, BTreeSet::from([3]));
        let held = target.links.clone();
        assert!(assign(&held, &mut target).is_empty(), "again nothing is new");
        let mut target = wanted(&[9, 12, 13]);
        assert_eq!(assign(&held, &mut target), BTreeSet::from([1]));
    }

    #[test]
    fn slots_that_no_daemon_writes_are_not_kept() {
        let mut target = wanted(&[3, 4, 5]);
        let fresh = assign(&links(&[(3, 1), (4, 1), (5, u32::MAX)]), &mut target);
        assert_eq!(slots(&target), [1, 2, 3]);
        assert_eq!(fresh, BTreeSet::from([2, 3]));
    }

    #[test]
    fn more_endpoints_than_slots_is_no_failure() {
        let all: Vec<u32> = (1..=COUNTER_INDEXES as u32 + 1).collect();
        let mut target = wanted(&all);
        assert_eq!(assign(&BTreeMap::new(), &mut target).len(), COUNTER_INDEXES - 1);
        assert_eq!(slots(&target).iter().filter(|counter| **counter == 0).count(), 2);
    }
}
