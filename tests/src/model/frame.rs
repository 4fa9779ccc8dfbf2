//! Headers in bytes: reading them by their offsets in the RFCs, and changing what checksums cover.

use std::net::Ipv4Addr;

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

/// Replaces bytes. The caller has seen that they are there.
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

    /// A header of an IPv4 packet.
    pub fn ipv4(src: Mac, dst: Mac) -> Self {
        Self { dst, src, kind: IPV4 }
    }

    /// As on the wire.
    pub fn bytes(&self) -> [u8; 14] {
        let mut out = [0; 14];
        put(&mut out, 0, &self.dst.bytes());
        put(&mut out, 6, &self.src.bytes());
        put(&mut out, 12, &self.kind.to_be_bytes());
        out
    }
}

/// The fields of an IPv4 header (RFC 791) that decide anything.
#[derive(Clone, Copy)]
pub struct Ip {
    /// Offset of the header in the frame.
    pub at: usize,
    /// Version.
    pub version: u8,
    /// Length of the header in bytes.
    pub header: usize,
    /// Total length.
    pub total: usize,
    /// Identification.
    pub id: u16,
    /// More fragments follow.
    pub more: bool,
    /// The fragment's offset is not zero.
    pub later: bool,
    /// ECN field (RFC 3168).
    pub ecn: u8,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
}

impl Ip {
    /// The header at an offset.
    pub fn at(frame: &[u8], at: usize) -> Option<Self> {
        let header: [u8; 20] = bytes(frame, at)?;
        let fragment = half(&header, 6)?;
        Some(Self {
            at,
            version: header[0] >> 4,
            header: usize::from(header[0] & 15) * 4,
            total: half(&header, 2)?.into(),
            id: half(&header, 4)?,
            more: fragment & 0x2000 != 0,
            later: fragment & 0x1fff != 0,
            ecn: header[1] & 3,
            ttl: header[8],
            protocol: header[9],
            src: Ipv4Addr::from(bytes::<4>(&header, 12)?),
            dst: Ipv4Addr::from(bytes::<4>(&header, 16)?),
        })
    }

    /// Version 4 and no options.
    pub fn is_plain(&self) -> bool {
        self.version == 4 && self.header == 20
    }

    /// Any fragment.
    pub fn is_fragment(&self) -> bool {
        self.more || self.later
    }

    /// Whether the header is possible and the frame as long as it says. What an aggregate says of
    /// its length holds for none of its segments, and zero is for more than the field can say.
    pub fn check(&self, frame: &[u8], is_aggregate: bool) -> Result<(), Reason> {
        let is_huge = is_aggregate && self.total == 0;
        if self.version != 4 || self.header < 20 || (self.total < self.header && !is_huge) {
            return Err(Reason::Malformed);
        }
        if self.at + self.total > frame.len() && !is_aggregate {
            return Err(Reason::Truncated);
        }
        Ok(())
    }

    /// Offset of what follows the header.
    pub fn payload(&self) -> usize {
        self.at + self.header
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
