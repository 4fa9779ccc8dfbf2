//! Published ports: clients outside and sockets of the host, through TC and through XDP.

use std::{collections::BTreeSet, net::Ipv4Addr};

use overlay_common::{
    INGRESS_VNI, Reason,
    maps::{
        Conntrack, ConntrackKey, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST,
        ENDPOINT_FLAG_PUBLISHED, NETWORK_INTERNAL, TCP_SEEN_RST,
    },
    wire::{PROTO_TCP, PROTO_UDP},
};
use overlay_tests::rig::{
    CLIENT, CLIENT_MAC, DROP, NODE, OTHER_VNI, PEER, REDIRECT, Ran, Rig, VNI, XDP_DROP, XDP_PASS,
    XDP_REDIRECT, mac, packets::*,
};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const NO_VIP: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;

/// Port 8080 of the node, in front of port 80 of one backend.
fn rig(backend: Ipv4Addr) -> Rig {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, NEAR, SERVES, true);
    rig.remote(VNI, FAR, SERVES);
    rig.service(SERVICE, VNI, NO_VIP, &[(1, backend, backend == NEAR)]);
    rig.publish(PROTO_TCP, 8080, SERVICE, 80);
    rig.publish(PROTO_UDP, 8080, SERVICE, 80);
    rig
}

#[test]
fn a_backend_here_sees_the_client_and_the_client_sees_the_node() {
    let mut rig = rig(NEAR);
    let ran = rig.run("from_underlay", &tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(ran.counted, [Reason::DeliveredLocal, Reason::FlowCreated]);
    let seen = see(&ran.packet);
    assert_eq!((seen.from, seen.to), ((CLIENT, 40_000), (NEAR, 80)));
    assert_eq!(seen.macs, (mac(Ipv4Addr::new(10, 0, 1, 1)).bytes(), mac(NEAR).bytes()));

    let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, 40_000), Tcp::SynAck));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentToClient][..]));
    let seen = see(&ran.packet);
    assert_eq!((seen.from, seen.to), ((NODE, 8080), (CLIENT, 40_000)));
    assert_eq!(seen.macs.1, CLIENT_MAC);
}

#[test]
fn a_backend_elsewhere_sees_the_client_and_answers_through_this_node() {
    let mut rig = rig(FAR);
    let ran = rig.run("from_underlay", &udp_from_client((CLIENT, 40_000), (NODE, 8080), b"odd"));
    assert_eq!(ran.counted, [Reason::Encapsulated, Reason::FlowCreated]);
    let (vni, node, inner) = untunnel(&ran.packet);
    assert_eq!((vni, node), (VNI, PEER));
    let seen = see(&inner);
    assert_eq!((seen.from, seen.to, &seen.payload[..]), ((CLIENT, 40_000), (FAR, 80), &b"odd"[..]));

    let ran = rig.run("from_underlay", &vxlan(VNI, &udp((FAR, 80), (CLIENT, 40_000), b"even")));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentToClient][..]));
    let seen = see(&ran.packet);
    assert_eq!((seen.from, seen.to), ((NODE, 8080), (CLIENT, 40_000)));
    assert_eq!(seen.macs.1, CLIENT_MAC);
}

#[test]
fn the_backends_node_sends_replies_back_through_the_node_that_was_asked() {
    let mut rig = rig(NEAR);
    let request = tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Syn);
    let ran = rig.run("from_underlay", &vxlan(VNI, &request));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    assert_eq!(see(&ran.packet).from, (CLIENT, 40_000));

    let reply = tcp((NEAR, 80), (CLIENT, 40_000), Tcp::SynAck);
    let ran = rig.run("from_container", &reply);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    let (vni, node, inner) = untunnel(&ran.packet);
    assert_eq!((vni, node), (VNI, PEER));
    let seen = see(&inner);
    assert_eq!((seen.from, seen.to), ((NEAR, 80), (CLIENT, 40_000)), "not translated here");
}

/// A third node of the cluster.
const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 12);

fn with_other_node(backend: Ipv4Addr) -> Rig {
    let mut rig = rig(backend);
    rig.node(OTHER, &[]);
    rig
}

#[test]
fn one_clients_flows_through_two_nodes_are_told_apart_at_the_backend() {
    for ended in [false, true] {
        let mut rig = with_other_node(NEAR);
        let syn = tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Syn);
        let first = rig.run("from_underlay", &vxlan(VNI, &syn));
        assert_eq!(see(&first.packet).from, (CLIENT, 40_000));
        if ended {
            // The backend's TIME-WAIT still has the tuple.
            let fin = tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Fin);
            rig.run("from_underlay", &vxlan(VNI, &fin));
        }
        let second = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &syn));
        assert_eq!((second.verdict, &second.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
        let seen = see(&second.packet);
        assert_eq!((seen.from.0, seen.to), (CLIENT, (NEAR, 80)));
        let translated = seen.from.1;
        assert!(translated >= 49_152, "source port {translated}");

        // The second flow keeps its port, and the first its own.
        let data = tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Data);
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &data));
        assert_eq!(see(&ran.packet).from, (CLIENT, translated));
        let ran = rig.run("from_underlay", &vxlan(VNI, &data));
        assert_eq!(see(&ran.packet).from, (CLIENT, 40_000));

        // Replies go back the way each flow came, with the client's own port.
        for (port, node) in [(40_000, PEER), (translated, OTHER)] {
            let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, port), Tcp::Data));
            assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
            let (_, to, inner) = untunnel_any(&ran.packet);
            let seen = see(&inner);
            assert_eq!((to, seen.to), (node, (CLIENT, 40_000)));
        }
    }
}

#[test]
fn a_flow_whose_port_was_changed_keeps_the_other_one_when_its_tuple_is_free_meanwhile() {
    let mut rig = with_other_node(NEAR);
    let sent = |flags| tcp((CLIENT, 40_000), (NEAR, 80), flags);
    let port = |ran: &Ran| see(&ran.packet).from.1;
    // One through a node has ended, and 20 s later the client's next one through another node is given a port.
    for flags in [Tcp::Syn, Tcp::Fin] {
        rig.run("from_underlay", &vxlan(VNI, &sent(flags)));
    }
    rig.run("from_container", &tcp((NEAR, 80), (CLIENT, 40_000), Tcp::Fin));
    rig.age_conntrack(20);
    let changed = port(&rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(Tcp::Syn))));
    assert!(changed >= 49_152, "source port {changed}");
    rig.run("from_container", &tcp((NEAR, 80), (CLIENT, changed), Tcp::SynAck));
    rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(Tcp::Data)));
    // The first one's TIME-WAIT, 60 s, is over by now, but the backend knows the second by its own port.
    rig.age_conntrack(45);
    for flags in [Tcp::Data, Tcp::Fin, Tcp::Data] {
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(flags)));
        assert_eq!((port(&ran), &ran.counted[..]), (changed, &[Reason::Decapsulated][..]));
    }
    let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, changed), Tcp::Data));
    let (_, to, inner) = untunnel_any(&ran.packet);
    assert_eq!((to, see(&inner).to), (OTHER, (CLIENT, 40_000)));
    // A new connection is another flow and has the tuple.
    for flags in [Tcp::Syn, Tcp::Data] {
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(flags)));
        assert_eq!(port(&ran), 40_000);
    }
}

#[test]
fn at_the_backends_node_too_a_connection_that_one_side_has_ended_goes_on() {
    for client_ends in [true, false] {
        let mut rig = with_other_node(NEAR);
        let sent = |flags| tcp((CLIENT, 40_000), (NEAR, 80), flags);
        // Of two flows of one client port, the second has another one towards the backend.
        let mut flows = Vec::new();
        for node in [PEER, OTHER] {
            let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(Tcp::Syn)));
            flows.push((node, see(&ran.packet).from.1));
        }
        assert!(flows[0].1 == 40_000 && flows[1].1 >= 49_152, "{flows:?}");
        let ask = |rig: &mut Rig, flags| {
            for (node, port) in &flows {
                let ran = rig.run("from_underlay", &vxlan_from(*node, VNI, &sent(flags)));
                assert_eq!(ran.counted, [Reason::Decapsulated], "through {node}");
                assert_eq!(see(&ran.packet).from, (CLIENT, *port));
            }
        };
        let answer = |rig: &mut Rig, flags| {
            for (node, port) in &flows {
                let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, *port), flags));
                assert_eq!(ran.counted, [Reason::Encapsulated], "through {node}");
                let (_, to, inner) = untunnel_any(&ran.packet);
                assert_eq!((to, see(&inner).to), (*node, (CLIENT, 40_000)));
            }
        };
        let speak = |rig: &mut Rig, client: bool, flags| {
            if client { ask(rig, flags) } else { answer(rig, flags) }
        };
        answer(&mut rig, Tcp::SynAck);
        ask(&mut rig, Tcp::Data);
        speak(&mut rig, client_ends, Tcp::Fin);
        for _ in 0..2 {
            rig.age_conntrack(100);
            speak(&mut rig, !client_ends, Tcp::Data);
            speak(&mut rig, client_ends, Tcp::Data);
        }
        speak(&mut rig, !client_ends, Tcp::Fin);
        rig.age_conntrack(31);
        let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, 40_000), Tcp::Data));
        assert_eq!(ran.counted, [Reason::NoWayOut], "it is over");
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(Tcp::Data)));
        assert_eq!(ran.counted, [Reason::TupleTaken], "so is the other one");
    }
}

#[test]
fn at_the_backends_node_too_a_reset_that_the_ends_do_not_believe_ends_nothing() {
    for goes_on in [true, false] {
        let mut rig = with_other_node(NEAR);
        let sent = |flags| tcp((CLIENT, 40_000), (NEAR, 80), flags);
        // Of two flows of one client port, the second has another one towards the backend.
        let flows = [PEER, OTHER].map(|node| {
            let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(Tcp::Syn)));
            (node, see(&ran.packet).from.1)
        });
        assert!(flows[0].1 == 40_000 && flows[1].1 >= 49_152, "{flows:?}");
        let answer = |rig: &mut Rig, port, flags| {
            rig.run("from_container", &tcp((NEAR, 80), (CLIENT, port), flags)).counted
        };
        for (node, port) in flows {
            assert_eq!(answer(&mut rig, port, Tcp::SynAck), [Reason::Encapsulated]);
            let last = if goes_on { Tcp::Data } else { Tcp::Rst };
            for flags in [Tcp::Data, Tcp::Rst, last] {
                let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(flags)));
                assert_eq!(ran.counted, [Reason::Decapsulated], "through {node}");
            }
        }
        rig.age_conntrack(100);
        // The backend is the one that speaks first after the silence.
        let expected = if goes_on { Reason::Encapsulated } else { Reason::NoWayOut };
        for (node, port) in flows {
            assert_eq!(answer(&mut rig, port, Tcp::Data), [expected], "through {node}");
        }
    }
}

#[test]
fn ports_that_were_given_are_free_again_when_their_flows_are_over() {
    let mut rig = with_other_node(NEAR);
    let sent = |flags| tcp((CLIENT, 40_000), (NEAR, 80), flags);
    rig.run("from_underlay", &vxlan(VNI, &sent(Tcp::Syn)));
    // Through more nodes in turn than there are ports to choose from, all of them before the first one's end.
    let mut ports = BTreeSet::new();
    for number in 20..40 {
        let node = Ipv4Addr::new(172, 16, 1, number);
        rig.node(node, &[]);
        for flags in [Tcp::Syn, Tcp::Fin] {
            let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(flags)));
            let seen = (&ran.counted[..], ran.verdict);
            assert_eq!(seen, (&[Reason::Decapsulated][..], REDIRECT), "through {node}");
            let port = see(&ran.packet).from.1;
            ports.insert(port);
            rig.run("from_container", &tcp((NEAR, 80), (CLIENT, port), Tcp::Fin));
        }
        rig.age_conntrack(16);
        rig.run("from_underlay", &vxlan(VNI, &sent(Tcp::Data)));
    }
    // Nobody has one that had it in TIME-WAIT, 60 s long, as long as there are others.
    assert_eq!(ports.len(), 4, "{ports:?}");
}

#[test]
fn a_port_is_free_again_soon_after_a_side_resets_the_connection() {
    port_is_free_again_after_reset(true);
    port_is_free_again_after_reset(false);
}

fn port_is_free_again_after_reset(client_resets: bool) {
    let mut rig = with_other_node(NEAR);
    let sent = |flags| tcp((CLIENT, 40_000), (NEAR, 80), flags);
    rig.run("from_underlay", &vxlan(VNI, &sent(Tcp::Syn)));
    for number in 20..32 {
        let node = Ipv4Addr::new(172, 16, 1, number);
        rig.node(node, &[]);
        let last = if client_resets { Tcp::Rst } else { Tcp::Data };
        let mut port = 0;
        for flags in [Tcp::Syn, Tcp::Data, last] {
            let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(flags)));
            let seen = (&ran.counted[..], ran.verdict);
            assert_eq!(seen, (&[Reason::Decapsulated][..], REDIRECT), "through {node}");
            if matches!(flags, Tcp::Syn) {
                port = see(&ran.packet).from.1;
                rig.run("from_container", &tcp((NEAR, 80), (CLIENT, port), Tcp::SynAck));
            }
        }
        if !client_resets {
            rig.run("from_container", &tcp((NEAR, 80), (CLIENT, port), Tcp::Rst));
            let through = |(key, entry): &(ConntrackKey, Conntrack)| {
                key.scope != [0; 3] && entry.node.octets()[3] == number
            };
            let flows = rig.flows("conntrack");
            let entry = flows.iter().find(|flow| through(flow)).expect("it").1;
            assert!(entry.flags & TCP_SEEN_RST != 0, "{entry:?}");
        }
        rig.age_conntrack(16);
        rig.run("from_underlay", &vxlan(VNI, &sent(Tcp::Data)));
    }
}

#[test]
fn a_port_in_time_wait_is_better_than_none() {
    let mut rig = with_other_node(NEAR);
    let sent = |flags| tcp((CLIENT, 40_000), (NEAR, 80), flags);
    let through = |rig: &mut Rig, number| {
        let node = Ipv4Addr::new(172, 16, 1, number);
        rig.node(node, &[]);
        let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(Tcp::Syn)));
        let port = see(&ran.packet).from.1;
        rig.run("from_underlay", &vxlan_from(node, VNI, &sent(Tcp::Fin)));
        rig.run("from_container", &tcp((NEAR, 80), (CLIENT, port), Tcp::Fin));
        (ran.counted, port)
    };
    let decapsulated = vec![Reason::Decapsulated];
    let given: Vec<_> = (20..29).map(|number| through(&mut rig, number)).collect();
    assert!(given.iter().all(|(counted, _)| *counted == decapsulated), "{given:?}");
    assert_eq!(through(&mut rig, 30).0, [Reason::TupleTaken]);
    // The same client through the same node goes on where it ended.
    let again: Vec<_> = (20..29).map(|number| through(&mut rig, number)).collect();
    assert_eq!(again, given);
    rig.age_conntrack(31);
    let other = through(&mut rig, 30);
    assert_eq!(other, given[5], "the first one of which that is not asked");
}

#[test]
fn a_connection_on_a_port_that_it_had_before_may_be_idle_as_others() {
    let mut rig = with_other_node(NEAR);
    let sent = |flags| tcp((CLIENT, 40_000), (NEAR, 80), flags);
    let answer = |port, flags| tcp((NEAR, 80), (CLIENT, port), flags);
    rig.run("from_underlay", &vxlan(VNI, &sent(Tcp::Syn)));
    let through_other = |rig: &mut Rig, flags| {
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(flags)));
        see(&ran.packet).from.1
    };
    // One connection, and right after it the next one.
    let port = through_other(&mut rig, Tcp::Syn);
    for (said, back) in [
        (Tcp::Data, Tcp::SynAck),
        (Tcp::Fin, Tcp::Fin),
        (Tcp::Syn, Tcp::SynAck),
        (Tcp::Data, Tcp::Data),
    ] {
        assert_eq!(through_other(&mut rig, said), port);
        rig.run("from_container", &answer(port, back));
    }
    rig.age_conntrack(100);
    let ran = rig.run("from_container", &answer(port, Tcp::Data));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
    let (_, to, inner) = untunnel_any(&ran.packet);
    assert_eq!((to, see(&inner).to), (OTHER, (CLIENT, 40_000)));
}

#[test]
fn the_middle_of_an_unknown_flow_does_not_take_anothers_tuple() {
    let mut rig = with_other_node(NEAR);
    let syn = tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Syn);
    rig.run("from_underlay", &vxlan(VNI, &syn));
    let data = tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Data);
    let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &data));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::TupleTaken][..]));
}

#[test]
fn a_flow_that_comes_directly_avoids_a_tuple_that_came_through_another_node() {
    let mut rig = rig(NEAR);
    let syn = tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Syn);
    rig.run("from_underlay", &vxlan(VNI, &syn));
    let ran = rig.run("from_underlay", &tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
    let translated = see(&ran.packet).from.1;
    assert!(translated >= 49_152, "source port {translated}");
    let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, translated), Tcp::SynAck));
    assert_eq!(ran.counted, [Reason::SentToClient]);
    assert_eq!(see(&ran.packet).to, (CLIENT, 40_000));
}

#[test]
fn a_flow_that_comes_directly_waits_for_the_end_of_time_wait_too() {
    for (age, is_own) in [(31, false), (50, false), (63, true)] {
        let mut rig = rig(NEAR);
        for flags in [Tcp::Syn, Tcp::Fin] {
            rig.run("from_underlay", &vxlan(VNI, &tcp((CLIENT, 40_000), (NEAR, 80), flags)));
        }
        rig.run("from_container", &tcp((NEAR, 80), (CLIENT, 40_000), Tcp::Fin));
        rig.age_conntrack(age);
        let syn = tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn);
        let port = see(&rig.run("from_underlay", &syn).packet).from.1;
        assert_eq!(port == 40_000, is_own, "{age} s later: port {port}");
    }
}

#[test]
fn a_reply_from_the_wrong_node_is_not_passed_to_the_client() {
    let mut rig = rig(FAR);
    rig.run("from_underlay", &tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
    let other = Ipv4Addr::new(172, 16, 1, 12);
    rig.node(other, &[VNI]);
    let reply = tcp((FAR, 80), (CLIENT, 40_000), Tcp::SynAck);
    for (program, drop) in [("from_underlay", DROP), ("xdp_underlay", XDP_DROP)] {
        let ran = rig.run(program, &vxlan_from(other, VNI, &reply));
        assert_eq!((ran.verdict, &ran.counted[..]), (drop, &[Reason::SpoofedInnerSource][..]));
    }
}

#[test]
fn clients_packets_come_from_any_node_of_the_cluster_and_nothing_else_does() {
    // It has no endpoints of the network.
    let mut rig = with_other_node(NEAR);
    let asked = |from| udp((from, 40_000), (NEAR, 53), b"question");
    let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &asked(CLIENT)));
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
    assert_eq!(see(&ran.packet).from, (CLIENT, 40_000));

    let inside = Ipv4Addr::new(10, 0, 1, 66);
    let unpublished = Ipv4Addr::new(10, 0, 1, 5);
    rig.local(VNI, unpublished, 0, false);
    let to_unpublished = udp((CLIENT, 40_000), (unpublished, 53), b"question");
    for (what, frame, reason) in [
        ("from inside", asked(inside), Reason::NotPeer),
        ("to what publishes nothing", to_unpublished, Reason::NotPublished),
        ("ICMP", ping(CLIENT, NEAR), Reason::NotPeer),
        ("to nobody", udp((CLIENT, 40_000), (inside, 53), b"question"), Reason::NotPeer),
    ] {
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &frame));
        assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[reason][..]), "{what}");
    }
    rig.set(|state| state.networks.clear());
    let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &asked(CLIENT)));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::UnknownVni][..]));
}

#[test]
fn replies_reach_clients_through_a_node_without_endpoints_of_the_network() {
    let mut rig = rig(FAR);
    rig.set(|state| {
        state.networks.clear();
        state.peers.retain(|peer, _| peer.vni == 0);
    });
    let reply = vxlan(VNI, &tcp((FAR, 80), (CLIENT, 40_000), Tcp::SynAck));
    for (program, drop, sent) in [
        ("from_underlay", DROP, Reason::SentToClient),
        ("xdp_underlay", XDP_DROP, Reason::XdpSentToClient),
    ] {
        let ran = rig.run(program, &reply);
        let unknown = (drop, &[Reason::UnknownVni][..]);
        assert_eq!((ran.verdict, &ran.counted[..]), unknown, "{program}: nobody has asked");
        rig.run("from_underlay", &tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
        assert_eq!(rig.run(program, &reply).counted, [sent]);
        for (key, _) in rig.conntrack() {
            rig.set_conntrack(key, None);
        }
    }
}

#[test]
fn a_client_outside_cannot_pose_as_a_container() {
    let mut rig = rig(NEAR);
    let inside = Ipv4Addr::new(10, 0, 1, 66);
    let packet = tcp_from_client((inside, 40_000), (NODE, 8080), Tcp::Syn);
    let ran = rig.run("from_underlay", &packet);
    assert_eq!(ran.verdict, DROP);
    assert!(ran.counted.contains(&Reason::SpoofedInnerSource), "{:?}", ran.counted);
}

#[test]
fn only_the_published_port_and_protocol_answer() {
    let mut rig = rig(NEAR);
    rig.set(|state| {
        state.published.retain(|key, _| key.proto == PROTO_TCP);
    });
    for packet in [
        tcp_from_client((CLIENT, 40_000), (NODE, 80), Tcp::Syn),
        udp_from_client((CLIENT, 40_000), (NODE, 8080), b"question"),
        tcp_from_client((CLIENT, 40_000), (PEER, 8080), Tcp::Syn),
    ] {
        let ran = rig.run("from_underlay", &packet);
        assert_eq!((ran.verdict, &ran.counted[..]), (overlay_tests::rig::PASS, &[][..]));
    }
}

#[test]
fn a_container_cannot_answer_who_never_asked() {
    let mut rig = rig(NEAR);
    rig.way_out();
    let ran = rig.run("from_container", &tcp((NEAR, 80), (CLIENT, 40_000), Tcp::SynAck));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoWayOut][..]));
}

#[test]
fn xdp_sends_to_a_remote_backend_what_tc_would() {
    let mut rig = rig(FAR);
    // BPF_PROG_TEST_RUN's interface is not the underlay, so XDP redirects; on the NIC it is XDP_TX.
    for packet in [
        tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn),
        tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Data),
        udp_from_client((CLIENT, 40_001), (NODE, 8080), b"odd"),
    ] {
        let ran = rig.run("xdp_underlay", &packet);
        assert_eq!(ran.verdict, XDP_REDIRECT);
        assert_eq!(ran.counted[0], Reason::XdpEncapsulated);
        let (vni, node, by_xdp) = untunnel(&ran.packet);
        let ran = rig.run("from_underlay", &packet);
        assert_eq!(ran.counted, [Reason::Encapsulated], "one conntrack table for both");
        let by_tc = untunnel(&ran.packet);
        assert_eq!((vni, node, see(&by_xdp).to), (by_tc.0, by_tc.1, see(&by_tc.2).to));
        assert_eq!(by_xdp[14..], by_tc.2[14..]);
    }
}

#[test]
fn xdp_sends_replies_out_to_the_client() {
    let mut rig = rig(FAR);
    rig.run("xdp_underlay", &tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
    rig.run("xdp_underlay", &udp_from_client((CLIENT, 40_000), (NODE, 8080), b"odd"));
    for reply in
        [tcp((FAR, 80), (CLIENT, 40_000), Tcp::SynAck), udp((FAR, 80), (CLIENT, 40_000), b"even")]
    {
        let ran = rig.run("xdp_underlay", &vxlan(VNI, &reply));
        assert_eq!((ran.verdict, &ran.counted[..]), (XDP_REDIRECT, &[Reason::XdpSentToClient][..]));
        let seen = see(&ran.packet);
        assert_eq!((seen.from, seen.to), ((NODE, 8080), (CLIENT, 40_000)));
        assert_eq!(seen.macs.1, CLIENT_MAC);
    }
}

#[test]
fn xdp_leaves_a_backend_here_to_tc_which_finds_the_flow() {
    let mut rig = rig(NEAR);
    let packet = tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn);
    let ran = rig.run("xdp_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[Reason::FlowCreated][..]));
    assert_eq!(ran.packet, packet, "untouched");
    let ran = rig.run("from_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredLocal][..]));
}

#[test]
fn xdp_leaves_what_does_not_fit_the_tunnel_to_tc() {
    let mut rig = rig(FAR);
    let packet = udp_from_client((CLIENT, 40_000), (NODE, 8080), &[0; 1451 - 28]);
    let ran = rig.run("xdp_underlay", &packet);
    assert_eq!((ran.verdict, &ran.counted[..]), (XDP_PASS, &[][..]));
    let ran = rig.run("from_underlay", &packet);
    assert!(ran.counted.contains(&Reason::TooBigAnswered), "{:?}", ran.counted);
}

#[test]
fn the_host_itself_reaches_a_published_port_through_the_gateway() {
    let host = Ipv4Addr::new(10, 255, 0, 2);
    let gateway = Ipv4Addr::new(10, 255, 0, 1);
    for backend in [NEAR, FAR] {
        let mut rig = rig(backend);
        rig.local(VNI, NEAR, SERVES, false);
        rig.network(INGRESS_VNI, 0);
        rig.set(|state| {
            let network = state.networks.get_mut(&INGRESS_VNI).expect("ingress");
            network.subnet = Ipv4Addr::new(10, 255, 0, 0).into();
            network.mask = Ipv4Addr::new(255, 255, 0, 0).into();
            network.gateway = gateway.into();
            let entry = overlay_common::maps::Endpoint {
                kind: overlay_common::maps::ENDPOINT_GATEWAY,
                mac: mac(gateway),
                ..Default::default()
            };
            let key = overlay_common::maps::EndpointKey { vni: INGRESS_VNI, ip: gateway.into() };
            state.endpoints.insert(key, entry);
        });
        rig.local(INGRESS_VNI, host, ENDPOINT_FLAG_HOST, true);
        let ran = rig.run("from_container", &tcp((host, 40_000), (gateway, 8080), Tcp::Syn));
        assert_eq!(ran.verdict, REDIRECT);
        let reply = tcp((backend, 80), (host, 40_000), Tcp::SynAck);
        let ran = if backend == NEAR {
            let seen = see(&ran.packet);
            assert_eq!((seen.from, seen.to), ((host, 40_000), (NEAR, 80)));
            rig.local(INGRESS_VNI, host, ENDPOINT_FLAG_HOST, false);
            rig.local(VNI, NEAR, SERVES, true);
            rig.run("from_container", &reply)
        } else {
            let (vni, _, inner) = untunnel(&ran.packet);
            assert_eq!(vni, VNI);
            let seen = see(&inner);
            assert_eq!((seen.from, seen.to), ((host, 40_000), (FAR, 80)));
            rig.run("from_underlay", &vxlan(VNI, &reply))
        };
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::DeliveredHost][..]));
        let seen = see(&ran.packet);
        assert_eq!((seen.from, seen.to), ((gateway, 8080), (host, 40_000)));
    }
}

#[test]
fn a_container_of_another_network_reaches_a_port_of_its_own_host_as_itself() {
    const C: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 7);
    for backend in [NEAR, FAR] {
        let mut rig = rig(backend);
        rig.network(OTHER_VNI, 2);
        rig.local(VNI, NEAR, SERVES, false);
        rig.local(OTHER_VNI, C, 0, true);
        let ran = rig.run("from_container", &tcp((C, 40_000), (NODE, 8080), Tcp::Syn));
        let (asked, went) = if backend == NEAR {
            (see(&ran.packet), Reason::DeliveredLocal)
        } else {
            (see(&untunnel(&ran.packet).2), Reason::Encapsulated)
        };
        assert_eq!(ran.counted, [went, Reason::FlowCreated]);
        assert_eq!((asked.from, asked.to), ((C, 40_000), (backend, 80)));

        let reply = tcp((backend, 80), (C, 40_000), Tcp::SynAck);
        let ran = if backend == NEAR {
            rig.local(OTHER_VNI, C, 0, false);
            rig.local(VNI, NEAR, SERVES, true);
            rig.run("from_container", &reply)
        } else {
            assert_eq!(rig.run("xdp_underlay", &vxlan(VNI, &reply)).verdict, XDP_PASS);
            rig.run("from_underlay", &vxlan(VNI, &reply))
        };
        assert_eq!(ran.verdict, REDIRECT, "{ran:?}");
        let seen = see(&ran.packet);
        assert_eq!((seen.from, seen.to), ((NODE, 8080), (C, 40_000)));
        assert_eq!(seen.macs.1, mac(C).bytes());
    }
}

#[test]
fn a_container_of_an_internal_network_does_not() {
    let mut rig = rig(NEAR);
    rig.network(OTHER_VNI, 2);
    let inside = Ipv4Addr::new(10, 0, 2, 7);
    rig.local(VNI, NEAR, SERVES, false);
    rig.local(OTHER_VNI, inside, 0, true);
    rig.set(|state| {
        state.networks.get_mut(&OTHER_VNI).expect("it").flags |= NETWORK_INTERNAL;
    });
    let ran = rig.run("from_container", &tcp((inside, 40_000), (NODE, 8080), Tcp::Syn));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::NoWayOut][..]));
    assert!(rig.conntrack().is_empty());
}

#[test]
fn a_network_whose_subnet_overlaps_the_backends_is_not_let_in() {
    let mut rig = rig(NEAR);
    rig.network(OTHER_VNI, 1);
    let overlapping = Ipv4Addr::new(10, 0, 1, 7);
    rig.local(VNI, NEAR, SERVES, false);
    rig.local(OTHER_VNI, overlapping, 0, true);
    let ran = rig.run("from_container", &tcp((overlapping, 40_000), (NODE, 8080), Tcp::Syn));
    assert_eq!(ran.verdict, DROP);
    assert_eq!(ran.counted, [Reason::FlowCreated, Reason::SpoofedInnerSource]);
}
