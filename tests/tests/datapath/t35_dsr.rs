//! DSR: replies of published ports go directly from the backend's node to the client.

use std::net::Ipv4Addr;

use overlay_common::{
    Be16, Be32, Frontend, Reason,
    maps::{
        DSR, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_PUBLISHED, Frontend6Key, SERVICE_DSR,
        SERVICE_RESETS, Subnet6Key, SubnetKey,
    },
    wire::{PROTO_TCP, PROTO_UDP},
};
use overlay_tests::{
    of_both_families,
    rig::{
        CLIENT, CLIENT_MAC, FLOWS, Family, NODE, NODE_MAC, PEER, REDIRECT, Ran, Rig, VNI,
        XDP_REDIRECT, mac,
        packets::{Tcp, untunnel, untunnel_any, vxlan, vxlan_from},
    },
};

of_both_families! {
    the_backends_node_is_told_what_was_asked_by_tc_and_by_xdp_alike,
    nothing_is_told_where_replies_come_back,
    a_client_whose_port_was_changed_gets_its_replies_through_the_node_that_changed_it,
    replies_go_straight_to_the_client_once_the_node_that_was_asked_knows_of_an_answer,
    a_node_is_not_believed_about_what_it_may_not_say,
    where_there_is_no_way_from_here_replies_go_through_the_node_that_was_asked,
    a_tuple_that_is_used_again_is_answered_as_it_was_asked_last,
    a_clients_second_flow_with_the_same_tuple_goes_back_through_its_node,
    flows_that_are_answered_straight_leave_the_table_of_those_that_begin_on_both_nodes,
    a_reply_that_does_not_fit_the_way_to_its_client_is_told_so_here,
    a_client_that_goes_on_keeps_its_tuple_although_no_reply_comes_by,
}

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const NO_VIP: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const SERVICE: u32 = 7;
const SERVES: u8 = ENDPOINT_FLAG_BACKEND | ENDPOINT_FLAG_PUBLISHED;
/// An address of the ingress node that is not its VTEP.
const ASKED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// A third node of the cluster.
const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 12);
/// A client outside that no route leads to.
const FAR_AWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Port 8080 of the nodes, in front of port 80 of one backend, and the packets of a family.
struct Direct {
    rig: Rig,
    family: Family,
}

fn direct(family: Family, backend: Ipv4Addr) -> Direct {
    let mut rig = Rig::new();
    rig.network(VNI, 1);
    rig.local(VNI, NEAR, SERVES, true);
    rig.remote(VNI, FAR, SERVES);
    rig.service(SERVICE, VNI, NO_VIP, &[(1, backend, backend == NEAR)]);
    rig.stack(family, VNI, 1);
    let mut direct = Direct { rig, family };
    direct.flags(SERVICE_DSR | SERVICE_RESETS);
    direct.publish(8080);
    direct.knows(PEER, &[PEER, ASKED]);
    direct
}

impl Direct {
    fn flags(&mut self, flags: u16) {
        self.rig.set(|state| state.services.get_mut(&SERVICE).expect("a service").flags = flags);
    }

    fn publish(&mut self, port: u16) {
        for proto in [PROTO_TCP, PROTO_UDP] {
            self.rig.publish_on(self.family, proto, port, (SERVICE, 80));
        }
    }

    /// Declares that a node has these addresses: IPv6 addresses go by address ids.
    fn knows(&mut self, node: Ipv4Addr, addresses: &[Ipv4Addr]) {
        let (node, family) = (self.rig.number(node), self.family);
        self.rig.set(|state| {
            for address in addresses {
                if let std::net::IpAddr::V6(ip) = family.ip(*address) {
                    let number = family.number(*address);
                    state.frontends6.insert(Frontend6Key { node, number }, ip.into());
                }
            }
        });
    }

    /// A frame with the frontend, as the ingress node sends it.
    fn said(&self, (address, port): (Ipv4Addr, u16), frame: &[u8]) -> Vec<u8> {
        let asked = Frontend { address: self.family.number(address), port: Be16::new(port) };
        let header = match self.family {
            Family::Ipv4 => asked.header(),
            Family::Ipv6 => asked.header6(),
        };
        [&header.dst.bytes(), &header.src.bytes(), &frame[12..]].concat()
    }

    /// Checks that a container's reply went directly to the client, from the frontend.
    fn straight(&self, ran: &Ran, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::SentDsr][..]));
        let seen = self.family.see(&ran.packet);
        assert_eq!((seen.from, seen.to), (self.family.at(from), self.family.at(to)));
        assert_eq!(seen.macs, (NODE_MAC, CLIENT_MAC));
    }

    /// That it went to a node, as the backend sent it.
    fn through(&self, ran: &Ran, node: Ipv4Addr, to: (Ipv4Addr, u16)) {
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Encapsulated][..]));
        let (vni, to_node, inner) = untunnel_any(&ran.packet);
        assert_eq!((vni, to_node), (VNI, node));
        let seen = self.family.see(&inner);
        assert_eq!((seen.from, seen.to), (self.family.at((NEAR, 80)), self.family.at(to)));
    }

    /// A packet of the client, as an ingress node sends it.
    fn asks(&mut self, asked: (Ipv4Addr, u16), client: (Ipv4Addr, u16), flags: Tcp) -> Ran {
        let frame = self.family.tcp(client, (NEAR, 80), flags);
        let packet = vxlan(VNI, &self.said(asked, &frame));
        self.rig.run("from_underlay", &packet)
    }

    /// A packet of the backend's here.
    fn answers(&mut self, client: (Ipv4Addr, u16), flags: Tcp) -> Ran {
        self.rig.run("from_container", &self.family.tcp((NEAR, 80), client, flags))
    }

    /// Opens a connection at the backend's node: the client's SYN, the backend's answer, the
    /// client's ACK.
    fn connected(&mut self, asked: (Ipv4Addr, u16), client: (Ipv4Addr, u16)) {
        let ran = self.asks(asked, client, Tcp::Syn);
        assert_eq!((ran.verdict, &ran.counted[..]), (REDIRECT, &[Reason::Decapsulated][..]));
        let macs = (mac(GATEWAY).bytes(), mac(NEAR).bytes());
        assert_eq!(self.family.see(&ran.packet).macs, macs);
        let ran = self.answers(client, Tcp::SynAck);
        self.through(&ran, PEER, client);
        self.asks(asked, client, Tcp::Data);
    }

    /// A question by datagram at the backend's node, and its first answer.
    fn answered(&mut self, asked: (Ipv4Addr, u16), client: (Ipv4Addr, u16)) {
        let odd = self.said(asked, &self.family.udp(client, (NEAR, 80), b"odd"));
        self.rig.run("from_underlay", &vxlan(VNI, &odd));
        let even = self.family.udp((NEAR, 80), client, b"even");
        let ran = self.rig.run("from_container", &even);
        self.through(&ran, PEER, client);
    }
}

/// The frontend in an inner frame: its address, as an id, and its port.
fn says(frame: &[u8]) -> Option<(Be32, u16)> {
    let mark = frame[6..10] == Frontend::MARK;
    let number: [u8; 4] = frame[2..6].try_into().expect("four bytes");
    mark.then(|| (Be32::from_octets(number), u16::from_be_bytes([frame[10], frame[11]])))
}

fn the_backends_node_is_told_what_was_asked_by_tc_and_by_xdp_alike(family: Family) {
    for (program, verdict) in [("from_underlay", REDIRECT), ("xdp_underlay", XDP_REDIRECT)] {
        let Direct { mut rig, .. } = direct(family, FAR);
        let told = Some((family.number(NODE), 8080));
        for packet in [
            family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Syn),
            family.tcp_from_client((CLIENT, 40_000), (NODE, 8080), Tcp::Data),
            family.udp_from_client((CLIENT, 40_001), (NODE, 8080), b"odd"),
        ] {
            let ran = rig.run(program, &packet);
            let (_, node, inner) = untunnel(&ran.packet);
            assert_eq!((ran.verdict, node, says(&inner)), (verdict, PEER, told), "{program}");
        }
        // A reply that comes all the same is the client's.
        let reply = family.tcp((FAR, 80), (CLIENT, 40_000), Tcp::SynAck);
        let seen = family.see(&rig.run(program, &vxlan(VNI, &reply)).packet);
        let expected = (family.at((NODE, 8080)), family.at((CLIENT, 40_000)));
        assert_eq!((seen.from, seen.to), expected, "{program}");
    }
}

fn nothing_is_told_where_replies_come_back(family: Family) {
    // The service does not say so.
    let mut direct = direct(family, FAR);
    direct.flags(SERVICE_RESETS);
    let packet = |port, flags| family.tcp_from_client((CLIENT, port), (NODE, 8080), flags);
    let told = |ran: Ran| says(&untunnel(&ran.packet).2);
    for program in ["from_underlay", "xdp_underlay"] {
        let ran = direct.rig.run(program, &packet(40_000, Tcp::Syn));
        assert_eq!(told(ran), None, "{program}");
    }
    // When it changes at run time, existing flows keep the old mode, and new flows have the new
    // one.
    direct.flags(SERVICE_DSR);
    assert_eq!(told(direct.rig.run("from_underlay", &packet(40_000, Tcp::Data))), None);
    let ran = direct.rig.run("from_underlay", &packet(40_001, Tcp::Syn));
    assert_eq!(told(ran), Some((family.number(NODE), 8080)));
}

fn a_client_whose_port_was_changed_gets_its_replies_through_the_node_that_changed_it(
    family: Family,
) {
    let mut direct = direct(family, FAR);
    direct.publish(9090);
    let syn = |port| family.tcp_from_client((CLIENT, 40_000), (NODE, port), Tcp::Syn);
    direct.rig.run("from_underlay", &syn(8080));
    let ran = direct.rig.run("from_underlay", &syn(9090));
    let (_, _, inner) = untunnel(&ran.packet);
    assert_ne!(family.see(&inner).from.1, 40_000);
    assert_eq!(says(&inner), None, "only this node knows the client's port");
}

fn replies_go_straight_to_the_client_once_the_node_that_was_asked_knows_of_an_answer(
    family: Family,
) {
    let client = (CLIENT, 40_000);
    for asked in [(PEER, 8080), (ASKED, 8080)] {
        let mut direct = direct(family, NEAR);
        direct.connected(asked, client);
        let ran = direct.answers(client, Tcp::Data);
        direct.straight(&ran, asked, client);
        // The ingress node must see the end of the connection, and it repeats packets that the
        // client may have missed.
        for flags in [Tcp::Fin, Tcp::Rst, Tcp::SynAck] {
            let ran = direct.answers(client, flags);
            direct.through(&ran, PEER, client);
        }

        direct.answered(asked, client);
        let even = family.udp((NEAR, 80), client, b"even");
        let ran = direct.rig.run("from_container", &even);
        direct.straight(&ran, asked, client);
        assert_eq!(family.see(&ran.packet).payload, b"even");
    }
}

type Case = (&'static str, (Ipv4Addr, u16), fn(&mut Direct));

/// The cases that both families share.
const NOT_BELIEVED: [Case; 4] = [
    ("a port that is not published", (PEER, 22), |_| {}),
    ("another target", (PEER, 8080), |direct| {
        direct.rig.publish_on(direct.family, PROTO_TCP, 8080, (SERVICE, 81));
    }),
    ("a service whose replies come back", (PEER, 8080), |direct| direct.flags(SERVICE_RESETS)),
    ("no service", (PEER, 8080), |direct| direct.rig.set(|state| state.services.clear())),
];

/// An IPv4 address is encoded as it is, and checked by itself.
const NOT_BELIEVED4: [Case; 6] = [
    ("a container as the client", (PEER, 8080), |direct| {
        direct.rig.set(|state| {
            state.subnets.insert(SubnetKey { prefix: 32, ip: CLIENT.into() }, 9);
        });
    }),
    ("no address", (Ipv4Addr::UNSPECIFIED, 8080), |_| {}),
    ("a group", (Ipv4Addr::new(224, 0, 0, 1), 8080), |_| {}),
    ("loopback", (Ipv4Addr::LOCALHOST, 8080), |_| {}),
    ("an address of this host's", (NODE, 8080), |_| {}),
    ("an address of a container's", (NEAR, 8080), |direct| {
        direct.rig.set(|state| {
            state.subnets.insert(SubnetKey { prefix: 32, ip: NEAR.into() }, VNI);
        });
    }),
];

/// An IPv6 address is encoded as its address id, and must be one of the node's.
const NOT_BELIEVED6: [Case; 5] = [
    ("a port of IPv4 alone", (PEER, 8080), |direct| {
        direct.rig.publish(PROTO_TCP, 8080, SERVICE, 80);
    }),
    ("an address that nobody has", (FAR_AWAY, 8080), |_| {}),
    ("an address of another node's", (FAR_AWAY, 8080), |direct| direct.knows(OTHER, &[FAR_AWAY])),
    ("a container as the client", (PEER, 8080), |direct| {
        direct.rig.set(|state| {
            let nearest = std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);
            state.subnets6.insert(Subnet6Key { prefix: 64, ip: nearest.into() }, 9);
        });
    }),
    ("this host as the client", (PEER, 8080), |direct| {
        direct.rig.set(|state| {
            state.local_addrs6.insert(overlay_tests::rig::CLIENT6.into(), 1);
        });
    }),
];

fn a_node_is_not_believed_about_what_it_may_not_say(family: Family) {
    let own: &[Case] = match family {
        Family::Ipv4 => &NOT_BELIEVED4,
        Family::Ipv6 => &NOT_BELIEVED6,
    };
    let client = (CLIENT, 40_000);
    for (what, asked, change) in NOT_BELIEVED.iter().chain(own) {
        let mut direct = direct(family, NEAR);
        change(&mut direct);
        direct.connected(*asked, client);
        let ran = direct.answers(client, Tcp::Data);
        assert_eq!(ran.counted, [Reason::Encapsulated], "{what}");
        direct.through(&ran, PEER, client);
        let flows = direct.rig.conntrack();
        assert!(flows.iter().all(|(_, entry)| entry.flags & DSR == 0), "{what}");
    }
}

fn where_there_is_no_way_from_here_replies_go_through_the_node_that_was_asked(family: Family) {
    // Replies to this host itself, and to an address without a route.
    for client in [(NODE, 40_000), (FAR_AWAY, 40_000)] {
        let mut direct = direct(family, NEAR);
        direct.connected((PEER, 8080), client);
        let is_direct = direct.rig.conntrack().iter().any(|(_, entry)| entry.flags & DSR != 0);
        assert!(is_direct || client.0 == NODE);
        let ran = direct.answers(client, Tcp::Data);
        direct.through(&ran, PEER, client);
    }
}

fn a_tuple_that_is_used_again_is_answered_as_it_was_asked_last(family: Family) {
    let mut direct = direct(family, NEAR);
    direct.publish(9090);
    let client = (CLIENT, 40_000);
    for asked in [(PEER, 8080), (ASKED, 8080), (ASKED, 9090)] {
        direct.connected(asked, client);
        let ran = direct.answers(client, Tcp::Data);
        direct.straight(&ran, asked, client);
    }
    // Then through the node again.
    let syn = family.tcp(client, (NEAR, 80), Tcp::Syn);
    direct.rig.run("from_underlay", &vxlan(VNI, &syn));
    direct.answers(client, Tcp::SynAck);
    let ran = direct.answers(client, Tcp::Data);
    direct.through(&ran, PEER, client);
}

fn a_clients_second_flow_with_the_same_tuple_goes_back_through_its_node(family: Family) {
    let mut direct = direct(family, NEAR);
    direct.rig.node(OTHER, &[VNI]);
    direct.knows(OTHER, &[OTHER]);
    let client = (CLIENT, 40_000);
    direct.connected((PEER, 8080), client);
    let syn = direct.said((OTHER, 8080), &family.tcp(client, (NEAR, 80), Tcp::Syn));
    let ran = direct.rig.run("from_underlay", &vxlan_from(OTHER, VNI, &syn));
    let translated = family.see(&ran.packet).from.1;
    assert_ne!(translated, 40_000);
    for flags in [Tcp::SynAck, Tcp::Data] {
        let ran = direct.answers((CLIENT, translated), flags);
        direct.through(&ran, OTHER, client);
    }
    let ran = direct.answers(client, Tcp::Data);
    direct.straight(&ran, (PEER, 8080), client);
}

fn flows_that_are_answered_straight_leave_the_table_of_those_that_begin_on_both_nodes(
    family: Family,
) {
    let client = (CLIENT, 40_000);
    let lengths = |rig: &Rig| FLOWS.map(|map| rig.flows(map).len());
    // On the backend's node.
    let mut near = direct(family, NEAR);
    near.connected((PEER, 8080), client);
    assert_eq!(lengths(&near.rig), [1, 0]);
    // On the ingress node, which sees the first answer.
    let Direct { mut rig, .. } = direct(family, FAR);
    rig.run("from_underlay", &family.tcp_from_client(client, (NODE, 8080), Tcp::Syn));
    rig.run("from_underlay", &vxlan(VNI, &family.tcp((FAR, 80), client, Tcp::SynAck)));
    rig.run("from_underlay", &family.tcp_from_client(client, (NODE, 8080), Tcp::Data));
    assert_eq!(lengths(&rig), [2, 0]);
}

fn a_reply_that_does_not_fit_the_way_to_its_client_is_told_so_here(family: Family) {
    let mut direct = direct(family, NEAR);
    let client = (CLIENT, 40_000);
    direct.answered((PEER, 8080), client);
    let large = family.udp((NEAR, 80), client, &vec![0; 1501 - family.header() - 8]);
    let ran = direct.rig.run("from_container", &large);
    assert_eq!(ran.counted, [Reason::TooBigAnswered]);
    let seen = family.see(&ran.packet);
    assert_eq!((seen.from.0, seen.to.0), (family.ip(GATEWAY), family.ip(NEAR)));
    let (answer, quoted) = ran.packet[14 + family.header()..].split_at(8);
    match family {
        Family::Ipv4 => {
            assert_eq!((seen.protocol, &answer[..2]), (1, &[3, 4][..]), "fragmentation needed");
            assert_eq!(quoted[..20], large[14..34], "quotes what the backend sent");
        }
        Family::Ipv6 => {
            assert_eq!((seen.protocol, &answer[..2]), (58, &[2, 0][..]), "packet too big");
            assert_eq!(answer[4..], 1500_u32.to_be_bytes());
            assert_eq!(quoted, &large[14..14 + 1232], "quotes what the backend sent");
        }
    }
}

fn a_client_that_goes_on_keeps_its_tuple_although_no_reply_comes_by(family: Family) {
    let Direct { mut rig, .. } = direct(family, FAR);
    let client = (CLIENT, 40_000);
    let ack = family.tcp_from_client(client, (NODE, 8080), Tcp::Data);
    rig.run("from_underlay", &family.tcp_from_client(client, (NODE, 8080), Tcp::Syn));
    rig.run("from_underlay", &vxlan(VNI, &family.tcp((FAR, 80), client, Tcp::SynAck)));
    rig.run("from_underlay", &ack);
    let before = rig.flows("conntrack");
    assert_eq!(before.len(), 2, "{before:?}");
    // Ten minutes later.
    rig.age_conntrack(600);
    rig.run("from_underlay", &ack);
    for (key, entry) in rig.flows("conntrack") {
        let was = before.iter().find(|(k, _)| *k == key).expect("the same flow").1.last_seen;
        assert!(entry.last_seen >= was, "{key:?} {entry:?}");
    }
}
