//! Evictions by the kernel from full maps: entries that were made, were not removed and are
//! missing.

use std::net::{Ipv4Addr, Ipv6Addr};

use aya::Pod;
use overlay_common::{
    Be32, Ip6, Reason,
    maps::{
        Affinity, AffinityKey, Conntrack, ConntrackKey, ENDPOINT_FLAG_BACKEND,
        ENDPOINT_FLAG_PUBLISHED, Fragment, FragmentKey, Lru, LruStats,
    },
    wire::PROTO_TCP,
};
use overlay_tests::rig::{
    NODE, NODE_MAC, NODE6, PEER, PEER_MAC, Rig, VNI,
    packets::*,
    packets6::{Way, between, segment6},
};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const SERVICE: u32 = 7;

/// Entries of the maps of flows, of which the kernel keeps up to 128 free ones for each CPU.
const SIZE: u32 = 4096;

/// A client, and a service with a backend elsewhere that also answers port 8080 of the node.
fn rig() -> Rig {
    let mut rig = Rig::with_conntrack(SIZE);
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.remote(VNI, FAR, ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED);
    rig.service(SERVICE, VNI, VIP, &[(1, FAR, false)]);
    rig.publish(PROTO_TCP, 8080, SERVICE, 80);
    rig
}

fn ask(rig: &mut Rig, port: u16, flags: Tcp) -> Vec<Reason> {
    rig.run("from_container", &tcp((ME, port), (VIP, 80), flags)).counted
}

/// A connection that is in use.
fn connect(rig: &mut Rig, port: u16) {
    ask(rig, port, Tcp::Syn);
    rig.run("from_underlay", &vxlan(VNI, &tcp((FAR, 80), (ME, port), Tcp::SynAck)));
    assert_eq!(ask(rig, port, Tcp::Data), [Reason::Encapsulated]);
}

/// How many entries of a map were evicted, and how many it holds.
fn evicted<K: Pod, V: Pod>(rig: &Rig, lru: Lru) -> (u64, u64) {
    let (lru_stats, held) = (rig.lru_stats(lru), rig.held::<K, V>(lru));
    (lru_stats.evicted(held, &lru_stats), held)
}

fn flows_evicted(rig: &Rig, lru: Lru) -> (u64, u64) {
    evicted::<ConntrackKey, Conntrack>(rig, lru)
}

const fn made(made: u64) -> LruStats {
    LruStats { made, removed: 0 }
}

#[test]
fn a_flood_of_beginnings_is_counted_where_it_evicts() {
    for program in ["from_underlay", "xdp_underlay"] {
        let mut rig = rig();
        let flows = 2 * SIZE;
        for number in 0..flows {
            let [_, _, high, low] = number.to_be_bytes();
            let client = (Ipv4Addr::new(198, 18, high, low), 40_000);
            rig.run(program, &tcp_from_client(client, (NODE, 8080), Tcp::Syn));
        }
        // Each flow has an entry for each direction.
        assert_eq!(rig.all_lru_stats(), [(Lru::CtNew, made(2 * u64::from(flows)))].into());
        let (evicted, held) = flows_evicted(&rig, Lru::CtNew);
        assert_eq!(evicted, 2 * u64::from(flows) - held, "{program}");
        assert!(held > u64::from(SIZE) / 2 && held <= u64::from(SIZE), "{program}: {held}");
    }
}

#[test]
fn connections_in_use_that_are_too_many_are_counted_where_they_are_evicted() {
    let mut rig = rig();
    let connections = SIZE;
    for port in 1..=connections as u16 {
        connect(&mut rig, port);
    }
    let (evicted, held) = flows_evicted(&rig, Lru::Conntrack);
    assert_eq!(evicted, 2 * u64::from(connections) - held);
    assert!(held <= u64::from(SIZE), "{held}");
    // They have left the table of new flows, and were not evicted from it.
    assert_eq!(flows_evicted(&rig, Lru::CtNew), (0, 0));
    let moved = 2 * u64::from(connections);
    assert_eq!(rig.lru_stats(Lru::CtNew), LruStats { made: moved, removed: moved });
}

#[test]
fn what_is_removed_or_written_again_is_not_evicted() {
    let mut rig = rig();
    connect(&mut rig, 40_000);
    // Another connection has this tuple, and the entries of the first one are removed.
    ask(&mut rig, 40_000, Tcp::Fin);
    ask(&mut rig, 40_000, Tcp::Syn);
    assert_eq!(rig.lru_stats(Lru::Conntrack), LruStats { made: 2, removed: 2 });
    assert_eq!(rig.lru_stats(Lru::CtNew), LruStats { made: 4, removed: 2 });
    // A connection without an answer is overwritten.
    rig.age_conntrack(100);
    assert!(ask(&mut rig, 40_000, Tcp::Syn).contains(&Reason::FlowCreated));
    assert_eq!(rig.lru_stats(Lru::CtNew), LruStats { made: 4, removed: 2 });
    assert_eq!(flows_evicted(&rig, Lru::Conntrack), (0, 0));
    assert_eq!(flows_evicted(&rig, Lru::CtNew), (0, 2));
}

#[test]
fn fragments_and_clients_that_keep_a_backend_are_counted_each_in_its_map() {
    let mut rig = rig();
    rig.set(|state| state.services.get_mut(&SERVICE).expect("it").affinity = 60);
    ask(&mut rig, 40_000, Tcp::Syn);
    ask(&mut rig, 40_001, Tcp::Syn);
    assert_eq!(rig.lru_stats(Lru::Affinity), made(1), "one client");
    let mut first = udp((ME, 40_000), (VIP, 53), b"the first fragment");
    // More fragments follow.
    first[20] = 0x20;
    let packets = 3 * SIZE;
    for id in 0..packets as u16 {
        first[18..20].copy_from_slice(&id.to_be_bytes());
        let old = first[24..26].to_vec();
        first[24..26].fill(0);
        let sum = overlay_common::checksum::of_bytes(&first[14..34], 0);
        first[24..26].copy_from_slice(&sum.to_ne_bytes());
        assert!(id == 0 || old != first[24..26], "another packet");
        rig.run("from_container", &first);
    }
    assert_eq!(rig.lru_stats(Lru::Fragments), made(packets.into()));
    let (fragments, held) = evicted::<FragmentKey, Fragment>(&rig, Lru::Fragments);
    assert!(held <= 4096, "{held}");
    assert_eq!(fragments, u64::from(packets) - held);
    assert_eq!(evicted::<AffinityKey, Affinity>(&rig, Lru::Affinity), (0, 1));
}

#[test]
fn ipv6_addresses_outside_are_counted_as_flows_are() {
    let mut rig = rig();
    rig.publish6(PROTO_TCP, 8080, SERVICE, 80);
    rig.dual_stack(VNI, 1);
    let clients = 2 * SIZE;
    for number in 0..clients {
        let client = Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(number));
        let way = Way { from: (PEER, client), to: (PEER, NODE6) };
        let syn = between(segment6(way, (40_000, 8080), 0x02), PEER_MAC, NODE_MAC);
        rig.run("from_underlay", &syn);
    }
    // The frontend address has an address id too. If its entry was evicted, it got another one.
    let LruStats { made, removed } = rig.lru_stats(Lru::Addr6IdsNew);
    assert!(made > u64::from(clients) && removed == 0, "{made} {removed}");
    let (evicted6, held) = evicted::<Be32, Ip6>(&rig, Lru::Addr6IdsNew);
    assert_eq!(evicted6, made - held);
    assert!(held <= 4096 && evicted6 > 0, "{held} {evicted6}");
    assert_eq!(evicted::<Be32, Ip6>(&rig, Lru::Addr6Ids), (0, 0));
}
