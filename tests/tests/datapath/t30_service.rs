//! Containers that send to a VIP: selection, translation there and back, and stale backends.

use std::{collections::BTreeMap, net::Ipv4Addr};

use overlay_common::{
    Reason,
    maps::{ENDPOINT_FLAG_BACKEND, SlotKey},
};
use overlay_tests::{
    of_both_families,
    rig::{DROP, Family, PEER, REDIRECT, Rig, VNI, mac, packets::*},
};

of_both_families! {
    a_backend_on_this_node_sees_the_client_and_answers_as_the_vip,
    a_backend_on_another_node_is_reached_through_the_tunnel_and_its_reply_translated_here,
    a_direct_conversation_with_a_backend_is_not_translated,
    new_flows_go_round_and_each_flow_stays,
    a_backend_reaches_itself_through_the_vip_as_the_vip,
    a_service_without_backends_refuses,
    a_draining_backend_keeps_its_flows_and_gets_no_new_ones,
    flows_of_a_backend_that_is_gone_move_on_where_nothing_can_be_lost,
    a_new_connection_on_an_ended_ones_port_is_a_new_flow,
    idle_flows_expire_by_their_state,
    two_flows_that_meet_on_one_tuple_are_told_apart,
    hostile_map_states_end_in_refusals_by_name,
}

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const SERVICE: u32 = 7;

/// A client that sends, and a service with the given backends.
fn rig(family: Family, backends: &[(u32, Ipv4Addr, bool)]) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.local(VNI, NEAR, ENDPOINT_FLAG_BACKEND, false);
    rig.remote(VNI, FAR, ENDPOINT_FLAG_BACKEND);
    rig.service(SERVICE, VNI, VIP, backends);
    rig.stack(family, VNI, 1);
    rig
}

fn a_backend_on_this_node_sees_the_client_and_answers_as_the_vip(family: Family) {
    let mut rig = rig(family, &[(1, NEAR, true)]);
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(ran.counted, [Reason::DeliveredLocal, Reason::FlowCreated]);
    let seen = family.see(&ran.packet);
    assert_eq!((seen.from, seen.to), (family.at((ME, 40_000)), family.at((NEAR, 80))));
    assert_eq!(seen.macs.1, mac(NEAR).bytes());

    // The backend answers: it is the sender now.
    rig.local(VNI, NEAR, ENDPOINT_FLAG_BACKEND, true);
    rig.local(VNI, ME, 0, false);
    rig.stack(family, VNI, 1);
    let ran = rig.run("from_container", &family.tcp((NEAR, 80), (ME, 40_000), Tcp::SynAck));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredLocal][..]));
    let seen = family.see(&ran.packet);
    assert_eq!((seen.from, seen.to), (family.at((VIP, 80)), family.at((ME, 40_000))));
    assert_eq!(seen.macs, (mac(VIP).bytes(), mac(ME).bytes()));
}

fn a_backend_on_another_node_is_reached_through_the_tunnel_and_its_reply_translated_here(
    family: Family,
) {
    type Make = fn(Family, (Ipv4Addr, u16), (Ipv4Addr, u16)) -> Vec<u8>;
    let makes: [Make; 2] = [
        |family, from, to| family.tcp(from, to, Tcp::Syn),
        |family, from, to| family.udp(from, to, b"odd"),
    ];
    for make in makes {
        let mut rig = rig(family, &[(1, FAR, false)]);
        let ran = rig.run("from_container", &make(family, (ME, 40_000), (VIP, 80)));
        assert_eq!(ran.counted, [Reason::Encapsulated, Reason::FlowCreated]);
        let (vni, node, inner) = untunnel(&ran.packet);
        assert_eq!((vni, node), (VNI, PEER));
        let seen = family.see(&inner);
        assert_eq!((seen.from, seen.to), (family.at((ME, 40_000)), family.at((FAR, 80))));

        let ran = rig.run("from_underlay", &vxlan(VNI, &make(family, (FAR, 80), (ME, 40_000))));
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
        let seen = family.see(&ran.packet);
        assert_eq!((seen.from, seen.to), (family.at((VIP, 80)), family.at((ME, 40_000))));
    }
}

fn a_direct_conversation_with_a_backend_is_not_translated(family: Family) {
    let mut rig = rig(family, &[(1, FAR, false)]);
    rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    let frame = family.tcp((FAR, 80), (ME, 50_000), Tcp::Data);
    let ran = rig.run("from_underlay", &vxlan(VNI, &frame));
    assert_eq!(ran.packet, frame);
}

#[test]
fn a_udp_datagram_without_checksum_stays_without() {
    let mut rig = rig(Family::Ipv4, &[(1, NEAR, true)]);
    let mut packet = udp((ME, 40_000), (VIP, 53), b"question");
    packet[40..42].copy_from_slice(&[0, 0]);
    let ran = rig.run("from_container", &packet);
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(ran.packet[40..42], [0, 0]);
    assert_eq!(see(&ran.packet).to, (NEAR, 53));
}

#[test]
fn ip_options_do_not_disturb_translation() {
    let mut rig = rig(Family::Ipv4, &[(1, NEAR, true)]);
    let plain = udp((ME, 40_000), (VIP, 53), b"question");
    let mut packet = plain[..34].to_vec();
    packet.extend([1, 1, 1, 0]);
    packet.extend(&plain[34..]);
    packet[14] = 0x46;
    let total = (packet.len() - 14) as u16;
    packet[16..18].copy_from_slice(&total.to_be_bytes());
    packet[24..26].copy_from_slice(&[0, 0]);
    let sum = overlay_common::checksum::of_bytes(&packet[14..38], 0);
    packet[24..26].copy_from_slice(&sum.to_ne_bytes());
    let ran = rig.run("from_container", &packet);
    assert_eq!(ran.verdict, REDIRECT);
    let seen = see(&ran.packet);
    assert_eq!((seen.from, seen.to), ((ME, 40_000), (NEAR, 53)));
}

fn new_flows_go_round_and_each_flow_stays(family: Family) {
    let mut rig = rig(family, &[(1, NEAR, true), (2, FAR, false)]);
    let mut picks = BTreeMap::new();
    for port in 40_000..40_010 {
        let packet = family.tcp((ME, port), (VIP, 80), Tcp::Syn);
        let first = rig.run("from_container", &packet);
        assert!(first.counted.contains(&Reason::FlowCreated));
        let again = rig.run("from_container", &family.tcp((ME, port), (VIP, 80), Tcp::Data));
        assert!(!again.counted.contains(&Reason::FlowCreated));
        let went = first.counted[0];
        assert_eq!(again.counted, [went], "port {port} changed its backend");
        *picks.entry(went).or_insert(0) += 1;
    }
    assert_eq!(picks, BTreeMap::from([(Reason::DeliveredLocal, 5), (Reason::Encapsulated, 5)]));
}

fn a_backend_reaches_itself_through_the_vip_as_the_vip(family: Family) {
    let mut rig = rig(family, &[(1, ME, true)]);
    rig.local(VNI, ME, ENDPOINT_FLAG_BACKEND, true);
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!(ran.verdict, REDIRECT);
    let seen = family.see(&ran.packet);
    assert_eq!((seen.from, seen.to), (family.at((VIP, 40_000)), family.at((ME, 80))));
    let ran = rig.run("from_container", &family.tcp((ME, 80), (VIP, 40_000), Tcp::SynAck));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredLocal][..]));
    let seen = family.see(&ran.packet);
    assert_eq!((seen.from, seen.to), (family.at((VIP, 80)), family.at((ME, 40_000))));
}

fn a_service_without_backends_refuses(family: Family) {
    let mut rig = rig(family, &[]);
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NoBackendAnswered][..]));
}

fn a_draining_backend_keeps_its_flows_and_gets_no_new_ones(family: Family) {
    let mut rig = rig(family, &[(1, NEAR, true)]);
    rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    rig.set(|state| {
        state.slots.clear();
        state.services.get_mut(&SERVICE).expect("the service").slots = 0;
    });
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Data));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredLocal][..]));
    let ran = rig.run("from_container", &family.tcp((ME, 40_001), (VIP, 80), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NoBackendAnswered][..]));
}

fn flows_of_a_backend_that_is_gone_move_on_where_nothing_can_be_lost(family: Family) {
    let mut rig = rig(family, &[(1, NEAR, true)]);
    rig.run("from_container", &family.udp((ME, 40_000), (VIP, 53), b"one"));
    rig.run("from_container", &family.tcp((ME, 40_001), (VIP, 80), Tcp::Syn));
    rig.set(|state| {
        let _ = state.backends.remove(&1);
    });
    rig.service(SERVICE, VNI, VIP, &[(2, FAR, false)]);

    let ran = rig.run("from_container", &family.udp((ME, 40_000), (VIP, 53), b"two"));
    assert_eq!(ran.counted, [Reason::Encapsulated, Reason::FlowRepicked]);
    let ran = rig.run("from_container", &family.tcp((ME, 40_001), (VIP, 80), Tcp::Data));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::BackendGone][..]));
    let ran = rig.run("from_container", &family.tcp((ME, 40_001), (VIP, 80), Tcp::Syn));
    assert_eq!(ran.counted, [Reason::Encapsulated, Reason::FlowRepicked]);
}

fn a_new_connection_on_an_ended_ones_port_is_a_new_flow(family: Family) {
    let mut rig = rig(family, &[(1, NEAR, true), (2, FAR, false)]);
    let first = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!(first.counted, [Reason::DeliveredLocal, Reason::FlowCreated]);
    rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Fin));
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!(ran.counted, [Reason::Encapsulated, Reason::FlowCreated]);
}

fn idle_flows_expire_by_their_state(family: Family) {
    let mut rig = rig(family, &[(1, NEAR, true), (2, FAR, false)]);
    rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Data));
    // An established connection outlives IPVS's 900 s and the hosts' two-hour keep-alive.
    rig.age_conntrack(901);
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Data));
    assert_eq!(ran.counted, [Reason::DeliveredLocal]);
    // A connection that was never answered does not.
    rig.run("from_container", &family.tcp((ME, 40_001), (VIP, 80), Tcp::Syn));
    rig.age_conntrack(61);
    let ran = rig.run("from_container", &family.tcp((ME, 40_001), (VIP, 80), Tcp::Syn));
    assert!(ran.counted.contains(&Reason::FlowCreated), "{:?}", ran.counted);
}

fn two_flows_that_meet_on_one_tuple_are_told_apart(family: Family) {
    // Two services in front of one backend, one client port: the backend would see one tuple.
    let mut rig = rig(family, &[(1, FAR, false)]);
    let other_vip = Ipv4Addr::new(10, 0, 1, 10);
    rig.service(8, VNI, other_vip, &[(1, FAR, false)]);
    rig.stack(family, VNI, 1);
    let first = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    let second = rig.run("from_container", &family.tcp((ME, 40_000), (other_vip, 80), Tcp::Syn));
    let (first, second) =
        (family.see(&untunnel(&first.packet).2), family.see(&untunnel(&second.packet).2));
    assert_eq!(first.from, family.at((ME, 40_000)));
    assert_eq!(second.from.0, family.ip(ME));
    assert!(second.from.1 >= 49_152, "translated source port {}", second.from.1);

    let reply = family.tcp((FAR, 80), (ME, second.from.1), Tcp::SynAck);
    let ran = rig.run("from_underlay", &vxlan(VNI, &reply));
    let seen = family.see(&ran.packet);
    assert_eq!((seen.from, seen.to), (family.at((other_vip, 80)), family.at((ME, 40_000))));
}

#[test]
fn protocols_without_ports_are_dropped_not_misrouted() {
    let mut rig = rig(Family::Ipv4, &[(1, NEAR, true)]);
    let mut gre = udp((ME, 40_000), (VIP, 53), b"question");
    gre[23] = 47;
    fix_header(&mut gre);
    let ran = rig.run("from_container", &gre);
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::ServiceProtocol][..]));
}

fn fix_header(packet: &mut [u8]) {
    packet[24..26].copy_from_slice(&[0, 0]);
    let sum = overlay_common::checksum::of_bytes(&packet[14..34], 0);
    packet[24..26].copy_from_slice(&sum.to_ne_bytes());
}

fn hostile_map_states_end_in_refusals_by_name(family: Family) {
    let mut rig = rig(family, &[(1, NEAR, true)]);
    // A slot that refers to no backend.
    rig.set(|state| {
        let _ = state.slots.insert(SlotKey { service: SERVICE, index: 0 }, 99);
    });
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NoBackendAnswered][..]));
    // More slots promised than there are.
    rig.set(|state| {
        state.slots.clear();
        state.services.get_mut(&SERVICE).expect("the service").slots = 1_000;
    });
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NoBackendAnswered][..]));
    // A VIP of a service that does not exist.
    rig.set(|state| {
        let _ = state.services.remove(&SERVICE);
    });
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::NoBackendAnswered][..]));
    // A backend with the VIP as its address.
    rig.service(SERVICE, VNI, VIP, &[(5, VIP, false)]);
    let ran = rig.run("from_container", &family.tcp((ME, 40_000), (VIP, 80), Tcp::Syn));
    assert_eq!(ran.verdict, REDIRECT, "it goes to the node, which has no such endpoint");
}
