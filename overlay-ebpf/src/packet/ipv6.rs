//! Checks of IPv6 headers (RFC 8200), extension headers, and neighbour discovery (RFC 4861).

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Reason,
    wire::{Ipv6, ND_FIRST, ND_LAST, PROTO_ICMPV6},
};

use crate::packet::frame::{ETH_LEN, load_at};

/// Length of an IPv6 header.
pub const IPV6_LEN: usize = size_of::<Ipv6>();
/// Offset of an ICMPv6 header directly behind the IPv6 header.
pub const ICMPV6: usize = ETH_LEN + IPV6_LEN;
/// Most extension headers; no sender needs so many (RFC 8504, section 5.3, lets hosts drop at 8).
pub const MOST_EXTENSIONS: usize = 8;

/// Checks an IPv6 header. `available` is the length of the packet from this header on. Aggregates
/// over 64 KiB have a payload length of 0 (BIG TCP, Linux 5.19).
#[inline(always)]
pub fn check_ipv6(ip: &Ipv6, available: u32, gso: bool) -> Result<(), Reason> {
    if ip.version_class_flow[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    if u32::from(ip.payload_length.get()) + IPV6_LEN as u32 > available && !gso {
        return Err(Reason::Truncated);
    }
    Ok(())
}

/// Whether an ICMPv6 type belongs to neighbour discovery (RFC 4861, section 4).
#[inline(always)]
pub fn is_discovery(kind: u8) -> bool {
    matches!(kind, ND_FIRST..=ND_LAST)
}

/// Rejects neighbour discovery behind extension headers, which Linux would still accept. `first` is
/// the header behind the IPv6 header. Hosts ignore fragments of it themselves (RFC 6980).
///
/// # Errors
/// [`Reason::NdUnknown`]; [`Reason::Malformed`] for more than [`MOST_EXTENSIONS`] headers;
/// [`Reason::Truncated`].
#[inline(always)]
pub fn reject_hidden_discovery(ctx: &TcContext, first: u8) -> Result<(), Reason> {
    let mut next = first;
    let mut at = ETH_LEN + IPV6_LEN;
    for _ in 0..MOST_EXTENSIONS {
        let Some(unit) = extension_unit(next) else {
            return if next == PROTO_ICMPV6 && is_discovery(load_at(ctx, at)?) {
                Err(Reason::NdUnknown)
            } else {
                Ok(())
            };
        };
        let header: [u8; 2] = load_at(ctx, at)?;
        next = header[0];
        at += extension_length(unit, header[1]);
    }
    Err(Reason::Malformed)
}

/// The unit in bytes of the length field of an extension header that has a header behind it. `None`
/// for other headers and for fragment headers.
#[inline(always)]
pub fn extension_unit(header: u8) -> Option<usize> {
    match header {
        // Hop-by-hop options, routing, destination options (RFC 8200), mobility (RFC 6275), host
        // identity (RFC 7401), shim6 (RFC 5533).
        0 | 43 | 60 | 135 | 139 | 140 => Some(8),
        // Authentication (RFC 4302, section 2.2): the length in words minus 2.
        51 => Some(4),
        _ => None,
    }
}

/// Length in bytes of an extension header from its length field.
#[inline(always)]
pub fn extension_length(unit: usize, field: u8) -> usize {
    let extra = if unit == 4 { 2 } else { 1 };
    (usize::from(field) + extra) * unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::Be16;

    fn header(payload: u16) -> Ipv6 {
        Ipv6 {
            version_class_flow: [0x60, 0, 0, 0],
            payload_length: Be16::new(payload),
            ..Ipv6::default()
        }
    }

    #[test]
    fn an_ipv6_header_is_checked_against_the_packet() {
        assert_eq!(check_ipv6(&header(20), 60, false), Ok(()));
        assert_eq!(check_ipv6(&header(4), 60, false), Ok(()), "Ethernet pads short packets");
        assert_eq!(check_ipv6(&header(21), 60, false), Err(Reason::Truncated));
        assert_eq!(check_ipv6(&header(0), 80_000, true), Ok(()), "an aggregate");
        let version_4 = Ipv6 { version_class_flow: [0x45, 0, 0, 0], ..header(20) };
        assert_eq!(check_ipv6(&version_4, 60, false), Err(Reason::Malformed));
    }

    #[test]
    fn lengths_of_extension_headers_are_those_of_their_rfcs() {
        assert_eq!(extension_unit(60).map(|unit| extension_length(unit, 0)), Some(8));
        assert_eq!(extension_unit(0).map(|unit| extension_length(unit, 1)), Some(16));
        // RFC 4302: an integrity value of 96 bits has a length field of 4 and takes 24 bytes.
        assert_eq!(extension_unit(51).map(|unit| extension_length(unit, 4)), Some(24));
        for last in [6, 17, 44, 50, 58, 59] {
            assert_eq!(extension_unit(last), None);
        }
    }

    #[test]
    fn neighbour_discovery_is_five_types() {
        let of: Vec<u8> = (0..=255).filter(|kind| is_discovery(*kind)).collect();
        assert_eq!(of, [133, 134, 135, 136, 137]);
    }
}
