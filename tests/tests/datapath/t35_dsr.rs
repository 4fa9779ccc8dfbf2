//! Replies of published ports that go straight from the backend's node to the client.

use std::net::Ipv4Addr;

use overlay_common::{
    Be16, Frontend, Reason,
    maps::{
        DSR, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED, SERVICE_DSR, SERVICE_RESETS, SubnetKey,
    },
    wire::{PROTO_TCP, PROTO_UDP},
};
use overlay_tests::rig::{
    CLIENT, CLIENT_MAC, FLOWS, NODE, PEER, REDIRECT, Ran, Rig, VNI, XDP_REDIRECT, mac, packets::*,
};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const NO_VIP: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
/// An address of the node that was asked which is not its VTEP.
const ASKED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// Port 8080 of the nodes, in front of port 80 of one backend.
fn rig(backend: Ipv4Addr) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, NEAR, SERVES, true);
    rig.remote(VNI, FAR, SERVES);
    rig.service(SERVICE, VNI, NO_VIP, &[(1, backend, backend == NEAR)]);
    flags(&mut rig, SERVICE_DSR | SERVICE_RESETS);
    rig.publish(PROTO_TCP, 8080, SERVICE, 80);
    rig.publish(PROTO_UDP, 8080, SERVICE, 80);
    rig
}

fn flags(rig: &mut Rig, flags: u16) {
    rig.set(|state| state.services.get_mut(&SERVICE).expect("a service").flags = flags);
}

/// A frame as the node that was asked sends it, which says so.
fn said(address: Ipv4Addr, port: u16, frame: &[u8]) -> Vec<u8> {
    let header = Frontend { address: address.into(), port: Be16::new(port) }.header();
    [&header.dst.bytes(), &header.src.bytes(), &frame[12..]].concat()
}

/// What an inner frame says of the address and port that were asked.
fn says(frame: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let mark = frame[6..10] == Frontend::MARK;
    let address: [u8; 4] = frame[2..6].try_into().expect("four bytes");
    mark.then(|| (address.into(), u16::from_be_bytes([frame[10], frame[11]])))
}

/// That a container's reply went straight to the client, from what it had asked.
fn straight(ran: &Ran, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentDsr][..]));
    let seen = see(&ran.packet);
    assert_eq!((seen.from, seen.to, seen.macs.1), (from, to, CLIENT_MAC));
}

/// That it went to a node, as the backend sent it.
fn through(ran: &Ran, node: Ipv4Addr, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    let (vni, to_node, inner) = untunnel(&ran.packet);
    assert_eq!((vni, to_node), (VNI, node));
    let seen = see(&inner);
    assert_eq!((seen.from, seen.to), (from, to));
}

/// Opens a connection at the backend's node: the client's SYN, the backend's answer, the client's ACK.
fn connected(rig: &mut Rig, asked: (Ipv4Addr, u16), client: (Ipv4Addr, u16)) {
    let syn = said(asked.0, asked.1, &tcp(client, (NEAR, 80), Tcp::Syn));
    let ran = rig.run("from_underlay", &vxlan(VNI, &syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    assert_eq!(see(&ran.packet).macs.1, mac(NEAR).bytes());
    let ran = rig.run("from_container", &tcp((NEAR, 80), client, Tcp::SynAck));
    through(&ran, PEER, (NEAR, 80), client);
    let data = said(asked.0, asked.1, &tcp(client, (NEAR, 80), Tcp::Data));
    rig.run("from_underlay", &vxlan(VNI, &data));
}

#[test]
fn the_backends_node_is_told_what_was_asked_by_tc_and_by_xdp_alike() {
    for (program, verdict) in [("from_underlay", REDIRECT), ("xdp_underlay", XDP_REDIRECT)] {
        let mut rig = rig(FAR);
        for packet in [
            tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn),
            tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Data),
            udp_from_client((CLIENT, 40_001), (NODE, 8080), b"odd"),
        ] {
            let ran = rig.run(program, &packet);
            assert_eq!(ran.verdict, verdict, "{program}");
            let (_, node, inner) = untunnel(&ran.packet);
            assert_eq!((node, says(&inner)), (PEER, Some((NODE, 8080))), "{program}");
        }
        // A reply that comes all the same is the client's.
        let reply = vxlan(VNI, &tcp((FAR, 80), (CLIENT, 40_000), Tcp::SynAck));
        let ran = rig.run(program, &reply);
        assert_eq!(see(&ran.packet).from, (NODE, 8080), "{program}");
    }
}

#[test]
fn nothing_is_told_where_replies_come_back() {
    // The service does not say so.
    let mut rig = rig(FAR);
    flags(&mut rig, SERVICE_RESETS);
    let syn = tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn);
    let data = tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Data);
    for program in ["from_underlay", "xdp_underlay"] {
        let (_, _, inner) = untunnel(&rig.run(program, &syn).packet);
        assert_eq!(says(&inner), None, "{program}");
    }
    // Changed at run time, flows go on as they began, and new ones do as it says.
    flags(&mut rig, SERVICE_DSR);
    let (_, _, inner) = untunnel(&rig.run("from_underlay", &data).packet);
    assert_eq!(says(&inner), None);
    let other = tcp_from_client((CLIENT, 40_001), (NODE, 8080), Tcp::Syn);
    let (_, _, inner) = untunnel(&rig.run("from_underlay", &other).packet);
    assert_eq!(says(&inner), Some((NODE, 8080)));
}

#[test]
fn a_client_whose_port_was_changed_gets_its_replies_through_the_node_that_changed_it() {
    let mut rig = rig(FAR);
    rig.publish(PROTO_TCP, 9090, SERVICE, 80);
    rig.run("from_underlay", &tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
    let ran = rig.run("from_underlay", &tcp_from_client((CLIENT, 40_000), (NODE, 9090), Tcp::Syn));
    let (_, _, inner) = untunnel(&ran.packet);
    assert_ne!(see(&inner).from.1, 40_000);
    assert_eq!(says(&inner), None, "only this node knows the client's port");
}

#[test]
fn replies_go_straight_to_the_client_once_the_node_that_was_asked_knows_of_an_answer() {
    for asked in [(PEER, 8080), (ASKED, 8080)] {
        let mut rig = rig(NEAR);
        connected(&mut rig, asked, (CLIENT, 40_000));
        let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, 40_000), Tcp::Data));
        straight(&ran, asked, (CLIENT, 40_000));
        // That node must hear of the end, and answers again with what the client may not have got.
        for flags in [Tcp::Fin, Tcp::Rst, Tcp::SynAck] {
            let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, 40_000), flags));
            through(&ran, PEER, (NEAR, 80), (CLIENT, 40_000));
        }

        let odd = said(asked.0, asked.1, &udp((CLIENT, 40_000), (NEAR, 80), b"odd"));
        rig.run("from_underlay", &vxlan(VNI, &odd));
        let ran = rig.run("from_container", &udp((NEAR, 80), (CLIENT, 40_000), b"even"));
        through(&ran, PEER, (NEAR, 80), (CLIENT, 40_000));
        let ran = rig.run("from_container", &udp((NEAR, 80), (CLIENT, 40_000), b"even"));
        straight(&ran, asked, (CLIENT, 40_000));
        assert_eq!(see(&ran.packet).payload, b"even");
    }
}

#[test]
fn a_node_is_not_believed_about_ports_that_are_not_like_that() {
    type Case = (&'static str, (Ipv4Addr, u16), fn(&mut Rig));
    let client = (CLIENT, 40_000);
    let cases: [Case; 10] = [
        ("a port that is not published", (PEER, 22), |_| {}),
        ("another target", (PEER, 8080), |rig| rig.publish(PROTO_TCP, 8080, SERVICE, 81)),
        ("a service whose replies come back", (PEER, 8080), |rig| flags(rig, SERVICE_RESETS)),
        ("no service", (PEER, 8080), |rig| rig.set(|state| state.services.clear())),
        ("a container as the client", (PEER, 8080), |rig| {
            rig.set(|state| {
                state.subnets.insert(SubnetKey { prefix: 32, ip: CLIENT.into() }, 9);
            });
        }),
        ("no address", (Ipv4Addr::UNSPECIFIED, 8080), |_| {}),
        ("a group", (Ipv4Addr::new(224, 0, 0, 1), 8080), |_| {}),
        ("loopback", (Ipv4Addr::LOCALHOST, 8080), |_| {}),
        ("an address of this host's", (NODE, 8080), |_| {}),
        ("an address of a container's", (NEAR, 8080), |rig| {
            rig.set(|state| {
                state.subnets.insert(SubnetKey { prefix: 32, ip: NEAR.into() }, VNI);
            });
        }),
    ];
    for (what, asked, change) in cases {
        let mut rig = rig(NEAR);
        change(&mut rig);
        connected(&mut rig, asked, client);
        let ran = rig.run("from_container", &tcp((NEAR, 80), client, Tcp::Data));
        assert_eq!(ran.counted, [Reason::Encapsulated], "{what}");
        through(&ran, PEER, (NEAR, 80), client);
        assert!(rig.conntrack().iter().all(|(_, e)| e.flags & DSR == 0), "{what}");
    }
}

#[test]
fn where_there_is_no_way_from_here_replies_go_through_the_node_that_was_asked() {
    // To this host itself, and to where it has no route.
    for client in [(NODE, 40_000), (Ipv4Addr::new(192, 0, 2, 1), 40_000)] {
        let mut rig = rig(NEAR);
        connected(&mut rig, (PEER, 8080), client);
        let ran = rig.run("from_container", &tcp((NEAR, 80), client, Tcp::Data));
        through(&ran, PEER, (NEAR, 80), client);
        let seen = see(&untunnel(&ran.packet).2);
        assert_eq!((seen.from, seen.to), ((NEAR, 80), client), "as the backend sent it");
    }
}

#[test]
fn a_tuple_that_is_used_again_is_answered_as_it_was_asked_last() {
    let mut rig = rig(NEAR);
    rig.publish(PROTO_TCP, 9090, SERVICE, 80);
    let client = (CLIENT, 40_000);
    connected(&mut rig, (PEER, 8080), client);
    connected(&mut rig, (PEER, 9090), client);
    let ran = rig.run("from_container", &tcp((NEAR, 80), client, Tcp::Data));
    straight(&ran, (PEER, 9090), client);

    // Then through the node again.
    rig.run("from_underlay", &vxlan(VNI, &tcp(client, (NEAR, 80), Tcp::Syn)));
    rig.run("from_container", &tcp((NEAR, 80), client, Tcp::SynAck));
    let ran = rig.run("from_container", &tcp((NEAR, 80), client, Tcp::Data));
    through(&ran, PEER, (NEAR, 80), client);
}

#[test]
fn a_clients_second_flow_with_the_same_tuple_goes_back_through_its_node() {
    let other = Ipv4Addr::new(172, 16, 1, 12);
    let mut rig = rig(NEAR);
    rig.node(other, &[VNI]);
    let client = (CLIENT, 40_000);
    connected(&mut rig, (PEER, 8080), client);
    let syn = said(other, 8080, &tcp(client, (NEAR, 80), Tcp::Syn));
    let ran = rig.run("from_underlay", &vxlan_from(other, VNI, &syn));
    let translated = see(&ran.packet).from;
    assert_ne!(translated, client);
    for flags in [Tcp::SynAck, Tcp::Data] {
        let ran = rig.run("from_container", &tcp((NEAR, 80), translated, flags));
        assert_eq!(ran.counted, [Reason::Encapsulated]);
        let (_, node, inner) = untunnel_any(&ran.packet);
        assert_eq!((node, see(&inner).to), (other, client));
    }
    let ran = rig.run("from_container", &tcp((NEAR, 80), client, Tcp::Data));
    straight(&ran, (PEER, 8080), client);
}

#[test]
fn flows_that_are_answered_straight_leave_the_table_of_those_that_begin_on_both_nodes() {
    // On the backend's node.
    let mut rig = rig(NEAR);
    connected(&mut rig, (PEER, 8080), (CLIENT, 40_000));
    let [used, begun] = FLOWS.map(|map| rig.flows(map).len());
    assert_eq!((used, begun), (1, 0));
    // On the one that was asked, which hears the first answer.
    let mut rig = self::rig(FAR);
    rig.run("from_underlay", &tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
    rig.run("from_underlay", &vxlan(VNI, &tcp((FAR, 80), (CLIENT, 40_000), Tcp::SynAck)));
    rig.run("from_underlay", &tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Data));
    let [used, begun] = FLOWS.map(|map| rig.flows(map).len());
    assert_eq!((used, begun), (2, 0));
}

#[test]
fn a_reply_that_does_not_fit_the_way_to_its_client_is_told_so_here() {
    let mut rig = rig(NEAR);
    connected(&mut rig, (PEER, 8080), (CLIENT, 40_000));
    let odd = said(PEER, 8080, &udp((CLIENT, 40_000), (NEAR, 80), b"odd"));
    rig.run("from_underlay", &vxlan(VNI, &odd));
    rig.run("from_container", &udp((NEAR, 80), (CLIENT, 40_000), b"even"));
    let large = udp((NEAR, 80), (CLIENT, 40_000), &[0; 1501 - 28]);
    let ran = rig.run("from_container", &large);
    assert_eq!(ran.counted, [Reason::TooBigAnswered]);
    let answer = &ran.packet[14..];
    assert_eq!((answer[9], answer[20], answer[21]), (1, 3, 4), "fragmentation needed");
    assert_eq!(answer[28..48], large[14..34], "quotes what the backend sent");
}

#[test]
fn a_client_that_goes_on_keeps_its_tuple_although_no_reply_comes_by() {
    let mut rig = rig(FAR);
    let client = (CLIENT, 40_000);
    let ack = tcp_from_client(client, (NODE, 8080), Tcp::Data);
    rig.run("from_underlay", &tcp_from_client(client, (NODE, 8080), Tcp::Syn));
    rig.run("from_underlay", &vxlan(VNI, &tcp((FAR, 80), client, Tcp::SynAck)));
    rig.run("from_underlay", &ack);
    let before = rig.flows("conntrack");
    assert_eq!(before.len(), 2, "{before:?}");
    // Ten minutes later.
    rig.age_conntrack(600);
    rig.run("from_underlay", &ack);
    for (key, entry) in rig.flows("conntrack") {
        let was = before.iter().find(|(k, _)| *k == key).expect("the same flow").1.last_seen;
        assert!(entry.last_seen >= was, "{key:?} {entry:?}");
    }
}
