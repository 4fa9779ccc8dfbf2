//! Which networks the namespaces of containers are on, for the programs of sockets.

use std::collections::BTreeMap;

use overlay_common::maps::{NETNS_NETWORKS, Netns, NetnsNetwork};

use super::facts::LocalFacts;
use crate::model::{ClusterState, Endpoint, Network};

/// Map `netns`: by the namespaces' cookies, the networks that their endpoints are on, the first
/// [`NETNS_NETWORKS`] by VNI. Of networks that overlap the host does not know which one a
/// container's routes prefer: such networks are left out, and VIPs on them are balanced by packets.
pub fn compile(state: &ClusterState, facts: &LocalFacts) -> BTreeMap<u64, Netns> {
    let mut found: BTreeMap<u64, Vec<(&Endpoint, &Network)>> = BTreeMap::new();
    for (id, cookie) in &facts.netns {
        let endpoint = state.endpoints.get(id).filter(|_| facts.links.contains_key(id));
        let Some(endpoint) = endpoint else { continue };
        let Some(network) = state.networks.get(&endpoint.network) else { continue };
        found.entry(*cookie).or_default().push((endpoint, network));
    }
    let namespaces = found.into_iter().map(|(cookie, ends)| (cookie, namespace(ends)));
    namespaces.filter(|(_, namespace)| *namespace != Netns::default()).collect()
}

fn namespace(mut ends: Vec<(&Endpoint, &Network)>) -> Netns {
    ends.sort_by_key(|(endpoint, network)| (network.vni, endpoint.ip));
    ends.dedup_by_key(|(_, network)| network.vni);
    let is_alone = |network: &Network| {
        let others = ends.iter().filter(|(_, other)| other.vni != network.vni);
        others.into_iter().all(|(_, other)| !overlap(other, network))
    };
    let alone = ends.iter().filter(|(_, network)| is_alone(network));
    let mut namespace = Netns::default();
    for (slot, (endpoint, network)) in namespace.networks.iter_mut().zip(alone.take(NETNS_NETWORKS))
    {
        *slot = NetnsNetwork {
            vni: network.vni,
            subnet: network.subnet.network().into(),
            mask: network.subnet.netmask().into(),
            ip: endpoint.ip.into(),
        };
    }
    namespace
}

/// Whether subnets of two networks have addresses in common, of either family.
fn overlap(a: &Network, b: &Network) -> bool {
    let ipv6 = a.ipv6.as_ref().zip(b.ipv6.as_ref());
    a.subnet.contains(&b.subnet)
        || b.subnet.contains(&a.subnet)
        || ipv6.is_some_and(|(a, b)| a.subnet.contains(&b.subnet) || b.subnet.contains(&a.subnet))
}

#[cfg(test)]
mod tests {
    use overlay_common::Be32;

    use super::*;
    use crate::agent::testing::{TestCluster, id};
    use crate::model::NetworkIpv6;

    /// `h1` with endpoints of namespace 5: `a` on 10.0.1.0/24, `b` on 10.0.2.0/24, and one of 6 on
    /// the first.
    fn cluster() -> (TestCluster, LocalFacts) {
        let mut cluster = TestCluster::with_nodes(1);
        cluster.network("one", "10.0.1.0/24", |n| n.vni = 4098);
        cluster.network("two", "10.0.2.0/24", |n| n.vni = 4099);
        cluster.endpoint("a", "one", "h1", 11);
        cluster.endpoint("b", "two", "h1", 12);
        cluster.endpoint("c", "one", "h1", 13);
        let cookies = [("a", 5), ("b", 5), ("c", 6)].map(|(name, cookie)| (id(name), cookie));
        let facts = LocalFacts { netns: cookies.into(), ..cluster.facts("h1") };
        (cluster, facts)
    }

    fn shown(namespace: &Netns) -> Vec<(u32, Be32)> {
        let networks = namespace.networks.iter().filter(|network| network.vni != 0);
        networks.map(|network| (network.vni, network.ip)).collect()
    }

    #[test]
    fn a_namespace_has_the_networks_of_all_its_endpoints() {
        let (cluster, facts) = cluster();
        let namespaces = compile(&cluster.state, &facts);
        let [a, b, c] = [[10, 0, 1, 11], [10, 0, 2, 12], [10, 0, 1, 13]].map(Be32::from_octets);
        assert_eq!(shown(&namespaces[&5]), [(4098, a), (4099, b)]);
        assert_eq!(shown(&namespaces[&6]), [(4098, c)]);
        let [one, two, ..] = namespaces[&5].networks;
        assert!(one.contains(a) && !one.contains(b) && two.contains(b));
        assert!(!NetnsNetwork::default().contains(Be32::ZERO), "of no network");
    }

    #[test]
    fn endpoints_that_are_not_wired_or_gone_make_no_entry() {
        let (mut cluster, mut facts) = cluster();
        facts.links.remove(&id("c"));
        cluster.state.endpoints.remove(&id("b"));
        let namespaces = compile(&cluster.state, &facts);
        assert_eq!(namespaces.keys().copied().collect::<Vec<_>>(), [5]);
        assert_eq!(shown(&namespaces[&5]).len(), 1);
    }

    #[test]
    fn networks_that_overlap_in_a_namespace_are_left_to_packets() {
        let (mut cluster, mut facts) = cluster();
        cluster.network("wide", "10.0.0.0/20", |n| n.vni = 4100);
        cluster.endpoint("d", "wide", "h1", 99);
        facts.links.insert(id("d"), 77);
        facts.netns.insert(id("d"), 6);
        let namespaces = compile(&cluster.state, &facts);
        assert!(!namespaces.contains_key(&6), "both are left out");
        assert_eq!(shown(&namespaces[&5]).len(), 2, "elsewhere they are apart");
    }

    #[test]
    fn networks_that_overlap_in_ipv6_alone_are_left_to_packets_too() {
        let (mut cluster, facts) = cluster();
        for (name, subnet) in [("one", "fd00:1::/64"), ("two", "fd00::/16")] {
            let network = cluster.state.networks.values_mut().find(|n| n.name == name);
            let subnet: ipnet::Ipv6Net = subnet.parse().expect("a subnet");
            let gateway = subnet.addr();
            network.expect("it").ipv6 =
                Some(NetworkIpv6 { subnet, gateway, next_address: gateway });
        }
        let namespaces = compile(&cluster.state, &facts);
        assert_eq!(namespaces.keys().copied().collect::<Vec<_>>(), [6], "which is on one of them");
    }

    #[test]
    fn more_networks_than_fit_are_left_to_packets() {
        let (mut cluster, mut facts) = cluster();
        for n in 0..10 {
            let name = format!("n{n}");
            cluster.network(&name, &format!("10.1.{n}.0/24"), |network| network.vni = 5000 + n);
            cluster.endpoint(&name, &name, "h1", 9);
            facts.links.insert(id(&name), 100 + n);
            facts.netns.insert(id(&name), 8);
        }
        let networks = shown(&compile(&cluster.state, &facts)[&8]);
        assert_eq!(networks.len(), NETNS_NETWORKS);
        assert_eq!(networks[0].0, 5000, "always the same ones");
    }
}
