//! Packets that do not fit their path: the ICMP errors about them, their senders and MTUs, and
//! cases without an error.

use std::{net::Ipv4Addr, process::Command};

use overlay_common::{Reason, maps::ENDPOINT_FLAG_BACKEND};
use overlay_tests::rig::{
    CLIENT, CLIENT_MAC, DROP, NODE, NODE_MAC, PEER, REDIRECT, Ran, Rig, VNI, XDP_PASS, mac,
    packets::*,
};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
/// The most that fits the tunnel.
const FITS: usize = 1450;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, ENDPOINT_FLAG_BACKEND, true);
    rig.local(VNI, HERE, 0, false);
    rig.remote(VNI, FAR, ENDPOINT_FLAG_BACKEND);
    rig
}

/// A datagram of `total` bytes with DF.
fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), total: usize) -> Vec<u8> {
    let mut frame = udp(from, to, &vec![7; total - 28]);
    set_df(&mut frame, true);
    frame
}

/// Changes DF, which packets are built with, and the header's checksum.
fn set_df(frame: &mut [u8], on: bool) {
    frame[20] = if on { 0x40 } else { 0 };
    seal_header(frame);
}

fn seal_header(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let sum = overlay_tests::model::ones_complement(&frame[14..end]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Parses an answer and verifies its checksums: (from, to, MTU, quoted packet).
fn told(ran: &Ran) -> (Ipv4Addr, Ipv4Addr, u16, Vec<u8>) {
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::TooBigAnswered][..]));
    let seen = see(&ran.packet);
    assert_eq!((seen.protocol, &ran.packet[34..36]), (1, &[3, 4][..]), "fragmentation needed");
    let mtu = u16::from_be_bytes([ran.packet[40], ran.packet[41]]);
    assert_eq!(ran.packet.len(), 14 + 20 + 8 + seen.payload.len(), "nothing behind the quote");
    (seen.from.0, seen.to.0, mtu, seen.payload)
}

#[test]
fn the_gateway_tells_a_container_what_fits_the_tunnel() {
    let mut rig = rig();
    let fits = datagram((ME, 1), (FAR, 2), FITS);
    let ran = rig.run("from_container", &fits);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    assert_eq!(untunnel(&ran.packet), (VNI, PEER, fits));

    let too_big = datagram((ME, 1), (FAR, 2), FITS + 1);
    let ran = rig.run("from_container", &too_big);
    let (from, to, mtu, quote) = told(&ran);
    assert_eq!((from, to, mtu), (GATEWAY, ME, FITS as u16));
    assert_eq!(quote, too_big[14..14 + 128], "the start of what was sent");
    assert_eq!(see(&ran.packet).macs, (mac(GATEWAY).bytes(), mac(ME).bytes()));
}

#[test]
fn an_answer_names_the_mtu_of_the_path_where_it_is_less_than_the_nics() {
    let mut rig = rig();
    let route = "route add 172.16.1.11/32 dev u0 mtu lock 1400";
    let added = Command::new("ip").args(route.split(' ')).status().expect("ip runs");
    assert!(added.success());
    let ran = rig.run("from_container", &datagram((ME, 1), (FAR, 2), 1350));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    let (.., mtu, _) = told(&rig.run("from_container", &datagram((ME, 1), (FAR, 2), 1351)));
    assert_eq!(mtu, 1350);
}

#[test]
fn a_packet_with_options_is_quoted_with_them() {
    let mut rig = rig();
    let mut frame = datagram((ME, 1), (FAR, 2), FITS + 1);
    frame.splice(34..34, [1, 1, 1, 0]);
    frame[14] = 0x46;
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    seal_header(&mut frame);
    let (.., quote) = told(&rig.run("from_container", &frame));
    assert_eq!(quote, frame[14..14 + 128]);
}

#[test]
fn what_nobody_may_be_told_of_is_a_counted_drop() {
    let mut rig = rig();
    let big = || datagram((ME, 1), (FAR, 2), FITS + 1);
    let later_fragment = {
        let mut frame = big();
        frame[21] = 185;
        seal_header(&mut frame);
        frame
    };
    let mut cases = vec![("a later fragment", later_fragment)];
    for kind in [3, 4, 5, 11, 12] {
        let mut frame = big();
        frame[23] = 1;
        frame[34] = kind;
        seal_header(&mut frame);
        cases.push(("an ICMP error", frame));
    }
    for (what, frame) in cases {
        let ran = rig.run("from_container", &frame);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::TooBig][..]), "{what}");
    }
}

#[test]
fn an_echo_request_that_does_not_fit_is_answered() {
    let mut rig = rig();
    let mut frame = datagram((ME, 1), (FAR, 2), FITS + 1);
    frame[23] = 1;
    frame[34..36].copy_from_slice(&[8, 0]);
    seal_header(&mut frame);
    let (from, _, mtu, _) = told(&rig.run("from_container", &frame));
    assert_eq!((from, mtu), (GATEWAY, FITS as u16));
}

#[test]
fn a_client_of_a_vip_finds_the_vip_in_the_answer() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(70, FAR, false)]);
    let frame = datagram((ME, 40_000), (VIP, 53), FITS + 1);
    let ran = rig.run("from_container", &frame);
    assert_eq!(ran.counted, [Reason::FlowCreated, Reason::TooBigAnswered]);
    assert_eq!(see(&ran.packet).from.0, GATEWAY);
    assert_eq!(ran.packet[42..], frame[14..14 + 128], "not the backend it was rewritten to");
}

#[test]
fn a_client_outside_is_told_by_the_address_that_it_asked() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(70, FAR, false)]);
    rig.publish(17, 8080, 7, 53);
    let mut frame = udp_from_client((CLIENT, 40_000), (NODE, 8080), &[7; FITS + 1 - 28]);
    set_df(&mut frame, true);
    let ran = rig.run("xdp_underlay", &frame);
    assert_eq!(ran.verdict, XDP_PASS, "answering is TC's");
    let ran = rig.run("from_underlay", &frame);
    assert_eq!(ran.counted, [Reason::FlowCreated, Reason::TooBigAnswered]);
    let seen = see(&ran.packet);
    assert_eq!((seen.from.0, seen.to.0), (NODE, CLIENT));
    assert_eq!(seen.macs, (NODE_MAC, CLIENT_MAC));
    assert_eq!(ran.packet[42..], frame[14..14 + 128]);
}

#[test]
fn a_backend_is_told_what_fits_the_way_to_a_client_outside() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(70, ME, true)]);
    rig.publish(17, 8080, 7, 53);
    rig.run("from_underlay", &udp_from_client((CLIENT, 40_000), (NODE, 8080), b"?"));
    let reply = datagram((ME, 53), (CLIENT, 40_000), 1501);
    let ran = rig.run("from_container", &reply);
    let (from, to, mtu, quote) = told(&ran);
    assert_eq!((from, to, mtu), (GATEWAY, ME, 1500));
    assert_eq!(quote, reply[14..14 + 128]);
}

#[test]
fn a_backend_elsewhere_is_told_so_by_the_address_that_the_client_asked() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(70, FAR, false)]);
    rig.publish(17, 8080, 7, 53);
    rig.run("from_underlay", &udp_from_client((CLIENT, 40_000), (NODE, 8080), b"?"));
    let reply = datagram((FAR, 53), (CLIENT, 40_000), 1501);
    assert_eq!(rig.run("xdp_underlay", &vxlan(VNI, &reply)).verdict, XDP_PASS);
    let ran = rig.run("from_underlay", &vxlan(VNI, &reply));
    let (vni, node, inner) = untunnel(&ran.packet);
    assert_eq!((vni, node), (VNI, PEER));
    let (from, to, mtu, quote) = told(&Ran { packet: inner, ..ran });
    assert_eq!((from, to, mtu), (NODE, FAR, 1500));
    assert_eq!(quote, reply[14..14 + 128], "as the backend sent it");
}

#[test]
fn what_arrives_is_delivered_whatever_the_endpoints_mtu() {
    let mut rig = rig();
    rig.set(|state| {
        for network in state.networks.values_mut() {
            network.mtu = 500;
        }
    });
    let frame = datagram((FAR, 1), (HERE, 2), FITS);
    let ran = rig.run("from_underlay", &vxlan(VNI, &frame));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    let local = datagram((ME, 1), (HERE, 2), FITS);
    let ran = rig.run("from_container", &local);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredLocal][..]));
}
