//! What the backend's node is told of a flow whose replies go straight to the client.

use crate::{
    Be16, Be32, Mac,
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet},
};

/// The address and the port that a client outside asked. The node that was asked writes them into the MACs
/// of the frame inside the tunnel, which mean nothing between nodes: the destination is
/// [`Mac::of_ip`] of the address, the source begins with [`Frontend::MARK`] and ends with the port. Both are
/// unicast addresses (IEEE 802, I/G), which the kernel's vxlan device takes as any.
///
/// An IPv6 address does not fit: it is told by [`crate::hash::of_node`] of it, and map `frontends6` says whose that
/// is of the node that tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The address.
    pub address: Be32,
    /// The port.
    pub port: Be16,
}

impl Frontend {
    /// How the source MAC begins: locally administered, and none that an interface of ours has.
    pub const MARK: [u8; 4] = [0x06, b'a', b's', b'k'];
    /// In [`Frontend::bits`]: there is something.
    const SOME: u64 = 1 << 48;

    /// The Ethernet header of an IPv4 packet that says it.
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

    /// The same of an IPv6 packet, whose [`Frontend::address`] is [`crate::hash::of_node`] of the one that was asked.
    #[inline(always)]
    pub const fn header6(self) -> Ethernet {
        let Ethernet { dst, src, .. } = self.header();
        Ethernet { dst, src, ethertype: Be16::new(ETHERTYPE_IPV6) }
    }

    /// What a frame's header says, in a register as functions of BPF take it; 0 for nothing.
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

    /// The same of what is at hand.
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
    fn what_a_frame_is_told_it_says() {
        for (address, port) in
            [([172, 16, 1, 10], 8080), ([255, 255, 255, 255], 65_535), ([0; 4], 0)]
        {
            let asked = Frontend { address: Be32::from_octets(address), port: Be16::new(port) };
            for (header, ethertype) in
                [(asked.header(), ETHERTYPE_IPV4), (asked.header6(), ETHERTYPE_IPV6)]
            {
                assert_eq!(Frontend::from_bits(Frontend::bits(&header)), Some(asked));
                assert_eq!(Frontend::bits(&header), asked.to_bits());
                assert_eq!(header.ethertype.get(), ethertype);
                assert!(!header.src.is_group() && !header.dst.is_group());
            }
        }
    }

    #[test]
    fn other_frames_say_nothing() {
        let gateway = Mac::of_ip(Be32::from_octets([10, 0, 1, 1]));
        for src in [Mac::default(), gateway, Mac::new([0x06, b'a', b's', b'j', 0, 80])] {
            let ethernet = Ethernet { src, dst: gateway, ethertype: Be16::new(ETHERTYPE_IPV4) };
            assert_eq!(Frontend::bits(&ethernet), 0);
            assert_eq!(Frontend::from_bits(0), None);
        }
    }
}
