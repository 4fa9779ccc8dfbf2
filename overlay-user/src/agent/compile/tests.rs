use overlay_common::{
    INGRESS_VNI,
    maps::{SERVICE_RESETS, Service as ServiceEntry, SlotKey},
};

use std::net::Ipv6Addr;

use super::*;
use crate::{
    agent::testing::{TestCluster, dual_stack, id, port},
    model::{Availability, NodeState},
};

/// `h1` and `h2` with an endpoint each on `mynet` (10.0.1.0/24, VNI 4098), `h3` with none.
fn cluster() -> TestCluster {
    let mut cluster = TestCluster::with_nodes(3);
    cluster.network("mynet", "10.0.1.0/24", |n| n.vni = 4098);
    cluster.endpoint("a", "mynet", "h1", 11);
    cluster.endpoint("b", "mynet", "h2", 12);
    cluster
}

fn compiled(cluster: &TestCluster, node: &str) -> DatapathState {
    compile(&cluster.state, &id(node), &cluster.facts(node))
}

fn at(vni: u32, ip: [u8; 4]) -> EndpointKey {
    EndpointKey { vni, ip: Be32::from_octets(ip) }
}

fn published_key(port: u16, proto: u8) -> PublishedKey {
    PublishedKey { port: Be16::new(port), proto, pad: 0 }
}

fn slots_of(state: &DatapathState, service: u32) -> Vec<u32> {
    let count = state.services[&service].slots;
    (0..count).map(|index| state.slots[&SlotKey { service, index }]).collect()
}

fn host(octets: [u8; 4]) -> Be32 {
    Be32::from_octets(octets)
}

#[test]
fn an_own_endpoint_is_local_and_may_send_from_its_link_only() {
    let state = compiled(&cluster(), "h1");
    let a = state.endpoints[&at(4098, [10, 0, 1, 11])];
    assert_eq!(a.kind, ENDPOINT_LOCAL);
    assert_eq!(a.ifindex, 1001);
    assert_eq!(a.mac.to_string(), "02:42:0a:00:01:0b");
    let link = state.links[&1001];
    assert_eq!((link.vni, link.ip, link.mac), (4098, host([10, 0, 1, 11]), a.mac));
}

#[test]
fn an_endpoint_of_another_node_is_remote_behind_that_nodes_vtep() {
    let state = compiled(&cluster(), "h1");
    let b = state.endpoints[&at(4098, [10, 0, 1, 12])];
    assert_eq!((b.kind, b.node, b.ifindex), (ENDPOINT_REMOTE, host([172, 16, 1, 11]), 0));
}

#[test]
fn the_gateway_answers_on_every_node_that_holds_the_network() {
    for node in ["h1", "h2"] {
        let gateway = compiled(&cluster(), node).endpoints[&at(4098, [10, 0, 1, 1])];
        assert_eq!(gateway.kind, ENDPOINT_GATEWAY);
        assert_eq!(gateway.mac.to_string(), "02:42:0a:00:01:01");
    }
}

#[test]
fn a_node_without_endpoints_on_a_network_holds_nothing_of_it() {
    let state = compiled(&cluster(), "h3");
    assert!(state.endpoints.keys().all(|k| k.vni == INGRESS_VNI), "{:?}", state.endpoints);
    assert_eq!(state.networks.keys().copied().collect::<Vec<_>>(), [INGRESS_VNI]);
    assert!(state.peers.keys().all(|k| k.vni != 4098));
}

#[test]
fn endpoints_of_a_dual_stack_network_are_found_under_both_addresses() {
    let mut cluster = TestCluster::with_nodes(2);
    cluster.network("dual", "10.0.1.0/24", dual_stack);
    cluster.network("single", "10.0.2.0/24", |_| ());
    cluster.endpoint("here", "dual", "h1", 11);
    cluster.endpoint("there", "dual", "h2", 12);
    cluster.endpoint("plain", "single", "h1", 13);
    let state = compiled(&cluster, "h1");
    let vni = cluster.state.networks[&id("dual")].vni;
    let of = |last: u16| {
        let ip = std::net::Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last).into();
        state.endpoints6.get(&Endpoint6Key { vni, ip }).copied()
    };
    for (last, ip) in [(0x1, 1), (0xb, 11), (0xc, 12)] {
        assert_eq!(of(last), Some(state.endpoints[&at(vni, [10, 0, 1, ip])]), "fd00:1::{last:x}");
    }
    assert_eq!(state.endpoints6.len(), 3, "nothing of the other network");
    let link = cluster.facts("h1").links[&id("here")];
    let link6 = state.links6[&link];
    assert_eq!(std::net::Ipv6Addr::from(link6.ip).to_string(), "fd00:1::b");
    assert_eq!(std::net::Ipv6Addr::from(link6.mask).to_string(), "ffff:ffff:ffff:ffff::");
    assert_eq!(state.links6.len(), 1);
}

/// `h1` and `h2` with a backend each of `web`, published on 8080, on `dual`; `h3` has nothing
/// there.
fn dual_stack_service() -> TestCluster {
    let mut cluster = TestCluster::with_nodes(3);
    cluster.network("dual", "10.0.1.0/24", dual_stack);
    cluster.network("single", "10.0.2.0/24", |_| ());
    cluster.service("web", &["dual"], &[port(8080, 80)]);
    cluster.service("plain", &["single"], &[port(8081, 80)]);
    cluster.backend("w1", "web", "h1", 11);
    cluster.backend("w2", "web", "h2", 12);
    cluster.backend("p1", "plain", "h1", 13);
    cluster
}

fn ip6(last: u16) -> Ip6 {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last).into()
}

#[test]
fn a_service_of_a_dual_stack_network_is_found_under_both_vips() {
    let cluster = dual_stack_service();
    let state = compiled(&cluster, "h1");
    let vni = cluster.state.networks[&id("dual")].vni;
    let vip = state.endpoints[&at(vni, [10, 0, 1, 200])];
    assert_eq!((vip.kind, vip.service), (ENDPOINT_SERVICE, cluster.number_of("web")));
    assert_eq!(state.endpoints6.get(&Endpoint6Key { vni, ip: ip6(200) }), Some(&vip));
    // Each IPv4 address that stands for an IPv6 address in the programs has its entry there.
    let names = [(200, 200), (11, 11), (12, 12)];
    let names = names.map(|(last, last6)| (at(vni, [10, 0, 1, last]), ip6(last6)));
    assert_eq!(state.addresses6, BTreeMap::from(names), "nothing of the other network");
    for (key, ip) in &state.addresses6 {
        let there = state.endpoints6[&Endpoint6Key { vni: key.vni, ip: *ip }];
        assert_eq!(there, state.endpoints[key], "flags and all");
        assert_eq!(there.mac, Mac::of_ip(key.ip), "from which the programs take the number");
    }
}

#[test]
fn ports_of_dual_stack_services_answer_over_ipv6_on_every_node() {
    let cluster = dual_stack_service();
    let vni = cluster.state.networks[&id("dual")].vni;
    for node in ["h1", "h3"] {
        let state = compiled(&cluster, node);
        assert_eq!(state.published[&published_key(8080, 6)].flags, PUBLISHED_IPV6);
        assert_eq!(state.published[&published_key(8081, 6)].flags, 0, "its backends have no IPv6");
    }
    let state = compiled(&cluster, "h3");
    assert!(!state.networks.contains_key(&vni), "it holds nothing of the network");
    let backends = [11, 12].map(|last: u8| (at(vni, [10, 0, 1, last]), ip6(last.into())));
    assert_eq!(state.addresses6, BTreeMap::from(backends), "but where its backends are");
    for (last, node) in [(11, 10), (12, 11)] {
        let backend = state.endpoints6[&Endpoint6Key { vni, ip: ip6(last) }];
        assert_eq!((backend.kind, backend.node), (ENDPOINT_REMOTE, host([172, 16, 1, node])));
    }
    assert_eq!(state.endpoints6.len(), 2);
}

#[test]
fn published_ports_answer_on_the_hosts_ipv6_addresses_but_loopback_and_link_local_ones() {
    let cluster = dual_stack_service();
    let addresses6 =
        ["::1", "fe80::1", "2001:db8::1"].map(|text| text.parse().expect("an address"));
    let facts = LocalFacts { addresses6: addresses6.to_vec(), ..cluster.facts("h1") };
    let state = compile(&cluster.state, &id("h1"), &facts);
    assert_eq!(state.local_addrs6.keys().copied().collect::<Vec<_>>(), [addresses6[2].into()]);
}

#[test]
fn on_an_ipv6_underlay_nodes_are_numbers_with_their_vteps_beside_them() {
    let mut cluster = cluster();
    for node in cluster.state.nodes.values_mut() {
        let std::net::IpAddr::V4(address) = node.data_path_addr else { panic!("IPv4") };
        let last = u16::from(address.octets()[3]);
        node.data_path_addr = std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into();
    }
    let facts = LocalFacts { underlay_mtu: 1500, ..cluster_facts(&cluster) };
    let state = compile(&cluster.state, &id("h1"), &facts);
    let others: Vec<_> = cluster.state.nodes.values().filter(|n| n.id != id("h1")).collect();
    assert_eq!(state.vteps6.len(), others.len(), "not the node itself");
    for node in others {
        let std::net::IpAddr::V6(address) = node.data_path_addr else { panic!("IPv6") };
        assert_eq!(state.vteps6.get(&node.vtep()), Some(&address.into()));
        assert!(state.peers.contains_key(&PeerKey { vni: 0, node: node.vtep() }));
    }
    let remote = state.endpoints.values().filter(|e| e.kind == ENDPOINT_REMOTE);
    assert!(remote.clone().count() > 0);
    assert!(remote.clone().all(|e| state.vteps6.contains_key(&e.node)));
    assert!(state.networks.values().all(|n| n.mtu == 1430), "70 bytes for the tunnel");
}

/// As [`TestCluster::facts`], which are about IPv4 nodes.
fn cluster_facts(cluster: &TestCluster) -> LocalFacts {
    let mine = cluster.state.endpoints.values().filter(|e| e.node == id("h1"));
    LocalFacts {
        links: mine.map(|e| (e.id.clone(), 1000 + e.number)).collect(),
        ..LocalFacts::default()
    }
}

#[test]
fn an_endpoint_that_is_not_wired_yet_does_not_make_its_network_relevant() {
    let cluster = cluster();
    let facts = LocalFacts { links: BTreeMap::new(), ..cluster.facts("h1") };
    let state = compile(&cluster.state, &id("h1"), &facts);
    assert!(!state.networks.contains_key(&4098));
}

#[test]
fn peers_of_a_network_are_the_other_nodes_with_endpoints_on_it() {
    let state = compiled(&cluster(), "h1");
    let peers_on = |vni| {
        let keys = state.peers.keys().filter(move |k| k.vni == vni);
        keys.map(|k| k.node.octets()[3]).collect::<Vec<_>>()
    };
    assert_eq!(peers_on(4098), [11]);
    assert_eq!(peers_on(INGRESS_VNI), [11, 12]);
    assert_eq!(peers_on(UNDERLAY_VNI), [11, 12]);
}

#[test]
fn the_host_itself_is_an_endpoint_of_ingress_through_the_host_link() {
    let state = compiled(&cluster(), "h1");
    let own = state.endpoints[&at(INGRESS_VNI, [10, 255, 0, 2])];
    assert_eq!((own.kind, own.flags, own.ifindex), (ENDPOINT_LOCAL, ENDPOINT_FLAG_HOST, 7));
    let link = state.links[&7];
    assert_eq!((link.vni, link.ip), (INGRESS_VNI, host([10, 255, 0, 2])));
    assert_eq!(link.flags, u16::from(ENDPOINT_FLAG_HOST));
    let other = state.endpoints[&at(INGRESS_VNI, [10, 255, 0, 3])];
    assert_eq!((other.kind, other.node), (ENDPOINT_REMOTE, host([172, 16, 1, 11])));
}

#[test]
fn mtu_follows_the_underlay_unless_the_network_sets_it() {
    let mut cluster = cluster();
    cluster.endpoint("c", "bridge", "h1", 2);
    let state = compiled(&cluster, "h1");
    assert_eq!(state.networks[&4098].mtu, 1450);
    assert_eq!(state.networks[&overlay_common::BRIDGE_VNI].mtu, 1500);
    cluster.state.networks.get_mut(&id("mynet")).expect("mynet").mtu = Some(1400);
    assert_eq!(compiled(&cluster, "h1").networks[&4098].mtu, 1400);
}

#[test]
fn a_network_tells_whether_it_is_internal_and_whether_it_is_node_local() {
    let mut cluster = cluster();
    cluster.network("closed", "10.0.9.0/24", |n| n.internal = true);
    cluster.endpoint("c", "closed", "h1", 2);
    cluster.endpoint("d", "bridge", "h1", 2);
    let state = compiled(&cluster, "h1");
    let flags = |name: &str| state.networks[&cluster.state.networks[&id(name)].vni].flags;
    assert_eq!(flags("closed"), NETWORK_INTERNAL);
    assert_eq!(flags("bridge"), NETWORK_LOCAL);
    assert_eq!(flags("mynet"), 0);
}

#[test]
fn groups_are_copied_to_endpoints_here_and_to_other_nodes_once_each() {
    let mut cluster = cluster();
    cluster.network("group", "10.0.9.0/24", |n| n.multicast = Multicast::Replicate);
    for (name, node, last) in
        [("p", "h1", 11), ("q", "h1", 12), ("r", "h2", 13), ("s", "h2", 14), ("t", "h3", 15)]
    {
        cluster.endpoint(name, "group", node, last);
    }
    let state = compiled(&cluster, "h1");
    let vni = cluster.state.networks[&id("group")].vni;
    assert_eq!(state.networks[&vni].flags, NETWORK_REPLICATE);
    let replicas = &state.flood[&vni];
    assert_eq!((replicas.endpoints, replicas.nodes), (2, 2));
    let links = cluster.facts("h1").links;
    let mut here = [links[&id("p")], links[&id("q")]];
    here.sort_unstable();
    assert_eq!(replicas.links[..3], [here[0], here[1], 0]);
    let others = [host([172, 16, 1, 11]), host([172, 16, 1, 12]), Be32::ZERO];
    assert_eq!(replicas.vteps[..3], others);
    assert!(!state.flood.contains_key(&4098), "mynet drops");
}

#[test]
fn copies_are_made_for_so_many_endpoints_and_the_number_of_all_is_known() {
    let mut cluster = cluster();
    cluster.network("group", "10.0.9.0/24", |n| n.multicast = Multicast::Replicate);
    for last in 10..80 {
        cluster.endpoint(&format!("e{last}"), "group", "h1", last);
    }
    let state = compiled(&cluster, "h1");
    let replicas = state.flood.values().next().expect("one network");
    assert_eq!((replicas.endpoints, replicas.nodes), (70, 0));
    assert!(replicas.links.iter().all(|link| *link != 0));
}

#[test]
fn what_other_nodes_have_on_bridge_does_not_exist_here() {
    let mut cluster = cluster();
    cluster.endpoint("c1", "bridge", "h1", 2);
    cluster.endpoint("c2", "bridge", "h2", 2);
    let state = compiled(&cluster, "h1");
    let here = state.endpoints[&at(overlay_common::BRIDGE_VNI, [172, 17, 0, 2])];
    assert_eq!(here.kind, ENDPOINT_LOCAL);
    assert!(state.peers.keys().all(|k| k.vni != overlay_common::BRIDGE_VNI));
}

#[test]
fn a_service_has_a_vip_and_a_slot_for_each_running_backend_in_order() {
    let mut cluster = cluster();
    cluster.service("web", &["mynet"], &[]);
    let first = cluster.backend("w1", "web", "h2", 21);
    let second = cluster.backend("w2", "web", "h1", 22);
    let state = compiled(&cluster, "h1");
    let number = cluster.number_of("web");
    assert_eq!(slots_of(&state, number), [first, second]);
    let vip = state.endpoints[&at(4098, [10, 0, 1, 200])];
    assert_eq!((vip.kind, vip.service), (ENDPOINT_SERVICE, number));
    assert_eq!(state.backends[&first].node, host([172, 16, 1, 11]));
    assert_eq!(state.backends[&first].ifindex, 0);
    assert_eq!(state.backends[&second].node, Be32::ZERO);
    assert_eq!(state.backends[&second].ifindex, 1000 + second);
    assert!(state.backends.values().all(|b| b.vni == 4098 && b.state == BACKEND_ACTIVE));
}

#[test]
fn a_dnsrr_service_has_no_vip_entry() {
    let mut cluster = cluster();
    cluster.service("rr", &["mynet"], &[]);
    cluster.service_mut("rr").networks[0].vip = None;
    let state = compiled(&cluster, "h1");
    assert_eq!(state.services[&cluster.number_of("rr")].vip, Be32::ZERO);
    assert!(state.endpoints.values().all(|e| e.kind != ENDPOINT_SERVICE));
}

#[test]
fn draining_backends_keep_their_flows_and_take_no_new_ones() {
    let mut cluster = cluster();
    cluster.service("web", &["mynet"], &[]);
    let stays = cluster.backend("w1", "web", "h2", 21);
    let drains = cluster.backend("w2", "web", "h2", 22);
    cluster.endpoint_mut("w2").state = EndpointState::Draining;
    let state = compiled(&cluster, "h1");
    assert_eq!(slots_of(&state, cluster.number_of("web")), [stays]);
    assert_eq!(state.backends[&drains].state, BACKEND_DRAINING);
}

#[test]
fn a_starting_backend_has_an_address_and_takes_no_flows() {
    let mut cluster = cluster();
    cluster.service("web", &["mynet"], &[port(80, 80)]);
    let number = cluster.backend("w1", "web", "h1", 21);
    cluster.endpoint_mut("w1").state = EndpointState::Starting;
    let state = compiled(&cluster, "h1");
    assert_eq!(state.services[&cluster.number_of("web")].slots, 0);
    assert!(!state.backends.contains_key(&number));
    assert!(state.endpoints.contains_key(&at(4098, [10, 0, 1, 21])));
}

#[test]
fn backends_of_a_down_or_drained_node_take_no_new_flows() {
    type Change = (fn(&mut Node), u16);
    let changes: [Change; 2] = [
        (|node| node.state = NodeState::Down, BACKEND_DOWN),
        (|node| node.availability = Availability::Drain, BACKEND_DRAINING),
    ];
    for (change, shown) in changes {
        let mut cluster = cluster();
        cluster.service("web", &["mynet"], &[]);
        let gone = cluster.backend("w1", "web", "h2", 21);
        let stays = cluster.backend("w2", "web", "h1", 22);
        change(cluster.node_mut("h2"));
        let state = compiled(&cluster, "h1");
        assert_eq!(slots_of(&state, cluster.number_of("web")), [stays]);
        assert_eq!(state.backends[&gone].state, shown);
    }
}

#[test]
fn a_node_that_the_managers_call_down_still_serves_its_own_backends() {
    let mut cluster = cluster();
    cluster.service("web", &["mynet"], &[]);
    let own = cluster.backend("w1", "web", "h1", 21);
    cluster.node_mut("h1").state = NodeState::Down;
    assert_eq!(slots_of(&compiled(&cluster, "h1"), cluster.number_of("web")), [own]);
}

#[test]
fn a_port_is_published_on_every_node_wherever_the_backends_are() {
    let mut cluster = cluster();
    cluster.service("web", &["mynet"], &[port(8080, 80)]);
    let backend = cluster.backend("w1", "web", "h2", 21);
    for node in ["h1", "h2", "h3"] {
        let state = compiled(&cluster, node);
        let entry = state.published[&published_key(8080, 6)];
        assert_eq!((entry.service, entry.target.get()), (cluster.number_of("web"), 80));
        assert_eq!(slots_of(&state, entry.service), [backend]);
        assert!(state.backends.contains_key(&backend));
    }
    let elsewhere = compiled(&cluster, "h3");
    assert!(!elsewhere.networks.contains_key(&4098), "the network itself stays away");
    assert!(!elsewhere.endpoints.contains_key(&at(4098, [10, 0, 1, 200])));
}

#[test]
fn only_the_first_network_of_a_service_carries_its_ports() {
    let mut cluster = cluster();
    cluster.network("other", "10.0.2.0/24", |n| n.vni = 4099);
    cluster.service("web", &["mynet", "other"], &[port(8080, 80)]);
    let on_other = cluster.endpoint("o1", "other", "h3", 31);
    cluster.endpoint_mut("o1").service = Some(id("web"));
    cluster.backend("w1", "web", "h3", 21);
    let state = compiled(&cluster, "h3");
    let flags = |vni, ip| state.endpoints[&at(vni, ip)].flags;
    let both = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
    assert_eq!(flags(4098, [10, 0, 1, 21]), both);
    assert_eq!(flags(4099, [10, 0, 2, 31]), ENDPOINT_FLAG_BACKEND);
    assert_eq!(state.links[&(1000 + on_other)].flags, u16::from(ENDPOINT_FLAG_BACKEND));
    let second = cluster.state.services[&id("web")].networks[1].number;
    assert_eq!(slots_of(&state, second), [on_other]);
    assert!(!compiled(&cluster, "h1").services.contains_key(&second));
}

#[test]
fn a_host_mode_port_answers_only_where_a_backend_is_and_for_that_one() {
    let mut cluster = cluster();
    let host_mode = Port { mode: PublishMode::Host, ..port(8080, 80) };
    cluster.service("web", &["mynet"], &[host_mode]);
    let own = cluster.backend("w1", "web", "h1", 21);
    cluster.backend("w2", "web", "h2", 22);
    let state = compiled(&cluster, "h1");
    let number = cluster.number_of("web") | HOST_MODE;
    assert_eq!(state.published[&published_key(8080, 6)].service, number);
    assert_eq!(slots_of(&state, number), [own]);
    assert_eq!(
        state.services[&number],
        ServiceEntry {
            vni: 4098,
            vip: Be32::ZERO,
            slots: 1,
            flags: SERVICE_RESETS,
            ..ServiceEntry::default()
        }
    );
    let elsewhere = compiled(&cluster, "h3");
    assert!(elsewhere.published.is_empty() && elsewhere.services.is_empty());
}

#[test]
fn a_host_mode_port_stays_while_its_last_backend_drains() {
    let mut cluster = cluster();
    let host_mode = Port { mode: PublishMode::Host, ..port(8080, 80) };
    cluster.service("web", &["mynet"], &[host_mode]);
    let own = cluster.backend("w1", "web", "h1", 21);
    cluster.endpoint_mut("w1").state = EndpointState::Draining;
    let state = compiled(&cluster, "h1");
    assert_eq!(slots_of(&state, cluster.number_of("web") | HOST_MODE), Vec::<u32>::new());
    assert!(state.published.contains_key(&published_key(8080, 6)));
    assert_eq!(state.backends[&own].state, BACKEND_DRAINING);
}

#[test]
fn a_port_on_bridge_answers_on_its_own_host_only() {
    let mut cluster = cluster();
    cluster.service("web", &["bridge"], &[port(8080, 80)]);
    let own = cluster.backend("w1", "web", "h1", 21);
    let state = compiled(&cluster, "h1");
    let entry = state.published[&published_key(8080, 6)];
    assert_eq!(slots_of(&state, entry.service), [own]);
    let elsewhere = compiled(&cluster, "h2");
    assert!(elsewhere.published.is_empty() && elsewhere.services.is_empty());
}

#[test]
fn an_internal_network_publishes_nothing() {
    let mut cluster = cluster();
    cluster.network("closed", "10.0.9.0/24", |n| n.internal = true);
    cluster.service("web", &["closed"], &[port(8080, 80)]);
    cluster.backend("w1", "web", "h1", 21);
    let state = compiled(&cluster, "h1");
    assert!(state.published.is_empty());
    assert!(state.endpoints.values().all(|e| e.flags & ENDPOINT_FLAG_PUBLISHED == 0));
}

#[test]
fn udp_and_tcp_may_share_a_published_port() {
    let mut cluster = cluster();
    let udp = Port { protocol: crate::model::Protocol::Udp, ..port(53, 5353) };
    cluster.service("dns", &["mynet"], &[port(53, 53), udp]);
    let state = compiled(&cluster, "h1");
    assert_eq!(state.published[&published_key(53, 6)].target.get(), 53);
    assert_eq!(state.published[&published_key(53, 17)].target.get(), 5353);
}

#[test]
fn the_owned_service_of_a_plain_container_needs_no_vip() {
    let mut cluster = cluster();
    cluster.service("a-ports", &["mynet"], &[port(8080, 80)]);
    let service = cluster.service_mut("a-ports");
    service.networks[0].vip = None;
    service.owner = Some(id("a"));
    cluster.endpoint_mut("a").service = Some(id("a-ports"));
    let state = compiled(&cluster, "h3");
    let entry = state.published[&published_key(8080, 6)];
    assert_eq!(slots_of(&state, entry.service), [cluster.state.endpoints[&id("a")].number]);
}

#[test]
fn loopback_addresses_never_take_published_ports_from_the_wire() {
    let cluster = cluster();
    let addresses = vec![Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 1)];
    let facts = LocalFacts { addresses, ..cluster.facts("h1") };
    let state = compile(&cluster.state, &id("h1"), &facts);
    assert_eq!(state.local_addrs.keys().copied().collect::<Vec<_>>(), [host([192, 0, 2, 1])]);
}

#[test]
fn a_cluster_without_an_ingress_network_still_compiles() {
    let mut cluster = cluster();
    cluster.state.networks.remove(&id("ingress"));
    let state = compiled(&cluster, "h1");
    assert_eq!(state.networks.keys().copied().collect::<Vec<_>>(), [4098]);
    assert!(!state.links.contains_key(&7));
}

#[test]
fn references_to_what_is_gone_are_left_out() {
    let mut cluster = cluster();
    cluster.service("web", &["mynet"], &[port(80, 80)]);
    cluster.backend("w1", "web", "h2", 21);
    cluster.state.nodes.remove(&id("h2"));
    let state = compiled(&cluster, "h1");
    assert!(state.backends.is_empty());
    assert!(!state.endpoints.contains_key(&at(4098, [10, 0, 1, 12])));
    cluster.state.networks.remove(&id("mynet"));
    let state = compiled(&cluster, "h1");
    assert!(state.services.is_empty() && state.published.is_empty());
}

#[test]
fn a_node_that_is_not_of_the_cluster_gets_empty_maps() {
    let cluster = cluster();
    let state = compile(&cluster.state, &id("stranger"), &cluster.facts("h1"));
    assert_eq!(state, DatapathState::default());
}
