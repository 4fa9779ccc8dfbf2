//! Kernel encap and decap fallback, and congestion marks (RFC 6040).

use std::net::Ipv4Addr;

use overlay_common::Reason;
use overlay_tests::{
    model::ones_complement,
    rig::{CLIENT, DROP, NODE, PASS, PEER, REDIRECT, Rig, VNI, XDP_PASS, mac, packets::*},
};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.local(VNI, HERE, 0, false);
    rig.remote(VNI, FAR, 0);
    rig
}

/// Sets a byte of the IPv4 header at `at`, and its checksum.
fn set(frame: &mut [u8], at: usize, field: usize, value: u8) {
    frame[at + field] = value;
    frame[at + 10..at + 12].fill(0);
    let sum = ones_complement(&frame[at..at + 20]);
    frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
}

/// A datagram of `total` bytes that may be fragmented.
fn without_df(to: Ipv4Addr, total: usize) -> Vec<u8> {
    let mut frame = udp((ME, 1), (to, 2), &vec![7; total - 28]);
    set(&mut frame, 14, 6, 0);
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00, 0x00, 0x05], &frame[12..]].concat()
}

#[test]
fn what_does_not_fit_and_may_be_fragmented_goes_through_the_kernels_device() {
    let mut rig = rig();
    let fits = without_df(FAR, 1450);
    let ran = rig.run("from_container", &fits);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    let mut frame = without_df(FAR, 1451);
    frame[..6].fill(0xaa);
    let ran = rig.run("from_container", &frame);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::KernelEncap][..]));
    assert_eq!(ran.packet[..6], mac(FAR).bytes(), "the inner frame, addressed");
    assert_eq!(ran.packet[6..], frame[6..]);
}

#[test]
fn a_translated_packet_that_does_not_fit_is_handed_over_translated() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(70, FAR, false)]);
    let ran = rig.run("from_container", &without_df(VIP, 1451));
    assert_eq!(ran.counted, [Reason::FlowCreated, Reason::KernelEncap]);
    assert_eq!(see(&ran.packet).to.0, FAR);
}

#[test]
fn without_the_kernels_device_what_does_not_fit_is_a_counted_drop() {
    let mut rig = rig();
    let config = overlay_common::maps::Config { vxlan_ifindex: 0, ..rig.config() };
    rig.set_config(&config);
    let ran = rig.run("from_container", &without_df(FAR, 1451));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::TooBig][..]));
}

#[test]
fn a_tagged_frame_from_the_tunnel_is_left_to_the_kernel_without_reserved_bits() {
    let mut rig = rig();
    let frame = tagged(&ping(FAR, HERE));
    let plain = vxlan(VNI, &frame);
    let mut reserved = plain.clone();
    reserved[42] = 0xff;
    reserved[43..46].copy_from_slice(&[1, 2, 3]);
    reserved[49] = 0xff;
    for packet in [&plain, &reserved] {
        let ran = rig.run("from_underlay", packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (PASS, &[Reason::KernelDecap][..]));
        assert_eq!(ran.packet, plain);
    }
    let stranger = Ipv4Addr::new(172, 16, 1, 66);
    let ran = rig.run("from_underlay", &vxlan_from(stranger, VNI, &frame));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NotPeer][..]));
}

#[test]
fn what_did_not_come_out_of_a_tunnel_is_nobodys() {
    let mut rig = rig();
    let ran = rig.run("from_vxlan", &ping(FAR, HERE));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::InvalidVni][..]));
}

#[test]
fn the_outer_header_says_of_congestion_what_the_inner_one_says() {
    let mut rig = rig();
    for (inner, outer) in [(0x00, 0), (0xb8, 0), (0x01, 1), (0x02, 2), (0xbb, 3)] {
        let mut frame = udp((ME, 1), (FAR, 2), b"?");
        set(&mut frame, 14, 1, inner);
        let ran = rig.run("from_container", &frame);
        assert_eq!(ran.packet[15], outer, "outer TOS over {inner:#04x}");
        assert_eq!(untunnel(&ran.packet), (VNI, PEER, frame));
    }
}

#[test]
fn a_mark_of_the_underlay_reaches_the_receiver() {
    let mut rig = rig();
    for (outer, inner, after) in [
        (0x03, 0xba, 0xbb),
        (0x03, 0x01, 0x03),
        (0x01, 0x02, 0x01),
        (0x02, 0x01, 0x01),
        (0x01, 0x00, 0x00),
        (0xbb, 0x03, 0x03),
        (0xb8, 0x02, 0x02),
    ] {
        let mut frame = tcp((FAR, 40_000), (HERE, 80), Tcp::Data);
        set(&mut frame, 14, 1, inner);
        let mut packet = vxlan(VNI, &frame);
        set(&mut packet, 14, 1, outer);
        let ran = rig.run("from_underlay", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
        set(&mut frame, 14, 1, after);
        assert_eq!(ran.packet, frame, "outer {outer:#04x}, inner {inner:#04x}");
    }
}

#[test]
fn congestion_that_the_sender_would_not_hear_of_is_a_drop() {
    let mut rig = rig();
    let mut packet = vxlan(VNI, &ping(FAR, HERE));
    set(&mut packet, 14, 1, 0x03);
    let ran = rig.run("xdp_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[][..]), "TC combines marks");
    let ran = rig.run("from_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::EcnUnexpected][..]));
}

#[test]
fn a_marked_reply_reaches_a_client_outside_with_its_mark() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(70, FAR, false)]);
    rig.publish(17, 8080, 7, 53);
    let mut question = udp_from_client((CLIENT, 40_000), (NODE, 8080), b"?");
    set(&mut question, 14, 1, 0x02);
    let ran = rig.run("xdp_underlay", &question);
    assert_eq!(ran.packet[15], 2, "XDP copies it as well");
    let mut reply = udp((FAR, 53), (CLIENT, 40_000), b"!");
    set(&mut reply, 14, 1, 0x02);
    let mut packet = vxlan(VNI, &reply);
    set(&mut packet, 14, 1, 0x03);
    let ran = rig.run("from_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentToClient][..]));
    assert_eq!(ran.packet[15], 3);
    assert_eq!(see(&ran.packet).from, (NODE, 8080));
}
