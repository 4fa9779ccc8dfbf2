//! Multicast and broadcast on networks that replicate them: the receivers of copies, and the
//! counters. The copies leave through real interfaces of the rig, and the interfaces' counters show
//! them.

use std::net::Ipv4Addr;

use overlay_common::{
    Be32, Reason,
    maps::{Flood, MAX_FLOOD, NETWORK_REPLICATE},
};
use overlay_tests::rig::{
    DROP, IFINDEX, OTHER_VNI, PEER, Rig, VNI, mac,
    packets::{Tcp, tcp, udp, vxlan, vxlan_from},
};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 129, 1, 2);
const GROUP_MAC: [u8; 6] = [0x01, 0x00, 0x5e, 0x01, 0x01, 0x02];
const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 255);
const BROADCAST_MAC: [u8; 6] = [0xff; 6];

/// How many packets an interface of this namespace has sent.
fn sent(interface: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").expect("the interfaces");
    let row = table.lines().find_map(|row| row.trim().strip_prefix(interface)?.strip_prefix(':'));
    let fields: Vec<&str> = row.expect("a row").split_whitespace().collect();
    fields[9].parse().expect("a number")
}

/// An endpoint here that sends, one on the peer, and a network that replicates to `links` and to
/// `nodes`.
fn rig(links: &[u32], nodes: &[Ipv4Addr]) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.remote(VNI, FAR, 0);
    replicate(&mut rig, links, nodes);
    rig
}

fn replicate(rig: &mut Rig, links: &[u32], nodes: &[Ipv4Addr]) {
    let mut replicas = Box::new(Flood {
        endpoints: links.len() as u32,
        nodes: nodes.len() as u32,
        ..Flood::default()
    });
    for (slot, link) in replicas.links.iter_mut().zip(links) {
        *slot = *link;
    }
    for (slot, node) in replicas.vteps.iter_mut().zip(nodes) {
        *slot = Be32::from(*node);
    }
    rig.set(|state| {
        state.networks.get_mut(&VNI).expect("the network").flags = NETWORK_REPLICATE;
        state.flood.insert(VNI, replicas);
    });
}

/// A datagram to a group in a frame to `mac`.
fn datagram(from: Ipv4Addr, to: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut frame = udp((from, 1), (to, 5353), b"?");
    frame[..6].copy_from_slice(&mac);
    frame
}

#[test]
fn a_datagram_to_a_group_is_copied_to_every_endpoint_but_the_sender_and_to_every_node() {
    let mut rig = rig(&[IFINDEX], &[PEER, PEER]);
    let (u1, tunnel, own) = (rig.no_forwarding, sent("vx0"), sent("lo"));
    replicate(&mut rig, &[IFINDEX, u1, u1], &[PEER, PEER]);
    for (to, mac) in
        [(GROUP, GROUP_MAC), (SUBNET, BROADCAST_MAC), (Ipv4Addr::BROADCAST, BROADCAST_MAC)]
    {
        let before = sent("u1");
        let ran = rig.run("from_container", &datagram(ME, to, mac));
        assert_eq!((ran.verdict, ran.counted), (DROP, vec![Reason::Replicated]), "{to}");
        assert_eq!(sent("u1") - before, 2, "{to}: both interfaces that are not the sender's");
    }
    assert_eq!(sent("vx0") - tunnel, 6, "to two nodes, three times");
    assert_eq!(sent("lo"), own, "nothing goes back to the sender");
}

#[test]
fn what_came_through_the_tunnel_is_copied_to_endpoints_and_never_back_into_it() {
    let mut rig = rig(&[], &[PEER]);
    let u1 = rig.no_forwarding;
    replicate(&mut rig, &[u1, u1, u1], &[PEER]);
    let before = (sent("u1"), sent("vx0"));
    let ran = rig.run("from_underlay", &vxlan(VNI, &datagram(FAR, GROUP, GROUP_MAC)));
    assert_eq!((ran.verdict, ran.counted), (DROP, vec![Reason::Replicated]));
    assert_eq!((sent("u1"), sent("vx0")), (before.0 + 3, before.1));
    // The frame that was copied: from the MAC of its sender, to that of the group.
    assert_eq!(ran.packet, datagram(FAR, GROUP, GROUP_MAC));
}

#[test]
fn a_group_is_reached_only_from_the_node_that_the_sender_is_on() {
    let mut rig = rig(&[], &[]);
    let u1 = rig.no_forwarding;
    replicate(&mut rig, &[u1], &[]);
    let before = sent("u1");
    let stranger = Ipv4Addr::new(10, 0, 1, 77);
    for source in [ME, stranger, Ipv4Addr::new(10, 0, 1, 1), Ipv4Addr::new(192, 0, 2, 1)] {
        let ran = rig.run("from_underlay", &vxlan(VNI, &datagram(source, GROUP, GROUP_MAC)));
        assert_eq!(ran.counted, [Reason::SpoofedInnerSource], "{source}");
    }
    let elsewhere = Ipv4Addr::new(172, 16, 1, 12);
    let frame = datagram(FAR, GROUP, GROUP_MAC);
    // A node of the cluster, then of the network as well.
    for (networks, reason) in [(&[][..], Reason::NotPeer), (&[VNI], Reason::SpoofedInnerSource)] {
        rig.node(elsewhere, networks);
        let ran = rig.run("from_underlay", &vxlan_from(elsewhere, VNI, &frame));
        assert_eq!(ran.counted, [reason]);
    }
    let ran = rig.run("from_underlay", &vxlan(OTHER_VNI, &frame));
    assert_eq!(ran.counted, [Reason::UnknownVni]);
    let ran = rig.run("from_container", &datagram(stranger, GROUP, GROUP_MAC));
    assert_eq!(ran.counted, [Reason::SpoofedMac]);
    assert_eq!(sent("u1"), before);
}

#[test]
fn igmp_class_e_and_frames_whose_mac_is_not_the_groups_are_dropped_as_multicast() {
    let mut rig = rig(&[], &[PEER]);
    let u1 = rig.no_forwarding;
    replicate(&mut rig, &[u1], &[PEER]);
    let before = (sent("u1"), sent("vx0"));
    let mut igmp = datagram(ME, GROUP, GROUP_MAC);
    igmp[23] = 2;
    for (what, frame) in [
        ("IGMP", igmp),
        ("class E", datagram(ME, Ipv4Addr::new(240, 0, 0, 1), BROADCAST_MAC)),
        ("multicast in a broadcast frame", datagram(ME, GROUP, BROADCAST_MAC)),
        ("multicast in a frame to one", datagram(ME, GROUP, mac(FAR).bytes())),
        ("to one in a broadcast frame", datagram(ME, FAR, BROADCAST_MAC)),
        ("another subnet's", datagram(ME, Ipv4Addr::new(10, 0, 2, 255), BROADCAST_MAC)),
    ] {
        let ran = rig.run("from_container", &frame);
        assert_eq!(ran.counted, [Reason::Multicast], "{what} from a container");
        let mut inner = frame;
        inner[6..12].copy_from_slice(&mac(FAR).bytes());
        inner[26..30].copy_from_slice(&FAR.octets());
        if inner[0] & 1 == 1 {
            let ran = rig.run("from_underlay", &vxlan(VNI, &inner));
            assert_eq!(ran.counted, [Reason::Multicast], "{what} through the tunnel");
        }
    }
    assert_eq!((sent("u1"), sent("vx0")), before);
}

#[test]
fn a_network_that_does_not_replicate_drops_and_counts() {
    let mut rig = rig(&[], &[PEER]);
    rig.set(|state| state.networks.get_mut(&VNI).expect("the network").flags = 0);
    let before = sent("vx0");
    let ran = rig.run("from_container", &datagram(ME, GROUP, GROUP_MAC));
    assert_eq!((ran.verdict, ran.counted), (DROP, vec![Reason::Multicast]));
    let ran = rig.run("from_underlay", &vxlan(VNI, &datagram(FAR, GROUP, GROUP_MAC)));
    assert_eq!((ran.verdict, ran.counted), (DROP, vec![Reason::Multicast]));
    assert_eq!(sent("vx0"), before);
}

#[test]
fn no_more_than_64_endpoints_and_nodes_get_copies_and_that_is_counted() {
    let mut rig = rig(&[], &[]);
    let u1 = rig.no_forwarding;
    replicate(&mut rig, &[u1; MAX_FLOOD], &[PEER; MAX_FLOOD]);
    let before = (sent("u1"), sent("vx0"));
    let ran = rig.run("from_container", &datagram(ME, GROUP, GROUP_MAC));
    assert_eq!(ran.counted, [Reason::Replicated]);
    assert_eq!((sent("u1") - before.0, sent("vx0") - before.1), (64, 64));

    replicate(&mut rig, &[u1; MAX_FLOOD + 1], &[PEER; MAX_FLOOD + 1]);
    let before = (sent("u1"), sent("vx0"));
    let ran = rig.run("from_container", &datagram(ME, GROUP, GROUP_MAC));
    assert_eq!(ran.counted, [Reason::Replicated, Reason::ReplicateLimit]);
    assert_eq!(ran.moved[&Reason::ReplicateLimit].packets, 2, "for endpoints and for nodes");
    assert_eq!((sent("u1") - before.0, sent("vx0") - before.1), (64, 64));
}

#[test]
fn a_copy_that_the_kernel_refuses_is_counted_and_the_others_are_made() {
    let mut rig = rig(&[], &[]);
    let u1 = rig.no_forwarding;
    replicate(&mut rig, &[9_999, u1], &[]);
    let before = sent("u1");
    let ran = rig.run("from_container", &datagram(ME, GROUP, GROUP_MAC));
    assert_eq!(ran.counted, [Reason::Replicated, Reason::ReplicateRefused]);
    assert_eq!(sent("u1") - before, 1);
}

#[test]
fn tcp_to_a_group_is_copied_like_anything_else() {
    // No endpoint answers it (RFC 9293, section 3.9.2.3), but that is not for the network to
    // decide.
    let mut rig = rig(&[], &[]);
    let u1 = rig.no_forwarding;
    replicate(&mut rig, &[u1], &[]);
    let mut frame = tcp((ME, 1), (GROUP, 80), Tcp::Syn);
    frame[..6].copy_from_slice(&GROUP_MAC);
    assert_eq!(rig.run("from_container", &frame).counted, [Reason::Replicated]);
}
