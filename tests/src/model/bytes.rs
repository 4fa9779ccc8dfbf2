//! Headers in bytes: reading them by their offsets in the RFCs, and changing what checksums cover.

use std::net::IpAddr;

use overlay_common::{Mac, Reason};

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Length of the four outer headers of VXLAN.
pub const TUNNEL: usize = 14 + 20 + 8 + 8;
/// The same where outer IPv6 is.
pub const TUNNEL6: usize = 14 + 40 + 8 + 8;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of a VLAN tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;

/// `N` bytes at an offset, if the frame has them.
pub fn bytes<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at + N)?.try_into().ok()
}

/// A half word in network order.
pub fn half(frame: &[u8], at: usize) -> Option<u16> {
    bytes(frame, at).map(u16::from_be_bytes)
}

/// Replaces bytes. The caller has checked that they exist.
pub fn put(frame: &mut [u8], at: usize, new: &[u8]) {
    frame[at..at + new.len()].copy_from_slice(new);
}

/// An Ethernet header.
#[derive(Clone, Copy)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// EtherType.
    pub kind: u16,
}

impl Ethernet {
    /// The header at an offset.
    pub fn at(frame: &[u8], at: usize) -> Result<Self, Reason> {
        let [dst @ .., _, _, _, _, _, _, _, _] = bytes::<14>(frame, at).ok_or(Reason::Truncated)?;
        let src = bytes(frame, at + 6).ok_or(Reason::Truncated)?;
        let kind = half(frame, at + 12).ok_or(Reason::Truncated)?;
        Ok(Self { dst: Mac::new(dst), src: Mac::new(src), kind })
    }

    /// A header of an IP packet.
    pub fn of_ip(src: Mac, dst: Mac, ipv6: bool) -> Self {
        Self { dst, src, kind: if ipv6 { IPV6 } else { IPV4 } }
    }

    /// Whether the header is in front of an IPv6 packet; `None` if it is in front of no IP packet.
    pub fn is_ip(&self) -> Option<bool> {
        match self.kind {
            IPV4 => Some(false),
            IPV6 => Some(true),
            _ => None,
        }
    }

    /// The header in wire format.
    pub fn bytes(&self) -> [u8; 14] {
        let mut out = [0; 14];
        put(&mut out, 0, &self.dst.bytes());
        put(&mut out, 6, &self.src.bytes());
        put(&mut out, 12, &self.kind.to_be_bytes());
        out
    }
}

/// An address as bytes.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The Internet checksum of `data` from scratch (RFC 1071), big-endian words, as a number.
pub fn ones_complement(data: &[u8]) -> u16 {
    let sum =
        data.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u64 = sum.map(u64::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A checksum after bytes it covers (an even number) were replaced: HC' = ~(~HC + ~m + m')
/// (RFC 1624, equation 3).
pub fn updated(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    let mut sum = u32::from(!checksum);
    for (old, new) in old.chunks_exact(2).zip(new.chunks_exact(2)) {
        sum += (word(old) ^ 0xffff) + word(new);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1624_is_computed_as_printed() {
        // Section 4: HC = 0xdd2f, m = 0x5555, m' = 0x3285, HC' = 0x0000.
        assert_eq!(updated(0xdd2f, &[0x55, 0x55], &[0x32, 0x85]), 0x0000);
    }

    #[test]
    fn the_example_of_rfc_1071_is_computed_as_printed() {
        // Section 3: the sum of these words is ddf2.
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(ones_complement(&data), !0xddf2);
    }
}
