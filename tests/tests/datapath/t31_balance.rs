//! Schedulers, weights and affinity: the selection of backends for new flows.

use std::{collections::BTreeMap, net::Ipv4Addr};

use overlay::datapath::{Filling, LbTable};
use overlay_common::{
    Be16, Reason, hash,
    maps::{
        AffinityKey, BACKEND_COUNTED, BACKEND_DRAINING, LB_HASH_FLOW, LB_LEAST, LB_MAGLEV,
        LB_ROUND_ROBIN, LB_SOURCE_HASH, LB_WEIGHTED, TableKey,
    },
    wire::PROTO_TCP,
};
use overlay_tests::rig::{NODE, REDIRECT, Rig, VNI, mac, packets::*, wait_for_uptime};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const SERVICE: u32 = 7;

fn address(backend: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, 100 + backend as u8)
}

/// A client that sends, and a service with backends 1 to `count`, all on this node.
fn rig(count: u32) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    let backends: Vec<_> = (1..=count).map(|number| (number, address(number), true)).collect();
    rig.service(SERVICE, VNI, VIP, &backends);
    rig
}

/// The backend that a packet from the client went to.
fn asked(rig: &mut Rig, packet: &[u8]) -> u32 {
    let ran = rig.run("from_container", packet);
    assert_eq!(ran.verdict, REDIRECT, "{:?}", ran.counted);
    u32::from(see(&ran.packet).to.0.octets()[3]) - 100
}

fn connect(rig: &mut Rig, port: u16) -> u32 {
    asked(rig, &tcp((ME, port), (VIP, 80), Tcp::Syn))
}

fn connect_many(rig: &mut Rig, ports: std::ops::Range<u16>) -> BTreeMap<u32, usize> {
    let mut picks = BTreeMap::new();
    for port in ports {
        *picks.entry(connect(rig, port)).or_default() += 1;
    }
    picks
}

fn weigh(rig: &mut Rig, weights: &[(u32, u16)]) {
    rig.set(|state| {
        for (number, weight) in weights {
            state.backends.get_mut(number).expect("a backend").weight = *weight;
        }
    });
}

#[test]
fn weighted_round_robin_gives_each_its_share_in_every_round() {
    let mut rig = rig(3);
    let weights = [(1, 5), (2, 3), (3, 1)];
    rig.balance(SERVICE, LB_WEIGHTED, Some(LbTable::new(Filling::Turns, &weights)));
    for round in 0..3 {
        let first = 40_000 + 9 * round;
        let picks = connect_many(&mut rig, first..first + 9);
        assert_eq!(picks, BTreeMap::from([(1, 5), (2, 3), (3, 1)]), "round {round}");
    }
}

#[test]
fn least_connections_takes_the_one_with_fewer_flows_for_its_weight() {
    let mut rig = rig(2);
    rig.balance(SERVICE, LB_LEAST, None);
    rig.set(|state| {
        state.services.get_mut(&SERVICE).expect("the service").hash = LB_HASH_FLOW;
        for backend in state.backends.values_mut() {
            backend.flags = BACKEND_COUNTED;
        }
    });
    rig.set_active(1, Some(10));
    // With two backends, both are always compared.
    assert_eq!(connect_many(&mut rig, 40_000..40_010), BTreeMap::from([(2, 10)]));
    assert_eq!((rig.active(1), rig.active(2)), (Some(10), Some(10)));
    let picks = connect_many(&mut rig, 40_010..40_030);
    assert_eq!(picks, BTreeMap::from([(1, 10), (2, 10)]), "from now on in turn");
    weigh(&mut rig, &[(1, 3), (2, 1)]);
    let weights = [(1, 3), (2, 1)];
    rig.balance(SERVICE, LB_LEAST, Some(LbTable::new(Filling::Turns, &weights)));
    let picks = connect_many(&mut rig, 40_030..40_070);
    assert!(picks[&1] > 33, "until it has three times as many: {picks:?}");
}

#[test]
fn a_flow_that_its_client_ends_is_counted_once() {
    let mut rig = rig(1);
    rig.balance(SERVICE, LB_LEAST, None);
    rig.set(|state| state.backends.get_mut(&1).expect("it").flags = BACKEND_COUNTED);
    for port in [40_000, 40_001] {
        connect(&mut rig, port);
    }
    assert_eq!(rig.active(1), Some(2));
    for end in [Tcp::Fin, Tcp::Fin, Tcp::Rst] {
        asked(&mut rig, &tcp((ME, 40_000), (VIP, 80), end));
        assert_eq!(rig.active(1), Some(1));
    }
    // The count does not wrap around, even if the agent corrected it in between.
    rig.set_active(1, Some(0));
    asked(&mut rig, &tcp((ME, 40_001), (VIP, 80), Tcp::Rst));
    assert_eq!(rig.active(1), Some(0));
}

#[test]
fn of_two_idle_backends_the_heavier_one_is_taken() {
    let mut rig = rig(2);
    let weights = [(1, 1), (2, 3)];
    rig.balance(SERVICE, LB_LEAST, Some(LbTable::new(Filling::Turns, &weights)));
    rig.set(|state| {
        for backend in state.backends.values_mut() {
            backend.flags = BACKEND_COUNTED;
        }
    });
    weigh(&mut rig, &weights);
    let mut picks = BTreeMap::new();
    for port in 40_000..40_020 {
        for (backend, _) in weights {
            rig.set_active(backend, Some(0));
        }
        *picks.entry(connect(&mut rig, port)).or_insert(0) += 1;
    }
    // Its three entries and the other's one are four: one of the two that are compared is its own.
    assert_eq!(picks, BTreeMap::from([(2, 20)]));
}

#[test]
fn flows_of_backends_that_are_not_counted_cost_no_entry() {
    let mut rig = rig(1);
    connect(&mut rig, 40_000);
    assert_eq!(rig.active(1), None);
}

#[test]
fn source_hash_keeps_a_client_on_one_backend_and_spreads_the_clients() {
    let mut rig = rig(4);
    let weights = [(1, 1), (2, 1), (3, 1), (4, 1)];
    rig.balance(SERVICE, LB_SOURCE_HASH, Some(LbTable::new(Filling::Turns, &weights)));
    assert_eq!(connect_many(&mut rig, 40_000..40_010).len(), 1);
    let table = LbTable::new(Filling::Turns, &weights).fill();
    let mut picks = BTreeMap::new();
    rig.publish(PROTO_TCP, 8080, SERVICE, 80);
    for client in 1..=200 {
        let client = Ipv4Addr::new(192, 168, 7, client);
        let mut of_client = Vec::new();
        for port in [40_000, 50_000] {
            let syn = tcp_from_client((client, port), (NODE, 8080), Tcp::Syn);
            let ran = rig.run("from_underlay", &syn);
            of_client.push(see(&ran.packet).to.0);
        }
        assert_eq!(of_client[0], of_client[1], "{client}");
        let entry = hash::of_client(client.into()) as usize % table.len();
        assert_eq!(of_client[0], address(table[entry]), "every node has the same for {client}");
        *picks.entry(of_client[0]).or_insert(0) += 1;
    }
    assert!(picks.len() == 4 && picks.values().all(|n| (30..=70).contains(n)), "{picks:?}");
}

#[test]
fn maglev_goes_by_the_flow_or_the_address_and_by_its_table() {
    let mut rig = rig(5);
    let table = LbTable::new(Filling::Maglev, &[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
    rig.balance(SERVICE, LB_MAGLEV, Some(table.clone()));
    assert_eq!(connect_many(&mut rig, 40_000..40_010).len(), 1, "by address");
    rig.set(|state| state.services.get_mut(&SERVICE).expect("it").hash = LB_HASH_FLOW);
    let entries = table.fill();
    for port in 40_100..40_200 {
        let ports = [port, 80].map(Be16::new);
        let flow = hash::of_client_flow(ME.into(), ports, PROTO_TCP) as usize;
        assert_eq!(connect(&mut rig, port), entries[flow % entries.len()], "as on every node");
    }
    let picks = connect_many(&mut rig, 41_000..42_000);
    assert!(picks.len() == 5 && picks.values().all(|n| (150..=250).contains(n)), "{picks:?}");
}

#[test]
fn few_maglev_clients_get_another_backend_when_one_is_gone() {
    let mut rig = rig(5);
    let all = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)];
    rig.balance(SERVICE, LB_MAGLEV, Some(LbTable::new(Filling::Maglev, &all)));
    rig.set(|state| state.services.get_mut(&SERVICE).expect("it").hash = LB_HASH_FLOW);
    let picked = |rig: &mut Rig| -> Vec<u32> {
        for (key, _) in rig.conntrack() {
            rig.set_conntrack(key, None);
        }
        (40_000..40_500).map(|port| connect(rig, port)).collect()
    };
    let before = picked(&mut rig);
    rig.balance(SERVICE, LB_MAGLEV, Some(LbTable::new(Filling::Maglev, &all[..4])));
    let after = picked(&mut rig);
    let moved = before.iter().zip(&after).filter(|(was, is)| **was != 5 && was != is).count();
    assert!(after.iter().all(|backend| *backend != 5));
    // 400 of them had another backend than the removed one.
    assert!(moved < 20, "{moved} of 400 moved");
}

#[test]
fn a_change_of_scheduler_moves_no_flow() {
    let mut rig = rig(3);
    let before: Vec<u32> = (40_000..40_009).map(|port| connect(&mut rig, port)).collect();
    let weights = [(1, 9), (2, 1), (3, 1)];
    for (scheduler, table) in [
        (LB_WEIGHTED, Some(LbTable::new(Filling::Turns, &weights))),
        (LB_LEAST, Some(LbTable::new(Filling::Turns, &weights))),
        (LB_SOURCE_HASH, Some(LbTable::new(Filling::Turns, &weights))),
        (LB_MAGLEV, Some(LbTable::new(Filling::Maglev, &weights))),
        (LB_ROUND_ROBIN, None),
    ] {
        rig.balance(SERVICE, scheduler, table);
        let data = |port| tcp((ME, port), (VIP, 80), Tcp::Data);
        let now: Vec<u32> = (40_000..40_009).map(|port| asked(&mut rig, &data(port))).collect();
        assert_eq!(now, before, "scheduler {scheduler}");
    }
}

#[test]
fn a_table_that_a_service_refers_to_and_that_is_missing_is_no_backend() {
    let mut rig = rig(1);
    let table = LbTable::new(Filling::Turns, &[(1, 1)]);
    let key = TableKey { service: SERVICE, table: table.digest() };
    rig.balance(SERVICE, LB_WEIGHTED, Some(table));
    rig.set(|state| drop(state.tables.remove(&key)));
    let ran = rig.run("from_container", &tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!(ran.counted, [Reason::NoBackendAnswered]);
    // A table entry that is no backend's number selects no backend.
    rig.balance(SERVICE, LB_WEIGHTED, Some(LbTable::new(Filling::Turns, &[(0, 1)])));
    let ran = rig.run("from_container", &tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!(ran.counted, [Reason::NoBackendAnswered]);
}

fn with_affinity(seconds: u32) -> Rig {
    let mut rig = rig(3);
    rig.set(|state| state.services.get_mut(&SERVICE).expect("it").affinity = seconds);
    rig
}

/// Lets time go by for what clients keep.
fn age_affinity(rig: &mut Rig, seconds: u64) {
    for (key, mut entry) in rig.affinity() {
        entry.last_used -= seconds * 1_000_000_000;
        rig.set_affinity(key, Some(entry));
    }
}

#[test]
fn a_client_keeps_its_backend_for_the_time_of_the_affinity() {
    wait_for_uptime(61);
    let mut rig = with_affinity(60);
    let kept = connect(&mut rig, 40_000);
    for port in 40_001..40_010 {
        assert_eq!(connect(&mut rig, port), kept);
    }
    // Each new flow makes the time begin again.
    for port in [41_000, 41_001] {
        age_affinity(&mut rig, 40);
        assert_eq!(connect(&mut rig, port), kept);
    }
    age_affinity(&mut rig, 61);
    assert_ne!(connect(&mut rig, 42_000), kept, "the next one in turn");
}

#[test]
fn clients_are_told_apart_by_address_and_each_keeps_its_own() {
    let mut rig = with_affinity(60);
    let first = connect(&mut rig, 40_000);
    let other = Ipv4Addr::new(10, 0, 1, 3);
    rig.local(VNI, other, 0, true);
    let second = asked(&mut rig, &tcp((other, 40_000), (VIP, 80), Tcp::Syn));
    assert_ne!(first, second, "round robin");
    assert_eq!(asked(&mut rig, &tcp((other, 40_001), (VIP, 80), Tcp::Syn)), second);
    let keys: Vec<AffinityKey> = rig.affinity().into_iter().map(|(key, _)| key).collect();
    let of = |client: Ipv4Addr| AffinityKey { service: SERVICE, vni: VNI, client: client.into() };
    assert!(keys.len() == 2 && keys.contains(&of(ME)) && keys.contains(&of(other)), "{keys:?}");
}

#[test]
fn nobody_keeps_a_backend_that_takes_no_new_flows() {
    type Change = fn(&mut Rig, u32);
    let changes: [Change; 3] = [
        |rig, kept| weigh(rig, &[(kept, 0)]),
        |rig, kept| {
            rig.set(|state| state.backends.get_mut(&kept).expect("it").state = BACKEND_DRAINING);
        },
        |rig, kept| {
            rig.set(|state| {
                let _ = state.backends.remove(&kept);
            });
        },
    ];
    for change in changes {
        let mut rig = with_affinity(60);
        let kept = connect(&mut rig, 40_000);
        change(&mut rig, kept);
        rig.set(|state| {
            state.slots.retain(|key, _| key.index < 2);
            for (slot, number) in state.slots.values_mut().zip((1..=3).filter(|n| *n != kept)) {
                *slot = number;
            }
            state.services.get_mut(&SERVICE).expect("it").slots = 2;
        });
        let next = connect(&mut rig, 40_001);
        assert_ne!(next, kept);
        assert_eq!(connect(&mut rig, 40_002), next, "and that one is kept from now on");
    }
}

/// The fields of a reset: sequence number, acknowledgement number, flags.
fn reset(frame: &[u8]) -> (u32, u32, u8) {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
    (word(38), word(42), frame[47])
}

#[test]
fn tcp_to_a_service_without_backends_is_reset_by_the_vip() {
    let mut rig = rig(0);
    let ran = rig.run("from_container", &tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NoBackendAnswered][..]));
    let seen = see(&ran.packet);
    assert_eq!((seen.from, seen.to), ((VIP, 80), (ME, 40_000)));
    assert_eq!(seen.macs, (mac(VIP).bytes(), mac(ME).bytes()));
    assert_eq!((ran.packet.len(), seen.payload.len()), (54, 0));
    assert_eq!(reset(&ran.packet), (0, 1001, 0x14), "RST and ACK of the SYN");
    let ran = rig.run("from_container", &tcp((ME, 40_000), (VIP, 80), Tcp::Data));
    assert_eq!(reset(&ran.packet), (1, 0, 0x04), "RST where the client is");
    see(&ran.packet);
    assert!(rig.conntrack().is_empty());
}

#[test]
fn udp_to_a_service_without_backends_is_unreachable() {
    let mut rig = rig(0);
    for payload in [&b""[..], b"question", &[7; 1_000]] {
        let packet = udp((ME, 40_000), (VIP, 53), payload);
        let ran = rig.run("from_container", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NoBackendAnswered][..]));
        let seen = see(&ran.packet);
        assert_eq!((seen.from.0, seen.to.0), (VIP, ME));
        assert_eq!(ran.packet[34..36], [3, 3], "port unreachable");
        let quoted = seen.payload.len();
        assert!(quoted >= 28);
        assert_eq!(seen.payload, packet[14..14 + quoted], "what was sent is quoted");
    }
}

#[test]
fn resets_are_not_answered_with_resets() {
    let mut rig = rig(0);
    let ran = rig.run("from_container", &tcp((ME, 40_000), (VIP, 80), Tcp::Rst));
    assert_eq!(ran.counted, [Reason::NoBackend]);
}

#[test]
fn nobody_is_told_who_is_not_one_host() {
    let mut rig = rig(0);
    rig.publish(PROTO_TCP, 8080, SERVICE, 80);
    for client in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::LOCALHOST] {
        let syn = tcp_from_client((client, 40_000), (NODE, 8080), Tcp::Syn);
        let ran = rig.run("from_underlay", &syn);
        assert_eq!(ran.counted, [Reason::NoBackend], "{client}");
    }
    let mut broadcast =
        tcp_from_client((Ipv4Addr::new(172, 16, 1, 100), 1), (NODE, 8080), Tcp::Syn);
    broadcast[..6].fill(0xff);
    assert_eq!(rig.run("from_underlay", &broadcast).counted, [Reason::NoBackend]);
}

#[test]
fn a_client_outside_is_refused_by_the_address_that_it_asked_and_xdp_leaves_that_to_tc() {
    let mut rig = rig(0);
    let client = Ipv4Addr::new(172, 16, 1, 100);
    for proto in [PROTO_TCP, overlay_common::wire::PROTO_UDP] {
        rig.publish(proto, 8080, SERVICE, 80);
    }
    let syn = tcp_from_client((client, 40_000), (NODE, 8080), Tcp::Syn);
    let ran = rig.run("xdp_underlay", &syn);
    assert_eq!((ran.verdict, &ran.counted[..]), (overlay_tests::rig::XDP_PASS, &[][..]));
    let ran = rig.run("from_underlay", &syn);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NoBackendAnswered][..]));
    let seen = see(&ran.packet);
    assert_eq!((seen.from, seen.to), ((NODE, 8080), (client, 40_000)));
    assert_eq!(seen.macs, (overlay_tests::rig::NODE_MAC, overlay_tests::rig::CLIENT_MAC));
    let ran = rig.run("from_underlay", &udp_from_client((client, 40_000), (NODE, 8080), b"?"));
    assert_eq!(see(&ran.packet).from.0, NODE);
    assert_eq!(ran.packet[34..36], [3, 3]);
}
