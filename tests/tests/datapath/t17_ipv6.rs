//! IPv6 on dual-stack networks: neighbour discovery, delivery, isolation and source address checks.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::Reason;
use overlay_tests::rig::{
    DROP, NODE_MAC, OTHER_VNI, PEER, REDIRECT, Ran, Rig, VNI, XDP_PASS, ip6, link_local, mac,
    packets::{ping, untunnel, vxlan},
    packets6::*,
};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);

/// A dual-stack network with an endpoint that sends, one beside it, one on the peer and a VIP.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.local(VNI, NEIGHBOUR, 0, false);
    rig.remote(VNI, FAR, 0);
    rig.service(7, VNI, VIP, &[]);
    rig.dual_stack(VNI, 1);
    rig
}

/// An address of the network in both families.
fn both(ip: Ipv4Addr) -> (Ipv4Addr, Ipv6Addr) {
    (ip, ip6(1, ip.octets()[3]))
}

fn way(from: Ipv4Addr, to: Ipv4Addr) -> Way {
    Way { from: both(from), to: both(to) }
}

fn sent(rig: &mut Rig, packet: &[u8]) -> Ran {
    rig.run("from_container", packet)
}

fn dropped(ran: &Ran, reason: Reason, what: &str) {
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]), "{what}");
}

/// The advertisement for `target`, which `owner` has, in answer to `asker`.
fn advertisement(owner: Ipv4Addr, target: Ipv6Addr, asker: Ipv6Addr, flags: u8) -> Vec<u8> {
    let option = [&[2, 1][..], &mac(owner).bytes()].concat();
    let mut message = solicitation(target, &option);
    message[0] = 136;
    message[4] = flags;
    let way = Way { from: (owner, target), to: (ME, asker) };
    icmpv6(way, 255, &message)
}

#[test]
fn solicitations_for_endpoints_and_gateway_are_answered_with_their_macs() {
    let mut rig = rig();
    for (owner, flags) in [(NEIGHBOUR, 0x60), (FAR, 0x60), (GATEWAY, 0xe0)] {
        for target in [both(owner).1, link_local(owner)] {
            for asker in [both(ME).1, link_local(ME)] {
                let ran = sent(&mut rig, &solicit((ME, asker), target));
                assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NdAnswered][..]));
                assert_eq!(ran.packet, advertisement(owner, target, asker, flags), "{target}");
            }
        }
    }
}

#[test]
fn a_unicast_solicitation_without_options_or_with_many_is_answered_as_any_other() {
    let mut rig = rig();
    let own = [&[1, 1][..], &mac(ME).bytes()].concat();
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    for options in [vec![], own.clone(), [&own[..], &nonce].concat()] {
        let ask = icmpv6(way(ME, FAR), 255, &solicitation(both(FAR).1, &options));
        let ran = sent(&mut rig, &ask);
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NdAnswered][..]));
        assert_eq!(ran.packet, advertisement(FAR, both(FAR).1, both(ME).1, 0x60));
    }
}

/// A probe for duplicates (RFC 4862, section 5.4.2).
fn probe(target: Ipv6Addr) -> Vec<u8> {
    let none = Ipv6Addr::UNSPECIFIED;
    let to = (NOBODY, solicited_node(target));
    icmpv6(Way { from: (ME, none), to }, 255, &solicitation(target, &[]))
}

#[test]
fn a_probe_for_ones_own_address_hears_nothing_and_for_anothers_hears_its_owner() {
    let mut rig = rig();
    for own in [both(ME).1, link_local(ME)] {
        dropped(&sent(&mut rig, &probe(own)), Reason::NdUnknown, "a probe for one's own");
        dropped(&sent(&mut rig, &solicit(both(ME), own)), Reason::NdUnknown, "one's own");
    }
    let ran = sent(&mut rig, &probe(both(NEIGHBOUR).1));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NdAnswered][..]));
    let seen = see6(&ran.packet);
    assert_eq!(seen.to, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    assert_eq!(seen.macs.1, [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(seen.message[4], 0x20, "not solicited");
}

#[test]
fn neighbour_discovery_that_is_not_for_us_is_dropped_by_name() {
    let mut rig = rig();
    dropped(&sent(&mut rig, &solicit(both(ME), both(NOBODY).1)), Reason::NdUnknown, "nobody");
    let local = link_local(VIP);
    dropped(&sent(&mut rig, &solicit(both(ME), local)), Reason::NdUnknown, "link-local of a VIP");
    // Router solicitation and advertisement, neighbour advertisement, redirect.
    for kind in [133, 134, 136, 137] {
        let mut message = solicitation(both(GATEWAY).1, &[]);
        message[0] = kind;
        let ran = sent(&mut rig, &icmpv6(way(ME, NEIGHBOUR), 255, &message));
        dropped(&ran, Reason::NdUnknown, "only solicitations are answered");
        // Behind a destination options header Linux would still take it.
        let hidden = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &message].concat();
        let ran = sent(&mut rig, &raw6(way(ME, NEIGHBOUR), 60, 255, &hidden));
        dropped(&ran, Reason::NdUnknown, "hidden behind an extension header");
    }
    // A multicast listener report (RFC 3810) with its router alert option.
    let report = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat();
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
    let ran = sent(&mut rig, &raw6(way(ME, FAR).with(link_local(ME), routers), 0, 1, &report));
    dropped(&ran, Reason::Multicast, "MLD");
}

#[test]
fn a_forged_solicitation_is_refused() {
    let mut rig = rig();
    let own = [&[1, 1][..], &mac(ME).bytes()].concat();
    let others = [&[1, 1][..], &mac(NEIGHBOUR).bytes()].concat();
    let ask = |way: Way, options: &[u8]| icmpv6(way, 255, &solicitation(both(FAR).1, options));
    let spoofed = Reason::SpoofedSource;
    let to_far = way(ME, FAR);
    dropped(&sent(&mut rig, &ask(to_far, &others)), spoofed, "another's MAC in the option");
    let as_other = to_far.with(both(NEIGHBOUR).1, both(FAR).1);
    dropped(&sent(&mut rig, &ask(as_other, &own)), spoofed, "another's address");
    let routed = icmpv6(to_far, 254, &solicitation(both(FAR).1, &own));
    dropped(&sent(&mut rig, &routed), Reason::Malformed, "not from a neighbour (hop limit 254)");
    let mut code = solicitation(both(FAR).1, &own);
    code[1] = 1;
    dropped(&sent(&mut rig, &icmpv6(to_far, 255, &code)), Reason::Malformed, "a code");
    let empty = ask(to_far, &[1, 0, 0, 0, 0, 0, 0, 0]);
    dropped(&sent(&mut rig, &empty), Reason::Malformed, "an option without length");
    let short = icmpv6(to_far, 255, &[135, 0, 0, 0, 0, 0, 0, 0]);
    dropped(&sent(&mut rig, &short), Reason::Truncated, "no target");
}

#[test]
fn the_gateway_answers_ping_and_nothing_else() {
    let mut rig = rig();
    for to in [both(GATEWAY).1, link_local(GATEWAY)] {
        let way = way(ME, GATEWAY).with(both(ME).1, to);
        let ran = sent(&mut rig, &ping6(way));
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::EchoAnswered][..]));
        let seen = see6(&ran.packet);
        assert_eq!((seen.from, seen.to), (to, both(ME).1));
        assert_eq!(seen.macs, (mac(GATEWAY).bytes(), mac(ME).bytes()));
        assert_eq!(seen.message[0], 129, "an echo reply");
        assert_eq!(&seen.message[8..], b"0123456789");
        dropped(&sent(&mut rig, &tcp6(way, (40_000, 22))), Reason::GatewayPort, "ssh");
        let error = icmpv6(way, 64, &[1, 0, 0, 0, 0, 0, 0, 0]);
        dropped(&sent(&mut rig, &error), Reason::GatewayPort, "an ICMPv6 error");
    }
}

/// Packets of all kinds that are forwarded unchanged, including extension headers and fragments.
fn crossing(way: Way) -> Vec<Vec<u8>> {
    let extended = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &[0, 1, 0, 2, 0, 8, 0, 0]].concat();
    let fragment = [&[17, 0, 0, 1, 0, 0, 0, 7][..], &[0; 16]].concat();
    vec![
        tcp6(way, (40_000, 80)),
        udp6(way, (40_000, 53), b"question"),
        udp6(way, (40_000, 53), b""),
        ping6(way),
        raw6(way, 60, 64, &extended),
        raw6(way, 44, 64, &fragment),
        raw6(way, 59, 64, &[]),
    ]
}

#[test]
fn a_packet_to_an_endpoint_of_this_node_is_delivered_unchanged() {
    let mut rig = rig();
    let to = way(ME, NEIGHBOUR);
    for way in [to, to.with(link_local(ME), link_local(NEIGHBOUR))] {
        for packet in crossing(way) {
            let ran = sent(&mut rig, &packet);
            assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredLocal][..]));
            assert_eq!(ran.packet, packet, "the hop limit as well");
        }
    }
}

#[test]
fn a_packet_to_another_node_is_encapsulated_with_the_inner_frame_intact() {
    let mut rig = rig();
    let to = way(ME, FAR);
    for way in [to, to.with(link_local(ME), link_local(FAR))] {
        for packet in crossing(way) {
            let ran = sent(&mut rig, &packet);
            assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
            assert_eq!(ran.packet[6..12], NODE_MAC);
            assert_eq!(untunnel(&ran.packet), (VNI, PEER, packet));
        }
    }
}

#[test]
fn a_frame_from_an_endpoint_of_a_peer_is_delivered_as_it_was_sent() {
    let mut rig = rig();
    let to = way(FAR, NEIGHBOUR);
    for way in [to, to.with(link_local(FAR), link_local(NEIGHBOUR))] {
        for frame in crossing(way) {
            let packet = vxlan(VNI, &frame);
            let ran = rig.run("xdp_underlay", &packet);
            assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[][..]));
            let ran = rig.run("from_underlay", &packet);
            assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
            assert_eq!(ran.packet, frame);
        }
    }
}

#[test]
fn marks_of_congestion_cross_the_tunnel_both_ways() {
    let mut rig = rig();
    // Not-ECT 0, ECT(1) 1, ECT(0) 2, CE 3 (RFC 6040); the DSCP is the containers' own.
    let with = |way: Way, ecn: u8| {
        let mut frame = udp6(way, (1, 2), b"marked");
        frame[14..16].copy_from_slice(&[0x6b, 0x80 | ecn << 4]);
        frame
    };
    for ecn in 0..4 {
        let ran = sent(&mut rig, &with(way(ME, FAR), ecn));
        assert_eq!(ran.packet[15], ecn, "outer TOS");
        assert_eq!(untunnel(&ran.packet), (VNI, PEER, with(way(ME, FAR), ecn)));
    }
    let to = way(FAR, NEIGHBOUR);
    for (inner, outer, expected) in
        [(2, 3, Some(3)), (2, 1, Some(1)), (1, 2, Some(1)), (0, 3, None)]
    {
        let mut packet = vxlan(VNI, &with(to, inner));
        packet[15] = outer;
        packet[24..26].fill(0);
        let checksum = overlay_tests::model::ones_complement(&packet[14..34]);
        packet[24..26].copy_from_slice(&checksum.to_be_bytes());
        let ran = rig.run("from_underlay", &packet);
        match expected {
            Some(ecn) => assert_eq!(ran.packet, with(to, ecn)),
            None => dropped(&ran, Reason::EcnUnexpected, "marked, though the sender has no ECN"),
        }
    }
}

#[test]
fn nobody_sends_as_another() {
    let mut rig = rig();
    let to = way(ME, FAR);
    for source in [both(NEIGHBOUR).1, link_local(NEIGHBOUR), ip6(2, 2), Ipv6Addr::UNSPECIFIED] {
        let forged = ping6(to.with(source, both(FAR).1));
        dropped(&sent(&mut rig, &forged), Reason::SpoofedSource, &source.to_string());
    }
    let mac = ping6(way(NEIGHBOUR, FAR));
    dropped(&sent(&mut rig, &mac), Reason::SpoofedMac, "another's MAC");
}

#[test]
fn what_goes_nowhere_says_why() {
    let mut rig = rig();
    let to = |address: &str| {
        let to = address.parse().expect("an address");
        ping6(way(ME, FAR).with(both(ME).1, to))
    };
    for (packet, reason) in [
        (to("fd00:1::77"), Reason::NoEndpoint),
        (to("fe80::1"), Reason::NoEndpoint),
        (to("2001:db8::1"), Reason::NoWayOut),
        (to("::1"), Reason::NoWayOut),
        (to("ff02::1"), Reason::Multicast),
    ] {
        dropped(&sent(&mut rig, &packet), reason, "");
    }
    let mut group = ping6(way(ME, NEIGHBOUR));
    group[0] |= 1;
    dropped(&sent(&mut rig, &group), Reason::Multicast, "a multicast MAC");
    let mut version = ping6(way(ME, NEIGHBOUR));
    version[14] = 0x45;
    dropped(&sent(&mut rig, &version), Reason::Malformed, "version 4 in an IPv6 frame");
    let mut short = ping6(way(ME, NEIGHBOUR));
    short.truncate(60);
    dropped(&sent(&mut rig, &short), Reason::Truncated, "shorter than it says");
}

/// The most that fits the tunnel.
const FITS: usize = 1450;

/// Parses an answer and verifies its checksum: (from, to, MTU, quoted packet).
fn told(ran: &Ran) -> (Ipv6Addr, Ipv6Addr, u32, Vec<u8>) {
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::TooBigAnswered][..]));
    assert_eq!(ran.packet.len(), 14 + 1280, "as much as every path takes");
    let seen = see6(&ran.packet);
    assert_eq!(seen.message[..2], [2, 0], "packet too big");
    let [a, b, c, d, ..] = seen.message[4..] else { panic!("no MTU") };
    (seen.from, seen.to, u32::from_be_bytes([a, b, c, d]), seen.message[8..].to_vec())
}

#[test]
fn the_gateway_tells_a_container_what_fits_the_tunnel() {
    let mut rig = rig();
    let fits = udp6(way(ME, FAR), (1, 2), &[7; FITS - 48]);
    assert_eq!(sent(&mut rig, &fits).counted, [Reason::Encapsulated]);
    let to = way(ME, FAR);
    for way in [to, to.with(link_local(ME), link_local(FAR))] {
        let too_big = udp6(way, (1, 2), &[7; FITS + 1 - 48]);
        let ran = sent(&mut rig, &too_big);
        let (from, to, mtu, quote) = told(&ran);
        assert_eq!((from, to, mtu), (both(GATEWAY).1, way.from.1, 1450));
        assert_eq!(quote, too_big[14..14 + 1232], "the start of what was sent");
        assert_eq!(see6(&ran.packet).macs, (mac(GATEWAY).bytes(), mac(ME).bytes()));
    }
    let ping = icmpv6(to, 64, &[&[128, 0, 0, 0, 0, 7, 0, 1][..], &[7; FITS]].concat());
    assert_eq!(told(&sent(&mut rig, &ping)).2, 1450, "an echo request");
    let error = icmpv6(to, 64, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &[7; FITS]].concat());
    dropped(&sent(&mut rig, &error), Reason::TooBig, "an ICMPv6 error");
}

/// The results for 1351 and for 1280 bytes on a path of `mtu`.
fn on_a_path_of(mtu: u32) -> (Ran, Ran) {
    let mut rig = rig();
    let route = format!("route add 172.16.1.11/32 dev u0 mtu lock {mtu}");
    let added = std::process::Command::new("ip").args(route.split(' ')).status();
    assert!(added.expect("ip runs").success());
    let mut send = |total: usize| sent(&mut rig, &udp6(way(ME, FAR), (1, 2), &vec![7; total - 48]));
    (send(1351), send(1280))
}

#[test]
fn an_answer_names_the_mtu_of_the_path_where_it_is_less_than_the_nics() {
    let (too_big, fits) = on_a_path_of(1400);
    assert_eq!((told(&too_big).2, &fits.counted[..]), (1350, &[Reason::Encapsulated][..]));
}

#[test]
fn no_less_is_told_than_every_path_takes_and_that_much_goes_in_fragments_of_the_tunnel() {
    let (too_big, least) = on_a_path_of(1300);
    assert_eq!((told(&too_big).2, &least.counted[..]), (1280, &[Reason::KernelEncap][..]));
}

#[test]
fn networks_do_not_see_each_other() {
    let mut rig = rig();
    rig.network(OTHER_VNI, 2);
    rig.local(OTHER_VNI, Ipv4Addr::new(10, 0, 2, 5), 0, false);
    rig.dual_stack(OTHER_VNI, 2);
    let stranger = ping6(way(ME, FAR).with(both(ME).1, ip6(2, 5)));
    dropped(&sent(&mut rig, &stranger), Reason::NoWayOut, "another network's address");
    dropped(&sent(&mut rig, &solicit(both(ME), ip6(2, 5))), Reason::NdUnknown, "its MAC");
    let frame = ping6(way(FAR, NEIGHBOUR));
    let ran = rig.run("from_underlay", &vxlan(OTHER_VNI, &frame));
    dropped(&ran, Reason::NotPeer, "the VNI of a network that its node has no endpoints of");
    rig.node(PEER, &[OTHER_VNI]);
    let ran = rig.run("from_underlay", &vxlan(OTHER_VNI, &frame));
    dropped(&ran, Reason::NoEndpoint, "the VNI of a network that its node has others of");
}

#[test]
fn a_network_without_ipv6_carries_none() {
    let mut rig = rig();
    rig.set(|state| {
        state.links6.clear();
        state.endpoints6.clear();
    });
    for packet in [ping6(way(ME, NEIGHBOUR)), solicit(both(ME), both(NEIGHBOUR).1)] {
        dropped(&sent(&mut rig, &packet), Reason::UnsupportedProtocol, "IPv4 only");
    }
    assert_eq!(sent(&mut rig, &ping(ME, NEIGHBOUR)).counted, [Reason::DeliveredLocal]);
}

#[test]
fn what_only_ipv6_has_in_a_tunnel_is_dropped_by_name() {
    let mut rig = rig();
    let to = way(FAR, NEIGHBOUR);
    let of_ours = ping6(to.with(link_local(ME), both(NEIGHBOUR).1));
    let mut short = ping6(to);
    short.truncate(58);
    for (what, packet, reason) in [
        ("a link-local source of ours", vxlan(VNI, &of_ours), Reason::SpoofedInnerSource),
        ("the gateway's address", vxlan(VNI, &ping6(way(FAR, GATEWAY))), Reason::NoEndpoint),
        ("a solicitation", vxlan(VNI, &solicit(both(FAR), both(ME).1)), Reason::NoEndpoint),
        ("shorter than it says", vxlan(VNI, &short), Reason::Truncated),
    ] {
        dropped(&rig.run("from_underlay", &packet), reason, what);
    }
}
