//! Services in the form of IPVS: virtual servers, and the load of each of their backends.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use overlay_common::{
    Be16, Be32,
    flow::is_expired,
    maps::{
        BACKEND_ACTIVE, BACKEND_DOWN, BackendStats, BackendStatsKey, CONNTRACK_FORWARD, Conntrack,
        ConntrackKey, PUBLISHED_IPV6, SockFlow, TCP_SEEN_ACK, TCP_SEEN_FIN, TCP_SEEN_RST,
    },
    wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

use super::{address_ids::is_ipv6, words::protocol};
use crate::{
    agent::compile::HOST_MODE,
    datapath::{DatapathState, RealServer, ServerStats, VirtualServer},
    model::{ClusterState, Endpoint, Id, Service, ServiceNetwork},
};

/// The addresses of the host, of IPv6.
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Flows of a backend behind one virtual server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flows {
    active: u64,
    inactive: u64,
}

/// The key of a count of flows: protocol, whether IPv6, service number, port (0 for the VIP),
/// backend.
type Of = (u8, bool, u32, u16, u32);

/// The virtual servers that `held` has: VIPs, of which all ports are served, and published ports.
pub fn virtual_servers(
    state: &ClusterState,
    held: &DatapathState,
    (entries, sockets, now): (&[(ConntrackKey, Conntrack)], &BTreeMap<u64, SockFlow>, u64),
    served: &BTreeMap<BackendStatsKey, BackendStats>,
) -> Vec<VirtualServer> {
    let mut flows = flows(held, entries, now);
    // Sockets that connect to a backend in place of the VIP have only a count of connections.
    for socket in sockets.values().filter(|socket| socket.backend != 0) {
        let is_ipv6 = socket.asked.unmapped().is_none();
        let of = (PROTO_TCP, is_ipv6, socket.service, 0, socket.backend);
        flows.entry(of).or_default().active += 1;
    }
    let flows = (flows, served);
    let mut servers = Vec::new();
    for service in state.services.values() {
        for on in &service.networks {
            if !held.services.contains_key(&on.number) {
                continue;
            }
            let vips = [on.vip.map(IpAddr::V4), on.vip6.map(IpAddr::V6)];
            for vip in vips.into_iter().flatten() {
                for proto in [PROTO_TCP, PROTO_UDP, PROTO_SCTP] {
                    let of = |key: &BackendStatsKey| {
                        (key.service, key.proto, key.port) == (on.number, proto, Be16::ZERO)
                            && (key.ipv6 != 0) == vip.is_ipv6()
                    };
                    // Few services speak it.
                    if proto == PROTO_SCTP && !served.keys().any(of) {
                        continue;
                    }
                    let server = Server { service, on, number: on.number, proto };
                    servers.push(server.show(state, held, &flows, (vip, 0, 0)));
                }
            }
        }
        let Some(on) = service.networks.first() else { continue };
        for (key, published) in &held.published {
            if published.service & !HOST_MODE == on.number {
                let (number, proto) = (published.service, key.proto);
                let ports = (key.port.get(), published.target.get());
                let server = Server { service, on, number, proto };
                let ipv6 = published.flags & PUBLISHED_IPV6 != 0;
                let any = [Some(Ipv4Addr::UNSPECIFIED.into()), ipv6.then_some(ANY6)];
                for any in any.into_iter().flatten() {
                    servers.push(server.show(state, held, &flows, (any, ports.0, ports.1)));
                }
            }
        }
    }
    servers.sort_by(|a, b| {
        let key = |s: &VirtualServer| (s.service.clone(), s.address, s.port, s.protocol.clone());
        key(a).cmp(&key(b))
    });
    servers
}

/// A service as it is asked in one way.
struct Server<'a> {
    service: &'a Service,
    on: &'a ServiceNetwork,
    number: u32,
    proto: u8,
}

impl Server<'_> {
    fn show(
        &self,
        state: &ClusterState,
        held: &DatapathState,
        (flows, served): &(HashMap<Of, Flows>, &BTreeMap<BackendStatsKey, BackendStats>),
        (address, port, target): (IpAddr, u16, u16),
    ) -> VirtualServer {
        let mut backends: Vec<&Endpoint> =
            state.backends_of(&self.service.id, &self.on.network).collect();
        backends.sort_unstable_by_key(|endpoint| endpoint.number);
        let node = |id: &Id| state.nodes.get(id).map(|n| n.name.clone()).unwrap_or_default();
        let show = |endpoint: &Endpoint| {
            let held = held.backends.get(&endpoint.number)?;
            // Ports of mode host have the backends of this node only.
            if self.number & HOST_MODE != 0 && held.node != Be32::ZERO {
                return None;
            }
            let own = match address {
                IpAddr::V4(_) => IpAddr::V4(endpoint.ip),
                IpAddr::V6(_) => IpAddr::V6(endpoint.ip6?),
            };
            let of = (self.proto, own.is_ipv6(), self.number, port, endpoint.number);
            let flows = flows.get(&of).copied().unwrap_or_default();
            let key = BackendStatsKey {
                service: self.number,
                backend: endpoint.number,
                port: Be16::new(port),
                proto: self.proto,
                ipv6: own.is_ipv6().into(),
            };
            let stats = served.get(&key).map(ServerStats::from).unwrap_or_default();
            let draining = held.state != BACKEND_ACTIVE;
            Some(RealServer {
                address: own,
                port: target,
                name: endpoint.name.clone(),
                node: node(&endpoint.node),
                forward: if held.node == Be32::ZERO { "Masq" } else { "Tunnel" }.to_owned(),
                weight: if draining { 0 } else { held.weight },
                state: match held.state {
                    BACKEND_ACTIVE => "active",
                    BACKEND_DOWN => "down",
                    _ => "draining",
                }
                .to_owned(),
                active: flows.active,
                inactive: flows.inactive,
                drained: if draining { flows.active + flows.inactive } else { 0 },
                stats,
            })
        };
        VirtualServer {
            protocol: protocol(self.proto),
            address,
            port,
            service: self.service.name.clone(),
            scheduler: self.service.balance.scheduler.name().to_owned(),
            persistent_secs: self.service.balance.affinity_secs,
            backends: backends.into_iter().filter_map(show).collect(),
        }
    }
}

impl From<&BackendStats> for ServerStats {
    fn from(served: &BackendStats) -> Self {
        Self {
            connections: served.flows,
            in_packets: served.in_packets,
            out_packets: served.out_packets,
            in_bytes: served.in_bytes,
            out_bytes: served.out_bytes,
        }
    }
}

/// Live flows of the clients' direction. As in IPVS, those with an established TCP connection are
/// active; others, UDP among them, are not.
fn flows(
    held: &DatapathState,
    entries: &[(ConntrackKey, Conntrack)],
    now: u64,
) -> HashMap<Of, Flows> {
    let mut flows: HashMap<Of, Flows> = HashMap::new();
    for (key, entry) in entries {
        if entry.action != CONNTRACK_FORWARD || entry.backend == 0 || is_expired(key, entry, now) {
            continue;
        }
        // The address id of an IPv6 VIP is its IPv4 address.
        let vip = held.services.get(&entry.service).map(|service| service.vip);
        let port = if vip == Some(key.daddr) { Be16::ZERO } else { key.dport };
        let of = (key.proto, is_ipv6(key.vni), entry.service, port.get(), entry.backend);
        let flows = flows.entry(of).or_default();
        let established = entry.flags & (TCP_SEEN_ACK | TCP_SEEN_FIN | TCP_SEEN_RST);
        if key.proto == PROTO_TCP && established == TCP_SEEN_ACK {
            flows.active += 1;
        } else {
            flows.inactive += 1;
        }
    }
    flows
}

#[cfg(test)]
mod tests {
    use overlay_common::maps::{TCP_SEEN_SYN, VNI_FLAG_IPV6};

    use super::*;
    use crate::{
        agent::{
            compile,
            testing::{TestCluster, id, port},
        },
        model::EndpointState,
    };

    #[test]
    fn flows_are_shown_with_the_server_that_was_asked_and_the_backend_that_has_them() {
        let mut cluster = TestCluster::with_nodes(2);
        cluster.network("mynet", "10.0.1.0/24", |_| {});
        cluster.service("web", &["mynet"], &[port(8080, 80)]);
        let near = cluster.backend("w1", "web", "h1", 21);
        let far = cluster.backend("w2", "web", "h2", 22);
        cluster.endpoint_mut("w2").state = EndpointState::Draining;
        cluster.endpoint_mut("w1").weight = 3;
        let held = compile(&cluster.state, &id("h1"), &cluster.facts("h1"));
        let service = cluster.number_of("web");
        let vip = held.services[&service].vip;
        const NOW: u64 = 1_000_000_000_000;
        let entry = |proto, (daddr, dport), state, backend, action| {
            let dport = Be16::new(dport);
            let key = ConntrackKey { proto, daddr, dport, ..ConntrackKey::default() };
            let last_seen = NOW;
            (
                key,
                Conntrack {
                    action,
                    backend,
                    service,
                    flags: state,
                    last_seen,
                    ..Conntrack::default()
                },
            )
        };
        let open = TCP_SEEN_SYN | TCP_SEEN_ACK;
        let host = Be32::from_octets([172, 16, 1, 10]);
        let entries = [
            entry(PROTO_TCP, (vip, 80), open, near, CONNTRACK_FORWARD),
            entry(PROTO_TCP, (vip, 81), open | TCP_SEEN_FIN, near, CONNTRACK_FORWARD),
            entry(PROTO_UDP, (vip, 53), 0, far, CONNTRACK_FORWARD),
            entry(PROTO_TCP, (host, 8080), open, far, CONNTRACK_FORWARD),
            entry(PROTO_TCP, (host, 8080), open, far, overlay_common::maps::CONNTRACK_REPLY),
        ];
        let served = |port, proto, backend| BackendStatsKey {
            service,
            backend,
            port: Be16::new(port),
            proto,
            ipv6: 0,
        };
        let counted = |flows| BackendStats {
            flows,
            in_packets: 2,
            in_bytes: 3,
            out_packets: 4,
            out_bytes: 5,
        };
        let served = BTreeMap::from([
            (served(8080, PROTO_TCP, far), counted(7)),
            (served(0, PROTO_TCP, near), counted(8)),
            (served(0, PROTO_TCP, 999), counted(9)),
        ]);
        let asked = overlay_common::Ip6::mapped(overlay_common::Be32::ZERO);
        let socket = SockFlow { asked, service, backend: near, ..SockFlow::default() };
        let sockets = BTreeMap::from([(1, socket), (2, socket), (3, SockFlow::default())]);
        let servers = virtual_servers(&cluster.state, &held, (&entries, &sockets, NOW), &served);
        let shown: Vec<_> = servers
            .iter()
            .map(|s| {
                let counts = s.backends.iter().map(|b| (b.weight, b.active, b.inactive, b.drained));
                (s.protocol.as_str(), s.port, counts.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("tcp", 8080, vec![(3, 0, 0, 0), (0, 1, 0, 1)]),
                ("tcp", 0, vec![(3, 3, 1, 0), (0, 0, 0, 0)]),
                ("udp", 0, vec![(3, 0, 0, 0), (0, 0, 1, 1)]),
            ]
        );
        let stats: Vec<Vec<u64>> = servers
            .iter()
            .map(|s| s.backends.iter().map(|b| b.stats.connections).collect())
            .collect();
        assert_eq!(stats, [[0, 7], [8, 0], [0, 0]]);
        let ServerStats { in_packets, in_bytes, out_packets, out_bytes, .. } =
            servers[0].backends[1].stats;
        assert_eq!((in_packets, in_bytes, out_packets, out_bytes), (2, 3, 4, 5));
        assert_eq!(servers[0].backends[1].forward, "Tunnel");
        assert_eq!((servers[0].backends[0].port, servers[1].backends[0].port), (80, 0));
    }
    #[test]
    fn servers_of_ipv6_have_addresses_flows_and_counts_of_their_own() {
        let mut cluster = TestCluster::with_nodes(1);
        cluster.network("dual", "10.0.1.0/24", crate::agent::testing::dual_stack);
        cluster.service("web", &["dual"], &[port(8080, 80)]);
        let backend = cluster.backend("w1", "web", "h1", 21);
        let held = compile(&cluster.state, &id("h1"), &cluster.facts("h1"));
        let service = cluster.number_of("web");
        const NOW: u64 = 1_000_000_000_000;
        let client = Be32::from_octets([240, 0, 0, 1]);
        let entry = |daddr, dport, vni| {
            let key = ConntrackKey {
                proto: PROTO_UDP,
                daddr,
                dport: Be16::new(dport),
                vni,
                ..Default::default()
            };
            let (action, last_seen) = (CONNTRACK_FORWARD, NOW);
            (key, Conntrack { action, backend, service, last_seen, ..Default::default() })
        };
        let (vip, vni) = (held.services[&service].vip, held.services[&service].vni);
        let entries = [
            entry(vip, 80, vni),
            entry(vip, 80, vni | VNI_FLAG_IPV6),
            entry(vip, 81, vni | VNI_FLAG_IPV6),
            entry(client, 8080, VNI_FLAG_IPV6),
        ];
        let key = |port, ipv6| {
            let proto = PROTO_TCP;
            BackendStatsKey { service, backend, port: Be16::new(port), proto, ipv6 }
        };
        let counted = |flows| BackendStats { flows, ..BackendStats::default() };
        let served = [(key(0, 0), counted(4)), (key(0, 1), counted(6)), (key(8080, 1), counted(8))];
        let servers = virtual_servers(
            &cluster.state,
            &held,
            (&entries, &BTreeMap::new(), NOW),
            &served.into(),
        );
        let shown: Vec<_> = servers
            .iter()
            .map(|server| {
                let backend = &server.backends[0];
                let socket = std::net::SocketAddr::new(server.address, server.port);
                let flows = (backend.inactive, backend.stats.connections);
                (format!("{} {socket}", server.protocol), backend.address.to_string(), flows)
            })
            .collect();
        let [ipv4, ipv6] = ["10.0.1.21", "fd00:1::15"].map(str::to_owned);
        assert_eq!(
            shown,
            [
                ("tcp 0.0.0.0:8080".to_owned(), ipv4.clone(), (0, 0)),
                ("tcp 10.0.1.200:0".to_owned(), ipv4.clone(), (0, 4)),
                ("udp 10.0.1.200:0".to_owned(), ipv4, (1, 0)),
                ("tcp [::]:8080".to_owned(), ipv6.clone(), (0, 8)),
                ("tcp [fd00:1::c8]:0".to_owned(), ipv6.clone(), (0, 6)),
                ("udp [fd00:1::c8]:0".to_owned(), ipv6, (2, 0)),
            ]
        );
    }
}
