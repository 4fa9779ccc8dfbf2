//! Published ports: clients outside and sockets of the host, through TC and through XDP.

use std::net::Ipv4Addr;

use overlay_common::{
    INGRESS_VNI, Reason,
    maps::{ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST, ENDPOINT_FLAG_PUBLISHED, NETWORK_INTERNAL},
    wire::{PROTO_TCP, PROTO_UDP},
};
use overlay_tests::{
    of_both_families,
    rig::{
        CLIENT, CLIENT_MAC, DROP, Family, NODE, NODE_MAC, OTHER_VNI, PEER, REDIRECT, Rig, VNI,
        XDP_DROP, XDP_PASS, XDP_REDIRECT, mac, packets::*,
    },
};

of_both_families! {
    a_backend_here_sees_the_client_and_the_client_sees_the_node,
    a_backend_elsewhere_sees_the_client_and_answers_through_this_node,
    the_backends_node_sends_replies_back_through_the_node_that_was_asked,
    a_reply_from_the_wrong_node_is_not_passed_to_the_client,
    replies_reach_clients_through_a_node_without_endpoints_of_the_network,
    a_client_outside_cannot_pose_as_a_container,
    only_the_published_port_and_protocol_answer,
    xdp_sends_to_a_remote_backend_what_tc_would,
    xdp_sends_replies_out_to_the_client,
    xdp_leaves_a_backend_here_to_tc_which_finds_the_flow,
    xdp_leaves_a_service_without_a_backend_to_tc_which_refuses,
    xdp_leaves_what_does_not_fit_the_tunnel_to_tc,
    a_container_of_another_network_reaches_a_port_of_its_own_host_as_itself,
}

pub(super) const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
/// A third node of the cluster.
pub(super) const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 12);
const NO_VIP: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;

/// Port 8080 of the node, in front of port 80 of one backend.
pub(super) fn rig(family: Family, backend: Ipv4Addr) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, NEAR, SERVES, true);
    rig.remote(VNI, FAR, SERVES);
    rig.service(SERVICE, VNI, NO_VIP, &[(1, backend, backend == NEAR)]);
    rig.stack(family, VNI, 1);
    rig.publish_on(family, PROTO_TCP, 8080, (SERVICE, 80));
    rig.publish_on(family, PROTO_UDP, 8080, (SERVICE, 80));
    rig
}

fn a_backend_here_sees_the_client_and_the_client_sees_the_node(family: Family) {
    let mut rig = rig(family, NEAR);
    let ran =
        rig.run("from_underlay", &family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(ran.counted, [Reason::DeliveredLocal, Reason::FlowCreated]);
    let seen = family.see(&ran.packet);
    assert_eq!((seen.from, seen.to), (family.at((CLIENT, 40_000)), family.at((NEAR, 80))));
    assert_eq!(seen.macs, (mac(Ipv4Addr::new(10, 0, 1, 1)).bytes(), mac(NEAR).bytes()));

    let ran = rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, 40_000), Tcp::SynAck));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentToClient][..]));
    let seen = family.see(&ran.packet);
    assert_eq!((seen.from, seen.to), (family.at((NODE, 8080)), family.at((CLIENT, 40_000))));
    assert_eq!(seen.macs.1, CLIENT_MAC);
}

fn a_backend_elsewhere_sees_the_client_and_answers_through_this_node(family: Family) {
    let mut rig = rig(family, FAR);
    let ran =
        rig.run("from_underlay", &family.udp_from_client((CLIENT, 40_000), (NODE, 8080), b"odd"));
    assert_eq!(ran.counted, [Reason::Encapsulated, Reason::FlowCreated]);
    let (vni, node, inner) = untunnel(&ran.packet);
    assert_eq!((vni, node), (VNI, PEER));
    let seen = family.see(&inner);
    assert_eq!(
        (seen.from, seen.to, &seen.payload[..]),
        (family.at((CLIENT, 40_000)), family.at((FAR, 80)), &b"odd"[..])
    );

    let ran =
        rig.run("from_underlay", &vxlan(VNI, &family.udp((FAR, 80), (CLIENT, 40_000), b"even")));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentToClient][..]));
    let seen = family.see(&ran.packet);
    assert_eq!((seen.from, seen.to), (family.at((NODE, 8080)), family.at((CLIENT, 40_000))));
    assert_eq!(seen.macs.1, CLIENT_MAC);
}

fn the_backends_node_sends_replies_back_through_the_node_that_was_asked(family: Family) {
    let mut rig = rig(family, NEAR);
    let request = family.tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Syn);
    let ran = rig.run("from_underlay", &vxlan(VNI, &request));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    assert_eq!(family.see(&ran.packet).from, family.at((CLIENT, 40_000)));

    let reply = family.tcp((NEAR, 80), (CLIENT, 40_000), Tcp::SynAck);
    let ran = rig.run("from_container", &reply);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    let (vni, node, inner) = untunnel(&ran.packet);
    assert_eq!((vni, node), (VNI, PEER));
    let seen = family.see(&inner);
    assert_eq!(
        (seen.from, seen.to),
        (family.at((NEAR, 80)), family.at((CLIENT, 40_000))),
        "not translated here"
    );
}

fn a_reply_from_the_wrong_node_is_not_passed_to_the_client(family: Family) {
    let mut rig = rig(family, FAR);
    rig.run("from_underlay", &family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
    let other = Ipv4Addr::new(172, 16, 1, 12);
    rig.node(other, &[VNI]);
    let reply = family.tcp((FAR, 80), (CLIENT, 40_000), Tcp::SynAck);
    for (program, drop) in [("from_underlay", DROP), ("xdp_underlay", XDP_DROP)] {
        let ran = rig.run(program, &vxlan_from(other, VNI, &reply));
        assert_eq!((ran.verdict, &ran.counted[..]), (drop, &[Reason::SpoofedInnerSource][..]));
    }
}

#[test]
fn clients_packets_come_from_any_node_of_the_cluster_and_nothing_else_does() {
    // It has no endpoints of the network.
    let mut rig = rig(Family::Ipv4, NEAR);
    rig.node(OTHER, &[]);
    let asked = |from| udp((from, 40_000), (NEAR, 53), b"question");
    let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &asked(CLIENT)));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    assert_eq!(see(&ran.packet).from, (CLIENT, 40_000));

    let inside = Ipv4Addr::new(10, 0, 1, 66);
    let unpublished = Ipv4Addr::new(10, 0, 1, 5);
    rig.local(VNI, unpublished, 0, false);
    let to_unpublished = udp((CLIENT, 40_000), (unpublished, 53), b"question");
    for (what, frame, reason) in [
        ("from inside", asked(inside), Reason::NotPeer),
        ("to what publishes nothing", to_unpublished, Reason::NotPublished),
        ("ICMP", ping(CLIENT, NEAR), Reason::NotPeer),
        ("to nobody", udp((CLIENT, 40_000), (inside, 53), b"question"), Reason::NotPeer),
    ] {
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &frame));
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]), "{what}");
    }
    rig.set(|state| state.networks.clear());
    let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &asked(CLIENT)));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::UnknownVni][..]));
}

fn replies_reach_clients_through_a_node_without_endpoints_of_the_network(family: Family) {
    let mut rig = rig(family, FAR);
    rig.set(|state| {
        state.networks.clear();
        state.peers.retain(|peer, _| peer.vni == 0);
    });
    let reply = vxlan(VNI, &family.tcp((FAR, 80), (CLIENT, 40_000), Tcp::SynAck));
    let unknown = &[Reason::UnknownVni][..];
    // XDP leaves IPv6 packets that it cannot handle to TC.
    let by_xdp = match family {
        Family::Ipv4 => (XDP_DROP, unknown),
        Family::Ipv6 => (XDP_PASS, &[][..]),
    };
    let asked = family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn);
    for (program, dropped, encapsulated, sent) in [
        ("from_underlay", (DROP, unknown), Reason::Encapsulated, Reason::SentToClient),
        ("xdp_underlay", by_xdp, Reason::XdpEncapsulated, Reason::XdpSentToClient),
    ] {
        let ran = rig.run(program, &reply);
        assert_eq!((ran.verdict, &ran.counted[..]), dropped, "{program}: nobody has asked");
        let ran = rig.run(program, &asked);
        assert_eq!(ran.counted, [encapsulated, Reason::FlowCreated], "{program}");
        assert_eq!(rig.run(program, &reply).counted, [sent], "{program}");
        for (key, _) in rig.conntrack() {
            rig.set_conntrack(key, None);
        }
    }
}

fn a_client_outside_cannot_pose_as_a_container(family: Family) {
    let mut rig = rig(family, NEAR);
    rig.local(VNI, NEAR, SERVES, false);
    rig.stack(family, VNI, 1);
    // An endpoint's address, and a free one of the subnet, which the backend's interface knows by
    // its mask.
    for inside in [NEAR, Ipv4Addr::new(10, 0, 1, 66)] {
        let packet = family.tcp_from_client((inside, 40_000), (NODE, 8080), Tcp::Syn);
        let ran = rig.run("from_underlay", &packet);
        assert_eq!(ran.verdict, DROP, "{inside}");
        assert!(ran.counted.contains(&Reason::SpoofedInnerSource), "{:?}", ran.counted);
    }
}

fn only_the_published_port_and_protocol_answer(family: Family) {
    let mut rig = rig(family, NEAR);
    rig.set(|state| {
        state.published.retain(|key, _| key.proto == PROTO_TCP);
    });
    for packet in [
        family.tcp_from_client((CLIENT, 40_000), (NODE, 80), Tcp::Syn),
        family.udp_from_client((CLIENT, 40_000), (NODE, 8080), b"question"),
        family.tcp_from_client((CLIENT, 40_000), (PEER, 8080), Tcp::Syn),
    ] {
        let ran = rig.run("from_underlay", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (overlay_tests::rig::PASS, &[][..]));
    }
}

#[test]
fn a_container_cannot_answer_who_never_asked() {
    let mut rig = rig(Family::Ipv4, NEAR);
    rig.way_out();
    let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, 40_000), Tcp::SynAck));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoWayOut][..]));
}

fn xdp_sends_to_a_remote_backend_what_tc_would(family: Family) {
    let mut rig = rig(family, FAR);
    let datagram = |payload: &[u8]| family.udp_from_client((CLIENT, 40_001), (NODE, 8080), payload);
    // BPF_PROG_TEST_RUN's interface is not the underlay, so XDP redirects; on the NIC it is XDP_TX.
    for (what, packet) in [
        ("an opening", family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn)),
        ("what comes after it", family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Data)),
        ("a datagram", datagram(b"odd")),
        ("one that fills the tunnel", datagram(&vec![7; 1450 - family.header() - 8])),
    ] {
        let ran = rig.run("xdp_underlay", &packet);
        assert_eq!(
            (ran.verdict, ran.counted[0]),
            (XDP_REDIRECT, Reason::XdpEncapsulated),
            "{what}"
        );
        assert_eq!(ran.moved[&Reason::XdpEncapsulated].bytes, packet.len() as u64, "{what}");
        let (vni, node, by_xdp) = untunnel(&ran.packet);
        let seen = family.see(&by_xdp);
        assert_eq!((vni, node, seen.to), (VNI, PEER, family.at((FAR, 80))), "{what}");
        let by_tc = rig.run("from_underlay", &packet);
        assert_eq!(by_tc.counted, [Reason::Encapsulated], "{what}: one conntrack table for both");
        // The outer source port differs, because it is a hash.
        assert_eq!(ran.packet[..34], by_tc.packet[..34], "{what}");
        let by_tc = untunnel(&by_tc.packet).2;
        match family {
            // XDP leaves the inner source MAC, which the backend's node writes anyhow.
            Family::Ipv4 => assert_eq!(by_xdp[14..], by_tc[14..], "{what}"),
            Family::Ipv6 => assert_eq!(by_xdp, by_tc, "{what}"),
        }
    }
}

fn xdp_sends_replies_out_to_the_client(family: Family) {
    let mut rig = rig(family, FAR);
    let client = (CLIENT, 40_000);
    rig.run("xdp_underlay", &family.tcp_from_client(client, (NODE, 8080), Tcp::Syn));
    rig.run("xdp_underlay", &family.udp_from_client(client, (NODE, 8080), b"odd"));
    for reply in
        [family.tcp((FAR, 80), client, Tcp::SynAck), family.udp((FAR, 80), client, b"even")]
    {
        let packet = vxlan(VNI, &reply);
        let ran = rig.run("xdp_underlay", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (XDP_REDIRECT, &[Reason::XdpSentToClient][..]));
        let seen = family.see(&ran.packet);
        assert_eq!((seen.from, seen.to), (family.at((NODE, 8080)), family.at(client)));
        assert_eq!(seen.macs, (NODE_MAC, CLIENT_MAC));
        let by_tc = rig.run("from_underlay", &packet);
        assert_eq!((&by_tc.counted[..], by_tc.packet), (&[Reason::SentToClient][..], ran.packet));
    }
}

fn xdp_leaves_a_backend_here_to_tc_which_finds_the_flow(family: Family) {
    let mut rig = rig(family, NEAR);
    let packet = family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn);
    let ran = rig.run("xdp_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[Reason::FlowCreated][..]));
    assert_eq!(ran.packet, packet, "untouched");
    let ran = rig.run("from_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredLocal][..]));
}

fn xdp_leaves_a_service_without_a_backend_to_tc_which_refuses(family: Family) {
    let mut rig = rig(family, NEAR);
    rig.service(SERVICE, VNI, NO_VIP, &[]);
    let packet = family.udp_from_client((CLIENT, 40_000), (NODE, 8080), b"odd");
    let ran = rig.run("xdp_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[][..]));
    assert_eq!(rig.run("from_underlay", &packet).counted, [Reason::NoBackendAnswered]);
}

fn xdp_leaves_what_does_not_fit_the_tunnel_to_tc(family: Family) {
    let mut rig = rig(family, FAR);
    let packet = family.udp_from_client(
        (CLIENT, 40_000),
        (NODE, 8080),
        &vec![0; 1451 - family.header() - 8],
    );
    let ran = rig.run("xdp_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[][..]));
    let ran = rig.run("from_underlay", &packet);
    assert!(ran.counted.contains(&Reason::TooBigAnswered), "{:?}", ran.counted);
}

#[test]
fn the_host_itself_reaches_a_published_port_through_the_gateway() {
    let host = Ipv4Addr::new(10, 255, 0, 2);
    let gateway = Ipv4Addr::new(10, 255, 0, 1);
    for backend in [NEAR, FAR] {
        let mut rig = rig(Family::Ipv4, backend);
        rig.local(VNI, NEAR, SERVES, false);
        rig.network(INGRESS_VNI, 0);
        rig.set(|state| {
            let network = state.networks.get_mut(&INGRESS_VNI).expect("ingress");
            network.subnet = Ipv4Addr::new(10, 255, 0, 0).into();
            network.mask = Ipv4Addr::new(255, 255, 0, 0).into();
            network.gateway = gateway.into();
            let entry = overlay_common::maps::Endpoint {
                kind: overlay_common::maps::ENDPOINT_GATEWAY,
                mac: mac(gateway),
                ..Default::default()
            };
            let key = overlay_common::maps::EndpointKey { vni: INGRESS_VNI, ip: gateway.into() };
            state.endpoints.insert(key, entry);
        });
        rig.local(INGRESS_VNI, host, ENDPOINT_FLAG_HOST, true);
        let ran = rig.run("from_container", &tcp((host, 40_000), (gateway, 8080), Tcp::Syn));
        assert_eq!(ran.verdict, REDIRECT);
        let reply = tcp((backend, 80), (host, 40_000), Tcp::SynAck);
        let ran = if backend == NEAR {
            let seen = see(&ran.packet);
            assert_eq!((seen.from, seen.to), ((host, 40_000), (NEAR, 80)));
            rig.local(INGRESS_VNI, host, ENDPOINT_FLAG_HOST, false);
            rig.local(VNI, NEAR, SERVES, true);
            rig.run("from_container", &reply)
        } else {
            let (vni, _, inner) = untunnel(&ran.packet);
            assert_eq!(vni, VNI);
            let seen = see(&inner);
            assert_eq!((seen.from, seen.to), ((host, 40_000), (FAR, 80)));
            rig.run("from_underlay", &vxlan(VNI, &reply))
        };
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredHost][..]));
        let seen = see(&ran.packet);
        assert_eq!((seen.from, seen.to), ((gateway, 8080), (host, 40_000)));
    }
}

fn a_container_of_another_network_reaches_a_port_of_its_own_host_as_itself(family: Family) {
    const C: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 7);
    for backend in [NEAR, FAR] {
        let mut rig = rig(family, backend);
        rig.network(OTHER_VNI, 2);
        rig.local(VNI, NEAR, SERVES, false);
        rig.local(OTHER_VNI, C, 0, true);
        rig.stack(family, VNI, 1);
        rig.stack(family, OTHER_VNI, 2);
        let ran = rig.run("from_container", &family.tcp((C, 40_000), (NODE, 8080), Tcp::Syn));
        let (asked, went) = if backend == NEAR {
            (family.see(&ran.packet), Reason::DeliveredLocal)
        } else {
            (family.see(&untunnel(&ran.packet).2), Reason::Encapsulated)
        };
        assert_eq!(ran.counted, [went, Reason::FlowCreated]);
        assert_eq!((asked.from, asked.to), (family.at((C, 40_000)), family.at((backend, 80))));

        let reply = family.tcp((backend, 80), (C, 40_000), Tcp::SynAck);
        let ran = if backend == NEAR {
            rig.local(OTHER_VNI, C, 0, false);
            rig.local(VNI, NEAR, SERVES, true);
            rig.stack(family, VNI, 1);
            rig.run("from_container", &reply)
        } else {
            assert_eq!(rig.run("xdp_underlay", &vxlan(VNI, &reply)).verdict, XDP_PASS);
            rig.run("from_underlay", &vxlan(VNI, &reply))
        };
        assert_eq!(ran.verdict, REDIRECT, "{ran:?}");
        let seen = family.see(&ran.packet);
        assert_eq!((seen.from, seen.to), (family.at((NODE, 8080)), family.at((C, 40_000))));
        assert_eq!(seen.macs.1, mac(C).bytes());
    }
}

#[test]
fn a_container_of_an_internal_network_does_not() {
    let mut rig = rig(Family::Ipv4, NEAR);
    rig.network(OTHER_VNI, 2);
    let inside = Ipv4Addr::new(10, 0, 2, 7);
    rig.local(VNI, NEAR, SERVES, false);
    rig.local(OTHER_VNI, inside, 0, true);
    rig.set(|state| {
        state.networks.get_mut(&OTHER_VNI).expect("it").flags |= NETWORK_INTERNAL;
    });
    let ran = rig.run("from_container", &tcp((inside, 40_000), (NODE, 8080), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoWayOut][..]));
    assert!(rig.conntrack().is_empty());
}

#[test]
fn a_network_whose_subnet_overlaps_the_backends_is_not_let_in() {
    let mut rig = rig(Family::Ipv4, NEAR);
    rig.network(OTHER_VNI, 1);
    let overlapping = Ipv4Addr::new(10, 0, 1, 7);
    rig.local(VNI, NEAR, SERVES, false);
    rig.local(OTHER_VNI, overlapping, 0, true);
    let ran = rig.run("from_container", &tcp((overlapping, 40_000), (NODE, 8080), Tcp::Syn));
    assert_eq!(ran.verdict, DROP);
    assert_eq!(ran.counted, [Reason::FlowCreated, Reason::SpoofedInnerSource]);
}
