//! Headers in wire format. Ethernet, IPv4, TCP, UDP and ICMP headers come from `network-types`.
//! This module has those that it lacks and those that the programs write as a whole.

use crate::{Be16, Be32, Ip6, Mac, pod::plain};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// EtherType of a VLAN tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of IPv6 (RFC 2464, section 3).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// IP protocol number of IGMP.
pub const PROTO_IGMP: u8 = 2;
/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// IP protocol number of SCTP.
pub const PROTO_SCTP: u8 = 132;
/// Next-header number of ICMPv6 (RFC 4443, section 1).
pub const PROTO_ICMPV6: u8 = 58;

/// An Ethernet header (14 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// EtherType.
    pub ethertype: Be16,
}

/// An IPv4 header without options (RFC 791, 20 bytes). The addresses are arrays because the fields
/// have an alignment of 2 on the wire: Ethernet's header is 14 bytes long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ipv4 {
    /// Version (4) and header length in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of the packet, header included.
    pub total_length: Be16,
    /// Identification.
    pub id: Be16,
    /// Flags and fragment offset.
    pub fragment: Be16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: Be16,
    /// Source, wire order.
    pub src: [u8; 4],
    /// Destination, wire order.
    pub dst: [u8; 4],
}

/// The "don't fragment" bit of [`Ipv4::fragment`].
pub const IPV4_DF: u16 = 0x4000;
/// The "more fragments" bit of [`Ipv4::fragment`].
pub const IPV4_MF: u16 = 0x2000;
/// The offset in [`Ipv4::fragment`], in units of eight bytes.
pub const IPV4_OFFSET: u16 = 0x1fff;

impl Ipv4 {
    /// Source address.
    #[inline(always)]
    pub const fn saddr(&self) -> Be32 {
        Be32::from_octets(self.src)
    }

    /// Destination address.
    #[inline(always)]
    pub const fn daddr(&self) -> Be32 {
        Be32::from_octets(self.dst)
    }

    /// The header checksum, computed from scratch over the other fields.
    #[inline(always)]
    pub const fn sum(&self) -> Be16 {
        let [a, b, c, d] = self.src;
        let [e, f, g, h] = self.dst;
        let words = [
            u16::from_ne_bytes([self.version_ihl, self.tos]),
            self.total_length.raw(),
            self.id.raw(),
            self.fragment.raw(),
            u16::from_ne_bytes([self.ttl, self.protocol]),
            u16::from_ne_bytes([a, b]),
            u16::from_ne_bytes([c, d]),
            u16::from_ne_bytes([e, f]),
            u16::from_ne_bytes([g, h]),
            0,
        ];
        Be16::from_raw(crate::checksum::ipv4_header(&words))
    }

    /// Whether this is a fragment, first ones included.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment.get() & (IPV4_MF | IPV4_OFFSET) != 0
    }

    /// Whether this is a fragment without the transport header.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.fragment.get() & IPV4_OFFSET != 0
    }
}

/// An ARP packet for IPv4 over Ethernet (RFC 826, 28 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Arp {
    /// Hardware type, 1.
    pub hardware: Be16,
    /// Protocol type, 0x0800.
    pub protocol: Be16,
    /// Hardware address length, 6.
    pub hardware_len: u8,
    /// Protocol address length, 4.
    pub protocol_len: u8,
    /// 1 request, 2 reply.
    pub operation: Be16,
    /// Sender's MAC.
    pub sender_mac: Mac,
    /// Sender's address, wire order.
    pub sender_ip: [u8; 4],
    /// Target's MAC.
    pub target_mac: Mac,
    /// Target's address, wire order.
    pub target_ip: [u8; 4],
}

/// ARP operation: request.
pub const ARP_REQUEST: u16 = 1;
/// ARP operation: reply.
pub const ARP_REPLY: u16 = 2;

/// An IPv6 header (RFC 8200, section 3, 40 bytes). Code copies it to its own memory, because the
/// header in the packet is aligned to 2 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ipv6 {
    /// Version (6), traffic class and flow label.
    pub version_class_flow: [u8; 4],
    /// Length of the data behind the header; 0 for jumbograms (RFC 2675).
    pub payload_length: Be16,
    /// Protocol of the data behind the header, or the first extension header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: Ip6,
    /// Destination.
    pub dst: Ip6,
}

/// A neighbour solicitation or advertisement without its options (RFC 4861, sections 4.3 and 4.4,
/// 24 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Neighbour {
    /// ICMPv6 type: [`ND_SOLICITATION`] or [`ND_ADVERTISEMENT`].
    pub kind: u8,
    /// ICMPv6 code, 0.
    pub code: u8,
    /// ICMPv6 checksum.
    pub checksum: Be16,
    /// Advertisements: `ND_ROUTER`, `ND_SOLICITED` and `ND_OVERRIDE`. Otherwise zero.
    pub flags: u8,
    /// Reserved: zero when sent, ignored on receipt.
    pub reserved: [u8; 3],
    /// The address that is asked for or announced.
    pub target: Ip6,
}

/// ICMPv6 type of a router solicitation, the first message of neighbour discovery.
pub const ND_FIRST: u8 = 133;
/// ICMPv6 type of a neighbour solicitation.
pub const ND_SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const ND_ADVERTISEMENT: u8 = 136;
/// ICMPv6 type of a redirect, the last message of neighbour discovery.
pub const ND_LAST: u8 = 137;
/// The sender is a router.
pub const ND_ROUTER: u8 = 0x80;
/// The advertisement answers a solicitation.
pub const ND_SOLICITED: u8 = 0x40;
/// The advertisement replaces a cached entry.
pub const ND_OVERRIDE: u8 = 0x20;

/// A link-layer address option for Ethernet (RFC 4861, section 4.6.1, 8 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LinkLayerOption {
    /// [`ND_OPTION_SOURCE`] or [`ND_OPTION_TARGET`].
    pub kind: u8,
    /// Length in units of eight bytes.
    pub length: u8,
    /// The MAC.
    pub mac: Mac,
}

/// Option: MAC of the sender.
pub const ND_OPTION_SOURCE: u8 = 1;
/// Option: MAC of the target.
pub const ND_OPTION_TARGET: u8 = 2;

/// A whole neighbour advertisement behind the Ethernet header, written to the packet in one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Advertisement {
    /// IPv6.
    pub ipv6: Ipv6,
    /// The advertisement.
    pub neighbour: Neighbour,
    /// The target's MAC.
    pub option: LinkLayerOption,
}

/// A UDP header (RFC 768, 8 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub dest: Be16,
    /// Length, header included.
    pub length: Be16,
    /// Checksum; 0 for none.
    pub checksum: Be16,
}

/// A TCP header without options (RFC 9293, section 3.1, 20 bytes). The 32-bit fields are arrays
/// because the fields have an alignment of 2 on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub dest: Be16,
    /// Sequence number, wire order.
    pub sequence: [u8; 4],
    /// Acknowledgement number, wire order.
    pub acknowledgement: [u8; 4],
    /// Length of the header in words, in the upper four bits.
    pub data_offset: u8,
    /// Bits of `TCP_*`.
    pub flags: u8,
    /// Window.
    pub window: Be16,
    /// Checksum.
    pub checksum: Be16,
    /// Urgent pointer.
    pub urgent: Be16,
}

/// In [`Tcp::flags`]: the sender has no more data.
pub const TCP_FIN: u8 = 0x01;
/// In [`Tcp::flags`]: synchronize sequence numbers.
pub const TCP_SYN: u8 = 0x02;
/// In [`Tcp::flags`]: reset the connection.
pub const TCP_RST: u8 = 0x04;
/// In [`Tcp::flags`]: the acknowledgement number is valid.
pub const TCP_ACK: u8 = 0x10;

/// A TCP segment without data, written to the packet in one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TcpSegment {
    /// Ethernet.
    pub ethernet: Ethernet,
    /// IPv4.
    pub ipv4: Ipv4,
    /// TCP.
    pub tcp: Tcp,
}

/// As [`TcpSegment`], over IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TcpSegment6 {
    /// Ethernet.
    pub ethernet: Ethernet,
    /// IPv6, with the alignment that it has in the packet.
    pub ipv6: PackedIpv6,
    /// TCP.
    pub tcp: Tcp,
}

/// An IPv6 fragment header (RFC 8200, section 4.5, 8 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentHeader6 {
    /// Protocol of the data behind the header, or the next extension header.
    pub next_header: u8,
    /// Reserved.
    pub reserved: u8,
    /// Offset in units of 8 bytes in the upper 13 bits, and the "more fragments" flag in the last
    /// bit.
    pub offset: Be16,
    /// Identification.
    pub id: Be32,
}

impl FragmentHeader6 {
    /// The extension header's number.
    pub const NUMBER: u8 = 44;

    /// Whether this is a fragment other than the first.
    #[inline(always)]
    pub const fn is_later(&self) -> bool {
        self.offset.get() & 0xfff8 != 0
    }
}

/// A VXLAN header (RFC 7348, section 5, 8 bytes). The fields have an alignment of 2 on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Vxlan {
    /// Flags, in the first byte, and reserved bits: [`VXLAN_FLAG_VNI`] must be set; the others are
    /// zero when sent and ignored on receipt.
    pub flags: Be16,
    /// Reserved: zero when sent, ignored on receipt.
    pub reserved: Be16,
    /// The VNI in the upper 24 of 32 bits, split in two. The rest is reserved: zero when sent,
    /// ignored on receipt.
    pub vni: [Be16; 2],
}

/// The I flag in [`Vxlan::flags`]: the VNI is valid.
pub const VXLAN_FLAG_VNI: u16 = 0x0800;

impl Vxlan {
    /// A header for `vni` (24 bits).
    #[inline(always)]
    pub const fn new(vni: u32) -> Self {
        let [high, low] = [Be16::new((vni >> 8) as u16), Be16::new((vni << 8) as u16)];
        Self { flags: Be16::new(VXLAN_FLAG_VNI), reserved: Be16::ZERO, vni: [high, low] }
    }

    /// The VNI in host order; none without the I flag.
    #[inline(always)]
    pub const fn vni(&self) -> Option<u32> {
        if self.flags.get() & VXLAN_FLAG_VNI == 0 {
            return None;
        }
        let [high, low] = self.vni;
        Some((high.get() as u32) << 8 | low.get() as u32 >> 8)
    }
}

/// All headers that encapsulation puts in front of the inner frame's payload: the four outer
/// headers and the inner Ethernet header, written to the packet in one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Encapsulation {
    /// Outer Ethernet.
    pub ethernet: Ethernet,
    /// Outer IPv4.
    pub ipv4: Ipv4,
    /// Outer UDP.
    pub udp: Udp,
    /// VXLAN.
    pub vxlan: Vxlan,
    /// Inner Ethernet.
    pub inner: Ethernet,
}

/// The same header as [`Ipv6`], with the alignment that it has in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PackedIpv6 {
    /// Version (6), traffic class and flow label.
    pub version_class_flow: [Be16; 2],
    /// Length of the data behind the header; 0 for jumbograms (RFC 2675).
    pub payload_length: Be16,
    /// Protocol of the data behind the header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source, wire order.
    pub src: [u16; 8],
    /// Destination, wire order.
    pub dst: [u16; 8],
}

/// As [`Encapsulation`], with outer IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Encapsulation6 {
    /// Outer Ethernet.
    pub ethernet: Ethernet,
    /// Outer IPv6.
    pub ipv6: PackedIpv6,
    /// Outer UDP.
    pub udp: Udp,
    /// VXLAN.
    pub vxlan: Vxlan,
    /// Inner Ethernet.
    pub inner: Ethernet,
}

/// An ICMP header of the kinds whose second word holds an MTU (RFC 792; RFC 1191, section 4; 8
/// bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum of the header and the data behind it.
    pub checksum: Be16,
    /// Unused, zero.
    pub unused: Be16,
    /// MTU of the next hop in bytes.
    pub mtu: Be16,
}

/// ICMP type: destination unreachable.
pub const ICMP_UNREACHABLE: u8 = 3;
/// Code of [`ICMP_UNREACHABLE`]: fragmentation needed and DF set.
pub const ICMP_FRAGMENTATION_NEEDED: u8 = 4;

/// Code of [`ICMP_UNREACHABLE`]: the host does not support the protocol.
pub const ICMP_PROTOCOL_UNREACHABLE: u8 = 2;

/// Code of [`ICMP_UNREACHABLE`]: no socket listens on the port.
pub const ICMP_PORT_UNREACHABLE: u8 = 3;

/// ICMP type: time exceeded; code 0 is "in transit".
pub const ICMP_TIME_EXCEEDED: u8 = 11;

/// Whether an ICMP type reports an error: destination unreachable, source quench, redirect, time
/// exceeded, parameter problem (RFC 792). An ICMP error never causes another error.
#[inline(always)]
pub const fn is_icmp_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// The headers of an ICMP error, written to the packet in one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IcmpError {
    /// Ethernet.
    pub ethernet: Ethernet,
    /// IPv4.
    pub ipv4: Ipv4,
    /// ICMP.
    pub icmp: Icmp,
}

/// The header of an ICMPv6 error (RFC 4443, section 3, 8 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Icmp6 {
    /// Type: one of `ICMP6_*`.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum of a pseudo-header, this header and the data behind it.
    pub checksum: Be16,
    /// "Packet too big": MTU of the next hop in bytes; "parameter problem": offset of the error.
    /// Otherwise zero.
    pub mtu: Be32,
}

/// ICMPv6 type: destination unreachable, the first error.
pub const ICMP6_UNREACHABLE: u8 = 1;
/// Code of [`ICMP6_UNREACHABLE`]: no socket listens on the port.
pub const ICMP6_PORT_UNREACHABLE: u8 = 4;
/// ICMPv6 type: parameter problem, the last error.
pub const ICMP6_PARAMETER_PROBLEM: u8 = 4;
/// Code of [`ICMP6_PARAMETER_PROBLEM`]: the next header is unknown.
pub const ICMP6_NEXT_HEADER: u8 = 1;
/// ICMPv6 type: packet too big.
pub const ICMP6_TOO_BIG: u8 = 2;
/// ICMPv6 type: echo request, the first one that reports no error (RFC 4443, section 2.1).
pub const ICMP6_ECHO_REQUEST: u8 = 128;
/// Smallest MTU of an IPv6 link, in bytes (RFC 8200, section 5).
pub const IPV6_MIN_MTU: u32 = 1280;

/// The headers of an ICMPv6 error behind the Ethernet header, written to the packet in one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Icmp6Error {
    /// IPv6.
    pub ipv6: Ipv6,
    /// ICMPv6.
    pub icmp: Icmp6,
}

plain!(
    Ethernet,
    Ipv4,
    Arp,
    Ipv6,
    Neighbour,
    LinkLayerOption,
    Advertisement,
    Udp,
    Tcp,
    TcpSegment,
    TcpSegment6,
    FragmentHeader6,
    Vxlan,
    Encapsulation,
    PackedIpv6,
    Encapsulation6,
    Icmp,
    IcmpError,
    Icmp6,
    Icmp6Error
);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn headers_have_their_sizes_on_the_wire() {
        assert_eq!(size_of::<Ethernet>(), 14);
        assert_eq!(size_of::<Ipv4>(), 20);
        assert_eq!(size_of::<Arp>(), 28);
        assert_eq!(size_of::<Ipv6>(), 40);
        assert_eq!(size_of::<Neighbour>(), 24);
        assert_eq!(size_of::<LinkLayerOption>(), 8);
        assert_eq!(size_of::<Advertisement>(), 72);
        assert_eq!(offset_of!(Advertisement, option), 64);
        assert_eq!(size_of::<Udp>(), 8);
        assert_eq!(size_of::<Tcp>(), 20);
        assert_eq!(offset_of!(Tcp, checksum), 16);
        assert_eq!(size_of::<TcpSegment>(), 54);
        assert_eq!(size_of::<TcpSegment6>(), 74);
        assert_eq!(size_of::<FragmentHeader6>(), 8);
        assert_eq!(size_of::<Vxlan>(), 8);
        assert_eq!(size_of::<Encapsulation>(), 64);
        assert_eq!(size_of::<PackedIpv6>(), 40);
        assert_eq!(size_of::<Encapsulation6>(), 84);
        assert_eq!(offset_of!(Encapsulation6, inner), crate::VXLAN_OVERHEAD6 as usize);
        assert_eq!(size_of::<Icmp>(), 8);
        assert_eq!(size_of::<IcmpError>(), 42);
        assert_eq!(size_of::<Icmp6>(), 8);
        assert_eq!(size_of::<Icmp6Error>(), 48);
        assert_eq!(offset_of!(Encapsulation, inner), crate::VXLAN_OVERHEAD as usize);
    }

    #[test]
    fn a_vni_is_written_in_24_bits_of_network_order() {
        let header = Vxlan::new(0x12_3456);
        // SAFETY: eight bytes without padding.
        let bytes: [u8; 8] = unsafe { core::mem::transmute(header) };
        assert_eq!(bytes, [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(header.vni(), Some(0x12_3456));
        assert_eq!(Vxlan { flags: Be16::ZERO, ..header }.vni(), None);
        // Other bits are reserved and ignored (RFC 7348, section 5).
        let [high, low] = header.vni;
        let vni = [high, Be16::new(low.get() | 0xff)];
        let noisy = Vxlan { flags: Be16::new(0xffff), reserved: Be16::new(0xffff), vni };
        assert_eq!(noisy.vni(), Some(0x12_3456));
    }

    #[test]
    fn fragments_are_told_from_whole_packets() {
        let whole = Ipv4 { fragment: Be16::new(IPV4_DF), ..Ipv4::default() };
        let first = Ipv4 { fragment: Be16::new(IPV4_MF), ..Ipv4::default() };
        let last = Ipv4 { fragment: Be16::new(185), ..Ipv4::default() };
        assert!(!whole.is_fragment());
        assert!(first.is_fragment() && !first.is_later_fragment());
        assert!(last.is_fragment() && last.is_later_fragment());
    }
}
