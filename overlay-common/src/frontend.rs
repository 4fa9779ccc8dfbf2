//! How the backend's node learns the frontend of a flow with direct server return (DSR).

use crate::{
    Be16, Be32, Mac,
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet},
};

/// The address and port that a client outside sent to. The ingress node writes them into the MACs
/// of the frame inside the tunnel, which have no other meaning between nodes. The destination is
/// [`Mac::of_ip`] of the address; the source begins with [`Frontend::MARK`] and ends with the port.
/// Both are unicast addresses (IEEE 802, I/G), so the kernel's vxlan device treats them like any
/// other.
///
/// An IPv6 address does not fit. The frame carries its [`crate::hash::of_node`] instead, and map
/// `frontends6` has the address for the node and this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The address.
    pub address: Be32,
    /// The port.
    pub port: Be16,
}

impl Frontend {
    /// First four bytes of the source MAC: locally administered, and different from every MAC of
    /// our interfaces.
    pub const MARK: [u8; 4] = [0x06, b'a', b's', b'k'];
    /// Flag in [`Frontend::bits`]: a frontend is present.
    const SOME: u64 = 1 << 48;

    /// The Ethernet header of an IPv4 packet that carries the frontend.
    #[inline(always)]
    pub const fn header(self) -> Ethernet {
        let [a, b, c, d] = Self::MARK;
        let [e, f] = self.port.raw().to_ne_bytes();
        Ethernet {
            dst: Mac::of_ip(self.address),
            src: Mac::new([a, b, c, d, e, f]),
            ethertype: Be16::new(ETHERTYPE_IPV4),
        }
    }

    /// As [`Frontend::header`] for an IPv6 packet. [`Frontend::address`] is
    /// [`crate::hash::of_node`] of the frontend's address.
    #[inline(always)]
    pub const fn header6(self) -> Ethernet {
        let Ethernet { dst, src, .. } = self.header();
        Ethernet { dst, src, ethertype: Be16::new(ETHERTYPE_IPV6) }
    }

    /// The frontend in a frame's header, packed for a register because BPF functions take scalars;
    /// 0 if there is none.
    #[inline(always)]
    pub fn bits(ethernet: &Ethernet) -> u64 {
        let [a, b, c, d, e, f] = ethernet.src.bytes();
        if u32::from_ne_bytes([a, b, c, d]) != u32::from_ne_bytes(Self::MARK) {
            return 0;
        }
        let [_, _, g, h, i, j] = ethernet.dst.bytes();
        let address = Be32::from_raw(u32::from_ne_bytes([g, h, i, j]));
        Self { address, port: Be16::from_raw(u16::from_ne_bytes([e, f])) }.to_bits()
    }

    /// This frontend in the form of [`Frontend::bits`].
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        Self::SOME | (self.port.raw() as u64) << 32 | self.address.raw() as u64
    }

    /// From [`Frontend::bits`].
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits == 0 {
            return None;
        }
        let address = Be32::from_raw(bits as u32);
        Some(Self { address, port: Be16::from_raw((bits >> 32) as u16) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_carries_the_frontend() {
        for (address, port) in
            [([172, 16, 1, 10], 8080), ([255, 255, 255, 255], 65_535), ([0; 4], 0)]
        {
            let frontend = Frontend { address: Be32::from_octets(address), port: Be16::new(port) };
            for (header, ethertype) in
                [(frontend.header(), ETHERTYPE_IPV4), (frontend.header6(), ETHERTYPE_IPV6)]
            {
                assert_eq!(Frontend::from_bits(Frontend::bits(&header)), Some(frontend));
                assert_eq!(Frontend::bits(&header), frontend.to_bits());
                assert_eq!(header.ethertype.get(), ethertype);
                assert!(!header.src.is_group() && !header.dst.is_group());
            }
        }
    }

    #[test]
    fn other_frames_carry_none() {
        let gateway = Mac::of_ip(Be32::from_octets([10, 0, 1, 1]));
        for src in [Mac::default(), gateway, Mac::new([0x06, b'a', b's', b'j', 0, 80])] {
            let ethernet = Ethernet { src, dst: gateway, ethertype: Be16::new(ETHERTYPE_IPV4) };
            assert_eq!(Frontend::bits(&ethernet), 0);
            assert_eq!(Frontend::from_bits(0), None);
        }
    }
}
