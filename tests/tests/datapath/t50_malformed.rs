//! Truncated, mutated and random packets: every one gets a verdict and, if it is dropped, exactly
//! one reason; none is delivered in a state that its headers do not allow.

use std::net::Ipv4Addr;

use overlay_common::{
    Direction, Reason,
    maps::{ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED},
    wire::PROTO_TCP,
};
use overlay_tests::rig::{
    CLIENT, DROP, NODE, PASS, REDIRECT, Ran, Rig, VNI, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX,
    packets::*,
};
use rand::{Rng, RngExt as _, SeedableRng, rngs::SmallRng};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
const PROGRAMS: [&str; 3] = ["from_container", "from_underlay", "xdp_underlay"];
/// Change it by hand to see other packets; a failure prints the packet itself.
const SEED: u64 = 20_261_123;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, SERVES, true);
    rig.local(VNI, NEAR, SERVES, false);
    rig.remote(VNI, FAR, SERVES);
    rig.service(7, VNI, VIP, &[(1, NEAR, true), (2, FAR, false)]);
    rig.publish(PROTO_TCP, 8080, 7, 80);
    rig
}

/// One of every kind of packet that the datapath handles.
fn kinds() -> Vec<Vec<u8>> {
    vec![
        arp_request(ME, NEAR),
        ping(ME, Ipv4Addr::new(10, 0, 1, 1)),
        ping(ME, NEAR),
        tcp((ME, 40_000), (FAR, 80), Tcp::Data),
        tcp((ME, 40_000), (VIP, 80), Tcp::Syn),
        udp((ME, 40_000), (VIP, 80), b"data"),
        vxlan(VNI, &ping(FAR, NEAR)),
        vxlan(VNI, &tcp((FAR, 80), (NEAR, 40_000), Tcp::Data)),
        vxlan(VNI, &udp((CLIENT, 40_000), (NEAR, 80), b"data")),
        vxlan(VNI, &tcp((FAR, 80), (CLIENT, 40_000), Tcp::Data)),
        tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn),
        tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Data),
    ]
}

/// The bookkeeping that must hold for any packet whatsoever.
fn check(program: &str, packet: &[u8], ran: &Ran) {
    let drops: Vec<_> =
        ran.counted.iter().filter(|r| r.direction() == Direction::Drop).copied().collect();
    let (drop, pass, sent): (u32, u32, &[u32]) = if program == "xdp_underlay" {
        (XDP_DROP, XDP_PASS, &[XDP_TX, XDP_REDIRECT])
    } else {
        (DROP, PASS, &[REDIRECT])
    };
    let context = || format!("{program}: {ran:?} for {packet:02x?}");
    if ran.verdict == drop {
        assert_eq!(drops.len(), 1, "a drop has one reason: {}", context());
    } else if ran.verdict == pass {
        assert!(drops.is_empty(), "{}", context());
        assert_eq!(ran.packet, packet, "what passes is untouched: {}", context());
    } else {
        assert!(sent.contains(&ran.verdict), "an unknown verdict: {}", context());
        assert!(drops.is_empty() && !ran.counted.is_empty(), "{}", context());
    }
}

#[test]
fn a_packet_cut_off_anywhere_gets_a_verdict_and_a_reason() {
    let mut rig = rig();
    for packet in kinds() {
        for length in 14..packet.len() {
            let cut = &packet[..length];
            for program in PROGRAMS {
                if is_refused_by_the_kernel(program, cut) {
                    continue;
                }
                let ran = rig.run(program, cut);
                check(program, cut, &ran);
                if ran.verdict == REDIRECT && program != "xdp_underlay" {
                    // Only a whole packet is forwarded: a cut packet is shorter than its length
                    // field says.
                    panic!("{program} sent {length} of {} bytes: {ran:?}", packet.len());
                }
            }
        }
    }
}

/// BPF_PROG_TEST_RUN rejects skbs with a cut IPv4 header (Linux 6.18); XDP programs do get such
/// packets.
fn is_refused_by_the_kernel(program: &str, packet: &[u8]) -> bool {
    program != "xdp_underlay" && packet[12..14] == [0x08, 0x00] && packet.len() < 34
        || program != "xdp_underlay" && packet[12..14] == [0x86, 0xdd] && packet.len() < 54
}

#[test]
fn a_packet_with_any_bytes_changed_gets_a_verdict_and_a_reason() {
    let mut rig = rig();
    let mut rng = SmallRng::seed_from_u64(SEED);
    let kinds = kinds();
    for _ in 0..4_000 {
        let mut packet = kinds[rng.random_range(0..kinds.len())].clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..packet.len());
            packet[at] = rng.random();
        }
        let program = PROGRAMS[rng.random_range(0..PROGRAMS.len())];
        if is_refused_by_the_kernel(program, &packet) {
            continue;
        }
        let ran = rig.run(program, &packet);
        check(program, &packet, &ran);
        never_spoofed(program, &packet, &ran);
    }
}

/// Whatever its bytes, a container's packet is forwarded only with the container's own MAC and
/// address.
fn never_spoofed(program: &str, packet: &[u8], ran: &Ran) {
    if program == "from_container"
        && ran.verdict == REDIRECT
        && ran.counted != [Reason::ArpAnswered]
    {
        assert_eq!(packet[6..12], overlay_tests::rig::mac(ME).bytes(), "{ran:?} for {packet:02x?}");
        assert_eq!(packet[26..30], ME.octets(), "{ran:?} for {packet:02x?}");
    }
}

#[test]
fn random_bytes_get_a_verdict_and_a_reason() {
    let mut rig = rig();
    let mut rng = SmallRng::seed_from_u64(SEED);
    for _ in 0..2_000 {
        let mut packet = vec![0; rng.random_range(14..200)];
        rng.fill_bytes(&mut packet);
        for program in PROGRAMS {
            if !is_refused_by_the_kernel(program, &packet) {
                check(program, &packet, &rig.run(program, &packet));
            }
        }
    }
}
