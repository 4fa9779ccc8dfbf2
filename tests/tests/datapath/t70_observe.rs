//! The programs' observation of packets: counters of each endpoint and network, and events while a
//! watch runs.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Be16, Reason,
    event::{
        DROP_SNAP, EVENT_CAPTURE, EVENT_DROP, EVENT_FLOW, EVENT_RING, Event, FlowStart, SNAP_MAX,
        WATCH_ALL, WATCH_CAPTURE, WATCH_DROPS, WATCH_FLOWS, Watch,
    },
    maps::Counter,
    observe::{DropKey, Traffic},
};
use overlay_tests::rig::{
    DROP, IFINDEX, NODE, OTHER_VNI, Ran, Record, Rig, VNI, counter_of, ip6, link_local,
    packets::*,
    packets6::{Way, ping6, raw6, tcp6, udp6},
};

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

/// Counter index, direction and reason of each endpoint's forwarded packet, and its length.
fn forwarded(ran: &Ran) -> Vec<(u32, Traffic, Reason, u64)> {
    let all = ran.told.forwarded.iter();
    all.map(|((index, traffic, reason), counter)| {
        assert_eq!(counter.packets, 1);
        (*index, *traffic, *reason, counter.bytes)
    })
    .collect()
}

/// The one drop that was counted, which is for a single packet.
fn dropped(ran: &Ran) -> (u32, u32, Traffic, Reason) {
    assert_eq!(ran.told.dropped.len(), 1, "{:?}", ran.told);
    assert!(ran.told.forwarded.is_empty(), "{:?}", ran.told);
    let (key, counter) = ran.told.dropped.first_key_value().expect("one");
    assert_eq!(counter.packets, 1);
    let DropKey { vni, counter, reason, traffic } = *key;
    let reason = Reason::from_index(reason.into()).expect("a reason");
    (vni, counter.into(), Traffic::from_index(traffic).expect("a direction"), reason)
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
            (counter_of(ME), Traffic::Sent, Reason::DeliveredLocal, length),
            (counter_of(NEIGHBOUR), Traffic::Received, Reason::DeliveredLocal, length),
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
    let sent = (counter_of(ME), Traffic::Sent, Reason::Encapsulated, length + 50);
    assert_eq!(forwarded(&ran), [sent], "as long as it leaves");
    let ran = rig.run("from_underlay", &vxlan(VNI, &ping(FAR, ME)));
    assert_eq!(
        forwarded(&ran),
        [(counter_of(ME), Traffic::Received, Reason::Decapsulated, length)]
    );
}

#[test]
fn what_the_node_answers_is_counted_as_sent() {
    let mut rig = rig();
    let ran = rig.run("from_container", &arp_request(ME, GATEWAY));
    assert_eq!(forwarded(&ran), [(counter_of(ME), Traffic::Sent, Reason::ArpAnswered, 42)]);
    let ran = rig.run("from_container", &ping(ME, GATEWAY));
    assert_eq!(forwarded(&ran)[0].2, Reason::EchoAnswered);
}

#[test]
fn a_flow_to_a_backend_here_is_counted_for_the_backend() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(11, NEIGHBOUR, true)]);
    rig.publish(17, 8080, 7, 80);
    let ran = rig.run("from_container", &udp((ME, 40_000), (VIP, 80), b"question"));
    let received = |ran: &Ran| forwarded(ran).last().map(|(counter, t, r, _)| (*counter, *t, *r));
    let backend = Some((counter_of(NEIGHBOUR), Traffic::Received, Reason::DeliveredLocal));
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
    assert_eq!(dropped(&ran), (VNI, counter_of(ME), Traffic::Sent, Reason::SpoofedSource));
    assert_eq!(ran.told.dropped.values().next().expect("one").bytes, spoofed.len() as u64);
    let ran = rig.run("from_container", &ping(ME, NOBODY));
    assert_eq!(dropped(&ran), (VNI, counter_of(ME), Traffic::Sent, Reason::NoEndpoint));
    rig.set(|state| state.links.clear());
    let ran = rig.run("from_container", &ping(ME, NEIGHBOUR));
    assert_eq!(dropped(&ran), (0, 0, Traffic::Sent, Reason::UnknownLink));
}

#[test]
fn a_drop_from_the_tunnel_is_counted_for_whom_it_was_as_far_as_it_is_known() {
    let mut rig = rig();
    let forged = vxlan(VNI, &ping(NOBODY, ME));
    let ran = rig.run("from_underlay", &forged);
    assert_eq!(dropped(&ran), (VNI, counter_of(ME), Traffic::Received, Reason::SpoofedInnerSource));
    let ran = rig.run("from_underlay", &vxlan(VNI, &ping(FAR, NOBODY)));
    assert_eq!(dropped(&ran), (VNI, 0, Traffic::Received, Reason::NoEndpoint));
    // A network that is not on this node is known from the packet only, so it does not count.
    let ran = rig.run("from_underlay", &vxlan(OTHER_VNI, &ping(FAR, ME)));
    assert_eq!(dropped(&ran), (0, 0, Traffic::Received, Reason::UnknownVni));
    let stranger = vxlan_from(Ipv4Addr::new(172, 16, 1, 99), VNI, &ping(FAR, ME));
    for program in ["from_underlay", "xdp_underlay"] {
        let ran = rig.run(program, &stranger);
        assert_eq!(dropped(&ran), (0, 0, Traffic::Received, Reason::NotPeer), "{program}");
    }
}

#[test]
fn an_endpoint_without_a_slot_is_counted_by_its_network_only() {
    let mut rig = rig();
    rig.set(|state| state.links.get_mut(&IFINDEX).expect("a link").counter = 0);
    let ran = rig.run("from_container", &ping(ME, FAR));
    assert!(ran.told.forwarded.is_empty(), "{:?}", ran.told);
    assert_eq!(ran.moved[&Reason::Encapsulated].packets, 1);
    let ran = rig.run("from_container", &ping(ME, NOBODY));
    assert_eq!(dropped(&ran), (VNI, 0, Traffic::Sent, Reason::NoEndpoint));
    assert_eq!(ran.moved[&Reason::NoEndpoint], Counter { packets: 1, bytes: 52 });
}

/// Watches all events in `flags`, for as long as a test may take.
fn watch(flags: u32) -> Watch {
    Watch { until: u64::MAX, flags, snap: SNAP_MAX as u32, ..Watch::default() }
}

/// Kind, direction and reason of a record.
fn said(record: &Record) -> (u8, Traffic, Reason) {
    let traffic = Traffic::from_index(record.event.traffic).expect("a direction");
    let reason = Reason::from_index(record.event.reason.into()).expect("a reason");
    (record.event.kind, traffic, reason)
}

/// A UDP datagram with a payload of `length` bytes.
fn long(length: usize) -> Vec<u8> {
    udp((ME, 40_000), (NEIGHBOUR, 53), &vec![7; length])
}

#[test]
fn nothing_is_told_while_nobody_watches_or_after_the_watch_is_over() {
    let mut rig = rig();
    for watched in [
        Watch::default(),
        Watch { until: 1, ..watch(WATCH_DROPS | WATCH_FLOWS | WATCH_CAPTURE | WATCH_ALL) },
    ] {
        rig.watch(watched, &[]);
        rig.run("from_container", &ping(ME, NOBODY));
        rig.run("from_container", &ping(ME, NEIGHBOUR));
        rig.run("xdp_underlay", &vxlan_from(Ipv4Addr::new(172, 16, 1, 99), VNI, &ping(FAR, ME)));
        assert_eq!(rig.events(), []);
    }
    assert_eq!(rig.lost_events(), [0; 3]);
}

#[test]
fn a_drop_is_told_with_its_headers_and_whose_it_was() {
    let mut rig = rig();
    rig.watch(watch(WATCH_DROPS), &[]);
    let packet = udp((ME, 40_000), (NOBODY, 53), &[7; 400]);
    rig.run("from_container", &packet);
    let [told] = &rig.events()[..] else { panic!("one event") };
    let expected = Event {
        kind: EVENT_DROP,
        traffic: Traffic::Sent as u8,
        reason: Reason::NoEndpoint as u8,
        ifindex: IFINDEX,
        vni: VNI,
        counter: counter_of(ME),
        length: packet.len() as u32,
        captured: DROP_SNAP as u32,
        ..Event::default()
    };
    assert_eq!((told.event, &told.payload[..]), (expected, &packet[..DROP_SNAP]));
    let stranger = vxlan_from(Ipv4Addr::new(172, 16, 1, 99), VNI, &ping(FAR, ME));
    for program in ["from_underlay", "xdp_underlay"] {
        rig.run(program, &stranger);
        let [told] = &rig.events()[..] else { panic!("one event of {program}") };
        assert_eq!(said(told), (EVENT_DROP, Traffic::Received, Reason::NotPeer), "{program}");
        assert_eq!((told.event.counter, &told.payload), (0, &stranger), "{program}");
    }
    rig.run("from_container", &ping(ME, NEIGHBOUR));
    assert_eq!(rig.events(), [], "what goes on is no drop");
}

#[test]
fn a_new_flow_is_told_once_with_its_translation() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(11, NEIGHBOUR, true)]);
    rig.watch(watch(WATCH_FLOWS), &[]);
    let packet = udp((ME, 40_000), (VIP, 80), b"question");
    rig.run("from_container", &packet);
    let [told] = &rig.events()[..] else { panic!("one event") };
    assert_eq!((told.event.kind, told.event.vni), (EVENT_FLOW, VNI));
    assert_eq!(told.event.reason, Reason::FlowCreated as u8);
    // SAFETY: there are as many bytes as the type has, and any bytes are a valid value.
    let flow = unsafe { told.payload.as_ptr().cast::<FlowStart>().read_unaligned() };
    assert_eq!(told.payload.len(), size_of::<FlowStart>());
    assert_eq!((flow.key.saddr, flow.key.daddr), (ME.into(), VIP.into()));
    assert_eq!((flow.entry.daddr, flow.entry.service), (NEIGHBOUR.into(), 7));
    rig.run("from_container", &packet);
    assert_eq!(rig.events(), [], "the same flow again");
}

#[test]
fn a_captured_packet_is_what_was_sent_and_what_is_delivered() {
    let mut rig = rig();
    rig.service(7, VNI, VIP, &[(11, NEIGHBOUR, true)]);
    rig.watch(watch(WATCH_CAPTURE | WATCH_ALL), &[]);
    let packet = udp((ME, 40_000), (VIP, 80), b"question");
    let ran = rig.run("from_container", &packet);
    let [sent, received] = &rig.events()[..] else { panic!("two ends") };
    let reason = Reason::DeliveredLocal;
    assert_eq!(said(sent), (EVENT_CAPTURE, Traffic::Sent, reason));
    assert_eq!(said(received), (EVENT_CAPTURE, Traffic::Received, reason));
    assert_eq!(
        (sent.event.counter, received.event.counter),
        (counter_of(ME), counter_of(NEIGHBOUR))
    );
    assert_eq!(sent.payload, packet, "before it was translated");
    assert_eq!(received.payload, ran.packet, "after it was translated");
    assert_ne!(sent.payload, received.payload);

    let packet = ping(ME, FAR);
    rig.run("from_container", &packet);
    let [sent] = &rig.events()[..] else { panic!("the other end is elsewhere") };
    assert_eq!((said(sent).2, &sent.payload), (Reason::Encapsulated, &packet), "without tunnel");
    let reply = ping(FAR, ME);
    rig.run("from_underlay", &vxlan(VNI, &reply));
    let [received] = &rig.events()[..] else { panic!("one end") };
    assert_eq!((said(received).2, &received.payload), (Reason::Decapsulated, &reply));
}

#[test]
fn a_captured_packet_that_is_dropped_says_why_and_an_answer_is_captured_too() {
    let mut rig = rig();
    rig.watch(watch(WATCH_CAPTURE | WATCH_ALL), &[]);
    let packet = ping(ME, NOBODY);
    rig.run("from_container", &packet);
    let [sent] = &rig.events()[..] else { panic!("one end") };
    assert_eq!(said(sent), (EVENT_CAPTURE, Traffic::Sent, Reason::NoEndpoint));
    let ran = rig.run("from_container", &ping(ME, GATEWAY));
    let [asked, answered] = &rig.events()[..] else { panic!("question and answer") };
    assert_eq!((said(asked).1, said(answered).1), (Traffic::Sent, Traffic::Received));
    assert_eq!((answered.event.counter, &answered.payload), (counter_of(ME), &ran.packet));
}

#[test]
fn only_chosen_endpoints_are_captured() {
    let mut rig = rig();
    rig.watch(watch(WATCH_CAPTURE), &[counter_of(NEIGHBOUR)]);
    rig.run("from_container", &ping(ME, NEIGHBOUR));
    let told = rig.events();
    assert_eq!(told.iter().map(said).map(|(_, t, _)| t).collect::<Vec<_>>(), [Traffic::Received]);
    rig.run("from_container", &ping(ME, FAR));
    assert_eq!(rig.events(), []);
}

#[test]
fn a_packet_is_captured_up_to_the_snap_length() {
    let mut rig = rig();
    for snap in [1, 60, 64, 100, 1_000, SNAP_MAX as u32] {
        // A filter reads further than a short snap length.
        for protocol in [0, 17] {
            let watched = Watch { snap, protocol, ..watch(WATCH_CAPTURE) };
            rig.watch(watched, &[counter_of(ME)]);
            let packet = long(400);
            rig.run("from_container", &packet);
            let [sent] = &rig.events()[..] else { panic!("one end at {snap}") };
            let kept = packet.len().min(snap as usize);
            assert_eq!(sent.payload, packet[..kept], "{snap}, protocol {protocol}");
            assert_eq!(sent.event.length as usize, packet.len());
        }
    }
}

#[test]
fn a_filter_lets_through_what_it_says() {
    let mut rig = rig();
    let syn = tcp((ME, 40_000), (NEIGHBOUR, 80), Tcp::Syn);
    let question = udp((ME, 40_001), (FAR, 53), b"question");
    let echo = ping(ME, NEIGHBOUR);
    let arp = arp_request(ME, NEIGHBOUR);
    let mapped = |ip: Ipv4Addr| ip.to_ipv6_mapped().octets();
    let any = watch(WATCH_CAPTURE);
    let filters: [(Watch, &[&[u8]]); 9] = [
        (any, &[&syn, &question, &echo, &arp]),
        (Watch { protocol: 6, ..any }, &[&syn]),
        (Watch { protocol: 1, ..any }, &[&echo]),
        (Watch { port: Be16::new(53), ..any }, &[&question]),
        (Watch { port: Be16::new(40_000), ..any }, &[&syn]),
        (Watch { port: Be16::new(40_000), protocol: 17, ..any }, &[]),
        (Watch { host: mapped(NEIGHBOUR), ..any }, &[&syn, &echo]),
        (Watch { host: mapped(ME), protocol: 17, ..any }, &[&question]),
        (Watch { host: mapped(NOBODY), ..any }, &[]),
    ];
    for (filter, expected) in filters {
        rig.watch(filter, &[counter_of(ME)]);
        for packet in [&syn, &question, &echo, &arp] {
            rig.run("from_container", packet);
        }
        let sent: Vec<_> = rig.events().into_iter().filter(|r| r.event.traffic == 0).collect();
        let sent: Vec<&[u8]> = sent.iter().map(|record| &record.payload[..]).collect();
        assert_eq!(sent, expected, "{filter:?}");
    }
}

#[test]
fn a_filter_lets_ipv6_through_as_it_says() {
    let mut rig = rig();
    rig.dual_stack(VNI, 1);
    let both = |ip: Ipv4Addr| (ip, ip6(1, ip.octets()[3]));
    let to = |ip| Way { from: both(ME), to: both(ip) };
    let syn = tcp6(to(NEIGHBOUR), (40_000, 80));
    let question = udp6(to(FAR), (40_001, 53), b"question");
    let echo = ping6(to(NEIGHBOUR));
    let local = ping6(to(NEIGHBOUR).with(link_local(ME), link_local(NEIGHBOUR)));
    // UDP behind destination options, which the filter does not skip.
    let hidden =
        raw6(to(NEIGHBOUR), 60, 64, &[17, 0, 1, 4, 0, 0, 0, 0, 0x9c, 0x41, 0, 53, 0, 8, 0, 0]);
    let plain = ping(ME, NEIGHBOUR);
    let sent = [&syn, &question, &echo, &local, &hidden, &plain];
    let any = watch(WATCH_CAPTURE);
    let host = |ip: Ipv6Addr| Watch { host: ip.octets(), ..any };
    let port = |port| Watch { port: Be16::new(port), ..any };
    let filters: [(Watch, &[&[u8]]); 12] = [
        (any, &[&syn, &question, &echo, &local, &hidden, &plain]),
        (Watch { protocol: 6, ..any }, &[&syn]),
        (Watch { protocol: 17, ..any }, &[&question]),
        (Watch { protocol: 58, ..any }, &[&echo, &local]),
        (port(53), &[&question]),
        (port(40_000), &[&syn]),
        (Watch { protocol: 17, ..port(40_000) }, &[]),
        (host(both(NEIGHBOUR).1), &[&syn, &echo, &hidden]),
        (host(link_local(ME)), &[&local]),
        (Watch { protocol: 17, ..host(both(ME).1) }, &[&question]),
        // One word of four is another.
        (host(ip6(2, NEIGHBOUR.octets()[3])), &[]),
        (Watch { host: NEIGHBOUR.to_ipv6_mapped().octets(), ..any }, &[&plain]),
    ];
    for (filter, expected) in filters {
        rig.watch(filter, &[counter_of(ME)]);
        for packet in sent {
            rig.run("from_container", packet);
        }
        let told: Vec<_> = rig.events().into_iter().filter(|r| r.event.traffic == 0).collect();
        let told: Vec<&[u8]> = told.iter().map(|record| &record.payload[..]).collect();
        assert_eq!(told, expected, "{filter:?}");
    }
}

#[test]
fn a_sample_is_some_of_the_packets() {
    let mut rig = rig();
    rig.watch(Watch { sample: 4, ..watch(WATCH_CAPTURE) }, &[counter_of(ME)]);
    let packet = ping(ME, FAR);
    for _ in 0..400 {
        rig.run("from_container", &packet);
    }
    let told = rig.events().len();
    // One in four, with a probability of missing these bounds below one in a billion.
    assert!((40..170).contains(&told), "{told} of 400");
}

#[test]
fn what_does_not_fit_the_ring_is_counted_and_the_packet_goes_its_way() {
    let mut rig = rig();
    rig.watch(watch(WATCH_DROPS | WATCH_CAPTURE), &[counter_of(ME)]);
    let packet = long(3_000);
    let fits = EVENT_RING / packet.len();
    for _ in 0..fits + 10 {
        let ran = rig.run("from_container", &packet);
        assert_eq!(ran.counted, [Reason::DeliveredLocal]);
        assert_eq!(ran.packet, packet);
    }
    let ran = rig.run("from_container", &udp((ME, 1), (NOBODY, 1), &[7; 3_000]));
    assert_eq!(ran.verdict, DROP);
    let [_, _, captures] = rig.lost_events();
    assert!((10..40).contains(&captures), "{captures} lost");
    let told = rig.events();
    let captured = told.iter().filter(|record| record.event.kind == EVENT_CAPTURE).count() as u64;
    assert_eq!(captured + captures, fits as u64 + 11, "told or counted");
    rig.run("from_container", &packet);
    assert_eq!(rig.events().len(), 1, "there is room again");
}
