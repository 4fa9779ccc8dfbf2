//! The tunnel where the underlay is IPv6.

use std::net::Ipv4Addr;

use overlay_common::{Ip6, Reason};

use super::{
    frame::{ETHERNET, Ethernet, IPV6, UDP, bytes, half},
    host::NextHop,
    underlay::{accept, check_other, conclude, not_ipv4, outer, to_host},
    walk::{Outcome, Walk},
};

/// An outer IPv6 header, behind Ethernet's.
struct Outer {
    next: u8,
    ecn: u8,
    src: Ip6,
    dst: Ip6,
}

impl Outer {
    fn of(walk: &Walk<'_>) -> Option<Self> {
        let header: [u8; 40] = bytes(&walk.frame, ETHERNET)?;
        let address = |at| bytes::<16>(&header, at).map(Ip6::from_octets);
        Some(Self { next: header[6], ecn: header[1] >> 4 & 3, src: address(8)?, dst: address(24)? })
    }
}

fn is_ipv6(walk: &Walk<'_>) -> bool {
    Ethernet::at(&walk.frame, 0).is_ok_and(|ethernet| ethernet.kind == IPV6)
}

/// A packet that came in by the NIC.
pub fn receive(walk: &mut Walk<'_>) -> Outcome {
    if !is_ipv6(walk) {
        return match outer(walk) {
            Some((ip, head)) => to_host(walk, &ip, &head),
            None => not_ipv4(walk),
        };
    }
    let config = walk.tables.config;
    let port = half(&walk.frame, ETHERNET + 42);
    let whole: Option<[u8; 8]> = bytes(&walk.frame, ETHERNET + 40);
    let outer = Outer::of(walk).ok_or(Reason::Truncated)?;
    let is_tunnel = outer.next == UDP
        && outer.dst == config.vtep6
        && whole.is_some()
        && port == Some(config.vxlan_port.get());
    if !is_tunnel {
        return not_ipv4(walk);
    }
    // "A tunnel packet comes from a node if its source is the address under the source's number."
    let of_source = walk.tables.agent.vteps6.iter().find(|(_, vtep)| **vtep == outer.src);
    let sender = Ipv4Addr::from(*of_source.ok_or(Reason::NotPeer)?.0);
    check_other(walk, sender)?;
    let outcome = accept(walk, sender, outer.ecn);
    conclude(walk, sender, outcome)
}

/// Whether a packet that came in by another interface is, or begins, a tunnel packet to this node: also
/// behind extension headers (RFC 8200, section 4).
pub fn is_to_vtep(walk: &Walk<'_>) -> bool {
    let Some(ip) = Outer::of(walk).filter(|_| is_ipv6(walk)) else { return false };
    let config = &walk.tables.config;
    if ip.dst != config.vtep6 {
        return false;
    }
    let (mut next, mut at) = (ip.next, ETHERNET + 40);
    for _ in 0..8 {
        if next == UDP {
            let whole: Option<[u8; 8]> = bytes(&walk.frame, at);
            return whole.is_some_and(|udp| half(&udp, 2) == Some(config.vxlan_port.get()));
        }
        let Some([following, length]) = bytes(&walk.frame, at) else { return false };
        at += match next {
            44 if half(&walk.frame, at + 2).is_some_and(|offset| offset < 8) => 8,
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(length) + 1) * 8,
            51 => (usize::from(length) + 2) * 4,
            _ => return false,
        };
        next = following;
    }
    true
}

impl Walk<'_> {
    /// Puts the outer headers in front. Flow label and source port are left at zero: they are the
    /// hash's. The UDP checksum is zero (RFC 6935).
    pub fn push6(&mut self, vni: u32, node: Ipv4Addr, ecn: u8, hop: &NextHop) {
        let config = self.tables.config;
        let to = self.tables.agent.vteps6.get(&node.into()).copied().unwrap_or_default();
        let length = ((self.frame.len() + 16) as u16).to_be_bytes();
        let (src, dst) = hop.macs;
        let mut frame = Ethernet { dst, src, kind: IPV6 }.bytes().to_vec();
        frame.extend([0x60, ecn << 4, 0, 0]);
        frame.extend(length);
        frame.extend([UDP, 64]);
        frame.extend(config.vtep6.octets());
        frame.extend(to.octets());
        frame.extend([0, 0]);
        frame.extend(config.vxlan_port.get().to_be_bytes());
        frame.extend(length);
        frame.extend([0, 0, 0x08, 0, 0, 0]);
        frame.extend((vni << 8).to_be_bytes());
        frame.append(&mut self.frame);
        self.frame = frame;
    }
}
