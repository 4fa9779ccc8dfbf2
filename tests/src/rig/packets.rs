//! Builds packets with etherparse, parses them again, and checks every checksum from scratch.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{
    IpHeaders, IpNumber, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice,
};

use super::{CLIENT_MAC, NODE, NODE_MAC, PEER, PEER_MAC, family::frame, mac};

/// TCP flags of a packet to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcp {
    /// SYN.
    Syn,
    /// SYN and ACK.
    SynAck,
    /// ACK with data.
    Data,
    /// FIN and ACK.
    Fin,
    /// RST.
    Rst,
}

/// The payload of an echo request.
pub(super) const ECHO: &[u8] = b"0123456789";

/// A frame from one endpoint to another, with MACs of their addresses.
fn between(from: Ipv4Addr, to: Ipv4Addr) -> PacketBuilderStep<IpHeaders> {
    frame((mac(from).bytes(), mac(to).bytes()), from.into(), to.into())
}

/// A frame on the underlay, to the node under test.
fn from_client(from: Ipv4Addr, to: Ipv4Addr) -> PacketBuilderStep<IpHeaders> {
    frame((CLIENT_MAC, NODE_MAC), from.into(), to.into())
}

fn bytes<T>(build: impl FnOnce(&mut Vec<u8>) -> T) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out);
    out
}

/// A TCP segment between endpoints.
pub fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: Tcp) -> Vec<u8> {
    tcp_on(between(from.0, to.0), (from.1, to.1), flags)
}

/// A TCP segment on the underlay, to the node under test.
pub fn tcp_from_client(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: Tcp) -> Vec<u8> {
    tcp_on(from_client(from.0, to.0), (from.1, to.1), flags)
}

pub(super) fn tcp_on(step: PacketBuilderStep<IpHeaders>, ports: (u16, u16), flags: Tcp) -> Vec<u8> {
    let step = step.tcp(ports.0, ports.1, 1000, 64_000);
    let (step, payload): (_, &[u8]) = match flags {
        Tcp::Syn => (step.syn(), b""),
        Tcp::SynAck => (step.syn().ack(1), b""),
        Tcp::Data => (step.ack(1).psh(), b"some data"),
        Tcp::Fin => (step.fin().ack(1), b""),
        Tcp::Rst => (step.rst(), b""),
    };
    bytes(|out| step.write(out, payload).expect("a packet"))
}

/// A UDP datagram between endpoints.
pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    udp_on(between(from.0, to.0), (from.1, to.1), payload)
}

/// A UDP datagram on the underlay, to the node under test.
pub fn udp_from_client(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    udp_on(from_client(from.0, to.0), (from.1, to.1), payload)
}

pub(super) fn udp_on(
    step: PacketBuilderStep<IpHeaders>,
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    bytes(|out| step.udp(ports.0, ports.1).write(out, payload).expect("a packet"))
}

/// An ICMP echo request between endpoints.
pub fn ping(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let step = between(from, to).icmpv4_echo_request(7, 1);
    bytes(|out| step.write(out, ECHO).expect("a packet"))
}

/// An ARP request of an endpoint.
pub fn arp_request(from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut out = vec![0xff; 6];
    out.extend(mac(from).bytes());
    out.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    out.extend(mac(from).bytes());
    out.extend(from.octets());
    out.extend([0; 6]);
    out.extend(target.octets());
    out
}

/// A frame in VXLAN from the peer to the node under test.
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    vxlan_from(PEER, vni, frame)
}

/// A frame in VXLAN from any address to the node under test.
pub fn vxlan_from(sender: Ipv4Addr, vni: u32, frame: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let mut payload = vec![0x08, 0, 0, 0, a, b, c, 0];
    payload.extend(frame);
    let step = PacketBuilder::ethernet2(PEER_MAC, NODE_MAC)
        .ipv4(sender.octets(), NODE.octets(), 64)
        .udp(50_000, 4789);
    let mut out = bytes(|out| step.write(out, &payload).expect("a packet"));
    // The tunnel's checksum is zero (RFC 7348, section 5).
    out[40..42].copy_from_slice(&[0, 0]);
    out
}

/// The content of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<A = Ipv4Addr> {
    /// Ethernet source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// Source address and port (0 for ICMP).
    pub from: (A, u16),
    /// Destination address and port.
    pub to: (A, u16),
    /// Protocol.
    pub protocol: u8,
    /// The bytes behind the transport header.
    pub payload: Vec<u8>,
}

/// Parses an IPv4 frame. Verifies every checksum in it from scratch.
pub fn see(frame: &[u8]) -> Seen {
    let Seen { macs, from, to, protocol, payload } = see_any(frame);
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.0, to.0) else {
        panic!("no IPv4 header");
    };
    Seen { macs, from: (source, from.1), to: (destination, to.1), protocol, payload }
}

/// Parses a frame of either family, an IPv6 one without extension headers. Verifies every checksum
/// in it from scratch.
pub(super) fn see_any(frame: &[u8]) -> Seen<IpAddr> {
    let packet = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
    let Some(etherparse::LinkSlice::Ethernet2(link)) = &packet.link else {
        panic!("no Ethernet header");
    };
    let (from, to, IpNumber(protocol)) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let sum = header.to_header().calc_header_checksum();
            assert_eq!(header.header_checksum(), sum, "IPv4 header checksum");
            let addresses = (header.source_addr(), header.destination_addr());
            (IpAddr::V4(addresses.0), IpAddr::V4(addresses.1), header.protocol())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let addresses = (header.source_addr(), header.destination_addr());
            (IpAddr::V6(addresses.0), IpAddr::V6(addresses.1), header.next_header())
        }
        other => panic!("no IP header: {other:?}"),
    };
    let transport = packet.transport.as_ref().expect("a transport header");
    let ((source, destination), payload) = see_transport(transport, from, to);
    Seen {
        macs: (link.source(), link.destination()),
        from: (from, source),
        to: (to, destination),
        protocol,
        payload: payload.to_vec(),
    }
}

/// Ports and payload of a packet between two addresses. Verifies the checksum.
fn see_transport<'a>(
    transport: &TransportSlice<'a>,
    from: IpAddr,
    to: IpAddr,
) -> ((u16, u16), &'a [u8]) {
    match transport {
        TransportSlice::Tcp(tcp) => {
            let sum = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    tcp.calc_checksum_ipv4(from.octets(), to.octets())
                }
                (from, to) => tcp.calc_checksum_ipv6(octets6(from), octets6(to)),
            };
            assert_eq!(tcp.checksum(), sum.expect("a length that fits"), "TCP checksum");
            ((tcp.source_port(), tcp.destination_port()), tcp.payload())
        }
        TransportSlice::Udp(udp) => {
            let (header, payload) = (udp.to_header(), udp.payload());
            let sum = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
                }
                (from, to) => header.calc_checksum_ipv6_raw(octets6(from), octets6(to), payload),
            };
            // Over IPv4 it may be left out.
            if from.is_ipv6() || udp.checksum() != 0 {
                assert_eq!(udp.checksum(), sum.expect("a length that fits"), "UDP checksum");
            }
            ((udp.source_port(), udp.destination_port()), payload)
        }
        TransportSlice::Icmpv4(icmp) => {
            let sum = icmp.icmp_type().calc_checksum(icmp.payload());
            assert_eq!(icmp.checksum(), sum, "ICMP checksum");
            ((0, 0), icmp.payload())
        }
        TransportSlice::Icmpv6(icmp) => {
            assert!(icmp.is_checksum_valid(octets6(from), octets6(to)), "ICMPv6 checksum");
            ((0, 0), icmp.payload())
        }
        other => panic!("unexpected transport {other:?}"),
    }
}

fn octets6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => panic!("{address} is no address of IPv6"),
    }
}

/// The content of a tunnel packet from the node under test: VNI, node and inner frame. Checks the
/// outer headers.
pub fn untunnel(packet: &[u8]) -> (u32, Ipv4Addr, Vec<u8>) {
    assert_eq!(see(packet).macs.0, NODE_MAC, "outer source MAC");
    untunnel_any(packet)
}

/// Like [`untunnel`], also for a node with a MAC that the kernel has yet to resolve.
pub fn untunnel_any(packet: &[u8]) -> (u32, Ipv4Addr, Vec<u8>) {
    let outer = see(packet);
    assert_eq!(outer.from.0, NODE, "outer source");
    assert_eq!(outer.to.1, 4789, "outer port");
    assert!(outer.from.1 >= 49_152, "outer source port {}", outer.from.1);
    assert_eq!(&packet[20..22], &[0x40, 0], "DF");
    assert_eq!(packet[22], 64, "outer TTL");
    let [flags, r1, r2, r3, a, b, c, r4] = outer.payload[..8] else { panic!("no VXLAN header") };
    assert_eq!((flags, r1, r2, r3, r4), (0x08, 0, 0, 0, 0), "VXLAN header");
    (u32::from_be_bytes([0, a, b, c]), outer.to.0, outer.payload[8..].to_vec())
}
