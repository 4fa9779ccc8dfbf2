//! Building packets with etherparse, taking them apart again, and checking every checksum from
//! scratch.

use std::net::Ipv4Addr;

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::{CLIENT_MAC, NODE, NODE_MAC, PEER, PEER_MAC, mac};

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

/// A frame from one endpoint to another, with MACs of their addresses.
fn ethernet(
    from: Ipv4Addr,
    to: Ipv4Addr,
) -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(mac(from).bytes(), mac(to).bytes())
}

fn bytes<T>(build: impl FnOnce(&mut Vec<u8>) -> T) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out);
    out
}

/// A TCP segment between endpoints.
pub fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: Tcp) -> Vec<u8> {
    tcp_on(ethernet(from.0, to.0), from, to, flags)
}

/// A TCP segment on the underlay, to the node under test.
pub fn tcp_from_client(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: Tcp) -> Vec<u8> {
    tcp_on(PacketBuilder::ethernet2(CLIENT_MAC, NODE_MAC), from, to, flags)
}

fn tcp_on(
    step: etherparse::PacketBuilderStep<etherparse::Ethernet2Header>,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    flags: Tcp,
) -> Vec<u8> {
    let step = step.ipv4(from.0.octets(), to.0.octets(), 64).tcp(from.1, to.1, 1000, 64_000);
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
    let step = ethernet(from.0, to.0).ipv4(from.0.octets(), to.0.octets(), 64).udp(from.1, to.1);
    bytes(|out| step.write(out, payload).expect("a packet"))
}

/// A UDP datagram on the underlay, to the node under test.
pub fn udp_from_client(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let step = PacketBuilder::ethernet2(CLIENT_MAC, NODE_MAC)
        .ipv4(from.0.octets(), to.0.octets(), 64)
        .udp(from.1, to.1);
    bytes(|out| step.write(out, payload).expect("a packet"))
}

/// An ICMP echo request between endpoints.
pub fn ping(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let step = ethernet(from, to).ipv4(from.octets(), to.octets(), 64).icmpv4_echo_request(7, 1);
    bytes(|out| step.write(out, b"0123456789").expect("a packet"))
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

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Ethernet source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// Source address and port (0 for ICMP).
    pub from: (Ipv4Addr, u16),
    /// Destination address and port.
    pub to: (Ipv4Addr, u16),
    /// Protocol.
    pub protocol: u8,
    /// What follows the transport header.
    pub payload: Vec<u8>,
}

/// Takes an IPv4 frame apart. Every checksum in it is verified from scratch.
pub fn see(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
    let Some(etherparse::LinkSlice::Ethernet2(link)) = &packet.link else {
        panic!("no Ethernet header");
    };
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("no IPv4 header") };
    let header = ip.header();
    assert_eq!(
        header.header_checksum(),
        header.to_header().calc_header_checksum(),
        "IPv4 header checksum"
    );
    let IpNumber(protocol) = header.protocol();
    let (from, to, payload) = match packet.transport.as_ref().expect("a transport header") {
        TransportSlice::Tcp(tcp) => {
            let sum = tcp
                .calc_checksum_ipv4(header.source(), header.destination())
                .expect("a length that fits");
            assert_eq!(tcp.checksum(), sum, "TCP checksum");
            (tcp.source_port(), tcp.destination_port(), tcp.payload().to_vec())
        }
        TransportSlice::Udp(udp) => {
            if udp.checksum() != 0 {
                let sum = udp
                    .to_header()
                    .calc_checksum_ipv4_raw(header.source(), header.destination(), udp.payload())
                    .expect("a length that fits");
                assert_eq!(udp.checksum(), sum, "UDP checksum");
            }
            (udp.source_port(), udp.destination_port(), udp.payload().to_vec())
        }
        TransportSlice::Icmpv4(icmp) => {
            assert_eq!(
                icmp.checksum(),
                icmp.icmp_type().calc_checksum(icmp.payload()),
                "ICMP checksum"
            );
            (0, 0, icmp.payload().to_vec())
        }
        other => panic!("unexpected transport {other:?}"),
    };
    Seen {
        macs: (link.source(), link.destination()),
        from: (header.source_addr(), from),
        to: (header.destination_addr(), to),
        protocol,
        payload,
    }
}

/// What a tunnel packet from the node under test carries: VNI, node and inner frame. The outer
/// headers are checked here.
pub fn untunnel(packet: &[u8]) -> (u32, Ipv4Addr, Vec<u8>) {
    assert_eq!(see(packet).macs.0, NODE_MAC, "outer source MAC");
    untunnel_any(packet)
}

/// As [`untunnel`], also for a node whose MAC the kernel has yet to resolve.
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
