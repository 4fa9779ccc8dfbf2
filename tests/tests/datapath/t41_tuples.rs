//! Flows of one client port through several nodes, at the backend's node: flows that keep their
//! tuple, flows that are remapped to another port, and when ports are free again.

use std::{collections::BTreeSet, net::Ipv4Addr};

use overlay_common::{
    Reason,
    maps::{Conntrack, ConntrackKey, TCP_SEEN_RST},
};
use overlay_tests::{
    of_both_families,
    rig::{CLIENT, DROP, Family, NODE, PEER, REDIRECT, Ran, Rig, VNI, packets::*},
};

use super::t40_published::{NEAR, OTHER, rig};

of_both_families! {
    a_flow_whose_port_was_changed_keeps_the_other_one_when_its_tuple_is_free_meanwhile,
    one_clients_flows_through_two_nodes_are_told_apart_at_the_backend,
    at_the_backends_node_too_a_connection_that_one_side_has_ended_goes_on,
    at_the_backends_node_too_a_reset_that_the_ends_do_not_believe_ends_nothing,
    ports_that_were_given_are_free_again_when_their_flows_are_over,
    a_port_is_free_again_soon_after_a_side_resets_the_connection,
    a_port_in_time_wait_is_better_than_none,
    a_connection_on_a_port_that_it_had_before_may_be_idle_as_others,
    the_middle_of_an_unknown_flow_does_not_take_anothers_tuple,
    a_flow_that_comes_directly_avoids_a_tuple_that_came_through_another_node,
    a_flow_that_comes_directly_waits_for_the_end_of_time_wait_too,
}

fn with_other_node(family: Family, backend: Ipv4Addr) -> Rig {
    let mut rig = rig(family, backend);
    rig.node(OTHER, &[]);
    rig
}

fn one_clients_flows_through_two_nodes_are_told_apart_at_the_backend(family: Family) {
    for ended in [false, true] {
        let mut rig = with_other_node(family, NEAR);
        let syn = family.tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Syn);
        let first = rig.run("from_underlay", &vxlan(VNI, &syn));
        assert_eq!(family.see(&first.packet).from, family.at((CLIENT, 40_000)));
        if ended {
            // The backend's TIME-WAIT still has the tuple.
            let fin = family.tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Fin);
            rig.run("from_underlay", &vxlan(VNI, &fin));
        }
        let second = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &syn));
        assert_eq!((second.verdict, &second.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
        let seen = family.see(&second.packet);
        assert_eq!((seen.from.0, seen.to), (family.ip(CLIENT), family.at((NEAR, 80))));
        let translated = seen.from.1;
        assert!(translated >= 49_152, "source port {translated}");

        // The second flow keeps its port, and the first its own.
        let data = family.tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Data);
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &data));
        assert_eq!(family.see(&ran.packet).from, family.at((CLIENT, translated)));
        let ran = rig.run("from_underlay", &vxlan(VNI, &data));
        assert_eq!(family.see(&ran.packet).from, family.at((CLIENT, 40_000)));

        // Replies take the path of each flow back, with the client's own port.
        for (port, node) in [(40_000, PEER), (translated, OTHER)] {
            let ran = rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, port), Tcp::Data));
            assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
            let (_, to, inner) = untunnel_any(&ran.packet);
            let seen = family.see(&inner);
            assert_eq!((to, seen.to), (node, family.at((CLIENT, 40_000))));
        }
    }
}

fn a_flow_whose_port_was_changed_keeps_the_other_one_when_its_tuple_is_free_meanwhile(
    family: Family,
) {
    let mut rig = with_other_node(family, NEAR);
    let sent = |flags| family.tcp((CLIENT, 40_000), (NEAR, 80), flags);
    let port = |ran: &Ran| family.see(&ran.packet).from.1;
    // A flow through a node has ended. 20 s later the client's next flow, through another node, is
    // remapped.
    for flags in [Tcp::Syn, Tcp::Fin] {
        rig.run("from_underlay", &vxlan(VNI, &sent(flags)));
    }
    rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, 40_000), Tcp::Fin));
    rig.age_conntrack(20);
    let changed = port(&rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(Tcp::Syn))));
    assert!(changed >= 49_152, "source port {changed}");
    rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, changed), Tcp::SynAck));
    rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(Tcp::Data)));
    // The first one's TIME-WAIT, 60 s, is over by now, but the backend knows the second by its own
    // port.
    rig.age_conntrack(45);
    for flags in [Tcp::Data, Tcp::Fin, Tcp::Data] {
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(flags)));
        assert_eq!((port(&ran), &ran.counted[..]), (changed, &[Reason::Decapsulated][..]));
    }
    let ran = rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, changed), Tcp::Data));
    let (_, to, inner) = untunnel_any(&ran.packet);
    assert_eq!((to, family.see(&inner).to), (OTHER, family.at((CLIENT, 40_000))));
    // A new connection is another flow and gets the tuple.
    for flags in [Tcp::Syn, Tcp::Data] {
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(flags)));
        assert_eq!(port(&ran), 40_000);
    }
}

fn at_the_backends_node_too_a_connection_that_one_side_has_ended_goes_on(family: Family) {
    for client_ends in [true, false] {
        let mut rig = with_other_node(family, NEAR);
        let sent = |flags| family.tcp((CLIENT, 40_000), (NEAR, 80), flags);
        // Of two flows of one client port, the second one is remapped towards the backend.
        let mut flows = Vec::new();
        for node in [PEER, OTHER] {
            let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(Tcp::Syn)));
            flows.push((node, family.see(&ran.packet).from.1));
        }
        assert!(flows[0].1 == 40_000 && flows[1].1 >= 49_152, "{flows:?}");
        let ask = |rig: &mut Rig, flags| {
            for (node, port) in &flows {
                let ran = rig.run("from_underlay", &vxlan_from(*node, VNI, &sent(flags)));
                assert_eq!(ran.counted, [Reason::Decapsulated], "through {node}");
                assert_eq!(family.see(&ran.packet).from, family.at((CLIENT, *port)));
            }
        };
        let answer = |rig: &mut Rig, flags| {
            for (node, port) in &flows {
                let ran =
                    rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, *port), flags));
                assert_eq!(ran.counted, [Reason::Encapsulated], "through {node}");
                let (_, to, inner) = untunnel_any(&ran.packet);
                assert_eq!((to, family.see(&inner).to), (*node, family.at((CLIENT, 40_000))));
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
        let ran = rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, 40_000), Tcp::Data));
        assert_eq!(ran.counted, [Reason::NoWayOut], "it is over");
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(Tcp::Data)));
        assert_eq!(ran.counted, [Reason::TupleTaken], "so is the other one");
    }
}

fn at_the_backends_node_too_a_reset_that_the_ends_do_not_believe_ends_nothing(family: Family) {
    for goes_on in [true, false] {
        let mut rig = with_other_node(family, NEAR);
        let sent = |flags| family.tcp((CLIENT, 40_000), (NEAR, 80), flags);
        // Of two flows of one client port, the second one is remapped towards the backend.
        let flows = [PEER, OTHER].map(|node| {
            let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(Tcp::Syn)));
            (node, family.see(&ran.packet).from.1)
        });
        assert!(flows[0].1 == 40_000 && flows[1].1 >= 49_152, "{flows:?}");
        let answer = |rig: &mut Rig, port, flags| {
            rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, port), flags)).counted
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
        // The backend sends first after the silence.
        let expected = if goes_on { Reason::Encapsulated } else { Reason::NoWayOut };
        for (node, port) in flows {
            assert_eq!(answer(&mut rig, port, Tcp::Data), [expected], "through {node}");
        }
    }
}

fn ports_that_were_given_are_free_again_when_their_flows_are_over(family: Family) {
    let mut rig = with_other_node(family, NEAR);
    let sent = |flags| family.tcp((CLIENT, 40_000), (NEAR, 80), flags);
    rig.run("from_underlay", &vxlan(VNI, &sent(Tcp::Syn)));
    // Flows go through more nodes in turn than there are ports to choose from, all before the first
    // one's end.
    let mut ports = BTreeSet::new();
    for number in 20..40 {
        let node = Ipv4Addr::new(172, 16, 1, number);
        rig.node(node, &[]);
        for flags in [Tcp::Syn, Tcp::Fin] {
            let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(flags)));
            let seen = (&ran.counted[..], ran.verdict);
            assert_eq!(seen, (&[Reason::Decapsulated][..], REDIRECT), "through {node}");
            let port = family.see(&ran.packet).from.1;
            ports.insert(port);
            rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, port), Tcp::Fin));
        }
        rig.age_conntrack(16);
        rig.run("from_underlay", &vxlan(VNI, &sent(Tcp::Data)));
    }
    // No flow gets a port that was in TIME-WAIT, which lasts 60 s, as long as there are others.
    assert_eq!(ports.len(), 4, "{ports:?}");
}

fn a_port_is_free_again_soon_after_a_side_resets_the_connection(family: Family) {
    port_is_free_again_after_reset(family, true);
    port_is_free_again_after_reset(family, false);
}

fn port_is_free_again_after_reset(family: Family, client_resets: bool) {
    let mut rig = with_other_node(family, NEAR);
    let sent = |flags| family.tcp((CLIENT, 40_000), (NEAR, 80), flags);
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
                port = family.see(&ran.packet).from.1;
                rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, port), Tcp::SynAck));
            }
        }
        if !client_resets {
            rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, port), Tcp::Rst));
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

fn a_port_in_time_wait_is_better_than_none(family: Family) {
    let mut rig = with_other_node(family, NEAR);
    let sent = |flags| family.tcp((CLIENT, 40_000), (NEAR, 80), flags);
    let through = |rig: &mut Rig, number| {
        let node = Ipv4Addr::new(172, 16, 1, number);
        rig.node(node, &[]);
        let ran = rig.run("from_underlay", &vxlan_from(node, VNI, &sent(Tcp::Syn)));
        // Without a free port, it remains a tunnel packet.
        let is_given = ran.counted == [Reason::Decapsulated];
        let port = if is_given { family.see(&ran.packet).from.1 } else { 0 };
        rig.run("from_underlay", &vxlan_from(node, VNI, &sent(Tcp::Fin)));
        rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, port), Tcp::Fin));
        (ran.counted, port)
    };
    let decapsulated = vec![Reason::Decapsulated];
    let given: Vec<_> = (20..29).map(|number| through(&mut rig, number)).collect();
    assert!(given.iter().all(|(counted, _)| *counted == decapsulated), "{given:?}");
    assert_eq!(through(&mut rig, 30).0, [Reason::TupleTaken]);
    // The same client through the same node gets its old port again.
    let again: Vec<_> = (20..29).map(|number| through(&mut rig, number)).collect();
    assert_eq!(again, given);
    rig.age_conntrack(31);
    let other = through(&mut rig, 30);
    assert_eq!(other, given[5], "the first one of which that is not asked");
}

fn a_connection_on_a_port_that_it_had_before_may_be_idle_as_others(family: Family) {
    let mut rig = with_other_node(family, NEAR);
    let sent = |flags| family.tcp((CLIENT, 40_000), (NEAR, 80), flags);
    let answer = |port, flags| family.tcp((NEAR, 80), (CLIENT, port), flags);
    rig.run("from_underlay", &vxlan(VNI, &sent(Tcp::Syn)));
    let through_other = |rig: &mut Rig, flags| {
        let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &sent(flags)));
        family.see(&ran.packet).from.1
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
    assert_eq!((to, family.see(&inner).to), (OTHER, family.at((CLIENT, 40_000))));
}

fn the_middle_of_an_unknown_flow_does_not_take_anothers_tuple(family: Family) {
    let mut rig = with_other_node(family, NEAR);
    let syn = family.tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Syn);
    rig.run("from_underlay", &vxlan(VNI, &syn));
    let data = family.tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Data);
    let ran = rig.run("from_underlay", &vxlan_from(OTHER, VNI, &data));
    assert_eq!((ran.verdict, &ran.counted[..]), (DROP, &[Reason::TupleTaken][..]));
}

fn a_flow_that_comes_directly_avoids_a_tuple_that_came_through_another_node(family: Family) {
    let mut rig = rig(family, NEAR);
    let syn = family.tcp((CLIENT, 40_000), (NEAR, 80), Tcp::Syn);
    rig.run("from_underlay", &vxlan(VNI, &syn));
    let ran =
        rig.run("from_underlay", &family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn));
    let translated = family.see(&ran.packet).from.1;
    assert!(translated >= 49_152, "source port {translated}");
    let ran = rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, translated), Tcp::SynAck));
    assert_eq!(ran.counted, [Reason::SentToClient]);
    assert_eq!(family.see(&ran.packet).to, family.at((CLIENT, 40_000)));
}

fn a_flow_that_comes_directly_waits_for_the_end_of_time_wait_too(family: Family) {
    for (age, is_own) in [(31, false), (50, false), (63, true)] {
        let mut rig = rig(family, NEAR);
        for flags in [Tcp::Syn, Tcp::Fin] {
            rig.run("from_underlay", &vxlan(VNI, &family.tcp((CLIENT, 40_000), (NEAR, 80), flags)));
        }
        rig.run("from_container", &family.tcp((NEAR, 80), (CLIENT, 40_000), Tcp::Fin));
        rig.age_conntrack(age);
        let syn = family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn);
        let port = family.see(&rig.run("from_underlay", &syn).packet).from.1;
        assert_eq!(port == 40_000, is_own, "{age} s later: port {port}");
    }
}
