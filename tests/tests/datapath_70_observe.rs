//! What the programs tell of the packets they handle: counters of each endpoint and network.

use std::net::Ipv4Addr;

use overlay_common::{
    Reason,
    maps::Counter,
    observe::{DropKey, Traffic},
};
use overlay_tests::rig::{IFINDEX, NODE, OTHER_VNI, Ran, Rig, VNI, packets::*, slot};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);

/// A network with an endpoint that sends, one beside it and one on the peer.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.local(VNI, NEIGHBOUR, 0, false);
    rig.remote(VNI, FAR, 0);
    rig
}

/// Slot, direction and reason of each endpoint's packet that went on, and its length.
fn forwarded(ran: &Ran) -> Vec<(u32, Traffic, Reason, u64)> {
    let all = ran.told.forwarded.iter();
    all.map(|((slot, traffic, reason), counter)| {
        assert_eq!(counter.packets, 1);
        (*slot, *traffic, *reason, counter.bytes)
    })
    .collect()
}

/// The one drop that was counted, which is for a single packet.
fn dropped(ran: &Ran) -> (u32, u32, Traffic, Reason) {
    assert_eq!(ran.told.dropped.len(), 1, "{:?}", ran.told);
    assert!(ran.told.forwarded.is_empty(), "{:?}", ran.told);
    let (key, counter) = ran.told.dropped.first_key_value().expect("one");
    assert_eq!(counter.packets, 1);
    let DropKey { vni, slot, reason, traffic } = *key;
    let reason = Reason::from_index(reason.into()).expect("a reason");
    (vni, slot.into(), Traffic::from_index(traffic).expect("a direction"), reason)
}

#[test]
fn a_packet_between_two_endpoints_of_a_node_is_counted_for_both() {
    let mut rig = rig();
    let packet = udp((ME, 40_000), (NEIGHBOUR, 53), b"question");
    let length = packet.len() as u64;
    let ran = rig.run("from_container", &packet);
    assert_eq!(
        forwarded(&ran),
        [
            (slot(ME), Traffic::Sent, Reason::DeliveredLocal, length),
            (slot(NEIGHBOUR), Traffic::Received, Reason::DeliveredLocal, length),
        ]
    );
    assert!(ran.told.dropped.is_empty());
}

#[test]
fn a_packet_through_the_tunnel_is_counted_for_its_sender_there_and_its_receiver_here() {
    let mut rig = rig();
    let packet = ping(ME, FAR);
    let ran = rig.run("from_container", &packet);
    let length = packet.len() as u64;
    let sent = (slot(ME), Traffic::Sent, Reason::Encapsulated, length + 50);
    assert_eq!(forwarded(&ran), [sent], "as long as it leaves");
    let ran = rig.run("from_underlay", &vxlan(VNI, &ping(FAR, ME)));
    assert_eq!(forwarded(&ran), [(slot(ME), Traffic::Received, Reason::Decapsulated, length)]);
}

#[test]
fn what_the_node_answers_is_counted_as_sent() {
    let mut rig = rig();
    let ran = rig.run("from_container", &arp_request(ME, GATEWAY));
    assert_eq!(forwarded(&ran), [(slot(ME), Traffic::Sent, Reason::ArpAnswered, 42)]);
    let ran = rig.run("from_container", &ping(ME, GATEWAY));
    assert_eq!(forwarded(&ran)[0].2, Reason::EchoAnswered);
}

#[test]
fn a_flow_to_a_backend_here_is_counted_for_the_backend() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(11, NEIGHBOUR, true)]);
    rig.publish(17, 8080, 7, 80);
    let ran = rig.run("from_container", &udp((ME, 40_000), (VIP, 80), b"question"));
    let received = |ran: &Ran| forwarded(ran).last().map(|(slot, t, r, _)| (*slot, *t, *r));
    let backend = Some((slot(NEIGHBOUR), Traffic::Received, Reason::DeliveredLocal));
    assert_eq!(received(&ran), backend);
    let client = (overlay_tests::rig::CLIENT, 40_000);
    let ran = rig.run("from_underlay", &udp_from_client(client, (NODE, 8080), b"question"));
    assert_eq!((received(&ran), ran.told.forwarded.len()), (backend, 1));
}

#[test]
fn a_drop_is_counted_for_its_sender_and_network() {
    let mut rig = rig();
    let mut spoofed = udp((NEIGHBOUR, 40_000), (FAR, 53), b"question");
    spoofed[6..12].copy_from_slice(&overlay_tests::rig::mac(ME).bytes());
    let ran = rig.run("from_container", &spoofed);
    assert_eq!(dropped(&ran), (VNI, slot(ME), Traffic::Sent, Reason::SpoofedSource));
    assert_eq!(ran.told.dropped.values().next().expect("one").bytes, spoofed.len() as u64);
    let ran = rig.run("from_container", &ping(ME, NOBODY));
    assert_eq!(dropped(&ran), (VNI, slot(ME), Traffic::Sent, Reason::NoEndpoint));
    rig.set(|state| state.links.clear());
    let ran = rig.run("from_container", &ping(ME, NEIGHBOUR));
    assert_eq!(dropped(&ran), (0, 0, Traffic::Sent, Reason::UnknownLink));
}

#[test]
fn a_drop_from_the_tunnel_is_counted_for_whom_it_was_as_far_as_it_is_known() {
    let mut rig = rig();
    let forged = vxlan(VNI, &ping(NOBODY, ME));
    let ran = rig.run("from_underlay", &forged);
    assert_eq!(dropped(&ran), (VNI, slot(ME), Traffic::Received, Reason::SpoofedInnerSource));
    let ran = rig.run("from_underlay", &vxlan(VNI, &ping(FAR, NOBODY)));
    assert_eq!(dropped(&ran), (VNI, 0, Traffic::Received, Reason::NoEndpoint));
    // A network that is not here is only what a packet says.
    let ran = rig.run("from_underlay", &vxlan(OTHER_VNI, &ping(FAR, ME)));
    assert_eq!(dropped(&ran), (0, 0, Traffic::Received, Reason::NoEndpoint));
    let stranger = vxlan_from(Ipv4Addr::new(172, 16, 1, 99), VNI, &ping(FAR, ME));
    for program in ["from_underlay", "xdp_underlay"] {
        let ran = rig.run(program, &stranger);
        assert_eq!(dropped(&ran), (0, 0, Traffic::Received, Reason::NotPeer), "{program}");
    }
}

#[test]
fn an_endpoint_without_a_slot_is_counted_by_its_network_only() {
    let mut rig = rig();
    rig.set(|state| state.links.get_mut(&IFINDEX).expect("a link").slot = 0);
    let ran = rig.run("from_container", &ping(ME, FAR));
    assert!(ran.told.forwarded.is_empty(), "{:?}", ran.told);
    assert_eq!(ran.moved[&Reason::Encapsulated].packets, 1);
    let ran = rig.run("from_container", &ping(ME, NOBODY));
    assert_eq!(dropped(&ran), (VNI, 0, Traffic::Sent, Reason::NoEndpoint));
    assert_eq!(ran.moved[&Reason::NoEndpoint], Counter { packets: 1, bytes: 52 });
}
