//! Other packets of a translated flow: fragments, SCTP, and ICMP errors about it.

use std::net::Ipv4Addr;

use overlay_common::{
    Reason,
    maps::{ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED},
    wire::{PROTO_SCTP, PROTO_UDP},
};
use overlay_tests::rig::{
    CLIENT, CLIENT_MAC, DROP, NODE, PASS, PEER, REDIRECT, Ran, Rig, VNI, XDP_PASS, packets::*,
    wait_for_uptime,
};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;

/// A client, and a service with one backend that also answers port 8080, and 3868 of SCTP, of the
/// node.
fn rig(backend: Ipv4Addr) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.local(VNI, NEAR, SERVES, false);
    rig.remote(VNI, FAR, SERVES);
    rig.service(SERVICE, VNI, VIP, &[(1, backend, backend == NEAR)]);
    rig.publish(PROTO_UDP, 8080, SERVICE, 80);
    rig.publish(PROTO_SCTP, 3868, SERVICE, 3868);
    rig
}

/// Makes the rig send as another endpoint.
fn speak_as(rig: &mut Rig, ip: Ipv4Addr) {
    rig.local(VNI, ME, 0, ip == ME);
    rig.local(VNI, NEAR, SERVES, ip == NEAR);
}

fn went(ran: &Ran, reason: Reason) {
    assert_eq!((ran.verdict, ran.counted.first()), (REDIRECT, Some(&reason)), "{ran:?}");
}

/// Addresses of an IPv4 frame. Checks its header's checksum.
fn addresses(frame: &[u8]) -> (Ipv4Addr, Ipv4Addr) {
    assert_eq!(ones_complement(&frame[14..34]), 0, "IPv4 header checksum");
    let at = |i: usize| Ipv4Addr::new(frame[i], frame[i + 1], frame[i + 2], frame[i + 3]);
    (at(26), at(30))
}

fn ones_complement(bytes: &[u8]) -> u16 {
    overlay_common::checksum::of_bytes(bytes, 0)
}

/// Cuts a UDP frame in two after 16 bytes of its payload's packet.
fn in_two(whole: &[u8], id: u8) -> [Vec<u8>; 2] {
    const FIRST: usize = 14 + 20 + 16;
    let mut first = whole[..FIRST].to_vec();
    let mut later = [&whole[..34], &whole[FIRST..]].concat();
    for (part, fragment) in [(&mut first, [0x20, 0]), (&mut later, [0, 2])] {
        let total = (part.len() - 14) as u16;
        part[16..18].copy_from_slice(&total.to_be_bytes());
        part[18..20].copy_from_slice(&[0, id]);
        part[20..22].copy_from_slice(&fragment);
        fix_header(part);
    }
    [first, later]
}

fn fix_header(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = ones_complement(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_ne_bytes());
}

/// Reassembles two fragments and checks the datagram.
fn joined(first: &[u8], later: &[u8]) -> Seen {
    assert_eq!(addresses(first), addresses(later));
    let mut whole = [first, &later[34..]].concat();
    let total = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&total.to_be_bytes());
    whole[20..22].fill(0);
    fix_header(&mut whole);
    see(&whole)
}

const QUESTION: &[u8] = b"a question that is longer than one fragment";

#[test]
fn both_fragments_of_a_datagram_reach_the_backend_of_its_flow_and_the_answer_comes_back() {
    let mut rig = rig(NEAR);
    let [first, later] = in_two(&udp((ME, 40_000), (VIP, 53), QUESTION), 1);
    let [first, later] = [first, later].map(|part| {
        let ran = rig.run("from_container", &part);
        went(&ran, Reason::DeliveredLocal);
        ran.packet
    });
    let seen = joined(&first, &later);
    assert_eq!((seen.from, seen.to, &seen.payload[..]), ((ME, 40_000), (NEAR, 53), QUESTION));

    speak_as(&mut rig, NEAR);
    let [first, later] = in_two(&udp((NEAR, 53), (ME, 40_000), QUESTION), 1).map(|part| {
        let ran = rig.run("from_container", &part);
        went(&ran, Reason::DeliveredLocal);
        ran.packet
    });
    let seen = joined(&first, &later);
    assert_eq!((seen.from, seen.to, &seen.payload[..]), ((VIP, 53), (ME, 40_000), QUESTION));
}

#[test]
fn fragments_of_a_client_outside_go_to_a_backend_elsewhere_and_its_fragments_back() {
    for xdp in [false, true] {
        let mut rig = rig(FAR);
        let parts = in_two(&udp_from_client((CLIENT, 40_000), (NODE, 8080), QUESTION), 2);
        let [first, later] = parts.map(|part| {
            if xdp {
                assert_eq!(rig.run("xdp_underlay", &part).verdict, XDP_PASS);
            }
            let ran = rig.run("from_underlay", &part);
            went(&ran, Reason::Encapsulated);
            untunnel(&ran.packet).2
        });
        let seen = joined(&first, &later);
        assert_eq!((seen.from, seen.to), ((CLIENT, 40_000), (FAR, 80)));

        let parts = in_two(&udp((FAR, 80), (CLIENT, 40_000), QUESTION), 3);
        let [first, later] = parts.map(|part| {
            let ran = rig.run("from_underlay", &vxlan(VNI, &part));
            went(&ran, Reason::SentToClient);
            ran.packet
        });
        let seen = joined(&first, &later);
        assert_eq!((seen.from, seen.to), ((NODE, 8080), (CLIENT, 40_000)));
    }
}

#[test]
fn the_backends_node_knows_the_way_back_of_fragments() {
    let mut rig = rig(NEAR);
    for part in in_two(&udp((CLIENT, 40_000), (NEAR, 80), QUESTION), 4) {
        went(&rig.run("from_underlay", &vxlan(VNI, &part)), Reason::Decapsulated);
    }
    speak_as(&mut rig, NEAR);
    for part in in_two(&udp((NEAR, 80), (CLIENT, 40_000), QUESTION), 5) {
        let ran = rig.run("from_container", &part);
        went(&ran, Reason::Encapsulated);
        assert_eq!(untunnel(&ran.packet).1, PEER);
    }
}

#[test]
fn a_later_fragment_without_its_first_one_goes_nowhere() {
    wait_for_uptime(31);
    let mut rig = rig(NEAR);
    let [first, later] = in_two(&udp((ME, 40_000), (VIP, 53), QUESTION), 6);
    let dropped = |ran: Ran| {
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::Fragment][..]));
    };
    dropped(rig.run("from_container", &later));
    went(&rig.run("from_container", &first), Reason::DeliveredLocal);
    went(&rig.run("from_container", &later), Reason::DeliveredLocal);
    // Fragments of another packet, and of an old one.
    let [_, other] = in_two(&udp((ME, 40_000), (VIP, 53), QUESTION), 7);
    dropped(rig.run("from_container", &other));
    for (key, fragment) in rig.fragments() {
        let seen = fragment.seen - 31_000_000_000;
        rig.set_fragment(key, Some(overlay_common::maps::Fragment { seen, ..fragment }));
    }
    dropped(rig.run("from_container", &later));
}

#[test]
fn fragments_to_the_host_itself_are_its_own() {
    let mut rig = rig(NEAR);
    for part in in_two(&udp_from_client((CLIENT, 40_000), (NODE, 9), QUESTION), 8) {
        let ran = rig.run("from_underlay", &part);
        assert_eq!((ran.verdict, &ran.packet), (PASS, &part));
    }
}

/// An SCTP packet with one chunk.
fn sctp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), chunk: u8) -> Vec<u8> {
    with_sctp(udp((from.0, 0), (to.0, 0), &[0; 8]), (from.1, to.1), chunk)
}

fn with_sctp(mut frame: Vec<u8>, (from, to): (u16, u16), chunk: u8) -> Vec<u8> {
    frame[23] = PROTO_SCTP;
    frame[34..36].copy_from_slice(&from.to_be_bytes());
    frame[36..38].copy_from_slice(&to.to_be_bytes());
    // Verification tag, and a checksum, which is not checked on the way.
    frame[38..46].copy_from_slice(&[0, 0, 0, 1, 0xde, 0xad, 0xbe, 0xef]);
    frame[46..50].copy_from_slice(&[chunk, 0, 0, 4]);
    fix_header(&mut frame);
    frame
}

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const DATA: u8 = 0;

#[test]
fn sctp_goes_through_a_vip_with_its_ports_and_checksum_as_they_are() {
    let mut rig = rig(NEAR);
    let asked = sctp((ME, 40_000), (VIP, 3868), INIT);
    let ran = rig.run("from_container", &asked);
    went(&ran, Reason::DeliveredLocal);
    assert_eq!(addresses(&ran.packet), (ME, NEAR));
    assert_eq!(ran.packet[34..], asked[34..]);

    speak_as(&mut rig, NEAR);
    let answered = sctp((NEAR, 3868), (ME, 40_000), INIT_ACK);
    let ran = rig.run("from_container", &answered);
    assert_eq!(addresses(&ran.packet), (VIP, ME));
    assert_eq!(ran.packet[34..], answered[34..]);
}

#[test]
fn sctp_to_a_published_port_is_left_to_tc_by_xdp_and_keeps_its_port() {
    let mut rig = rig(FAR);
    let asked = udp_from_client((CLIENT, 0), (NODE, 0), &[0; 8]);
    let asked = with_sctp(asked, (40_000, 3868), INIT);
    let ran = rig.run("xdp_underlay", &asked);
    assert_eq!((ran.verdict, &ran.packet), (XDP_PASS, &asked));
    let ran = rig.run("from_underlay", &asked);
    went(&ran, Reason::Encapsulated);
    let inner = untunnel(&ran.packet).2;
    assert_eq!(addresses(&inner), (CLIENT, FAR));
    assert_eq!(inner[34..], asked[34..]);

    let answered = sctp((FAR, 3868), (CLIENT, 40_000), DATA);
    assert_eq!(rig.run("xdp_underlay", &vxlan(VNI, &answered)).verdict, XDP_PASS);
    let ran = rig.run("from_underlay", &vxlan(VNI, &answered));
    went(&ran, Reason::SentToClient);
    assert_eq!(addresses(&ran.packet), (NODE, CLIENT));
    assert_eq!(ran.packet[34..], answered[34..]);
}

#[test]
fn sctp_to_a_service_without_a_backend_hears_that_nobody_speaks_it() {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.service(SERVICE, VNI, VIP, &[]);
    let ran = rig.run("from_container", &sctp((ME, 40_000), (VIP, 3868), INIT));
    went(&ran, Reason::NoBackendAnswered);
    assert_eq!(addresses(&ran.packet), (VIP, ME));
    assert_eq!(ran.packet[34..36], [3, 2], "destination unreachable, protocol");
}

/// An ICMP error from `from` about a packet, to its sender.
fn error(from: Ipv4Addr, (kind, code): (u8, u8), about: &[u8]) -> Vec<u8> {
    let (sender, _) = addresses(about);
    let mut frame = udp((from, 0), (sender, 0), &about[14..]);
    frame[23] = 1;
    frame[34..42].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0x05, 0x14]);
    let sum = ones_complement(&frame[34..]);
    frame[36..38].copy_from_slice(&sum.to_ne_bytes());
    fix_header(&mut frame);
    frame
}

const PORT: (u8, u8) = (3, 3);
const TOO_BIG: (u8, u8) = (3, 4);

/// The sender of an error, its receiver, and the datagram that it quotes. Verifies every checksum.
fn heard(frame: &[u8]) -> ((Ipv4Addr, Ipv4Addr), Seen) {
    assert_eq!(ones_complement(&frame[34..]), 0, "ICMP checksum");
    let quoted = [&[0; 12][..], &[8, 0], &frame[42..]].concat();
    (addresses(frame), see(&quoted))
}

#[test]
fn a_client_hears_of_a_backend_that_does_not_listen_from_the_vip() {
    for backend in [NEAR, FAR] {
        let mut rig = rig(backend);
        let asked = rig.run("from_container", &udp((ME, 40_000), (VIP, 9), b"hello"));
        let ran = if backend == NEAR {
            speak_as(&mut rig, NEAR);
            rig.run("from_container", &error(NEAR, PORT, &asked.packet))
        } else {
            let asked = untunnel(&asked.packet).2;
            rig.run("from_underlay", &vxlan(VNI, &error(FAR, PORT, &asked)))
        };
        assert_eq!(ran.verdict, REDIRECT, "{ran:?}");
        let (addresses, quoted) = heard(&ran.packet);
        assert_eq!(addresses, (VIP, ME));
        assert_eq!((quoted.from, quoted.to), ((ME, 40_000), (VIP, 9)));
    }
}

#[test]
fn xdp_leaves_a_backends_errors_to_tc() {
    let mut rig = rig(FAR);
    let asked = rig.run("from_container", &udp((ME, 40_000), (VIP, 9), b"hello"));
    let packet = vxlan(VNI, &error(FAR, PORT, &untunnel(&asked.packet).2));
    assert_eq!(rig.run("xdp_underlay", &packet).verdict, XDP_PASS);
}

#[test]
fn a_client_outside_hears_of_a_backend_elsewhere_from_the_node_that_it_asked() {
    let mut rig = rig(FAR);
    let asked =
        rig.run("from_underlay", &udp_from_client((CLIENT, 40_000), (NODE, 8080), b"hello"));
    let asked = untunnel(&asked.packet).2;
    let ran = rig.run("from_underlay", &vxlan(VNI, &error(FAR, PORT, &asked)));
    went(&ran, Reason::SentToClient);
    let (addresses, quoted) = heard(&ran.packet);
    assert_eq!(addresses, (NODE, CLIENT));
    assert_eq!((quoted.from, quoted.to), ((CLIENT, 40_000), (NODE, 8080)));
    assert_eq!(ran.packet[..6], CLIENT_MAC);
}

#[test]
fn the_backends_node_sends_errors_back_through_the_node_that_was_asked() {
    let mut rig = rig(NEAR);
    let asked = udp((CLIENT, 40_000), (NEAR, 80), b"hello");
    went(&rig.run("from_underlay", &vxlan(VNI, &asked)), Reason::Decapsulated);
    speak_as(&mut rig, NEAR);
    let ran = rig.run("from_container", &error(NEAR, PORT, &asked));
    went(&ran, Reason::Encapsulated);
    let (vni, node, inner) = untunnel(&ran.packet);
    assert_eq!((vni, node), (VNI, PEER));
    assert_eq!(heard(&inner).0, (NEAR, CLIENT));
}

#[test]
fn a_backend_hears_what_routers_say_of_its_answers_to_clients_outside() {
    for backend in [NEAR, FAR] {
        let mut rig = rig(backend);
        rig.run("from_underlay", &udp_from_client((CLIENT, 40_000), (NODE, 8080), b"hello"));
        let answer = udp((NODE, 8080), (CLIENT, 40_000), b"a long answer");
        let ran = rig.run("from_underlay", &error(ROUTER, TOO_BIG, &answer));
        assert_eq!(ran.verdict, REDIRECT, "{ran:?}");
        let packet = if backend == NEAR { ran.packet } else { untunnel(&ran.packet).2 };
        let (addresses, quoted) = heard(&packet);
        assert_eq!(addresses, (ROUTER, backend));
        assert_eq!((quoted.from, quoted.to), ((backend, 80), (CLIENT, 40_000)));
        assert_eq!(packet[40..42], [0x05, 0x14], "the MTU");
    }
}

#[test]
fn the_backends_node_takes_errors_of_known_flows_from_the_node_that_was_asked_only() {
    let mut rig = rig(NEAR);
    let asked = udp((CLIENT, 40_000), (NEAR, 80), b"hello");
    let answer = udp((NEAR, 80), (CLIENT, 40_000), b"a long answer");
    let packet = vxlan(VNI, &error(ROUTER, TOO_BIG, &answer));
    let unrelated = |ran: Ran| {
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::UnrelatedError][..]));
    };
    unrelated(rig.run("from_underlay", &packet));
    rig.run("from_underlay", &vxlan(VNI, &asked));
    let ran = rig.run("from_underlay", &packet);
    went(&ran, Reason::Decapsulated);
    assert_eq!(ran.packet[14..], error(ROUTER, TOO_BIG, &answer)[14..]);
    let other = Ipv4Addr::new(172, 16, 1, 12);
    rig.node(other, &[VNI]);
    let inner = error(ROUTER, TOO_BIG, &answer);
    unrelated(rig.run("from_underlay", &vxlan_from(other, VNI, &inner)));
}

#[test]
fn a_backend_hears_what_a_client_in_a_container_says_of_its_answers() {
    for backend in [NEAR, FAR] {
        let mut rig = rig(backend);
        rig.run("from_container", &udp((ME, 40_000), (VIP, 9), b"hello"));
        let answer = udp((VIP, 9), (ME, 40_000), b"too late");
        let ran = rig.run("from_container", &error(ME, PORT, &answer));
        assert_eq!(ran.verdict, REDIRECT, "{ran:?}");
        let packet = if backend == NEAR { ran.packet } else { untunnel(&ran.packet).2 };
        let (addresses, quoted) = heard(&packet);
        assert_eq!(addresses, (ME, backend));
        assert_eq!((quoted.from, quoted.to), ((backend, 9), (ME, 40_000)));
    }
}

#[test]
fn an_error_about_no_flow_is_told_to_nobody() {
    let mut rig = rig(NEAR);
    let answer = udp((VIP, 9), (ME, 40_000), b"nobody sent this");
    let ran = rig.run("from_container", &error(ME, PORT, &answer));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::UnrelatedError][..]));
    assert!(rig.conntrack().is_empty());
    // The host's own errors are its own.
    let own = error(ROUTER, TOO_BIG, &udp((NODE, 8080), (CLIENT, 40_000), b"of the host"));
    let ran = rig.run("from_underlay", &own);
    assert_eq!((ran.verdict, &ran.packet), (PASS, &own));
}

#[test]
fn a_container_tells_the_outside_what_is_wrong_with_its_answers() {
    let mut rig = rig(NEAR);
    rig.way_out();
    let asked = rig.run("from_container", &udp((ME, 40_000), (CLIENT, 53), b"hello"));
    went(&asked, Reason::Masqueraded);
    let answer = udp((CLIENT, 53), (ME, 40_000), b"too late");
    let ran = rig.run("from_container", &error(ME, PORT, &answer));
    went(&ran, Reason::Masqueraded);
    let (addresses, quoted) = heard(&ran.packet);
    assert_eq!(addresses, (NODE, CLIENT));
    assert_eq!((quoted.from, quoted.to), ((CLIENT, 53), see(&asked.packet).from));
}

#[test]
fn a_datagram_in_fragments_finds_its_way_out_and_back() {
    let mut rig = rig(NEAR);
    rig.way_out();
    let [first, later] = in_two(&udp((ME, 40_000), (CLIENT, 53), QUESTION), 9).map(|part| {
        let ran = rig.run("from_container", &part);
        went(&ran, Reason::Masqueraded);
        ran.packet
    });
    let seen = joined(&first, &later);
    assert_eq!((seen.from.0, seen.to), (NODE, (CLIENT, 53)));
    let parts = in_two(&udp_from_client((CLIENT, 53), seen.from, QUESTION), 10);
    let [first, later] = parts.map(|part| {
        let ran = rig.run("from_underlay", &part);
        went(&ran, Reason::ReturnedFromOutside);
        ran.packet
    });
    assert_eq!(joined(&first, &later).to, (ME, 40_000));
}
