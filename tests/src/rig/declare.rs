//! The maps as the agent would write them: networks, endpoints, services and published ports.

use std::net::Ipv4Addr;

use overlay::datapath::LbTable;
use overlay_common::{
    Be16, Be32, Ip6,
    maps::{
        self, Backend, Endpoint, Endpoint6Key, EndpointKey, Link, Link6, Network, Peer, PeerKey,
        Published, PublishedKey, Service, SlotKey, Subnet6Key, SubnetKey, TableKey,
    },
};

use super::{IFINDEX, NODE, NODE6, PEER, Rig, counter_of, ip6, mac};

impl Rig {
    /// Declares a network 10.0.N.0/24 with gateway .1.
    pub fn network(&mut self, vni: u32, n: u8) {
        let gateway = Ipv4Addr::new(10, 0, n, 1);
        self.set(|state| {
            let subnet = SubnetKey { prefix: 24, ip: Ipv4Addr::new(10, 0, n, 0).into() };
            state.subnets.insert(subnet, vni);
            state.networks.insert(
                vni,
                Network {
                    subnet: Ipv4Addr::new(10, 0, n, 0).into(),
                    mask: Ipv4Addr::new(255, 255, 255, 0).into(),
                    gateway: gateway.into(),
                    mtu: 1450,
                    flags: 0,
                    policy: 0,
                },
            );
            state.endpoints.insert(
                EndpointKey { vni, ip: gateway.into() },
                Endpoint { kind: maps::ENDPOINT_GATEWAY, mac: mac(gateway), ..Endpoint::default() },
            );
        });
    }

    /// Gives all endpoints of network 10.0.N.0/24 so far an IPv6 address too: 10.0.N.X has
    /// fd00:N::X. The subnet is fd00:N::/64.
    pub fn dual_stack(&mut self, vni: u32, n: u8) {
        self.set(|state| {
            let subnet = Subnet6Key { prefix: 64, ip: ip6(n, 0).into() };
            state.subnets6.insert(subnet, vni);
            for (key, endpoint) in &state.endpoints {
                if key.vni == vni {
                    let ip = ip6(n, key.ip.octets()[3]).into();
                    state.endpoints6.insert(Endpoint6Key { vni, ip }, *endpoint);
                    state.addresses6.insert(*key, ip);
                }
            }
            for (ifindex, link) in &state.links {
                if link.vni == vni {
                    let ip = ip6(n, link.ip.octets()[3]).into();
                    let (mask, gateway) = (Ip6::mask(64), ip6(n, 1).into());
                    state.links6.insert(*ifindex, Link6 { ip, mask, gateway });
                }
            }
        });
    }

    /// Declares an endpoint on this node; packets of the tests come from it if `sends`.
    pub fn local(&mut self, vni: u32, ip: Ipv4Addr, flags: u8, sends: bool) {
        self.set(|state| {
            let ifindex = if sends { IFINDEX } else { 40 + u32::from(ip.octets()[3]) };
            let counter = counter_of(ip);
            state.endpoints.insert(
                EndpointKey { vni, ip: ip.into() },
                Endpoint {
                    kind: maps::ENDPOINT_LOCAL,
                    flags,
                    mac: mac(ip),
                    ifindex,
                    counter,
                    ..Endpoint::default()
                },
            );
            state.links.insert(
                ifindex,
                Link { vni, ip: ip.into(), mac: mac(ip), flags: u16::from(flags), counter },
            );
        });
    }

    /// Declares an endpoint on the peer.
    pub fn remote(&mut self, vni: u32, ip: Ipv4Addr, flags: u8) {
        let peer = self.number(PEER);
        self.set(|state| {
            state.endpoints.insert(
                EndpointKey { vni, ip: ip.into() },
                Endpoint {
                    kind: maps::ENDPOINT_REMOTE,
                    flags,
                    mac: mac(ip),
                    node: peer,
                    ..Endpoint::default()
                },
            );
        });
        self.node(PEER, &[vni]);
    }

    /// Declares a node of the cluster that has endpoints of `networks`.
    pub fn node(&mut self, node: Ipv4Addr, networks: &[u32]) {
        let node = self.number(node);
        self.set(|state| {
            for vni in [&[0], networks].concat() {
                state.peers.insert(PeerKey { vni, node }, Peer::default());
            }
        });
    }

    /// Declares service `number` with `backends` (number, address, on this node) and a VIP.
    pub fn service(
        &mut self,
        number: u32,
        vni: u32,
        vip: Ipv4Addr,
        backends: &[(u32, Ipv4Addr, bool)],
    ) {
        let peer = self.number(PEER);
        self.set(|state| {
            state.services.insert(
                number,
                Service {
                    vni,
                    vip: vip.into(),
                    slots: backends.len() as u32,
                    ..Service::default()
                },
            );
            state.slots.retain(|key, _| key.service != number);
            for (index, (backend, ip, local)) in backends.iter().enumerate() {
                state.slots.insert(SlotKey { service: number, index: index as u32 }, *backend);
                state.backends.insert(
                    *backend,
                    Backend {
                        vni,
                        ip: (*ip).into(),
                        node: if *local { Be32::ZERO } else { peer },
                        ifindex: if *local { 40 + u32::from(ip.octets()[3]) } else { 0 },
                        mac: mac(*ip),
                        state: maps::BACKEND_ACTIVE,
                        counter: if *local { counter_of(*ip) } else { 0 },
                        weight: 1,
                        flags: 0,
                    },
                );
            }
            if !vip.is_unspecified() {
                state.endpoints.insert(
                    EndpointKey { vni, ip: vip.into() },
                    Endpoint {
                        kind: maps::ENDPOINT_SERVICE,
                        mac: mac(vip),
                        service: number,
                        ..Endpoint::default()
                    },
                );
            }
        });
    }

    /// Declares the underlay interface an uplink, under the node's own address.
    pub fn way_out(&mut self) {
        let underlay = self.underlay;
        self.set(|state| {
            state.egress.insert(underlay, NODE.into());
            state.local_addrs.insert(NODE.into(), 1);
        });
    }

    /// Publishes a port of this node.
    pub fn publish(&mut self, proto: u8, port: u16, service: u32, target: u16) {
        self.set(|state| {
            state.published.insert(
                PublishedKey { port: Be16::new(port), proto, pad: 0 },
                Published { service, target: Be16::new(target), flags: 0 },
            );
            state.local_addrs.insert(NODE.into(), 1);
        });
        self.node(PEER, &[]);
    }

    /// Publishes a port of this node on its IPv6 address too.
    pub fn publish6(&mut self, proto: u8, port: u16, service: u32, target: u16) {
        self.publish(proto, port, service, target);
        self.set(|state| {
            let key = PublishedKey { port: Be16::new(port), proto, pad: 0 };
            state.published.get_mut(&key).expect("published").flags = maps::PUBLISHED_IPV6;
            state.local_addrs6.insert(NODE6.into(), 1);
        });
    }

    /// Changes the balancing of service `number`: its scheduler (`LB_*`), and a table in place of
    /// its list if one is given.
    pub fn balance(&mut self, number: u32, scheduler: u8, table: Option<LbTable>) {
        self.set(|state| {
            state.tables.retain(|key, _| key.service != number);
            let service = state.services.get_mut(&number).expect("a service");
            service.scheduler = scheduler;
            service.table = 0;
            if let Some(table) = table {
                service.table = table.digest();
                service.slots = table.size();
                state.tables.insert(TableKey { service: number, table: table.digest() }, table);
            }
        });
    }
}
