//! Connections of sockets that are connected to a stale backend: their packets go to its own
//! address.

use std::net::Ipv4Addr;

use overlay_common::{
    Reason,
    maps::{ENDPOINT_FLAG_BACKEND, EndpointKey, STALE_RESETS, StaleBackend},
};
use overlay_tests::rig::{DROP, REDIRECT, Rig, VNI, ip6, link_local, packets::*, packets6::*};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);

/// A client and the address of a former backend, with its entry of stale backends.
fn rig(gone: Option<StaleBackend>) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.dual_stack(VNI, 1);
    rig.set(|state| {
        state
            .stale_backends
            .extend(gone.map(|gone| (EndpointKey { vni: VNI, ip: BACKEND.into() }, gone)));
    });
    rig
}

#[test]
fn who_speaks_to_a_backend_that_has_gone_is_told_with_a_reset_or_not_as_the_service_says() {
    for flags in [Tcp::Data, Tcp::Syn] {
        let packet = tcp((ME, 40_000), (BACKEND, 80), flags);
        let ran = rig(Some(STALE_RESETS)).run("from_container", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::BackendGoneAnswered][..]));
        let (asked, seen) = (see(&packet), see(&ran.packet));
        assert_eq!((seen.from, seen.to), (asked.to, asked.from));
        assert_eq!(ran.packet[47] & 0x04, 0x04, "RST");
        let ran = rig(Some(0)).run("from_container", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::BackendGone][..]));
    }
    let ran =
        rig(Some(STALE_RESETS)).run("from_container", &tcp((ME, 40_000), (BACKEND, 80), Tcp::Rst));
    assert_eq!(ran.counted, [Reason::BackendGone], "a reset is not answered");
}

#[test]
fn an_address_that_no_backend_had_is_nobodys_and_one_that_is_taken_again_is_its_owners() {
    let packet = tcp((ME, 40_000), (BACKEND, 80), Tcp::Data);
    assert_eq!(rig(None).run("from_container", &packet).counted, [Reason::NoEndpoint]);
    let datagram = udp((ME, 40_000), (BACKEND, 80), b"hello");
    let ran = rig(Some(STALE_RESETS)).run("from_container", &datagram);
    assert_eq!(ran.counted, [Reason::NoEndpoint], "sockets of UDP are not balanced");
    let mut rig = rig(Some(STALE_RESETS));
    rig.local(VNI, BACKEND, ENDPOINT_FLAG_BACKEND, false);
    assert_eq!(rig.run("from_container", &packet).counted, [Reason::DeliveredLocal]);
}

/// From the client to the address of the former backend, over IPv6.
fn way6() -> Way {
    Way { from: (ME, ip6(1, 2)), to: (BACKEND, ip6(1, 4)) }
}

#[test]
fn over_ipv6_the_mac_that_was_learned_says_whose_the_address_was() {
    const ACK: u8 = 0x10;
    let packet = segment6(way6(), (40_000, 80), ACK);
    let ran = rig(Some(STALE_RESETS)).run("from_container", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::BackendGoneAnswered][..]));
    let (asked, seen) = (see6(&packet), see6(&ran.packet));
    assert_eq!((seen.from, seen.to, seen.message[13]), (asked.to, asked.from, 0x04));
    let ran = rig(Some(0)).run("from_container", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::BackendGone][..]));
    let reset = segment6(way6(), (40_000, 80), 0x04);
    let ran = rig(Some(STALE_RESETS)).run("from_container", &reset);
    assert_eq!(ran.counted, [Reason::BackendGone], "a reset is not answered");

    let other = Way { to: (Ipv4Addr::new(10, 0, 1, 5), ip6(1, 4)), ..way6() };
    let to_link = way6().with(way6().from.1, link_local(BACKEND));
    let from_link = way6().with(link_local(ME), way6().to.1);
    let outside = way6().with(way6().from.1, ip6(9, 4));
    for (what, packet, reason) in [
        ("another MAC", segment6(other, (40_000, 80), ACK), Reason::NoEndpoint),
        ("UDP", udp6(way6(), (40_000, 80), b"hello"), Reason::NoEndpoint),
        ("to a link-local address", segment6(to_link, (40_000, 80), ACK), Reason::NoEndpoint),
        ("from a link-local address", segment6(from_link, (40_000, 80), ACK), Reason::NoEndpoint),
        ("of another network", segment6(outside, (40_000, 80), ACK), Reason::NoWayOut),
    ] {
        let ran = rig(Some(STALE_RESETS)).run("from_container", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]), "{what}");
    }
    assert_eq!(rig(None).run("from_container", &packet).counted, [Reason::NoEndpoint]);
}
