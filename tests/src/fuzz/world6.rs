//! The IPv6 part of the random maps of `world`.

use std::net::Ipv6Addr;

use overlay::datapath::DatapathState;
use overlay_common::{
    Ip6, hash,
    maps::{ENDPOINT_LOCAL, Endpoint6Key, EndpointKey, Frontend6Key, Link6, Subnet6Key},
};
use rand::{RngExt as _, rngs::SmallRng};

use super::{
    check,
    traffic6::CLIENTS6,
    world::{NODES, PORTS, VNIS, address, address6, any, beside},
};
use crate::{
    model::{Action, Entry, FlowKey, Marks, Name, Tables},
    rig::{IFINDEX, NODE6, PEER6, ip6},
};

/// IPv6 frontends of other nodes in frames. No node has the last one.
pub const ASKED6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x99),
    Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9),
    Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 10),
];

/// Gives endpoints IPv6 addresses, mostly those that belong to their IPv4 addresses.
pub fn dual_stack(rng: &mut SmallRng, agent: &mut DatapathState) {
    agent.endpoints6.clear();
    agent.addresses6.clear();
    for (key, endpoint) in &agent.endpoints {
        let ip = Ip6::from(beside(key.ip.into()));
        if rng.random_bool(0.8) {
            agent.endpoints6.insert(Endpoint6Key { vni: key.vni, ip }, *endpoint);
        }
        if rng.random_bool(0.9) {
            agent.addresses6.insert(*key, ip);
        }
    }
    for backend in agent.backends.values() {
        if rng.random_bool(0.9) {
            let key = EndpointKey { vni: backend.vni, ip: backend.ip };
            agent.addresses6.insert(key, beside(backend.ip.into()).into());
        }
    }
    agent.links6.retain(|ifindex, _| *ifindex == IFINDEX);
    let local = agent.endpoints.iter().filter(|(_, e)| e.kind == ENDPOINT_LOCAL);
    for (key, endpoint) in local.filter(|(_, endpoint)| endpoint.ifindex != IFINDEX) {
        if rng.random_bool(0.9) {
            let mask = Ip6::mask(any(rng, &[64, 64, 64, 126, 0]));
            let gateway = address6(rng, key.vni).into();
            let ip = beside(key.ip.into()).into();
            agent.links6.insert(endpoint.ifindex, Link6 { ip, mask, gateway });
        }
    }
    inside6(rng, agent);
    agent.frontends6.clear();
    for node in NODES {
        for address in &ASKED6[..3] {
            if rng.random_bool(0.8) {
                let number = hash::of_node(&(*address).into());
                agent
                    .frontends6
                    .insert(Frontend6Key { node: node.into(), number }, (*address).into());
            }
        }
    }
    agent.local_addrs6.clear();
    for local in [NODE6, ip6(255, 2)] {
        if rng.random_bool(0.9) {
            agent.local_addrs6.insert(local.into(), 1);
        }
    }
}

/// Fills in the IPv6 addresses inside: mostly the networks, and sometimes a client.
fn inside6(rng: &mut SmallRng, agent: &mut DatapathState) {
    agent.subnets6.clear();
    for vni in VNIS {
        if rng.random_bool(0.9) {
            let [a, b, c, d, ..] = beside(address(rng, vni)).segments();
            let ip = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into();
            agent.subnets6.insert(Subnet6Key { prefix: 64, ip }, vni);
        }
    }
    if rng.random_bool(0.2) {
        let nearest = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);
        let (prefix, ip) = any(rng, &[(128, PEER6), (64, nearest), (0, Ipv6Addr::UNSPECIFIED)]);
        agent.subnets6.insert(Subnet6Key { prefix, ip: ip.into() }, 77);
    }
}

pub fn link6(rng: &mut SmallRng, agent: &mut DatapathState) {
    agent.links6.remove(&IFINDEX);
    let Some(link) = agent.links.get(&IFINDEX) else { return };
    let ip = if rng.random_bool(0.9) { beside(link.ip.into()) } else { address6(rng, link.vni) };
    if rng.random_bool(0.9) {
        let mask = Ip6::mask(any(rng, &[64, 64, 64, 126, 0]));
        let gateway = address6(rng, link.vni).into();
        agent.links6.insert(IFINDEX, Link6 { ip: ip.into(), mask, gateway });
    }
}

/// Makes an entry for the container's answer to an IPv6 client outside. The ingress node is mostly
/// another node. An address id may be missing.
pub fn reverse6(rng: &mut SmallRng, tables: &mut Tables) {
    let Some(link) = tables.agent.links.get(&IFINDEX).copied() else { return };
    let mut name = |address: Ipv6Addr| {
        if !tables.clients_new.contains(&address) && rng.random_bool(0.95) {
            tables.clients.insert(address);
        }
        Name::outside(address)
    };
    let [client, frontend] = [CLIENTS6[0], ASKED6[0]].map(&mut name);
    let mut port = || any(rng, &PORTS);
    let [own, other, told] = [port(), port(), port()];
    let key = FlowKey {
        vni: link.vni,
        src: Name::inside(beside(link.ip.into())),
        dst: client,
        sport: own,
        dport: other,
        proto: any(rng, &[6, 6, 17, 17, 132]),
        through: None,
    };
    let unchanged = Entry::unchanged(&key, Action::Reverse, check::now());
    let mut entry = Entry {
        dport: if rng.random_bool(0.9) { other } else { told },
        node: Some(any(rng, &NODES)),
        ..unchanged
    };
    if rng.random_bool(0.9) {
        (entry.src, entry.sport) = (frontend, told);
        let answered = Marks::DSR | Marks::ANSWERED;
        entry.marks = any(rng, &[Marks::DSR, answered, answered]);
    }
    tables.conntrack.insert(key, entry);
}
