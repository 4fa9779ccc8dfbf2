//! Networks.

use std::collections::BTreeMap;

use super::super::testing::{World, ports, refused};
use crate::{
    api::{EndpointCreate, ErrorCode, NetworkCreate},
    model::{Multicast, Network},
};

fn request(name: &str) -> NetworkCreate {
    NetworkCreate { name: name.to_owned(), attachable: true, ..Default::default() }
}

fn with_subnet(name: &str, subnet: &str) -> NetworkCreate {
    NetworkCreate { subnet: Some(subnet.parse().expect("a subnet")), ..request(name) }
}

fn aux(list: &[(&str, &str)]) -> BTreeMap<String, std::net::Ipv4Addr> {
    list.iter().map(|(n, ip)| ((*n).to_owned(), ip.parse().expect("an address"))).collect()
}

#[test]
fn networks_get_subnets_and_vnis_in_series() {
    let mut world = World::new();
    let made: Vec<Network> = ["a", "b", "c"].map(|name| world.named_network(name)).into();
    let subnets: Vec<String> = made.iter().map(|n| n.subnet.to_string()).collect();
    assert_eq!(subnets, ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]);
    assert_eq!(made.iter().map(|n| n.vni).collect::<Vec<_>>(), [4097, 4098, 4099]);
    assert_eq!(made[0].gateway.to_string(), "10.0.0.1");
    world.remove_network("b").expect("removed");
    assert_eq!(world.named_network("d").vni, 4100, "a freed VNI rests");
}

#[test]
fn names_are_checked_unique_and_not_reserved() {
    let mut world = World::new();
    world.named_network("mynet");
    refused(world.network(request("mynet")), ErrorCode::Conflict, &["mynet", "exists already"]);
    refused(world.network(request("ingress")), ErrorCode::Conflict, &["ingress"]);
    refused(world.network(request("bridge")), ErrorCode::Conflict, &["bridge"]);
    refused(world.network(request("a/b")), ErrorCode::Invalid, &["\"a/b\""]);
    for name in ["host", "none", "container"] {
        refused(world.network(request(name)), ErrorCode::Invalid, &[name, "overlay run"]);
    }
}

#[test]
fn an_overlapping_subnet_is_refused_naming_the_other_network() {
    let mut world = World::new();
    world.subnet("mynet", "10.20.0.0/16").expect("made");
    for (subnet, other) in [
        ("10.20.0.0/16", "mynet"),
        ("10.20.3.0/24", "mynet"),
        ("10.0.0.0/8", "mynet"),
        ("172.17.1.0/24", "bridge"),
        ("10.255.0.0/24", "ingress"),
    ] {
        let result = world.network(with_subnet("other", subnet));
        let Err(error) = result else { panic!("{subnet} must be refused") };
        assert_eq!(error.code, ErrorCode::Conflict);
        assert!(error.message.contains("overlaps"), "{error}");
        let named = error.message.contains(other) || subnet == "10.0.0.0/8";
        assert!(named, "{subnet}: {error}");
    }
}

#[test]
fn a_subnet_around_a_nodes_address_is_refused_when_given_and_skipped_when_allocated() {
    let mut world = World::new();
    world.join("h2", "10.0.1.7").expect("joined");
    refused(
        world.subnet("mynet", "10.0.1.0/24"),
        ErrorCode::Conflict,
        &["10.0.1.7", "data-path address of node h2"],
    );
    assert_eq!(world.named_network("a").subnet.to_string(), "10.0.0.0/24");
    assert_eq!(world.named_network("b").subnet.to_string(), "10.0.2.0/24");
}

#[test]
fn what_is_no_subnet_for_hosts_is_refused() {
    let mut world = World::new();
    for (subnet, why) in [
        ("10.1.0.5/24", "write 10.1.0.0/24"),
        ("10.1.0.0/31", "/31"),
        ("8.0.0.0/5", "/5"),
        ("127.1.0.0/16", "127.0.0.0/8"),
        ("169.254.7.0/24", "169.254.0.0/16"),
        ("224.0.0.0/24", "224.0.0.0/3"),
        ("0.0.0.0/8", "0.0.0.0/8"),
    ] {
        refused(world.subnet("mynet", subnet), ErrorCode::Invalid, &[why]);
    }
}

#[test]
fn gateway_range_and_auxiliary_addresses_must_lie_in_the_subnet() {
    let mut world = World::new();
    let base = with_subnet("mynet", "10.1.0.0/24");
    let gateway =
        |ip: &str| NetworkCreate { gateway: Some(ip.parse().expect("an address")), ..base.clone() };
    for ip in ["10.1.1.1", "10.1.0.0", "10.1.0.255"] {
        refused(world.network(gateway(ip)), ErrorCode::Invalid, &["gateway", ip, "10.1.0.0/24"]);
    }
    let range = |net: &str| NetworkCreate {
        ip_range: Some(net.parse().expect("a subnet")),
        ..base.clone()
    };
    refused(world.network(range("10.1.1.0/25")), ErrorCode::Invalid, &["10.1.1.0/25", "not in"]);
    refused(world.network(range("10.1.0.1/25")), ErrorCode::Invalid, &["write 10.1.0.0/25"]);
    refused(world.network(range("10.1.0.1/32")), ErrorCode::Invalid, &["no address to hand out"]);
    let with_aux = |list| NetworkCreate { aux_addresses: aux(list), ..base.clone() };
    for list in [&[("router", "10.2.0.1")][..], &[("router", "10.1.0.255")]] {
        refused(world.network(with_aux(list)), ErrorCode::Invalid, &["router"]);
    }
    for list in [&[("a", "10.1.0.1")][..], &[("a", "10.1.0.9"), ("b", "10.1.0.9")]] {
        refused(world.network(with_aux(list)), ErrorCode::Invalid, &["gateway's or another"]);
    }
}

#[test]
fn addresses_come_from_the_range_past_gateway_and_auxiliary_addresses() {
    let mut world = World::new();
    let request = NetworkCreate {
        ip_range: Some("10.1.0.8/29".parse().expect("a subnet")),
        gateway: Some("10.1.0.9".parse().expect("an address")),
        aux_addresses: aux(&[("router", "10.1.0.10"), ("dns", "10.1.0.200")]),
        ..with_subnet("mynet", "10.1.0.0/24")
    };
    world.network(request).expect("made");
    let given: Vec<String> = (0..6)
        .map(|i| world.attach("h1", &format!("c{i}"), &["mynet"])[0].ip.to_string())
        .collect();
    let expected = ["8", "11", "12", "13", "14", "15"].map(|last| format!("10.1.0.{last}"));
    assert_eq!(given, expected);
    let more = world.container("h1", "c6", &["mynet"]);
    refused(world.endpoint(&more), ErrorCode::Exhausted, &["mynet", "all 8 of 10.1.0.8/29"]);
}

#[test]
fn a_chosen_vni_is_in_range_free_and_not_ingress() {
    let mut world = World::new();
    let vni = |name: &str, vni| NetworkCreate { vni: Some(vni), ..request(name) };
    assert_eq!(world.network(vni("a", 5000)).expect("made").vni, 5000);
    refused(world.network(vni("b", 5000)), ErrorCode::Conflict, &["5000", "network a"]);
    refused(world.network(vni("b", 4095)), ErrorCode::Invalid, &["4095", "out of range"]);
    refused(world.network(vni("b", 1 << 24)), ErrorCode::Invalid, &["out of range"]);
    refused(world.network(vni("b", 4096)), ErrorCode::Invalid, &["ingress"]);
    assert_eq!(world.network(vni("b", (1 << 24) - 1)).expect("made").vni, 16_777_215);
    assert_eq!(world.network(vni("c", 4097)).expect("made").vni, 4097);
    assert_eq!(world.named_network("d").vni, 4098, "the next one that is free");
}

#[test]
fn vnis_start_again_after_the_last() {
    let mut world = World::new();
    world.state.cluster.as_mut().expect("a cluster").next_vni = (1 << 24) - 1;
    assert_eq!(world.named_network("a").vni, (1 << 24) - 1);
    assert_eq!(world.named_network("b").vni, 4097);
}

#[test]
fn an_mtu_that_no_packet_fits_is_refused() {
    let mut world = World::new();
    let mtu = |mtu| NetworkCreate { mtu: Some(mtu), ..request("mynet") };
    refused(world.network(mtu(100)), ErrorCode::Invalid, &["100", "576"]);
    refused(world.network(mtu(70_000)), ErrorCode::Invalid, &["70000"]);
    assert_eq!(world.network(mtu(1400)).expect("made").mtu, Some(1400));
}

#[test]
fn an_exhausted_pool_says_so() {
    let init = super::super::init::InitCluster {
        default_pool: "10.9.0.0/29".parse().expect("a subnet"),
        pool_prefix: 30,
        ingress_subnet: Some("10.8.0.0/24".parse().expect("a subnet")),
        ..super::super::testing::init_request()
    };
    let mut world = World::with(&init);
    world.named_network("a");
    world.named_network("b");
    refused(world.network(request("c")), ErrorCode::Exhausted, &["10.9.0.0/29", "/30", "--subnet"]);
    world.remove_network("a").expect("removed");
    assert_eq!(world.named_network("c").subnet.to_string(), "10.9.0.0/30");
}

#[test]
fn a_network_in_use_is_not_removed_and_its_users_are_named() {
    let mut world = World::new();
    world.named_network("mynet");
    world.published("web", &["mynet"], "").expect("a service");
    refused(world.remove_network("mynet"), ErrorCode::Conflict, &["mynet", "service web"]);
    world.remove_service("web").expect("removed");
    let endpoint = world.attach("h1", "c1", &["mynet"]).remove(0);
    world.attach("h1", "c2", &["mynet"]);
    refused(world.remove_network("mynet"), ErrorCode::Conflict, &["container c", "and 1 more"]);
    world.detach(&endpoint).expect("detached");
    refused(world.remove_network("mynet"), ErrorCode::Conflict, &["container c2"]);
    refused(world.remove_network("nonet"), ErrorCode::NotFound, &["\"nonet\"", "network ls"]);
    refused(world.remove_network("bridge"), ErrorCode::Invalid, &["bridge"]);
}

#[test]
fn ingress_is_one_can_go_when_unused_and_come_back_elsewhere() {
    let mut world = World::new();
    world.join("h2", "172.16.1.11").expect("joined");
    world.named_network("mynet");
    let ingress = NetworkCreate { ingress: true, ..with_subnet("front", "10.77.0.0/16") };
    refused(world.network(ingress.clone()), ErrorCode::Conflict, &["ingress", "10.255.0.0/16"]);
    world.published("web", &["mynet"], "80:80").expect("a service");
    refused(world.remove_network("ingress"), ErrorCode::Conflict, &["service web"]);
    world.remove_service("web").expect("removed");
    let alone =
        EndpointCreate { ports: ports("80:80"), ..world.container("h2", "alone", &["mynet"]) };
    let endpoint = world.endpoint(&alone).expect("an endpoint").remove(0);
    refused(world.remove_network("ingress"), ErrorCode::Conflict, &["ports of container alone"]);
    world.detach(&endpoint).expect("detached");
    world.remove_network("ingress").expect("removed");
    refused(
        world.published("web", &["mynet"], "80:80"),
        ErrorCode::Invalid,
        &["no ingress network", "--ingress"],
    );
    refused(world.published("web", &[], ""), ErrorCode::Invalid, &["ingress"]);
    let h3 = world.join("h3", "172.16.1.12").expect("joined");
    assert!(h3.ingress_ip.is_unspecified());
    refused(
        world.network(NetworkCreate { internal: true, ..ingress.clone() }),
        ErrorCode::Invalid,
        &["internal"],
    );
    refused(
        world.network(NetworkCreate { multicast: Multicast::Replicate, ..ingress.clone() }),
        ErrorCode::Invalid,
        &["multicast"],
    );
    let front = world.network(ingress).expect("made");
    assert_eq!((front.vni, front.attachable), (4096, false));
    let subnet = front.subnet;
    assert!(world.state.nodes.values().all(|n| subnet.contains(&n.ingress_ip)));
    world.published("web", &["mynet"], "80:80").expect("a service");
}

#[test]
fn an_ingress_network_too_small_for_the_nodes_is_refused() {
    let mut world = World::new();
    world.join("h2", "172.16.1.11").expect("joined");
    world.remove_network("ingress").expect("removed");
    let small = NetworkCreate { ingress: true, ..with_subnet("front", "10.77.0.0/30") };
    refused(world.network(small), ErrorCode::Exhausted, &["front"]);
}
