//! Watching an agent with programs in memory.

use std::time::Duration;

use overlay_common::{
    Be32, Reason,
    event::{
        EVENT_CAPTURE, EVENT_DROP, EVENT_FLOW, Event as Header, FlowStart, WATCH_CAPTURE,
        WATCH_DROPS,
    },
    maps::{Conntrack, ConntrackKey, VNI_FLAG_IPV6},
    observe::Traffic,
    wire::PROTO_TCP,
};
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::{
    agent::{clock::monotonic_ns, events::QUEUE},
    api::{Event, EventKind, EventMessage, EventRequest},
    datapath::MemoryDatapath,
};

fn request(kinds: &[EventKind]) -> EventRequest {
    EventRequest { kinds: kinds.iter().copied().collect(), ..EventRequest::default() }
}

/// A record as a program writes it.
fn record(header: Header, packet: &[u8]) -> Vec<u8> {
    let header = Header {
        time: monotonic_ns(),
        length: packet.len() as u32,
        captured: packet.len() as u32,
        ..header
    };
    let mut bytes = header.time.to_ne_bytes().to_vec();
    bytes.extend([header.kind, header.traffic, header.reason, 0]);
    for word in [header.ifindex, header.vni, header.counter, header.length, header.captured] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(packet);
    bytes
}

fn frame() -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    packet.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend([10, 0, 1, 2, 10, 0, 1, 3, 0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
    packet
}

async fn next(events: &mut Receiver<EventMessage>) -> EventMessage {
    let within = tokio::time::timeout(Duration::from_secs(20), events.recv()).await;
    within.expect("in time").expect("not over")
}

async fn next_event(events: &mut Receiver<EventMessage>) -> Event {
    match next(events).await {
        EventMessage::Event(event) => *event,
        other => panic!("{other:?}"),
    }
}

fn flags(datapath: &MemoryDatapath) -> u32 {
    datapath.watch().0.flags
}

#[tokio::test]
async fn the_programs_tell_only_while_there_is_a_watcher() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    assert_eq!(flags(&test.datapath), 0);
    let mut drops = agent.watch_events(&request(&[EventKind::Drop])).expect("watching");
    assert_eq!(next(&mut drops).await, EventMessage::Watching);
    assert_eq!(flags(&test.datapath), WATCH_DROPS);
    assert!(test.datapath.watch().0.until > monotonic_ns());
    let all = agent.watch_events(&request(&[EventKind::Capture])).expect("watching");
    assert_eq!(flags(&test.datapath) & (WATCH_DROPS | WATCH_CAPTURE), WATCH_DROPS | WATCH_CAPTURE);
    drop(all);
    eventually("one is left", || flags(&test.datapath) == WATCH_DROPS).await;
    drop(drops);
    eventually("no watcher is left", || flags(&test.datapath) == 0).await;
    let mut again = agent.watch_events(&request(&[EventKind::Drop])).expect("watching");
    assert_eq!(next(&mut again).await, EventMessage::Watching);
    agent.end_events();
    assert!(again.recv().await.is_none(), "the daemon ends");
}

#[tokio::test]
async fn each_watcher_gets_what_it_asked_for_with_names() {
    let world = World::new();
    world.network("mynet").await;
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    attach(&agent, test.attach("a", "mynet")).await;
    let named = EventRequest {
        network: Some("mynet".to_owned()),
        endpoint: Some("a".to_owned()),
        reason: Some("no_endpoint".to_owned()),
        port: Some(53),
        ..request(&[EventKind::Drop])
    };
    let mut named = agent.watch_events(&named).expect("watching");
    let mut any = agent.watch_events(&request(&[EventKind::Drop])).expect("watching");
    assert_eq!(next(&mut named).await, EventMessage::Watching);
    assert_eq!(next(&mut any).await, EventMessage::Watching);
    let links = test.datapath.state().links;
    let (ifindex, link) = links.iter().find(|(_, l)| l.flags == 0).expect("the endpoint's");
    let header = Header {
        kind: EVENT_DROP,
        traffic: Traffic::Sent as u8,
        ifindex: *ifindex,
        vni: link.vni,
        counter: link.counter,
        ..Header::default()
    };
    for reason in [Reason::NotPeer, Reason::SpoofedMac, Reason::NoEndpoint] {
        let counter = if reason == Reason::NotPeer { 0 } else { link.counter };
        let header = Header { reason: reason as u8, counter, ..header };
        test.datapath.push_event(record(header, &frame()));
    }
    for reason in ["not_peer", "spoofed_mac", "no_endpoint"] {
        assert_eq!(next_event(&mut any).await.reason, reason);
    }
    let event = next_event(&mut named).await;
    assert_eq!(event.reason, "no_endpoint");
    assert_eq!((event.network.as_deref(), event.endpoint.as_deref()), (Some("mynet"), Some("a")));
    assert_eq!(event.traffic.as_deref(), Some("sent"));
    assert_eq!(event.headers.expect("read").destination_port, Some(53));
    assert_eq!(event.packet.len(), 2 * frame().len());
    let error = agent
        .watch_events(&EventRequest { endpoint: Some("b".to_owned()), ..request(&[]) })
        .expect_err("nobody's name");
    assert!(error.to_string().contains("\"b\""), "{error}");
}

#[tokio::test]
async fn a_watcher_that_does_not_keep_up_loses_with_a_count() {
    let world = World::new();
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let mut slow = agent.watch_events(&request(&[EventKind::Drop])).expect("watching");
    let mut quick = agent.watch_events(&request(&[EventKind::Drop])).expect("watching");
    assert_eq!(next(&mut quick).await, EventMessage::Watching);
    let header = Header { kind: EVENT_DROP, reason: Reason::NotPeer as u8, ..Header::default() };
    let (parts, part) = (6, QUEUE / 2);
    for _ in 0..parts {
        for _ in 0..part {
            test.datapath.push_event(record(header, &frame()));
        }
        // Each event goes to the older watcher first: an event that the quick one has was also sent
        // to the slow one.
        for _ in 0..part {
            next_event(&mut quick).await;
        }
    }
    test.datapath.lose_events(EVENT_DROP, 5);
    test.datapath.lose_events(EVENT_CAPTURE, 100);
    assert_eq!(next(&mut quick).await, EventMessage::Lost(5), "captures are not its own");
    let sent = (parts * part) as u64 + 5;
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < sent {
        match next(&mut slow).await {
            EventMessage::Watching => {}
            EventMessage::Event(_) => seen += 1,
            EventMessage::Lost(count) => lost += count,
        }
    }
    let room = QUEUE as u64 - 1;
    assert_eq!((seen, lost), (room, sent - room), "what found no room is counted");
}

#[tokio::test]
async fn flows_of_ipv6_are_told_and_chosen_by_their_addresses() {
    let world = World::new();
    let test = TestHost::first(&world);
    let (agent, _tasks) = test.start().await;
    let client: std::net::Ipv6Addr = "2001:db8::9".parse().expect("an address");
    test.datapath.set_addr6(Be32::from_octets([240, 0, 0, 9]), client.into());
    let by_host = EventRequest { host: Some(client.into()), ..request(&[EventKind::Flow]) };
    let mut flows = agent.watch_events(&by_host).expect("watching");
    assert_eq!(next(&mut flows).await, EventMessage::Watching);
    for last in [8, 9] {
        let saddr = Be32::from_octets([240, 0, 0, last]);
        let key =
            ConntrackKey { saddr, vni: VNI_FLAG_IPV6, proto: PROTO_TCP, ..Default::default() };
        let entry = Conntrack { saddr, vni: VNI_FLAG_IPV6 | 4097, ..Default::default() };
        let header = Header { kind: EVENT_FLOW, vni: key.vni, ..Header::default() };
        let flow = FlowStart { key, pad: 0, entry };
        // SAFETY: a plain type has no padding: all of its bytes are initialized.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const flow).cast::<u8>(), size_of::<FlowStart>())
        };
        test.datapath.push_event(record(header, bytes));
    }
    let event = next_event(&mut flows).await;
    let flow = event.flow.expect("a flow");
    assert_eq!((event.vni, flow.source.to_string()), (0, "[2001:db8::9]:0".to_owned()));
    assert_eq!(flow.new_source.ip(), client);
}
