//! IPv6 beside IPv4: subnets, gateways and addresses.

use std::net::Ipv6Addr;

use super::super::testing::{World, refused};
use crate::{
    api::{ApiError, EndpointCreate, ErrorCode, NetworkCreate, NetworkCreateIpv6, ServiceCreate},
    model::{EndpointMode, Network, NetworkIpv6, Service},
};

fn dual(name: &str, subnet: Option<&str>) -> NetworkCreate {
    let subnet = subnet.map(|subnet| subnet.parse().expect("a subnet"));
    NetworkCreate {
        name: name.to_owned(),
        ipv6: Some(NetworkCreateIpv6 { subnet, gateway: None }),
        attachable: true,
        ..Default::default()
    }
}

fn made(world: &mut World, name: &str, subnet: Option<&str>) -> Result<NetworkIpv6, ApiError> {
    world.network(dual(name, subnet)).map(|network| network.ipv6.expect("IPv6"))
}

fn ip6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

#[test]
fn a_network_that_is_not_told_its_subnet_gets_a_unique_local_one_of_the_cluster() {
    let mut world = World::new();
    let first = made(&mut world, "first", None).expect("made").subnet;
    let second = made(&mut world, "second", None).expect("made").subnet;
    for subnet in [first, second] {
        assert_eq!(subnet.prefix_len(), 64);
        assert_eq!(subnet.addr().octets()[0], 0xfd, "{subnet}: RFC 4193, with the L bit set");
    }
    assert_ne!(first, second);
    assert_eq!(first.addr().octets()[..6], second.addr().octets()[..6], "one global ID");
    let other = made(&mut World::new(), "first", None).expect("made").subnet;
    assert_ne!(first.addr().octets()[..6], other.addr().octets()[..6], "another cluster's");
}

#[test]
fn a_subnet_id_that_is_taken_is_passed_over() {
    let mut world = World::new();
    let first = made(&mut world, "first", None).expect("made");
    world.remove_network("first").expect("removed");
    // The next network would get the ID after the first one's, but a request has chosen it already.
    let next = Ipv6Addr::from_bits(first.subnet.addr().to_bits() + (1 << 64));
    made(&mut world, "taken", Some(&format!("{next}/64"))).expect("made");
    world.remove_network("taken").expect("removed");
    made(&mut world, "again", Some(&format!("{}/63", first.subnet.addr()))).expect_err("bits set");
    let third = made(&mut world, "third", None).expect("made");
    assert_eq!(third.gateway.to_bits(), third.subnet.addr().to_bits() + 1);
}

#[test]
fn subnets_that_are_not_for_hosts_or_overlap_are_refused() {
    let mut world = World::new();
    made(&mut world, "a", Some("fd00:1::/64")).expect("made");
    for (subnet, why) in [
        ("fe80::/64", "2000::/3"),
        ("ff00::/64", "2000::/3"),
        ("::/64", "2000::/3"),
        ("fd00:2::/127", "16 to 126"),
        ("2000::/3", "16 to 126"),
        ("fd00:2::1/64", "write fd00:2::/64"),
    ] {
        refused(made(&mut world, "b", Some(subnet)), ErrorCode::Invalid, &[why]);
    }
    for subnet in ["fd00:1::/64", "fd00:1::/48", "fd00:1:0:0:8000::/65"] {
        refused(made(&mut world, "b", Some(subnet)), ErrorCode::Conflict, &[subnet, "network a"]);
    }
    made(&mut world, "b", Some("2001:db8:1::/126")).expect("made");
    let ingress = NetworkCreate { ingress: true, ..dual("front", None) };
    world.remove_network("ingress").expect("removed");
    refused(world.network(ingress), ErrorCode::Invalid, &["ingress", "--ipv6"]);
    let small = NetworkCreate { mtu: Some(1279), ..dual("small", None) };
    refused(world.network(small), ErrorCode::Invalid, &["1279", "1280"]);
}

#[test]
fn endpoints_get_addresses_of_both_families_in_series_and_freed_ones_rest() {
    let mut world = World::new();
    made(&mut world, "dual", Some("fd00:1::/64")).expect("made");
    world.named_network("single");
    let of = |world: &mut World, name: &str| world.attach("h1", name, &["dual"])[0].clone();
    let first = of(&mut world, "c1");
    assert_eq!(first.ip6, Some(ip6("fd00:1::2")), "the gateway has ::1");
    assert_eq!(of(&mut world, "c2").ip6, Some(ip6("fd00:1::3")));
    world.detach(&first).expect("detached");
    assert_eq!(of(&mut world, "c3").ip6, Some(ip6("fd00:1::4")));
    let both = world.attach("h1", "c4", &["single", "dual"]);
    assert_eq!((both[0].ip6, both[1].ip6), (None, Some(ip6("fd00:1::5"))));
}

#[test]
fn a_fixed_ipv6_address_must_be_free_in_the_subnet_and_of_a_dual_stack_network() {
    let mut world = World::new();
    let gateway = Some(ip6("fd00:1::99"));
    let subnet = "fd00:1::/64".parse().ok();
    let ipv6 = Some(NetworkCreateIpv6 { subnet, gateway });
    world.network(NetworkCreate { ipv6, ..dual("dual", None) }).expect("made");
    world.named_network("single");
    let at = |world: &World, name: &str, on: &str, ip: &str| EndpointCreate {
        ip6: Some(ip6(ip)),
        ..world.container("h1", name, &[on])
    };
    let request = at(&world, "c1", "dual", "fd00:1::77");
    assert_eq!(world.endpoint(&request).expect("made")[0].ip6, Some(ip6("fd00:1::77")));
    for (on, ip, code, why) in [
        ("dual", "fd00:1::77", ErrorCode::Conflict, "container c1"),
        ("dual", "fd00:1::99", ErrorCode::Conflict, "its gateway"),
        ("dual", "fd00:1::", ErrorCode::Invalid, "fd00:1::/64"),
        ("dual", "fd00:2::1", ErrorCode::Invalid, "fd00:1::/64"),
        ("single", "fd00:1::1", ErrorCode::Invalid, "--ipv6"),
    ] {
        let request = at(&world, "c2", on, ip);
        refused(world.endpoint(&request), code, &[why]);
    }
}

#[test]
fn a_network_that_is_full_of_ipv6_addresses_says_so() {
    let mut world = World::new();
    made(&mut world, "tiny", Some("fd00:1::/126")).expect("made");
    for name in ["c1", "c2"] {
        world.attach("h1", name, &["tiny"]);
    }
    let request = world.container("h1", "c3", &["tiny"]);
    refused(world.endpoint(&request), ErrorCode::Exhausted, &["tiny", "IPv6", "fd00:1::/126"]);
}

#[test]
fn a_network_of_an_earlier_version_has_ipv4_alone() {
    let mut world = World::new();
    let network = world.network(dual("dual", None)).expect("made");
    let mut json = serde_json::to_value(&network).expect("JSON");
    json.as_object_mut().expect("an object").remove("ipv6").expect("it was there");
    let old: Network = serde_json::from_value(json).expect("read");
    assert_eq!(old, Network { ipv6: None, ..network });
}

#[test]
fn a_service_has_a_vip_of_either_family_on_a_dual_stack_network() {
    let mut world = World::new();
    made(&mut world, "dual", Some("fd00:1::/64")).expect("made");
    world.named_network("single");
    let web = world.published("web", &["single", "dual"], "80:80").expect("made");
    assert_eq!(web.networks[0].vip6, None);
    assert_eq!(web.networks[1].vip6, Some(ip6("fd00:1::2")));
    let container = world.attach("h1", "c1", &["dual"]);
    assert_eq!(container[0].ip6, Some(ip6("fd00:1::3")));
    let dnsrr = ServiceCreate {
        name: "names".to_owned(),
        networks: vec!["dual".to_owned()],
        mode: EndpointMode::Dnsrr,
        ..Default::default()
    };
    assert_eq!(world.service(dnsrr).expect("made").networks[0].vip6, None);
    let taken =
        EndpointCreate { ip6: Some(ip6("fd00:1::2")), ..world.container("h1", "c2", &["dual"]) };
    refused(world.endpoint(&taken), ErrorCode::Conflict, &["fd00:1::2", "service web"]);
    world.remove_service("web").expect("removed");
    let freed = world.endpoint(&taken).expect("its address is free again");
    assert_eq!(freed[0].ip6, Some(ip6("fd00:1::2")));
}

#[test]
fn a_service_that_finds_no_free_ipv6_address_is_not_made_by_half() {
    let mut world = World::new();
    made(&mut world, "tiny", Some("fd00:1::/126")).expect("made");
    for name in ["c1", "c2"] {
        world.attach("h1", name, &["tiny"]);
    }
    let before = world.state.clone();
    refused(world.published("web", &["tiny"], ""), ErrorCode::Exhausted, &["tiny", "IPv6"]);
    assert_eq!(world.state, before);
}

#[test]
fn a_service_of_an_earlier_version_has_no_ipv6_vip() {
    let mut world = World::new();
    made(&mut world, "dual", None).expect("made");
    let service = world.published("web", &["dual"], "").expect("made");
    let mut json = serde_json::to_value(&service).expect("JSON");
    let on = json["networks"][0].as_object_mut().expect("an object");
    on.remove("vip6").expect("it was there");
    let old: Service = serde_json::from_value(json).expect("read");
    assert_eq!((old.networks[0].vip, old.networks[0].vip6), (service.networks[0].vip, None));
}
