//! A packet on its way, and the steps that the programs share.

use std::{collections::BTreeMap, net::Ipv4Addr};

use overlay_common::{
    Be16, Mac, Reason,
    maps::{
        Backend, Conntrack, ConntrackKey, Counter, ENDPOINT_FLAG_HOST, ENDPOINT_LOCAL, Endpoint,
        EndpointKey, Network, Published, PublishedKey, TCP_SEEN_ACK, TCP_SEEN_FIN, TCP_SEEN_RST,
        TCP_SEEN_SYN,
    },
    wire::Udp,
};

use super::{
    Host, Packet, Tables,
    conntrack::{Flow, Part},
    fragment,
    frame::{
        ETHERNET, Ethernet, ICMP, IPV4, Ip, SCTP, TCP, TUNNEL, TUNNEL6, UDP, bytes, half,
        ones_complement, put, updated,
    },
    host::NextHop,
    ipv6::is_popped,
    observe::Party,
    related,
};
use crate::rig::Told;

/// How a packet that is not dropped ends.
pub enum End {
    /// With the host.
    Pass,
    /// On its way, counted.
    Sent(Reason),
    /// With the host, counted.
    Left(Reason),
    /// Copied to where it goes, counted; the packet itself goes nowhere.
    Copied(Reason),
}

/// How any packet ends.
pub type Outcome = Result<End, Reason>;

/// Where a service's packet goes.
pub struct Target {
    /// The service.
    pub service: u32,
    /// The backends' port.
    pub port: Be16,
    /// How long the flow may be idle, in seconds; 0 by default.
    pub idle: u16,
    /// Whether the client asked a VIP.
    pub via: u32,
    /// The backend's number.
    pub number: u32,
    /// The backend.
    pub backend: Backend,
}

/// The ECN field after decapsulation (RFC 6040, section 4.2, figure 4); `None` for a drop.
pub fn marked(inner: u8, outer: u8) -> Option<u8> {
    // Not-ECT 0, ECT(1) 1, ECT(0) 2, CE 3.
    match (inner, outer) {
        (0, 3) => None,
        (1 | 2, 3) => Some(3),
        (2, 1) => Some(1),
        (inner, _) => Some(inner),
    }
}

/// A packet, what it meets and what it has caused so far.
pub struct Walk<'a> {
    /// The maps.
    pub tables: &'a mut Tables,
    /// The kernel's part.
    pub host: &'a Host,
    /// The time.
    pub now: u64,
    /// The interface that the packet came in by.
    pub ifindex: u32,
    /// Bytes of payload in each segment of an aggregate; 0 for a single packet.
    pub segment: usize,
    /// The packet as it is now.
    pub frame: Vec<u8>,
    /// What was counted.
    pub moved: BTreeMap<Reason, Counter>,
    /// What of its flow the packet is, once that is known.
    pub part: Part,
    /// The endpoint that it is counted for.
    pub party: Party,
    /// Slot of the endpoint of this node that it went into; 0 where it went elsewhere.
    pub delivered: u32,
    /// What was counted for endpoints and networks.
    pub told: Told,
}

impl<'a> Walk<'a> {
    /// A packet that has just come in.
    pub fn new(tables: &'a mut Tables, host: &'a Host, now: u64, packet: Packet<'_>) -> Self {
        Self {
            tables,
            host,
            now,
            ifindex: packet.ifindex,
            segment: packet.segment.into(),
            frame: packet.frame.to_vec(),
            moved: BTreeMap::new(),
            part: Part::Whole,
            party: Party::nobody(),
            delivered: 0,
            told: Told::default(),
        }
    }

    /// Whether the packet's IPv4 header is possible and the frame as long as it says.
    pub fn check(&self, ip: &Ip) -> Result<(), Reason> {
        ip.check(&self.frame, self.segment != 0)
    }

    /// Length of the longest IP packet that this one, behind an Ethernet header, is on the wire.
    pub fn longest(&self) -> usize {
        if self.segment == 0 {
            return self.frame.len() - ETHERNET;
        }
        let (header, protocol) = match self.frame[ETHERNET] >> 4 {
            6 => (40, self.frame[ETHERNET + 6]),
            _ => (usize::from(self.frame[ETHERNET] & 15) * 4, self.frame[ETHERNET + 9]),
        };
        let transport = match protocol {
            UDP => Some(8),
            TCP => {
                let offset = bytes::<1>(&self.frame, ETHERNET + header + 12);
                offset.map(|[byte]| usize::from(byte >> 4) * 4)
            }
            _ => Some(0),
        };
        self.segment + transport.map_or(0, |transport| header + transport)
    }

    /// Counts a packet.
    pub fn count(&mut self, reason: Reason, length: usize) {
        let counter = self.moved.entry(reason).or_default();
        counter.packets += 1;
        counter.bytes += length as u64;
    }

    /// What an address of a network is.
    pub fn endpoint(&self, vni: u32, ip: Ipv4Addr) -> Option<Endpoint> {
        self.tables.agent.endpoints.get(&EndpointKey { vni, ip: ip.into() }).copied()
    }

    /// A network.
    pub fn network(&self, vni: u32) -> Option<Network> {
        self.tables.agent.networks.get(&vni).copied()
    }

    /// What is published.
    pub fn published(&self, proto: u8, port: Be16) -> Option<Published> {
        self.tables.agent.published.get(&PublishedKey { port, proto, pad: 0 }).copied()
    }

    /// The flow of a packet.
    pub fn flow(&mut self, ip: &Ip, vni: u32) -> Result<Flow, Reason> {
        let flow = self.flow_of(ip, vni)?;
        self.part = flow.part;
        Ok(flow)
    }

    fn flow_of(&mut self, ip: &Ip, vni: u32) -> Result<Flow, Reason> {
        if ip.protocol == ICMP {
            return related::flow(self, ip, vni);
        }
        if ![TCP, UDP, SCTP].contains(&ip.protocol) {
            return Err(Reason::ServiceProtocol);
        }
        let (saddr, daddr) = (ip.src.into(), ip.dst.into());
        let proto = ip.protocol;
        let transport = ip.payload();
        if ip.later {
            let Udp { source: sport, dest: dport, .. } = fragment::head(self, ip, vni)?;
            let key = ConntrackKey { saddr, daddr, sport, dport, vni, proto, scope: [0; 3] };
            return Ok(Flow { key, transport, seen: 0, part: Part::Later });
        }
        // What is behind the packet's own end is padding, not ports. SCTP has a chunk at least.
        let shortest = ip.header
            + match ip.protocol {
                TCP => 20,
                SCTP => 16,
                _ => 8,
            };
        if ip.total < shortest && ip.total != 0 {
            return Err(Reason::Truncated);
        }
        if ip.more {
            fragment::keep(self, ip, vni)?;
        }
        let port = |at| half(&self.frame, at).map(Be16::new).ok_or(Reason::Truncated);
        let (sport, dport) = (port(transport)?, port(transport + 2)?);
        let mut seen = 0;
        if ip.protocol == TCP {
            let [flags] = bytes(&self.frame, transport + 13).ok_or(Reason::Truncated)?;
            // FIN, SYN, RST and ACK are bits 0, 1, 2 and 4 (RFC 9293, section 3.1).
            let bits = [(0, TCP_SEEN_FIN), (1, TCP_SEEN_SYN), (2, TCP_SEEN_RST), (4, TCP_SEEN_ACK)];
            seen = bits.iter().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, s)| s).sum();
            // "What opens a connection does not end it."
            if flags & 0b10 != 0 && flags & 0b101 != 0 {
                return Err(Reason::Malformed);
            }
        }
        if ip.protocol == SCTP {
            // "INIT opens, ABORT resets, SHUTDOWN COMPLETE ends" (RFC 9260, section 3.2).
            seen = match bytes(&self.frame, transport + 12).ok_or(Reason::Truncated)? {
                [1] => TCP_SEEN_SYN,
                [2] => TCP_SEEN_SYN | TCP_SEEN_ACK,
                [6] => TCP_SEEN_RST,
                [14] => TCP_SEEN_FIN | TCP_SEEN_ACK,
                [_] => TCP_SEEN_ACK,
            };
        }
        let key = ConntrackKey { saddr, daddr, sport, dport, vni, proto, scope: [0; 3] };
        Ok(Flow { key, transport, seen, part: Part::Whole })
    }

    /// Rewrites the packet with its IPv4 header at `at` to what `entry` says. `refused` is counted
    /// when it ends before its checksum.
    pub fn translate(
        &mut self,
        at: usize,
        transport: usize,
        entry: &Conntrack,
        refused: Reason,
    ) -> Result<(), Reason> {
        if self.part == Part::Quoted {
            return related::requote(&mut self.frame, entry);
        }
        let frame = &mut self.frame;
        let addresses = [entry.saddr.octets(), entry.daddr.octets()].concat();
        // A later fragment has no ports, and SCTP keeps its own, under a checksum without addresses.
        if self.part == Part::Later || frame[at + 9] == SCTP {
            return self.readdress(at, &addresses);
        }
        if frame[at + 9] == ICMP {
            // An echo has one identifier (RFC 792), and a checksum over nothing else of the tuple.
            let id = (entry.sport.get() | entry.dport.get()).to_be_bytes();
            let old = half(frame, transport + 2).ok_or(refused)?;
            let new = updated(old, &frame[transport + 4..transport + 6], &id);
            put(frame, transport + 2, &new.to_be_bytes());
            put(frame, transport + 4, &id);
            return self.readdress(at, &addresses);
        }
        let ports = [entry.sport.get().to_be_bytes(), entry.dport.get().to_be_bytes()].concat();
        let is_udp = frame[at + 9] == UDP;
        let field = transport + if is_udp { 6 } else { 16 };
        let old = half(frame, field).ok_or(refused)?;
        // RFC 768: zero is "no checksum", and a sum that comes out as zero is sent as all ones.
        if !(is_udp && old == 0) {
            let covered = [&frame[at + 12..at + 20], &frame[transport..transport + 4]].concat();
            let new = updated(old, &covered, &[&addresses[..], &ports[..]].concat());
            let new = if is_udp && new == 0 { 0xffff } else { new };
            put(frame, field, &new.to_be_bytes());
        }
        put(frame, transport, &ports);
        self.readdress(at, &addresses)
    }

    /// Writes both addresses of the IPv4 header at `at`.
    fn readdress(&mut self, at: usize, addresses: &[u8]) -> Result<(), Reason> {
        let frame = &mut self.frame;
        let old = half(frame, at + 10).ok_or(Reason::Truncated)?;
        let new = updated(old, &frame[at + 12..at + 20], addresses);
        put(frame, at + 10, &new.to_be_bytes());
        put(frame, at + 12, addresses);
        Ok(())
    }

    /// Into an endpoint of this node.
    pub fn deliver(&mut self, endpoint: &Endpoint, source: Mac, reason: Reason) -> Outcome {
        self.deliver_as(IPV4, endpoint, source, reason)
    }

    /// As [`Self::deliver`], for a packet of any EtherType.
    pub fn deliver_as(
        &mut self,
        kind: u16,
        endpoint: &Endpoint,
        source: Mac,
        reason: Reason,
    ) -> Outcome {
        put(&mut self.frame, 0, &Ethernet { dst: endpoint.mac, src: source, kind }.bytes());
        self.delivered = endpoint.slot;
        let to_host = endpoint.flags & ENDPOINT_FLAG_HOST != 0;
        Ok(End::Sent(if to_host { Reason::DeliveredHost } else { reason }))
    }

    /// To the client of a reply: an endpoint of this node.
    pub fn deliver_reply(&mut self, entry: &Conntrack, reason: Reason) -> Outcome {
        let client = self
            .endpoint(entry.vni, entry.daddr.into())
            .filter(|client| client.kind == ENDPOINT_LOCAL)
            .ok_or(Reason::NoEndpoint)?;
        self.deliver(&client, Mac::of_ip(entry.saddr), reason)
    }

    /// To a client outside, by the host's routes.
    pub fn route_out(&mut self, entry: &Conntrack) -> Outcome {
        self.route(entry)?;
        Ok(End::Sent(Reason::SentToClient))
    }

    /// Addresses the packet to the next hop towards the destination of `entry`.
    pub fn route(&mut self, entry: &Conntrack) -> Result<(), Reason> {
        let total = self.longest();
        let hop = self.host.next_hop(&self.tables.config, entry.daddr.into(), total)?;
        self.address(&hop);
        Ok(())
    }

    /// Writes the Ethernet header for a next hop.
    pub fn address(&mut self, hop: &NextHop) {
        let (src, dst) = hop.macs;
        put(&mut self.frame, 0, &Ethernet::ipv4(src, dst).bytes());
    }

    /// Length of the outer headers.
    pub fn tunnel_length(&self) -> usize {
        if self.tables.ipv6 { TUNNEL6 } else { TUNNEL }
    }

    fn node_hop(&self, node: Ipv4Addr, total: usize) -> Result<NextHop, Reason> {
        let config = &self.tables.config;
        if !self.tables.ipv6 {
            return self.host.next_hop(config, node, total);
        }
        let vtep = self.tables.agent.vteps6.get(&node.into()).map(|vtep| (*vtep).into());
        self.host.next_hop6(config, vtep, total)
    }

    /// Into the tunnel to a node.
    pub fn tunnel(&mut self, vni: u32, node: Ipv4Addr, inner: Ethernet) -> Outcome {
        let total = self.longest() + self.tunnel_length();
        let hop = match self.node_hop(node, total) {
            Err(Reason::TooBig) => return self.hand_over(inner, Reason::TooBig),
            hop => hop?,
        };
        if self.segment != 0 {
            return self.hand_over(inner, Reason::TunnelRefused);
        }
        self.push(vni, node, inner, &hop);
        Ok(End::Sent(Reason::Encapsulated))
    }

    /// "What is too big and has no DF is given to the kernel's vxlan device, which fragments outside",
    /// and so is what the programs cannot push headers onto: "aggregates other than TCP's and UDP's",
    /// which those of BPF_PROG_TEST_RUN are, whatever is in them.
    fn hand_over(&mut self, inner: Ethernet, refused: Reason) -> Outcome {
        let has_df = half(&self.frame, ETHERNET + 6).is_some_and(|field| field & 0x4000 != 0);
        // Nobody on the path makes fragments of IPv6 packets, but every link carries 1280 bytes
        // (RFC 8200, section 5).
        let is_whole = match inner.kind {
            // "The kernel makes no fragments of tunnel packets over IPv6."
            _ if self.tables.ipv6 => true,
            IPV4 => has_df,
            _ => self.longest() > 1280,
        };
        let stays_whole = is_whole && refused == Reason::TooBig;
        if stays_whole || self.tables.config.vxlan_ifindex == 0 {
            return Err(refused);
        }
        put(&mut self.frame, 0, &inner.bytes());
        Ok(End::Sent(Reason::KernelEncap))
    }

    /// Puts the outer headers in front (RFC 7348, section 5). The source port is left at zero: it
    /// is the hash's.
    pub fn push(&mut self, vni: u32, node: Ipv4Addr, inner: Ethernet, hop: &NextHop) {
        let [first, second] = [self.frame[ETHERNET], self.frame[ETHERNET + 1]];
        // IPv4 has the ECN field at the end of its second byte, IPv6 in the middle of it.
        let ecn = if first >> 4 == 6 { second >> 4 & 3 } else { second & 3 };
        put(&mut self.frame, 0, &inner.bytes());
        if self.tables.ipv6 {
            self.push6(vni, node, ecn, hop);
            return;
        }
        let config = self.tables.config;
        let length = (self.frame.len() + 16) as u16;
        let mut ip = vec![0x45, ecn];
        ip.extend((length + 20).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
        ip.extend(config.vtep.octets());
        ip.extend(node.octets());
        let checksum = ones_complement(&ip);
        put(&mut ip, 10, &checksum.to_be_bytes());

        let (src, dst) = hop.macs;
        let mut frame = Ethernet::ipv4(src, dst).bytes().to_vec();
        frame.extend(ip);
        frame.extend([0, 0]);
        frame.extend(config.vxlan_port.get().to_be_bytes());
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0x08, 0, 0, 0]);
        frame.extend((vni << 8).to_be_bytes());
        frame.append(&mut self.frame);
        self.frame = frame;
    }

    /// "What routers of the underlay marked reaches the receiver" (RFC 6040, figure 4). The inner
    /// IPv4 header is at `at`.
    pub fn combine(&mut self, outer_ecn: u8, at: usize) -> Result<(), Reason> {
        let [version, tos] = [self.frame[at], self.frame[at + 1]];
        let new_tos = tos & 0xfc | marked(tos & 3, outer_ecn).ok_or(Reason::EcnUnexpected)?;
        if new_tos != tos {
            let old = half(&self.frame, at + 10).ok_or(Reason::Truncated)?;
            let new = updated(old, &[version, tos], &[version, new_tos]);
            self.frame[at + 1] = new_tos;
            put(&mut self.frame, at + 10, &new.to_be_bytes());
        }
        Ok(())
    }

    /// Takes the outer headers away. Those of aggregates are left to the kernel's device, as above.
    pub fn pop(&mut self) -> Result<(), Reason> {
        self.pop_to(false)
    }

    /// As [`Walk::pop`]; `leaves` says that the packet goes out of the host.
    pub fn pop_to(&mut self, leaves: bool) -> Result<(), Reason> {
        let inner = self.tunnel_length();
        let is_ipv4 = half(&self.frame, inner + 12) == Some(IPV4);
        if self.segment != 0 && self.tables.ipv6 && is_ipv4 {
            let flags = self.tables.config.decap_flags;
            let protocol = self.frame[inner + ETHERNET + 9];
            let keeps_mark = flags == 0 && (protocol != TCP || leaves);
            if !keeps_mark && is_popped(protocol, flags) {
                // As around IPv6 on an IPv4 underlay, but here it is 20 bytes shorter by then.
                self.frame.drain(ETHERNET..ETHERNET + 20);
                return Err(Reason::RewriteRefused);
            }
        }
        if self.segment != 0 {
            return Err(Reason::TunnelRefused);
        }
        self.frame.drain(..self.tunnel_length());
        Ok(())
    }
}
