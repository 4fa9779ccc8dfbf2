//! IPv6 packets of the datapath suites. Addresses are those of [`super::ip6`]; MACs follow from the
//! IPv4 addresses that belong to them.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::mac;
use crate::model::ones_complement;

/// Sender and receiver: their IPv4 addresses, from which the MACs follow, and their IPv6 addresses.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Sender.
    pub from: (Ipv4Addr, Ipv6Addr),
    /// Receiver.
    pub to: (Ipv4Addr, Ipv6Addr),
}

impl Way {
    /// The same MACs with other addresses.
    #[must_use]
    pub fn with(self, from: Ipv6Addr, to: Ipv6Addr) -> Self {
        Self { from: (self.from.0, from), to: (self.to.0, to) }
    }

    fn ethernet(&self) -> [u8; 14] {
        let mut out = [0; 14];
        out[..6].copy_from_slice(&mac(self.to.0).bytes());
        out[6..12].copy_from_slice(&mac(self.from.0).bytes());
        out[12..].copy_from_slice(&[0x86, 0xdd]);
        out
    }

    fn builder(&self) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ethernet2(mac(self.from.0).bytes(), mac(self.to.0).bytes()).ipv6(
            self.from.1.octets(),
            self.to.1.octets(),
            64,
        )
    }
}

/// A TCP SYN.
pub fn tcp6(way: Way, ports: (u16, u16)) -> Vec<u8> {
    let mut out = Vec::new();
    let step = way.builder().tcp(ports.0, ports.1, 1000, 64_000).syn();
    step.write(&mut out, b"").expect("a packet");
    out
}

/// A TCP segment with these flags (RFC 9293, section 3.1).
pub fn segment6(way: Way, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut frame = tcp6(way, ports);
    frame[54 + 13] = flags;
    frame[54 + 16..54 + 18].fill(0);
    let body = &frame[54..];
    let length = (body.len() as u32).to_be_bytes();
    let ends = [way.from.1.octets(), way.to.1.octets()].concat();
    let sum = ones_complement(&[&ends[..], &length, &[0, 0, 0, 6], body].concat());
    frame[54 + 16..54 + 18].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The same frame between other MACs.
pub fn between(mut frame: Vec<u8>, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}

/// A UDP datagram.
pub fn udp6(way: Way, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    way.builder().udp(ports.0, ports.1).write(&mut out, payload).expect("a packet");
    out
}

/// An ICMPv6 echo request.
pub fn ping6(way: Way) -> Vec<u8> {
    let mut out = Vec::new();
    way.builder().icmpv6_echo_request(7, 1).write(&mut out, b"0123456789").expect("a packet");
    out
}

/// An IPv6 packet of any kind: its next header and its payload.
pub fn raw6(way: Way, next_header: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = way.ethernet().to_vec();
    out.extend([0x60, 0, 0, 0]);
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend([next_header, hop_limit]);
    out.extend(way.from.1.octets());
    out.extend(way.to.1.octets());
    out.extend(payload);
    out
}

/// An ICMPv6 message with its checksum filled in; `message` has zeros there.
pub fn icmpv6(way: Way, hop_limit: u8, message: &[u8]) -> Vec<u8> {
    raw6(way, 58, hop_limit, &sealed(way.from.1, way.to.1, message))
}

/// The message with its checksum (RFC 4443, section 2.3).
pub fn sealed(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, 58], message].concat();
    let mut message = message.to_vec();
    message[2..4].copy_from_slice(&ones_complement(&pseudo).to_be_bytes());
    message
}

/// The solicited-node address of an address (RFC 4291, section 2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    let low = [u16::from_be_bytes([0xff, a]), u16::from_be_bytes([b, c])];
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, low[0], low[1])
}

/// The message of a solicitation for `target` (RFC 4861, section 4.3) with the options given.
pub fn solicitation(target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat()
}

/// A multicast solicitation of `from` for `target`, as hosts send it.
pub fn solicit(from: (Ipv4Addr, Ipv6Addr), target: Ipv6Addr) -> Vec<u8> {
    let own = [&[1, 1][..], &mac(from.0).bytes()].concat();
    let to = solicited_node(target);
    let way = Way { from, to: (Ipv4Addr::UNSPECIFIED, to) };
    let mut frame = icmpv6(way, 255, &solicitation(target, &own));
    frame[..2].copy_from_slice(&[0x33, 0x33]);
    frame[2..6].copy_from_slice(&to.octets()[12..]);
    frame
}

/// The content of an IPv6 frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen6 {
    /// Ethernet source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// Source address.
    pub from: Ipv6Addr,
    /// Destination address.
    pub to: Ipv6Addr,
    /// Hop limit.
    pub hop_limit: u8,
    /// Protocol.
    pub protocol: u8,
    /// The bytes behind the IPv6 header.
    pub message: Vec<u8>,
}

/// Parses an IPv6 frame without extension headers. Verifies checksums from scratch.
pub fn see6(frame: &[u8]) -> Seen6 {
    let packet = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
    let Some(etherparse::LinkSlice::Ethernet2(link)) = &packet.link else {
        panic!("no Ethernet header");
    };
    let Some(NetSlice::Ipv6(ip)) = &packet.net else { panic!("no IPv6 header") };
    let header = ip.header();
    let (from, to) = (header.source(), header.destination());
    match packet.transport.as_ref().expect("a transport header") {
        TransportSlice::Tcp(tcp) => {
            let sum = tcp.calc_checksum_ipv6(from, to).expect("a length that fits");
            assert_eq!(tcp.checksum(), sum, "TCP checksum");
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let sum = header.calc_checksum_ipv6_raw(from, to, udp.payload()).expect("a length");
            assert_eq!(udp.checksum(), sum, "UDP checksum");
        }
        TransportSlice::Icmpv6(icmp) => {
            assert!(icmp.is_checksum_valid(from, to), "ICMPv6 checksum");
        }
        other => panic!("unexpected transport {other:?}"),
    }
    let IpNumber(protocol) = header.next_header();
    Seen6 {
        macs: (link.source(), link.destination()),
        from: from.into(),
        to: to.into(),
        hop_limit: header.hop_limit(),
        protocol,
        message: frame[54..].to_vec(),
    }
}
