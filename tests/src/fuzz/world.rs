//! Random maps over a few networks, addresses and ports, so that most entries refer to each other
//! and some refer to missing ones.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay::datapath::{DatapathState, Filling, LbTable};
use overlay_common::{
    BRIDGE_VNI, Be16, Be32, INGRESS_VNI, Mac, UNDERLAY_VNI,
    maps::{
        Backend, Config, Endpoint, EndpointKey, Flood, Link, NETWORK_ENCRYPTED, NETWORK_INTERNAL,
        NETWORK_REPLICATE, Network, PUBLISHED_IPV6, Peer, PeerKey, Published, PublishedKey,
        STALE_RESETS, Service, SlotKey, SubnetKey, TableKey,
    },
};
use rand::{RngExt as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::{check, world6};
use crate::{
    model::{
        Action, Affinity, AffinityKey, Entry, FlowKey, Marks, Name, Tables, Usage, maps::AddressIds,
    },
    rig::{CLIENT, IFINDEX, NODE, OTHER_VNI, PEER, Rig, VNI, ip6, link_local, mac, vtep6},
};

/// A node of the cluster without a neighbour entry.
pub const UNRESOLVED: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 12);
/// An address without a route.
pub const UNROUTED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Networks.
pub const VNIS: [u32; 4] = [VNI, OTHER_VNI, INGRESS_VNI, BRIDGE_VNI];
/// Nodes, as far as the maps say.
pub const NODES: [Ipv4Addr; 4] = [PEER, UNRESOLVED, UNROUTED, NODE];
/// Clients, as far as packets say.
pub const CLIENTS: [Ipv4Addr; 4] = [CLIENT, PEER, UNRESOLVED, UNROUTED];
/// Ports.
pub const PORTS: [u16; 6] = [53, 80, 8080, 40_000, 40_001, 61_000];
/// Counter indexes of endpoints: none, real ones, and one that does not exist.
pub const COUNTERS: [u32; 5] = [0, 1, 2, 2_047, 2_048];
/// The secret of the address ids of addresses outside.
const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3211];
/// Services and backends are numbered from 1 to this.
const NUMBERS: u32 = 6;
/// The numbers of services, and of backends.
pub const SERVICES: std::ops::RangeInclusive<u32> = 1..=NUMBERS;

/// One of a few.
pub fn any<T: Copy>(rng: &mut SmallRng, of: &[T]) -> T {
    *of.choose(rng).expect("something to choose from")
}

/// An address of a network: .1 is the gateway, .8 and .9 are VIPs in most worlds.
pub fn address(rng: &mut SmallRng, vni: u32) -> Ipv4Addr {
    let last = rng.random_range(1..10);
    nth_address(vni, last)
}

/// The address of a network with this last octet.
fn nth_address(vni: u32, last: u8) -> Ipv4Addr {
    match vni {
        VNI => Ipv4Addr::new(10, 0, 1, last),
        OTHER_VNI => Ipv4Addr::new(10, 0, 2, last),
        INGRESS_VNI => Ipv4Addr::new(10, 255, 0, last),
        _ => Ipv4Addr::new(172, 17, 0, last),
    }
}

/// An address of a network that mostly an endpoint of one of `kinds` has.
pub fn taken(rng: &mut SmallRng, tables: &Tables, vni: u32, kinds: &[u8]) -> Ipv4Addr {
    let endpoints = tables.agent.endpoints.iter();
    let of_kind = endpoints.filter(|(key, e)| key.vni == vni && kinds.contains(&e.kind));
    let found: Vec<Ipv4Addr> = of_kind.map(|(key, _)| key.ip.into()).collect();
    if found.is_empty() || rng.random_bool(0.1) { address(rng, vni) } else { any(rng, &found) }
}

/// An IPv6 address of a network: mostly the one that belongs to an IPv4 address, or its link-local
/// one.
pub fn address6(rng: &mut SmallRng, vni: u32) -> Ipv6Addr {
    let ip = address(rng, vni);
    if rng.random_bool(0.2) { link_local(ip) } else { beside(ip) }
}

/// The IPv6 address that goes with an IPv4 address.
pub fn beside(ip: Ipv4Addr) -> Ipv6Addr {
    let [_, n, m, last] = ip.octets();
    ip6(n | m, last)
}

/// Like [`taken`], for IPv6. The endpoint's MAC follows from its IPv4 address.
pub fn taken6(rng: &mut SmallRng, tables: &Tables, vni: u32, kinds: &[u8]) -> (Ipv4Addr, Ipv6Addr) {
    let ip = taken(rng, tables, vni, kinds);
    (ip, if rng.random_bool(0.2) { link_local(ip) } else { beside(ip) })
}

/// The address ids of a network's IPv6 addresses, with one secret for all sequences.
pub fn ids() -> AddressIds {
    let addresses =
        VNIS.into_iter().flat_map(|vni| (1..10).map(move |n| (vni, nth_address(vni, n))));
    AddressIds::new(SECRET, addresses.map(|(vni, ip)| (vni, ip, beside(ip))))
}

/// Random maps.
pub fn random(rng: &mut SmallRng, rig: &Rig) -> Tables {
    let mut tables = Tables { config: usual(rng, rig), ids: ids(), ..Tables::default() };
    if rng.random_bool(0.1) {
        tables.config = config(rng, rig);
    }
    for vni in VNIS {
        for _ in 0..10 {
            endpoint(rng, &mut tables.agent, vni);
        }
    }
    for vni in VNIS {
        network(rng, rig, &mut tables.agent, vni);
    }
    for number in 1..=NUMBERS {
        service(rng, &mut tables, number);
        backend(rng, &mut tables, number);
        published(rng, &mut tables.agent);
    }
    world6::dual_stack(rng, &mut tables.agent);
    peers(rng, &mut tables.agent);
    gone(rng, &mut tables.agent);
    for local in [NODE, Ipv4Addr::new(10, 255, 0, 2)] {
        if rng.random_bool(0.95) {
            tables.agent.local_addrs.insert(local.into(), 1);
        }
    }
    outside(rng, &mut tables, rig);
    link(rng, &mut tables.agent);
    if rng.random_bool(0.1) {
        self_reference(rng, &mut tables);
    }
    world6::link6(rng, &mut tables.agent);
    if rng.random_bool(0.3) {
        world6::reverse6(rng, &mut tables);
    }
    numbered(&mut tables, rig);
    tables
}

/// Nodes of the cluster, and of each network.
fn peers(rng: &mut SmallRng, agent: &mut DatapathState) {
    agent.peers.clear();
    for vni in [&[UNDERLAY_VNI], &VNIS[..]].concat() {
        for node in NODES {
            let usual = if node == PEER { 0.97 } else { 0.85 };
            if rng.random_bool(if vni == UNDERLAY_VNI { usual } else { 0.8 }) {
                agent.peers.insert(PeerKey { vni, node: node.into() }, Peer::default());
            }
        }
    }
}

/// Adds stale backends that sockets are connected to. An endpoint may have the address of one by
/// now.
fn gone(rng: &mut SmallRng, agent: &mut DatapathState) {
    agent.stale_backends.clear();
    for _ in 0..rng.random_range(0..6) {
        let vni = any(rng, &VNIS);
        let key = EndpointKey { vni, ip: address(rng, vni).into() };
        agent.stale_backends.insert(key, any(rng, &[0, STALE_RESETS, STALE_RESETS, u32::MAX, 2]));
    }
}

/// On an IPv6 underlay, gives nodes their address ids, and all nodes except this one their
/// addresses.
fn numbered(tables: &mut Tables, rig: &Rig) {
    tables.ipv6 = rig.is_ipv6();
    if !tables.ipv6 {
        return;
    }
    let number = |node: &mut Be32| {
        if NODES.iter().any(|known| *node == Be32::from(*known)) {
            *node = rig.number((*node).into());
        }
    };
    let Tables { agent, conntrack, .. } = tables;
    agent.endpoints.values_mut().for_each(|endpoint| number(&mut endpoint.node));
    agent.endpoints6.values_mut().for_each(|endpoint| number(&mut endpoint.node));
    agent.backends.values_mut().for_each(|backend| number(&mut backend.node));
    for replicas in agent.flood.values_mut() {
        replicas.vteps.iter_mut().for_each(number);
    }
    for node in conntrack.values_mut().filter_map(|entry| entry.node.as_mut()) {
        let mut of = Be32::from(*node);
        number(&mut of);
        *node = of.into();
    }
    agent.peers = std::mem::take(&mut agent.peers)
        .into_iter()
        .map(|(mut key, peer)| {
            number(&mut key.node);
            (key, peer)
        })
        .collect();
    agent.frontends6 = std::mem::take(&mut agent.frontends6)
        .into_iter()
        .map(|(mut key, address)| {
            number(&mut key.node);
            (key, address)
        })
        .collect();
    for node in &NODES[..3] {
        agent.vteps6.insert(rig.number(*node), vtep6(*node).into());
    }
}

/// Fills in egress and the addresses inside: mostly the networks, and sometimes a client.
fn outside(rng: &mut SmallRng, tables: &mut Tables, rig: &Rig) {
    let agent = &mut tables.agent;
    agent.egress.clear();
    agent.subnets.clear();
    if rng.random_bool(0.95) {
        agent
            .egress
            .insert(rig.underlay, any(rng, &[NODE, NODE, Ipv4Addr::new(10, 255, 0, 2)]).into());
    }
    for vni in VNIS {
        if rng.random_bool(0.9) {
            let [a, b, c, _] = address(rng, vni).octets();
            let ip = Be32::from_octets([a, b, c, 0]);
            agent.subnets.insert(SubnetKey { prefix: 24, ip }, vni);
        }
    }
    if rng.random_bool(0.1) {
        let (prefix, ip) = any(rng, &[(32, CLIENT), (24, Ipv4Addr::new(172, 16, 1, 0))]);
        agent.subnets.insert(SubnetKey { prefix, ip: ip.into() }, 77);
    }
}

/// The rig's configuration, with few ports and flows to the outside so that they run out.
fn usual(rng: &mut SmallRng, rig: &Rig) -> Config {
    Config {
        outside_ports: any(rng, &[[61_000, 61_000], [61_000, 61_002], [61_000, 65_535]]),
        outside_flows: any(rng, &[2, 5, 4096]),
        ..rig.config()
    }
}

/// Makes one change, or lets time pass for conntrack.
pub fn change(rng: &mut SmallRng, rig: &Rig, tables: &mut Tables) {
    let vni = any(rng, &VNIS);
    let number = rng.random_range(1..=NUMBERS);
    match rng.random_range(0..26) {
        0 => endpoint(rng, &mut tables.agent, vni),
        1 => network(rng, rig, &mut tables.agent, vni),
        2 => service(rng, tables, number),
        3 => backend(rng, tables, number),
        4 => published(rng, &mut tables.agent),
        5 | 6 => link(rng, &mut tables.agent),
        7 | 14 => {
            tables.agent.backends.remove(&number);
            tables.active.remove(&number);
        }
        8 => {
            tables.config = if rng.random_bool(0.7) { usual(rng, rig) } else { config(rng, rig) };
        }
        9 => conntrack(rng, tables),
        10 => outside(rng, tables, rig),
        11 => {
            tables.usage.clear();
            let ago = any(rng, &[0, 59, 61]) * 1_000_000_000;
            let counted = check::now().saturating_sub(ago);
            let flows = any(rng, &[0, 1, 4, 5, 10, u32::MAX]);
            if rng.random_bool(0.8) {
                tables.usage.insert(IFINDEX, Usage { flows, counted });
            }
        }
        12 => world6::dual_stack(rng, &mut tables.agent),
        13 => world6::link6(rng, &mut tables.agent),
        15 => peers(rng, &mut tables.agent),
        16 => self_reference(rng, tables),
        17 => affinity(rng, tables),
        18 => {
            tables.active.insert(number, any(rng, &[0, 1, 2, 1_000, u32::MAX]));
        }
        19 => gone(rng, &mut tables.agent),
        20 | 21 => world6::reverse6(rng, tables),
        _ => {
            let seconds = any(rng, &[1, 2, 29, 31, 61, 100, 301, 7_499, 7_501]);
            for entry in tables.conntrack.values_mut() {
                entry.last_seen = entry.last_seen.saturating_sub(seconds * 1_000_000_000);
            }
            for entry in tables.ct_new.values_mut() {
                entry.last_seen = entry.last_seen.saturating_sub(seconds * 1_000_000_000);
            }
            for fragment in tables.fragments.values_mut() {
                fragment.seen = fragment.seen.saturating_sub(seconds * 1_000_000_000);
            }
            for entry in tables.affinity.values_mut() {
                entry.last_used = entry.last_used.saturating_sub(seconds * 1_000_000_000);
            }
        }
    }
    numbered(tables, rig);
}

fn config(rng: &mut SmallRng, rig: &Rig) -> Config {
    let config = usual(rng, rig);
    match rng.random_range(0..10) {
        0 => Config::default(),
        1 => Config { host_link_ifindex: 0, ..config },
        2 => Config { host_link_ifindex: rig.no_forwarding, ..config },
        3 => Config { host_link_ifindex: 9_999, ..config },
        4 | 8 | 9 => Config { vxlan_ifindex: 0, ..config },
        5 => Config { underlay_mtu: any(rng, &[0, 100, 200]), ..config },
        6 => Config { flags: 0, ..config },
        _ => Config { vxlan_port: Be16::new(any(rng, &[8080, 61_000])), ..config },
    }
}

fn endpoint(rng: &mut SmallRng, agent: &mut DatapathState, vni: u32) {
    let ip = address(rng, vni);
    // Kinds 0 and 5 do not exist.
    let kind = match ip.octets()[3] {
        1 if rng.random_bool(0.9) => 3,
        8 | 9 if rng.random_bool(0.9) => 4,
        2..8 if rng.random_bool(0.9) => rng.random_range(1..3),
        _ => rng.random_range(0..6),
    };
    let flags = any(rng, &[0, 1, 1, 4, 5, 5, 5, 2, 7]);
    let endpoint = Endpoint {
        kind,
        flags,
        mac: mac(ip),
        ifindex: rng.random_range(1..60),
        // This node itself now and then, and nowhere.
        node: if rng.random_bool(0.03) { hostile_node(rng) } else { any(rng, &NODES[..3]).into() },
        service: rng.random_range(1..=NUMBERS + 1),
        counter: any(rng, &COUNTERS),
    };
    let key = EndpointKey { vni, ip: ip.into() };
    if rng.random_bool(0.95) {
        agent.endpoints.insert(key, endpoint);
    } else {
        agent.endpoints.remove(&key);
    }
}

/// The address of a host that is no node.
fn hostile_node(rng: &mut SmallRng) -> Be32 {
    any(rng, &[NODE, Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST]).into()
}

fn network(rng: &mut SmallRng, rig: &Rig, agent: &mut DatapathState, vni: u32) {
    agent.networks.remove(&vni);
    if rng.random_bool(0.9) {
        let [a, b, c, _] = address(rng, vni).octets();
        let usual = (Be32::from_octets([a, b, c, 0]), Be32::from_octets([255, 255, 255, 0]));
        let (subnet, mask) = if rng.random_bool(0.95) { usual } else { hostile_subnet(rng, usual) };
        let gateway = Be32::from_octets([a, b, c, 1]);
        let flags = any(rng, &[0, 0, 0, 0, NETWORK_INTERNAL]) | any(rng, &[0, NETWORK_REPLICATE]);
        // Reserved flags change nothing.
        let flags = flags | any(rng, &[0, NETWORK_ENCRYPTED]);
        let policy = any(rng, &[0, 0, 7]);
        agent.networks.insert(vni, Network { subnet, mask, gateway, mtu: 1450, flags, policy });
    }
    agent.flood.remove(&vni);
    if rng.random_bool(0.9) {
        let replicas = replicas(rng, rig, agent);
        agent.flood.insert(vni, Box::new(replicas));
    }
}

/// A subnet and mask that no agent writes: with no address, with all, with one, or contradictory.
fn hostile_subnet(rng: &mut SmallRng, (subnet, mask): (Be32, Be32)) -> (Be32, Be32) {
    let all = Be32::new(u32::MAX);
    any(rng, &[(subnet, Be32::ZERO), (Be32::ZERO, Be32::ZERO), (subnet, all), (all, mask)])
}

/// Fills in the interfaces for replication: existing ones, including the ingress interface, and
/// missing ones. The counts may differ from the number of interfaces.
fn replicas(rng: &mut SmallRng, rig: &Rig, agent: &mut DatapathState) -> Flood {
    let mut replicas = Flood::default();
    // Packets out of `u1` arrive at the NIC, where no program waits for them.
    let links = [IFINDEX, rig.no_forwarding, rig.no_forwarding, 9_999, 0];
    for i in 0..rng.random_range(0..4) {
        replicas.links[i] = any(rng, &links);
        replicas.vteps[i] = any(rng, &NODES).into();
    }
    // The endpoint that copies are counted for.
    agent.links.remove(&rig.no_forwarding);
    if rng.random_bool(0.8) {
        let link = Link { vni: VNI, counter: any(rng, &COUNTERS), ..Link::default() };
        agent.links.insert(rig.no_forwarding, link);
    }
    replicas.endpoints = any(rng, &[0, 1, 2, 3, 4, 64, 65, u32::MAX]);
    replicas.nodes = any(rng, &[0, 1, 2, 3, 4, 64, 65, u32::MAX]);
    replicas
}

fn link(rng: &mut SmallRng, agent: &mut DatapathState) {
    agent.links.remove(&IFINDEX);
    if rng.random_bool(0.97) {
        let vni = any(rng, &VNIS);
        // Mostly where replies can come from: a backend's.
        let backends: Vec<_> = agent.backends.values().map(|b| (b.vni, b.ip.into())).collect();
        let own = (vni, address(rng, vni));
        let (vni, ip) =
            if rng.random_bool(0.5) { own } else { any(rng, &[&backends[..], &[own]].concat()) };
        let flags = any(rng, &[0, 1, 1, 5, 5, 5, 2, 7]);
        agent.links.insert(
            IFINDEX,
            Link { vni, ip: ip.into(), mac: mac(ip), flags, counter: any(rng, &COUNTERS) },
        );
    }
}

/// Makes an entry refer to itself: a VIP with the VIP as its only backend, or an endpoint at once
/// on one interface and on another node, with the tests' own address.
fn self_reference(rng: &mut SmallRng, tables: &mut Tables) {
    let number = rng.random_range(1..=NUMBERS);
    let vni = any(rng, &VNIS);
    let key = EndpointKey { vni, ip: address(rng, vni).into() };
    let agent = &mut tables.agent;
    let mac = mac(key.ip.into());
    let endpoint = Endpoint { kind: 4, mac, service: number, ..Endpoint::default() };
    agent.endpoints.insert(key, endpoint);
    agent.services.insert(number, Service { vni, vip: key.ip, slots: 1, ..Service::default() });
    agent.slots.insert(SlotKey { service: number, index: 0 }, number);
    let (node, ifindex) = any(rng, &[(Be32::ZERO, IFINDEX), (NODE.into(), 0), (PEER.into(), 0)]);
    let (state, weight) = (1, 1);
    let backend =
        Backend { vni, ip: key.ip, node, ifindex, mac, state, counter: 1, weight, flags: 0 };
    agent.backends.insert(number, backend);
    if rng.random_bool(0.5) {
        let link = Link { vni, ip: key.ip, mac, flags: any(rng, &[0, 1, 5, 7]), counter: 1 };
        agent.links.insert(IFINDEX, link);
    }
}

fn service(rng: &mut SmallRng, tables: &mut Tables, number: u32) {
    tables.agent.slots.retain(|key, _| key.service != number);
    tables.agent.services.remove(&number);
    tables.cursors.remove(&number);
    let slots = rng.random_range(0..5);
    for index in 0..slots {
        // Slots may be missing, and name backends that do not exist.
        if rng.random_bool(0.9) {
            let key = SlotKey { service: number, index };
            tables.agent.slots.insert(key, rng.random_range(1..=NUMBERS));
        }
    }
    let (table, slots) = table(rng, &mut tables.agent, number, slots);
    if rng.random_bool(0.95) {
        let vni = any(rng, &VNIS);
        let service = Service {
            vni,
            vip: address(rng, vni).into(),
            slots,
            table,
            affinity: any(rng, &[0, 0, 1, 30, u32::MAX]),
            // Schedulers 5 and 9 and hash 2 do not exist.
            scheduler: any(rng, &[0, 1, 2, 2, 3, 4, 5, 9]),
            hash: any(rng, &[0, 1, 2]),
            flags: any(rng, &[0, 1, 2, 3, u16::MAX]),
            tcp_idle: any(rng, &[0, 0, 7, 600]),
            udp_idle: any(rng, &[0, 0, 7, 600]),
        };
        tables.agent.services.insert(number, service);
    }
    if rng.random_bool(0.9) {
        tables.cursors.insert(number, any(rng, &[0, 0, 7, u32::MAX]));
    }
}

/// A table for a service, and its number of entries as stated by the service. The service may refer
/// to it, to none, or to a missing one.
fn table(rng: &mut SmallRng, agent: &mut DatapathState, service: u32, slots: u32) -> (u32, u32) {
    agent.tables.retain(|key, _| key.service != service);
    // The kernel waits for all CPUs with each table: not too many of them.
    if rng.random_bool(0.75) {
        return (any(rng, &[0, 0, 0, 77]), slots);
    }
    let mut backend = || (rng.random_range(1..=NUMBERS), rng.random_range(0..4));
    let backends = [backend(), backend(), backend()];
    let filling = if rng.random_bool(0.1) { Filling::Maglev } else { Filling::Turns };
    let made = LbTable::new(filling, &backends);
    let key = TableKey { service, table: made.digest() };
    let size = made.size();
    agent.tables.insert(key, made);
    (any(rng, &[key.table, key.table, key.table, 0]), any(rng, &[size, size, size + 1, 1]))
}

/// Makes an affinity entry of a client, with a backend that may exist.
fn affinity(rng: &mut SmallRng, tables: &mut Tables) {
    let vni = any(rng, &[0, VNI]);
    let client = Name::inside(if vni == 0 { any(rng, &CLIENTS) } else { address(rng, vni) });
    let key = AffinityKey { service: rng.random_range(1..=NUMBERS), vni, client };
    let last_used = check::now() + any(rng, &[0, 5_000_000_000]);
    let entry = Affinity { backend: rng.random_range(1..=NUMBERS + 1), last_used };
    tables.affinity.insert(key, entry);
}

fn backend(rng: &mut SmallRng, tables: &mut Tables, number: u32) {
    let vni = any(rng, &VNIS);
    // Any address: endpoints here and elsewhere, one of no endpoint, the gateway, a VIP (its own
    // included).
    let ip = address(rng, vni);
    let node = if rng.random_bool(0.4) { Be32::ZERO } else { any(rng, &NODES).into() };
    let ifindex = rng.random_range(0..60);
    let state = rng.random_range(0..4);
    let counter = any(rng, &COUNTERS);
    let (weight, flags) = (any(rng, &[0, 1, 1, 1, 3, u16::MAX]), any(rng, &[0, 1, 1, u16::MAX]));
    let ip = ip.into();
    let mac = Mac::of_ip(ip);
    let backend = Backend { vni, ip, node, ifindex, mac, state, counter, weight, flags };
    tables.agent.backends.insert(number, backend);
    tables.active.remove(&number);
    if rng.random_bool(0.8) {
        tables.active.insert(number, any(rng, &[0, 1, 2, 1_000, u32::MAX]));
    }
}

fn published(rng: &mut SmallRng, agent: &mut DatapathState) {
    let proto = any(rng, &[6, 6, 17, 17, 132]);
    let key = PublishedKey { port: Be16::new(any(rng, &PORTS)), proto, pad: 0 };
    let service = rng.random_range(1..=NUMBERS + 1);
    let flags = any(rng, &[PUBLISHED_IPV6, PUBLISHED_IPV6, 0]);
    agent.published.insert(key, Published { service, target: Be16::new(any(rng, &PORTS)), flags });
}

/// An entry that no program writes, under a tuple that packets have.
fn conntrack(rng: &mut SmallRng, tables: &mut Tables) {
    let vni = any(rng, &[0, VNI, OTHER_VNI]);
    let mut ip = || if rng.random_bool(0.3) { any(rng, &CLIENTS) } else { address(rng, vni) };
    let [a, b, c, d] = [ip(), ip(), ip(), ip()].map(Name::inside);
    let mut port = || any(rng, &PORTS);
    let [e, f, g, h] = [port(), port(), port(), port()];
    let proto = any(rng, &[6, 17, 17, 1, 132]);
    let mut key = FlowKey { vni, src: a, dst: b, sport: e, dport: f, proto, through: None };
    let mut action = any(rng, &ACTIONS);
    let mut marks = Marks(u32::from(rng.random::<u8>()));
    if let Some(link) = tables.agent.links.get(&IFINDEX)
        && rng.random_bool(0.4)
    {
        // A key of the container's answer to a client outside.
        let dst = Name::inside(any(rng, &CLIENTS));
        key = FlowKey { src: Name::inside(Ipv4Addr::from(link.ip)), dst, vni: link.vni, ..key };
        action = Action::Reverse;
        marks |= any(rng, &[Marks::default(), Marks::DSR | Marks::ANSWERED]);
        if rng.random() {
            marks = marks.without(Marks::FIN | Marks::RST);
        }
    }
    let entry = Entry {
        src: c,
        dst: d,
        sport: g,
        dport: h,
        vni: any(rng, &[0, VNI, OTHER_VNI, 77]),
        service: rng.random_range(0..8),
        backend: rng.random_range(0..8),
        node: Some(any(rng, &NODES)),
        action,
        marks,
        idle: any(rng, &[0, 0, 0, 30, 600]),
        last_seen: check::now() + any(rng, &[0, 5_000_000_000]),
    };
    tables.conntrack.insert(key, entry);
}

/// The actions of entries, and one that no entry has.
const ACTIONS: [Action; 7] = [
    Action::Unknown(0),
    Action::Forward,
    Action::Reply,
    Action::Reverse,
    Action::Snat,
    Action::Unsnat,
    Action::Unknown(6),
];
