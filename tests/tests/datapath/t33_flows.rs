//! Lifetimes of flows: timeouts of services, floods of half-open flows, resets that are not
//! believed, stale backends, and packets that no TCP sends.

use std::net::Ipv4Addr;

use overlay_common::{
    Be16, Reason,
    maps::{
        BACKEND_DOWN, BackendStats, BackendStatsKey, Conntrack, ENDPOINT_FLAG_BACKEND,
        ENDPOINT_FLAG_PUBLISHED, SERVICE_RESETS, SlotKey, TCP_SEEN_RST,
    },
    wire::PROTO_TCP,
};
use overlay_tests::rig::{CLIENT, DROP, NODE, REDIRECT, Rig, VNI, XDP_DROP, XDP_PASS, packets::*};

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;

/// A client, and a service with a backend elsewhere that also answers port 8080 of the node.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, ME, 0, true);
    rig.local(VNI, NEAR, SERVES, false);
    rig.remote(VNI, FAR, SERVES);
    rig.service(SERVICE, VNI, VIP, &[(1, FAR, false)]);
    rig.publish(PROTO_TCP, 8080, SERVICE, 80);
    rig
}

fn ask(rig: &mut Rig, flags: Tcp) -> Vec<Reason> {
    rig.run("from_container", &tcp((ME, 40_000), (VIP, 80), flags)).counted
}

fn answer(rig: &mut Rig, flags: Tcp) {
    let ran = rig.run("from_underlay", &vxlan(VNI, &tcp((FAR, 80), (ME, 40_000), flags)));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
}

/// A connection that is in use.
fn connect(rig: &mut Rig) {
    ask(rig, Tcp::Syn);
    answer(rig, Tcp::SynAck);
    assert_eq!(ask(rig, Tcp::Data), [Reason::Encapsulated]);
}

const KNOWN: [Reason; 1] = [Reason::Encapsulated];
const NEW: [Reason; 2] = [Reason::Encapsulated, Reason::FlowCreated];

#[test]
fn an_idle_connection_lives_for_as_long_as_its_service_says() {
    for (own, idle, lives) in [(0, 7_400, true), (0, 7_600, false), (9, 8, true), (9, 11, false)] {
        let mut rig = rig();
        rig.set(|state| state.services.get_mut(&SERVICE).expect("it").tcp_idle = own);
        connect(&mut rig);
        rig.age_conntrack(idle);
        let expected: &[Reason] = if lives { &KNOWN } else { &NEW };
        assert_eq!(ask(&mut rig, Tcp::Data), expected, "{own} {idle}");
    }
}

#[test]
fn a_connection_that_one_side_has_ended_goes_on_and_one_that_both_have_is_soon_over() {
    for client_ends in [true, false] {
        let mut rig = rig();
        connect(&mut rig);
        let [ended, open]: [fn(&mut Rig, Tcp); 2] = if client_ends {
            [|rig, flags| assert_eq!(ask(rig, flags), KNOWN), answer]
        } else {
            [answer, |rig, flags| assert_eq!(ask(rig, flags), KNOWN)]
        };
        ended(&mut rig, Tcp::Fin);
        // The side that has not closed computes, and then answers.
        for _ in 0..2 {
            rig.age_conntrack(100);
            open(&mut rig, Tcp::Data);
            ended(&mut rig, Tcp::Data);
        }
        open(&mut rig, Tcp::Fin);
        ended(&mut rig, Tcp::Data);
        rig.age_conntrack(31);
        assert_eq!(ask(&mut rig, Tcp::Data), NEW, "it is over: {client_ends}");
    }
}

#[test]
fn an_idle_udp_flow_lives_longer_once_it_was_answered_or_as_long_as_its_service_says() {
    for (own, answered, idle, lives) in [
        (0, false, 59, true),
        (0, false, 62, false),
        (0, true, 299, true),
        (0, true, 302, false),
        (9, true, 8, true),
        (9, true, 11, false),
        (600, false, 599, true),
    ] {
        let mut rig = rig();
        rig.set(|state| state.services.get_mut(&SERVICE).expect("it").udp_idle = own);
        let asked = udp((ME, 40_000), (VIP, 80), b"question");
        rig.run("from_container", &asked);
        if answered {
            let answer = udp((FAR, 80), (ME, 40_000), b"answer");
            rig.run("from_underlay", &vxlan(VNI, &answer));
            rig.run("from_container", &asked);
        }
        rig.age_conntrack(idle);
        let expected: &[Reason] = if lives { &KNOWN } else { &NEW };
        let counted = rig.run("from_container", &asked).counted;
        assert_eq!(counted, expected, "{own} {answered} {idle}");
    }
}

#[test]
fn a_flood_of_syns_evicts_no_connection_that_is_in_use() {
    let mut rig = rig();
    connect(&mut rig);
    let in_use = rig.flows("conntrack");
    assert_eq!(in_use.len(), 2, "{in_use:?}");
    // Far more than both tables hold.
    for number in 0..20_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let client = (Ipv4Addr::new(198, 18, high, low), 40_000);
        rig.run("from_underlay", &tcp_from_client(client, (NODE, 8080), Tcp::Syn));
    }
    assert!(!rig.flows("ct_new").is_empty());
    assert_eq!(rig.flows("conntrack").len(), 2);
    assert_eq!(ask(&mut rig, Tcp::Data), KNOWN);
    answer(&mut rig, Tcp::Data);
}

#[test]
fn a_flood_through_another_node_evicts_no_way_back_that_is_in_use() {
    let mut rig = rig();
    rig.local(VNI, ME, 0, false);
    rig.local(VNI, NEAR, SERVES, true);
    let asked = |flags| vxlan(VNI, &tcp((CLIENT, 40_000), (NEAR, 80), flags));
    rig.run("from_underlay", &asked(Tcp::Syn));
    let answered = tcp((NEAR, 80), (CLIENT, 40_000), Tcp::SynAck);
    assert_eq!(rig.run("from_container", &answered).counted, KNOWN);
    rig.run("from_underlay", &asked(Tcp::Data));
    assert_eq!(rig.flows("conntrack").len(), 1);
    for number in 0..20_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let syn = tcp((Ipv4Addr::new(198, 18, high, low), 40_000), (NEAR, 80), Tcp::Syn);
        rig.run("from_underlay", &vxlan(VNI, &syn));
    }
    assert_eq!(rig.flows("conntrack").len(), 1);
    let data = tcp((NEAR, 80), (CLIENT, 40_000), Tcp::Data);
    assert_eq!(rig.run("from_container", &data).counted, KNOWN);
}

#[test]
fn a_new_connection_on_the_tuple_of_an_old_one_is_its_own() {
    let mut rig = rig();
    connect(&mut rig);
    ask(&mut rig, Tcp::Fin);
    answer(&mut rig, Tcp::Fin);
    assert_eq!(ask(&mut rig, Tcp::Syn), NEW);
    assert_eq!((rig.flows("conntrack").len(), rig.flows("ct_new").len()), (0, 2));
    answer(&mut rig, Tcp::SynAck);
    assert_eq!(ask(&mut rig, Tcp::Data), KNOWN);
    assert_eq!((rig.flows("conntrack").len(), rig.flows("ct_new").len()), (2, 0));
    rig.age_conntrack(100);
    assert_eq!(ask(&mut rig, Tcp::Data), KNOWN, "it has not ended");
}

#[test]
fn a_reset_that_the_ends_do_not_believe_ends_nothing() {
    let mut rig = rig();
    connect(&mut rig);
    ask(&mut rig, Tcp::Rst);
    assert_eq!(ask(&mut rig, Tcp::Data), KNOWN);
    rig.age_conntrack(100);
    assert_eq!(ask(&mut rig, Tcp::Data), KNOWN);
    // If the ends accept a reset, the flow ends.
    ask(&mut rig, Tcp::Rst);
    rig.age_conntrack(100);
    assert_eq!(ask(&mut rig, Tcp::Syn), NEW);
}

#[test]
fn a_reset_of_the_backend_ends_both_directions_and_one_of_a_client_its_own() {
    let reset = |(_, entry): &&(_, Conntrack)| entry.flags & TCP_SEEN_RST != 0;
    for (client_resets, ended) in [(true, 1), (false, 2)] {
        let mut rig = rig();
        connect(&mut rig);
        if client_resets {
            assert_eq!(ask(&mut rig, Tcp::Rst), KNOWN);
        } else {
            answer(&mut rig, Tcp::Rst);
        }
        let flows = rig.flows("conntrack");
        assert_eq!((flows.len(), flows.iter().filter(reset).count()), (2, ended), "{flows:?}");
        rig.age_conntrack(31);
        if client_resets {
            // Any host may have sent the reset: the backend's packets still arrive, however long
            // both ends were silent.
            answer(&mut rig, Tcp::Data);
        }
        assert_eq!(ask(&mut rig, Tcp::Data), NEW, "it is over: {client_resets}");
    }
}

#[test]
fn a_connection_whose_backend_has_gone_is_reset_or_left_as_its_service_says() {
    for (flags, counted) in
        [(SERVICE_RESETS, Reason::BackendGoneAnswered), (0, Reason::BackendGone)]
    {
        let mut rig = rig();
        rig.set(|state| state.services.get_mut(&SERVICE).expect("it").flags = flags);
        connect(&mut rig);
        let outside = |flags| tcp_from_client((CLIENT, 40_000), (NODE, 8080), flags);
        rig.run("from_underlay", &outside(Tcp::Syn));
        rig.set(|state| {
            state.backends.clear();
        });
        let data = tcp((ME, 40_000), (VIP, 80), Tcp::Data);
        assert_eq!(rig.run("xdp_underlay", &outside(Tcp::Data)).verdict, XDP_PASS);
        for (program, packet) in [("from_container", &data), ("from_underlay", &outside(Tcp::Data))]
        {
            let ran = rig.run(program, packet);
            assert_eq!(ran.counted, [counted], "{program}");
            if flags == 0 {
                assert_eq!(ran.verdict, DROP);
                continue;
            }
            assert_eq!(ran.verdict, REDIRECT);
            let (asked, seen) = (see(packet), see(&ran.packet));
            assert_eq!((seen.from, seen.to), (asked.to, asked.from));
            assert_eq!(ran.packet[47], 0x04, "RST");
            assert_eq!(ran.packet[38..42], packet[42..46], "with the number that is waited for");
        }
        // A client gets no second reset for its own reset.
        assert_eq!(ask(&mut rig, Tcp::Rst), [Reason::BackendGone]);
    }
}

#[test]
fn what_opens_and_ends_a_connection_at_once_is_no_tcp() {
    let mut rig = rig();
    for bad in [0x03, 0x06, 0xff] {
        let mut inside = tcp((ME, 40_000), (VIP, 80), Tcp::Syn);
        let mut outside = tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn);
        inside[47] = bad;
        outside[47] = bad;
        for (program, packet, drop) in [
            ("from_container", &inside, DROP),
            ("from_underlay", &outside, DROP),
            ("xdp_underlay", &outside, XDP_DROP),
        ] {
            let ran = rig.run(program, packet);
            let dropped = (drop, &[Reason::Malformed][..]);
            assert_eq!((ran.verdict, &ran.counted[..]), dropped, "{program} {bad:#x}");
        }
    }
    assert!(rig.conntrack().is_empty());
}

#[test]
fn a_backend_on_a_node_that_is_down_keeps_only_what_cannot_do_without_it() {
    let mut rig = rig();
    rig.service(SERVICE, VNI, VIP, &[(1, FAR, false), (2, NEAR, true)]);
    // One connection and one UDP flow to each.
    let asked: Vec<_> = (40_000..40_004)
        .map(|port| {
            let syn = tcp((ME, port), (VIP, 80), Tcp::Syn);
            let datagram = udp((ME, port), (VIP, 53), b"question");
            [syn, datagram].map(|packet| {
                let far = rig.run("from_container", &packet).counted[0] == Reason::Encapsulated;
                (packet, far)
            })
        })
        .collect();
    rig.set(|state| state.backends.get_mut(&1).expect("it").state = BACKEND_DOWN);
    let slot = SlotKey { service: SERVICE, index: 0 };
    rig.set(|state| {
        state.slots.insert(slot, 2);
    });
    for (port, [syn, datagram]) in (40_000..).zip(asked) {
        let established = tcp((ME, port), (VIP, 80), Tcp::Data);
        let went = if syn.1 { Reason::Encapsulated } else { Reason::DeliveredLocal };
        assert_eq!(rig.run("from_container", &established).counted, [went]);
        for (packet, was_far) in [datagram, syn] {
            let counted = rig.run("from_container", &packet).counted;
            let expected: &[Reason] = if was_far {
                &[Reason::DeliveredLocal, Reason::FlowRepicked]
            } else {
                &[Reason::DeliveredLocal]
            };
            assert_eq!(counted, expected);
        }
    }
}

#[test]
fn a_client_speaks_to_a_backend_through_the_vip_and_directly_from_one_port() {
    type Make = fn((Ipv4Addr, u16), (Ipv4Addr, u16), bool) -> Vec<u8>;
    let kinds: [Make; 2] = [
        |from, to, first| tcp(from, to, if first { Tcp::Syn } else { Tcp::Data }),
        |from, to, _| udp(from, to, b"datagram"),
    ];
    for make in kinds {
        let mut rig = rig();
        rig.run("from_container", &make((ME, 40_000), (VIP, 80), true));
        let mut ports = Vec::new();
        for first in [true, false] {
            let ran = rig.run("from_container", &make((ME, 40_000), (FAR, 80), first));
            assert_eq!(ran.counted, KNOWN);
            let seen = see(&untunnel(&ran.packet).2);
            assert_eq!((seen.from.0, seen.to), (ME, (FAR, 80)));
            ports.push(seen.from.1);
        }
        assert!(ports[0] != 40_000 && ports[1] == ports[0], "{ports:?}");
        for (port, asked) in [(40_000, VIP), (ports[0], FAR)] {
            let reply = make((FAR, 80), (ME, port), false);
            let ran = rig.run("from_underlay", &vxlan(VNI, &reply));
            let seen = see(&ran.packet);
            assert_eq!((seen.from, seen.to), ((asked, 80), (ME, 40_000)), "{port}");
        }
        // Without a flow through the VIP there is no collision.
        let direct = make((ME, 50_000), (FAR, 80), true);
        let ran = rig.run("from_container", &direct);
        assert_eq!(untunnel(&ran.packet).2[14..], direct[14..]);
        // The service's statistics count it.
        let served: Vec<_> = rig.backend_stats().into_iter().collect();
        let [(key, counted)] = &served[..] else { panic!("{served:?}") };
        assert_eq!((key.service, key.backend, key.port.get()), (SERVICE, 1, 0));
        let BackendStats { flows, in_packets, out_packets, .. } = *counted;
        assert_eq!((flows, in_packets, out_packets), (1, 1, 1));
    }
}

#[test]
fn what_is_served_is_counted_by_the_way_that_was_asked() {
    let mut rig = rig();
    connect(&mut rig);
    let outside = |flags| tcp_from_client((CLIENT, 40_000), (NODE, 8080), flags);
    let reply = vxlan(VNI, &tcp((FAR, 80), (CLIENT, 40_000), Tcp::SynAck));
    for program in ["xdp_underlay", "from_underlay"] {
        rig.run(program, &outside(Tcp::Syn));
        assert_eq!(rig.run(program, &reply).packet[26..30], NODE.octets(), "{program}");
    }
    let length = |packet: &[u8]| packet.len() as u64;
    let (syn, data) =
        (tcp((ME, 40_000), (VIP, 80), Tcp::Syn), tcp((ME, 40_000), (VIP, 80), Tcp::Data));
    let by_vip = BackendStats {
        flows: 1,
        in_packets: 2,
        in_bytes: length(&syn) + length(&data),
        out_packets: 1,
        out_bytes: length(&syn),
    };
    let by_port = BackendStats {
        flows: 1,
        in_packets: 2,
        in_bytes: 2 * length(&syn),
        out_packets: 2,
        out_bytes: 2 * length(&syn),
    };
    let key = |port| BackendStatsKey {
        service: SERVICE,
        backend: 1,
        port: Be16::new(port),
        proto: PROTO_TCP,
        ipv6: 0,
    };
    let expected = [(key(0), by_vip), (key(8080), by_port)];
    assert_eq!(rig.backend_stats(), expected.into_iter().collect());
}
