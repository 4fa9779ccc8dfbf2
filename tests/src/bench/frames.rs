//! Frames for test runs of programs.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use etherparse::PacketBuilder;

/// The two ends of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// MACs, source first.
    pub macs: ([u8; 6], [u8; 6]),
    /// Addresses, source first.
    pub addresses: (Ipv4Addr, Ipv4Addr),
}

/// A datagram that fills 64 bytes of Ethernet (with the checksum of the wire, which is not in it).
///
/// # Errors
/// Never, for frames of this size.
pub fn datagram(ends: &Ends) -> anyhow::Result<Vec<u8>> {
    udp(ends, (40_000, 9), &[0; 18])
}

/// A frame in VXLAN; the tunnel's checksum is zero (RFC 7348, section 5).
///
/// # Errors
/// If the frame is too large for one.
pub fn vxlan(outer: &Ends, port: u16, vni: u32, frame: &[u8]) -> anyhow::Result<Vec<u8>> {
    let [_, a, b, c] = vni.to_be_bytes();
    let mut payload = vec![0x08, 0, 0, 0, a, b, c, 0];
    payload.extend(frame);
    let mut packet = udp(outer, (50_000, port), &payload)?;
    packet[40..42].copy_from_slice(&[0, 0]);
    Ok(packet)
}

/// A datagram.
///
/// # Errors
/// If it is too large for one.
pub fn udp(ends: &Ends, ports: (u16, u16), payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(ends.macs.0, ends.macs.1)
        .ipv4(ends.addresses.0.octets(), ends.addresses.1.octets(), 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, payload)
        .context("build a frame")?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnelled_frame_is_the_frame_behind_fifty_bytes() {
        let ends = Ends {
            macs: ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]),
            addresses: (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)),
        };
        let inner = datagram(&ends).expect("a frame");
        assert_eq!(inner.len(), 60);
        let outer = vxlan(&ends, 4789, 0x010203, &inner).expect("a packet");
        assert_eq!(outer[50..], inner[..]);
        assert_eq!(outer[42..50], [8, 0, 0, 0, 1, 2, 3, 0]);
        assert_eq!(outer[36..38], 4789u16.to_be_bytes());
        assert_eq!(outer[40..42], [0, 0], "no checksum of the tunnel");
    }
}
