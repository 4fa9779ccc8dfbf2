//! From the cluster's state to the map entries of one node: a pure function.
//!
//! A node holds a network's state only while it has an endpoint on it (lazy peers), except for
//! `ingress`, and for services with ports that every node answers.

mod addresses6;
mod balance;
mod facts;
mod netns;
pub mod slots;
pub mod stale;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use overlay_common::{
    Be16, Be32, Ip6, Mac, UNDERLAY_VNI, VXLAN_OVERHEAD, VXLAN_OVERHEAD6,
    maps::{
        self, BACKEND_ACTIVE, BACKEND_DOWN, BACKEND_DRAINING, ENDPOINT_FLAG_BACKEND,
        ENDPOINT_FLAG_HOST, ENDPOINT_FLAG_PUBLISHED, ENDPOINT_GATEWAY, ENDPOINT_LOCAL,
        ENDPOINT_REMOTE, ENDPOINT_SERVICE, Endpoint6Key, EndpointKey, Link6, NETWORK_INTERNAL,
        NETWORK_LOCAL, NETWORK_REPLICATE, PUBLISHED_IPV6, PeerKey, PublishedKey, SubnetKey,
    },
};

pub use self::{balance::scheduler_of, facts::LocalFacts};
use crate::{
    datapath::DatapathState,
    model::{
        ClusterState, Endpoint, EndpointState, Id, Multicast, Network, Node, Port, PublishMode,
        Service, ServiceNetwork, Standing,
    },
};

/// Set in the number of a service that has only backends of this node. Published ports of mode
/// host refer to such services. Numbers of the cluster are smaller.
pub const HOST_MODE: u32 = 1 << 31;

/// MTU of a network's interfaces in bytes, on a node with VTEP `vtep` whose underlay has
/// `underlay_mtu`.
pub fn network_mtu(network: &Network, vtep: IpAddr, underlay_mtu: u32) -> u32 {
    let overhead = if vtep.is_ipv6() { VXLAN_OVERHEAD6 } else { VXLAN_OVERHEAD };
    let follows =
        if network.is_local() { underlay_mtu } else { underlay_mtu.saturating_sub(overhead) };
    network.mtu.unwrap_or(follows)
}

/// Computes the contents of the maps of `node` for the cluster's `state`. A node that is not part
/// of the state gets empty maps. Slots of endpoints are assigned afterwards.
pub fn compile(state: &ClusterState, node: &Id, facts: &LocalFacts) -> DatapathState {
    let mut out = DatapathState::default();
    let Some(me) = state.nodes.get(node) else { return out };
    let view = View::new(state, me, facts);
    for network in view.relevant() {
        out.networks.insert(network.vni, view.network(network));
        view.add_replicas(network, &mut out);
        view.add_endpoints(network, &mut out);
        view.add_peers(network, &mut out);
    }
    out.netns = netns::compile(state, facts);
    view.add_ingress(&mut out);
    view.add_cluster_peers(&mut out);
    for service in state.services.values() {
        for (position, on) in service.networks.iter().enumerate() {
            view.add_service(service, position, on, &mut out);
        }
        view.add_published(service, &mut out);
    }
    let addresses = facts.addresses.iter().filter(|address| !address.is_loopback());
    out.local_addrs.extend(addresses.map(|address| (Be32::from(*address), 1)));
    out.egress.extend(facts.uplinks.iter().map(|(ifindex, ip)| (*ifindex, Be32::from(*ip))));
    // This covers all networks, not only those with containers here: whether an address is
    // inside does not depend on where a container runs.
    out.subnets.extend(state.networks.values().map(|network| {
        let prefix = u32::from(network.subnet.prefix_len());
        (SubnetKey { prefix, ip: network.subnet.network().into() }, network.vni)
    }));
    addresses6::compile(state, me, facts, &mut out);
    out
}

fn mac_of(ip: Ipv4Addr) -> Mac {
    Mac::of_ip(ip.into())
}

fn key(network: &Network, ip: Ipv4Addr) -> EndpointKey {
    EndpointKey { vni: network.vni, ip: ip.into() }
}

/// The state as one node sees it, indexed once: services and endpoints are many.
struct View<'a> {
    state: &'a ClusterState,
    me: &'a Node,
    facts: &'a LocalFacts,
    relevant: BTreeSet<&'a Id>,
    by_network: BTreeMap<&'a Id, Vec<&'a Endpoint>>,
    /// By service and network, in the order of the backend numbers.
    backends: BTreeMap<(&'a Id, &'a Id), Vec<&'a Endpoint>>,
}

impl<'a> View<'a> {
    fn new(state: &'a ClusterState, me: &'a Node, facts: &'a LocalFacts) -> Self {
        let mut view = Self {
            state,
            me,
            facts,
            relevant: state.ingress().map(|n| &n.id).into_iter().collect(),
            by_network: BTreeMap::new(),
            backends: BTreeMap::new(),
        };
        for endpoint in state.endpoints.values() {
            view.index(endpoint);
        }
        for backends in view.backends.values_mut() {
            backends.sort_unstable_by_key(|endpoint| endpoint.number);
        }
        view
    }

    fn index(&mut self, endpoint: &'a Endpoint) {
        let Some(network) = self.state.networks.get(&endpoint.network) else { return };
        if !self.state.nodes.contains_key(&endpoint.node) {
            return;
        }
        let mine = endpoint.node == self.me.id;
        let wired = self.facts.links.contains_key(&endpoint.id);
        // An own endpoint without a link cannot be reached yet; one of another node's bridge never.
        if if mine { !wired } else { network.is_local() } {
            return;
        }
        if mine {
            self.relevant.insert(&network.id);
        }
        self.by_network.entry(&network.id).or_default().push(endpoint);
        if let Some(service) = &endpoint.service {
            self.backends.entry((service, &network.id)).or_default().push(endpoint);
        }
    }

    fn relevant(&self) -> impl Iterator<Item = &'a Network> + '_ {
        self.relevant.iter().filter_map(|id| self.state.networks.get(*id))
    }

    fn endpoints_on(&self, network: &Network) -> &[&'a Endpoint] {
        self.by_network.get(&network.id).map_or(&[], Vec::as_slice)
    }

    /// Index of the interface of an own endpoint.
    fn ifindex(&self, endpoint: &Endpoint) -> Option<u32> {
        self.facts.links.get(&endpoint.id).copied().filter(|_| endpoint.node == self.me.id)
    }

    /// VTEP of another node; zero for this one.
    fn vtep(&self, node: &Id) -> Be32 {
        let others = self.state.nodes.get(node).filter(|n| n.id != self.me.id);
        others.map_or(Be32::ZERO, Node::vtep)
    }

    fn other_nodes(&self) -> impl Iterator<Item = &'a Node> + '_ {
        self.state.nodes.values().filter(|n| n.id != self.me.id)
    }

    fn network(&self, network: &Network) -> maps::Network {
        let mut flags = 0;
        if network.internal {
            flags |= NETWORK_INTERNAL;
        }
        if network.is_local() {
            flags |= NETWORK_LOCAL;
        }
        if network.multicast == Multicast::Replicate {
            flags |= NETWORK_REPLICATE;
        }
        maps::Network {
            subnet: network.subnet.network().into(),
            mask: network.subnet.netmask().into(),
            gateway: network.gateway.into(),
            mtu: network_mtu(network, self.me.data_path_addr, self.facts.underlay_mtu),
            flags,
            policy: 0,
        }
    }

    /// Where packets to groups are copied: endpoints here, but for the host link, and other nodes.
    fn add_replicas(&self, network: &Network, out: &mut DatapathState) {
        if network.multicast == Multicast::Drop {
            return;
        }
        let endpoints = self.endpoints_on(network);
        let links: BTreeSet<u32> = endpoints.iter().filter_map(|e| self.ifindex(e)).collect();
        let other = |e: &&Endpoint| Some(self.vtep(&e.node)).filter(|vtep| *vtep != Be32::ZERO);
        let vteps: BTreeSet<Be32> = endpoints.iter().filter_map(other).collect();
        let count = |length| u32::try_from(length).unwrap_or(u32::MAX);
        let mut replicas = Box::new(maps::Flood {
            endpoints: count(links.len()),
            nodes: count(vteps.len()),
            ..maps::Flood::default()
        });
        for (slot, link) in replicas.links.iter_mut().zip(links) {
            *slot = link;
        }
        for (slot, vtep) in replicas.vteps.iter_mut().zip(vteps) {
            *slot = vtep;
        }
        out.flood.insert(network.vni, replicas);
    }

    fn add_endpoints(&self, network: &Network, out: &mut DatapathState) {
        for endpoint in self.endpoints_on(network) {
            let entry = self.endpoint(endpoint, network);
            if let Some(ifindex) = self.ifindex(endpoint) {
                let (vni, ip) = (network.vni, endpoint.ip.into());
                let (mac, flags) = (entry.mac, u16::from(entry.flags));
                out.links.insert(ifindex, maps::Link { vni, ip, mac, flags, counter: 0 });
            }
            out.endpoints.insert(key(network, endpoint.ip), entry);
            self.add_ipv6(network, endpoint, entry, out);
        }
        let gateway = maps::Endpoint {
            kind: ENDPOINT_GATEWAY,
            mac: mac_of(network.gateway),
            ..maps::Endpoint::default()
        };
        out.endpoints.insert(key(network, network.gateway), gateway);
        if let Some(ipv6) = &network.ipv6 {
            let key = Endpoint6Key { vni: network.vni, ip: ipv6.gateway.into() };
            out.endpoints6.insert(key, gateway);
        }
    }

    fn endpoint(&self, endpoint: &Endpoint, network: &Network) -> maps::Endpoint {
        let flags = self.flags(endpoint, network);
        let entry = maps::Endpoint { flags, mac: mac_of(endpoint.ip), ..maps::Endpoint::default() };
        match self.ifindex(endpoint) {
            Some(ifindex) => maps::Endpoint { kind: ENDPOINT_LOCAL, ifindex, ..entry },
            None => {
                let node = self.vtep(&endpoint.node);
                maps::Endpoint { kind: ENDPOINT_REMOTE, node, ..entry }
            }
        }
    }

    /// The same under the endpoint's IPv6 address, which has its MAC.
    fn add_ipv6(
        &self,
        network: &Network,
        endpoint: &Endpoint,
        entry: maps::Endpoint,
        out: &mut DatapathState,
    ) {
        let (Some(ipv6), Some(ip6)) = (&network.ipv6, endpoint.ip6) else { return };
        let ip = Ip6::from(ip6);
        out.endpoints6.insert(Endpoint6Key { vni: network.vni, ip }, entry);
        out.addresses6.insert(key(network, endpoint.ip), ip);
        if let Some(ifindex) = self.ifindex(endpoint) {
            let mask = Ip6::mask(ipv6.subnet.prefix_len());
            let gateway = ipv6.gateway.into();
            out.links6.insert(ifindex, Link6 { ip, mask, gateway });
        }
    }

    fn flags(&self, endpoint: &Endpoint, network: &Network) -> u8 {
        let Some(service) = endpoint.service.as_ref().and_then(|id| self.state.services.get(id))
        else {
            return 0;
        };
        match service.networks.iter().position(|on| on.network == network.id) {
            Some(0) if !service.ports.is_empty() && !network.internal => {
                ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED
            }
            Some(_) => ENDPOINT_FLAG_BACKEND,
            None => 0,
        }
    }

    fn add_peers(&self, network: &Network, out: &mut DatapathState) {
        if network.is_local() {
            return;
        }
        let nodes: BTreeSet<&Id> = if network.ingress {
            self.other_nodes().map(|n| &n.id).collect()
        } else {
            self.endpoints_on(network).iter().map(|e| &e.node).collect()
        };
        for node in nodes.into_iter().filter(|id| **id != self.me.id) {
            let key = PeerKey { vni: network.vni, node: self.vtep(node) };
            out.peers.insert(key, maps::Peer::default());
        }
    }

    fn add_cluster_peers(&self, out: &mut DatapathState) {
        for node in self.other_nodes() {
            let key = PeerKey { vni: UNDERLAY_VNI, node: node.vtep() };
            out.peers.insert(key, maps::Peer::default());
            if let IpAddr::V6(vtep) = node.data_path_addr {
                out.vteps6.insert(node.vtep(), vtep.into());
            }
        }
    }

    /// The nodes' own addresses on the ingress network, and the host link's.
    fn add_ingress(&self, out: &mut DatapathState) {
        let Some(ingress) = self.state.ingress() else { return };
        for node in self.other_nodes().filter(|n| !n.ingress_ip.is_unspecified()) {
            let entry = maps::Endpoint {
                kind: ENDPOINT_REMOTE,
                mac: mac_of(node.ingress_ip),
                node: node.vtep(),
                ..maps::Endpoint::default()
            };
            out.endpoints.insert(key(ingress, node.ingress_ip), entry);
        }
        let Some((ifindex, mac)) = self.facts.host_link else { return };
        let flags = ENDPOINT_FLAG_HOST;
        let entry = maps::Endpoint {
            kind: ENDPOINT_LOCAL,
            flags,
            mac,
            ifindex,
            ..maps::Endpoint::default()
        };
        out.endpoints.insert(key(ingress, self.me.ingress_ip), entry);
        let (vni, ip) = (ingress.vni, self.me.ingress_ip.into());
        let flags = u16::from(flags);
        out.links.insert(ifindex, maps::Link { vni, ip, mac, flags, counter: 0 });
    }

    fn add_service(
        &self,
        service: &'a Service,
        position: usize,
        on: &'a ServiceNetwork,
        out: &mut DatapathState,
    ) {
        let Some(network) = self.state.networks.get(&on.network) else { return };
        let here = self.relevant.contains(&network.id);
        let answers_everywhere =
            position == 0 && service.ports.iter().any(|port| everywhere(port, network));
        if !here && !answers_everywhere {
            return;
        }
        let backends = self.backends_of(service, on);
        let vip = on.vip.map_or(Be32::ZERO, Be32::from);
        self.add_backends(on.number, (network, vip), service, backends, out);
        for endpoint in backends {
            if let Some(entry) = self.backend(endpoint, service, network) {
                out.backends.insert(endpoint.number, entry);
                if !here {
                    // Nothing else of the network is held, but flows name its backends.
                    self.add_ipv6(network, endpoint, self.endpoint(endpoint, network), out);
                }
            }
        }
        if let (true, Some(vip)) = (here, on.vip) {
            let entry = maps::Endpoint {
                kind: ENDPOINT_SERVICE,
                mac: mac_of(vip),
                service: on.number,
                ..maps::Endpoint::default()
            };
            out.endpoints.insert(key(network, vip), entry);
            if let (Some(vip6), true) = (on.vip6, network.ipv6.is_some()) {
                let ip = Ip6::from(vip6);
                out.endpoints6.insert(Endpoint6Key { vni: network.vni, ip }, entry);
                out.addresses6.insert(key(network, vip), ip);
            }
        }
    }

    fn backends_of(&self, service: &'a Service, on: &'a ServiceNetwork) -> &[&'a Endpoint] {
        self.backends.get(&(&service.id, &on.network)).map_or(&[], Vec::as_slice)
    }

    /// A service under a number, with those of the backends that take new flows.
    fn add_backends<'b>(
        &self,
        number: u32,
        (network, vip): (&Network, Be32),
        service: &Service,
        backends: impl IntoIterator<Item = &'b &'a Endpoint>,
        out: &mut DatapathState,
    ) where
        'a: 'b,
    {
        let taking = backends.into_iter().filter(|endpoint| self.takes_flows(endpoint));
        let backends: Vec<_> = taking.map(|e| (e.number, e.weight)).collect();
        let entry = maps::Service { vni: network.vni, vip, ..maps::Service::default() };
        balance::add_service(number, entry, &service.balance, &backends, out);
    }

    /// Whether new flows may go to the endpoint. This node does not ask the cluster whether it is
    /// alive itself.
    fn takes_flows(&self, endpoint: &Endpoint) -> bool {
        match self.state.standing(endpoint) {
            Standing::Running => true,
            Standing::NodeDown => endpoint.node == self.me.id,
            _ => false,
        }
    }

    fn backend(
        &self,
        endpoint: &Endpoint,
        service: &Service,
        network: &Network,
    ) -> Option<maps::Backend> {
        if endpoint.state == EndpointState::Starting {
            return None;
        }
        let active = self.takes_flows(endpoint);
        Some(maps::Backend {
            vni: network.vni,
            ip: endpoint.ip.into(),
            node: self.vtep(&endpoint.node),
            ifindex: self.ifindex(endpoint).unwrap_or(0),
            mac: mac_of(endpoint.ip),
            state: match self.state.standing(endpoint) {
                _ if active => BACKEND_ACTIVE,
                Standing::NodeDown => BACKEND_DOWN,
                _ => BACKEND_DRAINING,
            },
            counter: 0,
            weight: endpoint.weight,
            flags: balance::backend_flags(&service.balance),
        })
    }

    fn add_published(&self, service: &'a Service, out: &mut DatapathState) {
        let Some(first) = service.networks.first() else { return };
        let Some(network) = self.state.networks.get(&first.network) else { return };
        if network.internal {
            return;
        }
        let mine: Vec<&Endpoint> = self
            .backends_of(service, first)
            .iter()
            .copied()
            .filter(|e| e.node == self.me.id && e.state != EndpointState::Starting)
            .collect();
        let flags = if network.ipv6.is_some() { PUBLISHED_IPV6 } else { 0 };
        for port in &service.ports {
            let Some(published) = port.published else { continue };
            let number = if everywhere(port, network) {
                first.number
            } else if mine.is_empty() {
                continue;
            } else {
                let number = first.number | HOST_MODE;
                self.add_backends(number, (network, Be32::ZERO), service, &mine, out);
                number
            };
            let proto = port.protocol.number();
            let key = PublishedKey { port: Be16::new(published), proto, pad: 0 };
            let target = Be16::new(port.target);
            // The manager refuses a port that is taken; should two ever meet, the older id wins
            // on every node alike.
            out.published.entry(key).or_insert(maps::Published { service: number, target, flags });
        }
    }
}

/// Whether every node answers the port: ports of node-local networks never leave their host.
fn everywhere(port: &Port, network: &Network) -> bool {
    port.mode == PublishMode::Ingress && !network.is_local() && !network.internal
}
