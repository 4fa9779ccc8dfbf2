//! Tunnel packets on an IPv6 underlay.

use std::net::Ipv6Addr;

use super::{NODE_MAC, NODE6, PEER_MAC, PEER6};

/// Length of the outer headers.
pub const TUNNEL6: usize = 70;

/// A frame in VXLAN from the peer to the node under test.
pub fn vxlan6(vni: u32, frame: &[u8]) -> Vec<u8> {
    vxlan6_from(PEER6, vni, frame)
}

/// A frame in VXLAN from any address to the node under test. The UDP checksum is zero (RFC 6935).
pub fn vxlan6_from(sender: Ipv6Addr, vni: u32, frame: &[u8]) -> Vec<u8> {
    let length = (16 + frame.len()) as u16;
    let mut out = [&NODE_MAC[..], &PEER_MAC, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    out.extend(length.to_be_bytes());
    out.extend([17, 64]);
    out.extend(sender.octets());
    out.extend(NODE6.octets());
    out.extend(50_000_u16.to_be_bytes());
    out.extend(4789_u16.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend([0, 0, 0x08, 0, 0, 0]);
    out.extend((vni << 8).to_be_bytes());
    out.extend(frame);
    out
}

/// Parses a tunnel packet of the node under test with every outer field: VNI, destination, outer
/// traffic class, inner frame.
pub fn untunnel6(packet: &[u8]) -> (u32, Ipv6Addr, u8, Vec<u8>) {
    let half = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let address = |at: usize| {
        let octets: [u8; 16] = packet[at..at + 16].try_into().expect("an address");
        Ipv6Addr::from(octets)
    };
    assert_eq!(packet[6..12], NODE_MAC, "outer source MAC");
    assert_eq!(half(12), 0x86dd, "outer EtherType");
    assert_eq!(packet[14] >> 4, 6, "outer version");
    assert_eq!(usize::from(half(18)), packet.len() - 54, "outer payload length");
    assert_eq!(packet[20..22], [17, 64], "UDP, hop limit");
    assert_eq!(address(22), NODE6, "outer source");
    assert!(half(54) >= 49_152, "outer source port {}", half(54));
    assert_eq!(half(56), 4789, "outer port");
    assert_eq!(half(58), half(18), "UDP length");
    assert_eq!(half(60), 0, "no checksum (RFC 6935)");
    assert_eq!(packet[62..66], [0x08, 0, 0, 0], "VXLAN flags");
    assert_eq!(packet[69], 0, "reserved");
    let vni = u32::from_be_bytes([0, packet[66], packet[67], packet[68]]);
    let class = (half(14) >> 4) as u8;
    (vni, address(38), class, packet[TUNNEL6..].to_vec())
}
