//! Egress: source NAT for containers, and the replies from outside.

use std::net::Ipv4Addr;

use overlay_common::{
    Reason,
    maps::{
        CONNTRACK_MASQUERADE, CONNTRACK_UNMASQUERADE, NETWORK_INTERNAL, SNAT_USAGE_UNCOUNTED,
        SnatUsage,
    },
    wire::{PROTO_ICMP, PROTO_TCP, PROTO_UDP},
};
use overlay_tests::{
    model::ones_complement,
    rig::{
        CLIENT, CLIENT_MAC, DROP, NODE, NODE_MAC, PASS, REDIRECT, Rig, VNI, mac, packets::*,
        wait_for_uptime,
    },
};

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// Sends from the interface that BPF_PROG_TEST_RUN reports.
const SENDS: bool = true;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, B, 0, !SENDS);
    rig.local(VNI, A, 0, SENDS);
    rig.way_out();
    rig
}

/// Lets another container send.
fn sends(rig: &mut Rig, ip: Ipv4Addr) {
    rig.local(VNI, ip, 0, SENDS);
}

/// An echo request or reply with an identifier.
fn echo(from: Ipv4Addr, to: Ipv4Addr, kind: u8, id: u16) -> Vec<u8> {
    let mut packet = ping(from, to);
    packet[34] = kind;
    packet[38..40].copy_from_slice(&id.to_be_bytes());
    packet[36..38].fill(0);
    let sum = ones_complement(&packet[34..]);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn id(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[38], packet[39]])
}

#[test]
fn a_connection_leaves_under_the_nodes_address_and_its_answers_come_back() {
    let mut rig = rig();
    let ran = rig.run("from_container", &tcp((A, 40_000), (CLIENT, 443), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Masqueraded][..]));
    let seen = see(&ran.packet);
    assert_eq!((seen.from.0, seen.to), (NODE, (CLIENT, 443)));
    assert!(seen.from.1 >= 61_000, "source port {}", seen.from.1);
    assert_eq!(seen.macs, (NODE_MAC, CLIENT_MAC));
    assert_eq!(ran.packet[22], 63, "a router takes one off the TTL");

    for program in ["from_underlay", "from_outside"] {
        let ran = rig.run(program, &tcp_from_client((CLIENT, 443), seen.from, Tcp::SynAck));
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::ReturnedFromOutside][..]));
        let back = see(&ran.packet);
        assert_eq!((back.from, back.to), ((CLIENT, 443), (A, 40_000)));
        assert_eq!(back.macs, (mac(GATEWAY).bytes(), mac(A).bytes()));
    }
    let again = rig.run("from_container", &tcp((A, 40_000), (CLIENT, 443), Tcp::Data));
    assert_eq!(see(&again.packet).from, seen.from, "a flow keeps its port");
}

#[test]
fn datagrams_and_echoes_leave_and_come_back_too() {
    let mut rig = rig();
    let ran = rig.run("from_container", &udp((A, 5353), (CLIENT, 53), b"question"));
    let seen = see(&ran.packet);
    assert_eq!((seen.from.0, seen.to, &seen.payload[..]), (NODE, (CLIENT, 53), &b"question"[..]));
    let ran = rig.run("from_underlay", &udp_from_client((CLIENT, 53), seen.from, b"odd"));
    assert_eq!(ran.counted, [Reason::ReturnedFromOutside]);
    assert_eq!(see(&ran.packet).to, (A, 5353));

    let ran = rig.run("from_container", &echo(A, CLIENT, 8, 7));
    assert_eq!(ran.counted, [Reason::Masqueraded]);
    let outside = id(&ran.packet);
    let seen = see(&ran.packet);
    assert_eq!((seen.from.0, seen.to.0, seen.protocol), (NODE, CLIENT, PROTO_ICMP));
    assert!(outside >= 61_000, "identifier {outside}");
    let ran = rig.run("from_underlay", &echo(CLIENT, NODE, 0, outside));
    assert_eq!(ran.counted, [Reason::ReturnedFromOutside]);
    assert_eq!((see(&ran.packet).to.0, id(&ran.packet)), (A, 7));
    // Another identifier is the host's own ping.
    let ran = rig.run("from_underlay", &echo(CLIENT, NODE, 0, outside - 1));
    assert_eq!((ran.verdict, &ran.counted[..]), (PASS, &[][..]));
}

#[test]
fn two_containers_with_one_source_port_are_told_apart() {
    let mut rig = rig();
    // One port for both would do only towards different destinations.
    rig.set_config(&overlay_common::maps::Config {
        outside_ports: [61_000, 61_001],
        ..rig.config()
    });
    let mut ports = Vec::new();
    for container in [A, B] {
        sends(&mut rig, container);
        let ran = rig.run("from_container", &udp((container, 40_000), (CLIENT, 53), b"odd"));
        assert_eq!(ran.counted, [Reason::Masqueraded]);
        ports.push(see(&ran.packet).from.1);
    }
    assert_ne!(ports[0], ports[1]);
    for (port, container) in ports.into_iter().zip([A, B]) {
        let ran = rig.run("from_underlay", &udp_from_client((CLIENT, 53), (NODE, port), b"odd"));
        assert_eq!(see(&ran.packet).to, (container, 40_000));
    }
}

#[test]
fn without_a_free_port_a_new_flow_is_dropped_and_the_old_ones_go_on() {
    let mut rig = rig();
    rig.set_config(&overlay_common::maps::Config {
        outside_ports: [61_000, 61_000],
        ..rig.config()
    });
    rig.run("from_container", &udp((A, 1000), (CLIENT, 53), b"first"));
    let second = udp((A, 1001), (CLIENT, 53), b"second");
    let ran = rig.run("from_container", &second);
    let exhausted = [Reason::MasqueradePortsExhausted];
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &exhausted[..]));
    let ran = rig.run("from_container", &udp((A, 1000), (CLIENT, 53), b"first"));
    assert_eq!(ran.counted, [Reason::Masqueraded]);
    // Towards another destination the same port is free.
    let ran = rig.run("from_container", &udp((A, 1001), (CLIENT, 54), b"second"));
    assert_eq!(see(&ran.packet).from, (NODE, 61_000));
    // A flow that is over gives its port back.
    rig.age_conntrack(61);
    assert_eq!(rig.run("from_container", &second).counted, [Reason::Masqueraded]);
}

#[test]
fn a_port_that_a_service_answers_is_not_used() {
    let mut rig = rig();
    rig.set_config(&overlay_common::maps::Config {
        outside_ports: [61_000, 61_000],
        ..rig.config()
    });
    rig.publish(PROTO_TCP, 61_000, 7, 80);
    let ran = rig.run("from_container", &tcp((A, 40_000), (CLIENT, 443), Tcp::Syn));
    assert_eq!(ran.counted, [Reason::MasqueradePortsExhausted]);
    let ran = rig.run("from_container", &udp((A, 40_000), (CLIENT, 443), b"other protocol"));
    assert_eq!(ran.counted, [Reason::Masqueraded]);
}

#[test]
fn what_nobody_asked_for_is_the_hosts() {
    let mut rig = rig();
    let ran = rig.run("from_container", &udp((A, 40_000), (CLIENT, 53), b"question"));
    let (_, port) = see(&ran.packet).from;
    for packet in [
        udp_from_client((CLIENT, 54), (NODE, port), b"another port"),
        udp_from_client((Ipv4Addr::new(172, 16, 1, 99), 53), (NODE, port), b"another host"),
        udp_from_client((CLIENT, 53), (NODE, port ^ 1), b"to another port"),
        tcp_from_client((CLIENT, 53), (NODE, port), Tcp::Syn),
    ] {
        let ran = rig.run("from_underlay", &packet);
        assert_eq!((ran.verdict, &ran.packet), (PASS, &packet), "untouched");
        assert!(ran.counted.is_empty(), "{:?}", ran.counted);
    }
    // Packets of an expired flow pass untouched, too.
    rig.age_conntrack(61);
    let ran = rig.run("from_underlay", &udp_from_client((CLIENT, 53), (NODE, port), b"late"));
    assert_eq!(ran.verdict, PASS);
}

#[test]
fn an_internal_network_has_no_way_out() {
    let mut rig = rig();
    rig.set(|state| state.networks.get_mut(&VNI).expect("a network").flags = NETWORK_INTERNAL);
    for packet in [
        tcp((A, 40_000), (CLIENT, 443), Tcp::Syn),
        udp((A, 40_000), (CLIENT, 53), b"question"),
        ping(A, CLIENT),
    ] {
        let ran = rig.run("from_container", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoWayOut][..]));
    }
    assert!(rig.conntrack().is_empty());
}

#[test]
fn networks_of_the_cluster_loopback_and_the_host_itself_are_not_outside() {
    let mut rig = rig();
    rig.set(|state| {
        let other =
            overlay_common::maps::SubnetKey { prefix: 16, ip: Ipv4Addr::new(10, 255, 0, 0).into() };
        state.subnets.insert(other, 4096);
    });
    for to in [[10, 255, 3, 4], [127, 0, 0, 1], [127, 9, 9, 9], [0, 0, 0, 1], NODE.octets()] {
        let ran = rig.run("from_container", &udp((A, 40_000), (to.into(), 53), b"question"));
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoWayOut][..]), "{to:?}");
    }
    let ran = rig.run("from_container", &udp((A, 40_000), ([224, 0, 0, 1].into(), 53), b"group"));
    assert_eq!(ran.counted, [Reason::Multicast]);
    // The subnet ends where its mask ends it.
    rig.set(|state| {
        state.subnets.retain(|key, _| key.prefix != 16);
        let clients = overlay_common::maps::SubnetKey { prefix: 31, ip: CLIENT.into() };
        state.subnets.insert(clients, 4100);
    });
    let ran = rig.run("from_container", &udp((A, 40_000), (CLIENT, 53), b"question"));
    assert_eq!(ran.counted, [Reason::NoWayOut]);
    let beside = Ipv4Addr::new(172, 16, 1, 102);
    let ran = rig.run("from_container", &udp((A, 40_000), (beside, 53), b"question"));
    assert_eq!(ran.counted, [Reason::Masqueraded]);
}

#[test]
fn an_interface_without_an_address_is_no_way_out() {
    let mut rig = rig();
    rig.set(|state| state.egress.clear());
    let ran = rig.run("from_container", &tcp((A, 40_000), (CLIENT, 443), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoWayOut][..]));
    assert!(rig.conntrack().is_empty());
}

#[test]
fn a_flow_whose_address_left_the_host_is_given_another() {
    let mut rig = rig();
    let request = udp((A, 40_000), (CLIENT, 53), b"question");
    rig.run("from_container", &request);
    let other = Ipv4Addr::new(172, 16, 1, 20);
    let underlay = rig.underlay;
    rig.set(|state| {
        state.local_addrs.clear();
        state.local_addrs.insert(other.into(), 1);
        state.egress.insert(underlay, other.into());
    });
    rig.age_conntrack(2);
    let ran = rig.run("from_container", &request);
    assert_eq!(see(&ran.packet).from.0, other);
}

#[test]
fn a_flow_that_lost_its_way_back_is_given_it_again() {
    let mut rig = rig();
    let request = udp((A, 40_000), (CLIENT, 53), b"question");
    let before = see(&rig.run("from_container", &request).packet).from;
    for (key, entry) in rig.conntrack() {
        if entry.action == CONNTRACK_UNMASQUERADE {
            rig.set_conntrack(key, None);
        }
    }
    rig.age_conntrack(2);
    assert_eq!(see(&rig.run("from_container", &request).packet).from, before);
    let answer = udp_from_client((CLIENT, 53), before, b"answer");
    assert_eq!(rig.run("from_underlay", &answer).counted, [Reason::ReturnedFromOutside]);
}

#[test]
fn either_direction_keeps_a_flow_alive() {
    for (program, outward) in [("from_container", true), ("from_underlay", false)] {
        let mut rig = rig();
        let request = udp((A, 40_000), (CLIENT, 53), b"question");
        let from = see(&rig.run("from_container", &request).packet).from;
        let answer = udp_from_client((CLIENT, 53), from, b"answer");
        for _ in 0..3 {
            rig.age_conntrack(50);
            rig.run(program, if outward { &request } else { &answer });
        }
        rig.age_conntrack(50);
        let answered = rig.run("from_underlay", &answer);
        assert_eq!(answered.counted, [Reason::ReturnedFromOutside]);
        let asked = rig.run("from_container", &request);
        assert_eq!(
            (see(&asked.packet).from, &asked.counted[..]),
            (from, &[Reason::Masqueraded][..])
        );
        assert_eq!(rig.snat_usage().map(|usage| usage.flows), Some(1), "it was never opened anew");
    }
}

#[test]
fn a_conversation_may_rest_for_five_minutes_and_a_question_for_one() {
    for (spoke, seconds, lives) in [(true, 299, true), (true, 301, false), (false, 61, false)] {
        let mut rig = rig();
        let request = udp((A, 40_000), (CLIENT, 53), b"question");
        let from = see(&rig.run("from_container", &request).packet).from;
        let answer = udp_from_client((CLIENT, 53), from, b"answer");
        if spoke {
            rig.run("from_underlay", &answer);
        }
        rig.age_conntrack(seconds);
        let verdict = rig.run("from_underlay", &answer).verdict;
        assert_eq!(verdict == REDIRECT, lives, "answered {spoke}, after {seconds} s");
    }
}

#[test]
fn a_reset_ends_both_directions() {
    for outward in [true, false] {
        let mut rig = rig();
        let syn = tcp((A, 40_000), (CLIENT, 443), Tcp::Syn);
        let from = see(&rig.run("from_container", &syn).packet).from;
        rig.run("from_underlay", &tcp_from_client((CLIENT, 443), from, Tcp::SynAck));
        rig.run("from_container", &tcp((A, 40_000), (CLIENT, 443), Tcp::Data));
        if outward {
            rig.run("from_container", &tcp((A, 40_000), (CLIENT, 443), Tcp::Rst));
        } else {
            rig.run("from_underlay", &tcp_from_client((CLIENT, 443), from, Tcp::Rst));
        }
        rig.age_conntrack(31);
        let late = rig.run("from_underlay", &tcp_from_client((CLIENT, 443), from, Tcp::Data));
        assert_eq!(late.verdict, PASS, "the host answers for it");
        // A reset of an expired flow makes no new flow.
        let late = rig.run("from_container", &tcp((A, 40_000), (CLIENT, 443), Tcp::Rst));
        assert_eq!(late.counted, [Reason::NoWayOut]);
    }
}

#[test]
fn an_endpoint_may_have_so_many_flows_and_no_more() {
    wait_for_uptime(61);
    let mut rig = rig();
    rig.set_config(&overlay_common::maps::Config { outside_flows: 3, ..rig.config() });
    let flow = |port| udp((A, port), (CLIENT, 53), b"question");
    for port in 1000..1003 {
        assert_eq!(rig.run("from_container", &flow(port)).counted, [Reason::Masqueraded]);
    }
    let ran = rig.run("from_container", &flow(1003));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::MasqueradeLimit][..]));
    let ran = rig.run("from_container", &flow(1000));
    assert_eq!(ran.counted, [Reason::Masqueraded], "its flows go on");
    // The agent has counted again: one has ended.
    let usage = rig.snat_usage().expect("counted");
    assert_eq!(usage.flows, 3);
    rig.set_snat_usage(Some(SnatUsage { flows: 2, ..usage }));
    assert_eq!(rig.run("from_container", &flow(1003)).counted, [Reason::Masqueraded]);
    assert_eq!(rig.run("from_container", &flow(1004)).counted, [Reason::MasqueradeLimit]);
    // Nobody has counted for a minute.
    let usage = rig.snat_usage().expect("counted");
    let counted = usage.counted - (SNAT_USAGE_UNCOUNTED + 1);
    rig.set_snat_usage(Some(SnatUsage { counted, ..usage }));
    assert_eq!(rig.run("from_container", &flow(1004)).counted, [Reason::Masqueraded]);
    assert_eq!(rig.snat_usage().map(|usage| usage.flows), Some(2), "halved, and one more");
}

#[test]
fn protocols_without_ports_sctp_and_unknown_fragments_have_no_way_out() {
    let mut rig = rig();
    let mut fragment = udp((A, 40_000), (CLIENT, 53), b"question");
    fragment[21] = 2;
    let sum = {
        fragment[24..26].fill(0);
        ones_complement(&fragment[14..34])
    };
    fragment[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(rig.run("from_container", &fragment).counted, [Reason::Fragment]);
    let mut other = udp((A, 40_000), (CLIENT, 53), b"question");
    other[23] = 132;
    assert_eq!(rig.run("from_container", &other).counted, [Reason::ServiceProtocol]);
    other[23] = 47;
    assert_eq!(rig.run("from_container", &other).counted, [Reason::ServiceProtocol]);
    assert_eq!(rig.run("from_container", &echo(A, CLIENT, 13, 7)).counted, [Reason::NoWayOut]);
}

/// An ICMP error from `from` to the node about a packet that the node sent. It quotes `length`
/// bytes from the IPv4 header on.
fn icmp_error(from: Ipv4Addr, kind: [u8; 2], about: &[u8], length: usize) -> Vec<u8> {
    let quoted = &about[14..about.len().min(14 + length)];
    // The next hop's MTU, if the error has one (RFC 1191, section 4).
    let mtu: u16 = if kind == [3, 4] { 1300 } else { 0 };
    let mut icmp = vec![kind[0], kind[1], 0, 0, 0, 0];
    icmp.extend(mtu.to_be_bytes());
    icmp.extend(quoted);
    let sum = ones_complement(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = udp_from_client((from, 0), (NODE, 0), b"");
    packet.truncate(34);
    packet[16..18].copy_from_slice(&((20 + icmp.len()) as u16).to_be_bytes());
    packet[23] = PROTO_ICMP;
    packet[24..26].fill(0);
    let sum = ones_complement(&packet[14..34]);
    packet[24..26].copy_from_slice(&sum.to_be_bytes());
    packet.extend(icmp);
    packet
}

#[test]
fn an_icmp_error_speaks_to_the_container_of_the_packet_that_it_sent() {
    let router = Ipv4Addr::new(203, 0, 113, 9);
    for (sent, name) in [
        (tcp((A, 40_000), (CLIENT, 443), Tcp::Syn), "TCP"),
        (udp((A, 40_000), (CLIENT, 53), b"question"), "UDP"),
        (echo(A, CLIENT, 8, 7), "echo"),
    ] {
        for (kind, length) in [([3, 3], 28), ([3, 4], 28), ([11, 0], 60), ([3, 1], 548)] {
            let mut rig = rig();
            let left = rig.run("from_container", &sent).packet;
            let ran = rig.run("from_underlay", &icmp_error(router, kind, &left, length));
            assert_eq!(ran.counted, [Reason::ReturnedFromOutside], "{name} {kind:?}");
            assert_eq!(&ran.packet[..6], mac(A).bytes());
            let seen = see(&ran.packet);
            assert_eq!((seen.from.0, seen.to.0), (router, A), "{name} {kind:?}");
            assert_eq!(&ran.packet[34..36], kind);
            let mtu = if kind == [3, 4] { [0x05, 0x14] } else { [0, 0] };
            assert_eq!(&ran.packet[40..42], mtu, "the next hop's MTU");
            // The quoted packet is the one that the container sent, except for the TTL.
            let mut expected = sent[14..sent.len().min(14 + length)].to_vec();
            expected[8] = 63;
            expected[10..12].fill(0);
            let sum = ones_complement(&expected[..20]);
            expected[10..12].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(&ran.packet[42..], expected, "{name} {kind:?}");
        }
    }
}

#[test]
fn an_icmp_error_about_anything_else_is_the_hosts() {
    let mut rig = rig();
    let left = rig.run("from_container", &udp((A, 40_000), (CLIENT, 53), b"question")).packet;
    let mut other_port = left.clone();
    other_port[35] ^= 1;
    let mut other_source = left.clone();
    other_source[29] ^= 1;
    let cases = [
        icmp_error(CLIENT, [3, 3], &other_port, 28),
        icmp_error(CLIENT, [3, 3], &other_source, 28),
        icmp_error(CLIENT, [5, 0], &left, 28),
        icmp_error(CLIENT, [3, 3], &left, 27),
    ];
    for packet in cases {
        let ran = rig.run("from_underlay", &packet);
        assert_eq!((ran.verdict, &ran.packet), (PASS, &packet));
    }
    // A router outside that has an address of the network.
    let ran = rig.run("from_underlay", &icmp_error(B, [3, 3], &left, 28));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::SpoofedInnerSource][..]));
}

#[test]
fn the_entries_say_what_they_do() {
    let mut rig = rig();
    rig.run("from_container", &udp((A, 40_000), (CLIENT, 53), b"question"));
    let mut entries = rig.conntrack();
    entries.sort_by_key(|(_, entry)| entry.action);
    let [(out, forward), (back, reply)] = entries[..] else { panic!("{entries:?}") };
    assert_eq!((forward.action, reply.action), (CONNTRACK_MASQUERADE, CONNTRACK_UNMASQUERADE));
    assert_eq!((out.vni, out.proto, back.vni), (VNI, PROTO_UDP, 0));
    assert_eq!((forward.saddr, forward.sport), (back.daddr, back.dport));
    assert_eq!((reply.daddr, reply.dport, reply.vni), (out.saddr, out.sport, VNI));
}

#[test]
fn no_tunnel_ends_at_an_interface_that_is_not_the_underlays() {
    let mut rig = rig();
    rig.remote(VNI, Ipv4Addr::new(10, 0, 1, 9), 0);
    let packet = vxlan(VNI, &udp((Ipv4Addr::new(10, 0, 1, 9), 1), (A, 2), b"from a peer"));
    assert_eq!(rig.run("from_underlay", &packet).verdict, REDIRECT);
    let ran = rig.run("from_outside", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NotPeer][..]));
    // Packets to another port or address may have any content.
    let other = udp_from_client((CLIENT, 1), (NODE, 4790), b"other");
    assert_eq!(rig.run("from_outside", &other).verdict, PASS);
}

/// A frame with another TTL.
fn with_ttl(mut packet: Vec<u8>, ttl: u8) -> Vec<u8> {
    packet[22] = ttl;
    packet[24..26].fill(0);
    let sum = ones_complement(&packet[14..34]);
    packet[24..26].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn the_gateway_tells_where_a_time_to_live_ended() {
    for (sent, quoted) in [
        (udp((A, 40_000), (CLIENT, 53), b"odd"), 28),
        (tcp((A, 40_000), (CLIENT, 443), Tcp::Syn), 40),
        (ping(A, CLIENT), 28),
        (udp((A, 40_000), (CLIENT, 53), &[7; 300]), 128),
        (tcp((A, 40_000), (CLIENT, 443), Tcp::Data), 40),
    ] {
        for ttl in [0, 1] {
            let mut rig = rig();
            let sent = with_ttl(sent.clone(), ttl);
            let ran = rig.run("from_container", &sent);
            let answered = [Reason::TtlExceededAnswered];
            assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &answered[..]));
            let seen = see(&ran.packet);
            assert_eq!((seen.from.0, seen.to.0, seen.protocol), (GATEWAY, A, PROTO_ICMP));
            assert_eq!(seen.macs, (mac(GATEWAY).bytes(), mac(A).bytes()));
            assert_eq!(ran.packet[34..36], [11, 0]);
            assert_eq!(ran.packet[42..], sent[14..14 + quoted], "as it was sent");
            assert!(rig.conntrack().is_empty(), "no flow is opened");
        }
        let mut rig = rig();
        let ran = rig.run("from_container", &with_ttl(sent, 2));
        assert_eq!((&ran.counted[..], ran.packet[22]), (&[Reason::Masqueraded][..], 1));
    }
}

#[test]
fn what_does_not_fit_the_way_out_is_answered_and_opens_nothing() {
    let mut rig = rig();
    let mut large = udp((A, 40_000), (CLIENT, 53), &[7; 1473]);
    large[20] = 0x40;
    let large = with_ttl(large, 64);
    let ran = rig.run("from_container", &large);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::TooBigAnswered][..]));
    assert_eq!(see(&ran.packet).from.0, GATEWAY);
    assert_eq!(ran.packet[34..36], [3, 4]);
    assert_eq!(ran.packet[40..42], 1500u16.to_be_bytes());
    assert_eq!(ran.packet[42..], large[14..14 + 128]);
    assert!(rig.conntrack().is_empty());
    // It does not disturb an open flow either.
    let request = udp((A, 40_000), (CLIENT, 53), b"question");
    let from = see(&rig.run("from_container", &request).packet).from;
    let ran = rig.run("from_container", &large);
    assert_eq!(ran.counted, [Reason::TooBigAnswered]);
    assert_eq!(ran.packet[42..], large[14..14 + 128], "as it was sent");
    assert_eq!(see(&rig.run("from_container", &request).packet).from, from);
}
