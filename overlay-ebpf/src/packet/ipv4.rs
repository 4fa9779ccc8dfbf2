//! Checks of IPv4 headers, and questions about their packets (RFC 791).

use network_types::tcp::TcpHdr;
use overlay_common::{
    Reason,
    wire::{Ipv4, PROTO_ICMP, PROTO_SCTP, PROTO_TCP, Udp},
};

use crate::packet::transport::SCTP_CHUNK;

/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = size_of::<Ipv4>();
/// ICMP type and code of an echo request, as one half word (RFC 792).
pub const ECHO_REQUEST: u16 = 0x0800;
/// ICMP type and code of an echo reply.
pub const ECHO_REPLY: u16 = 0x0000;

/// Checks an IPv4 header. `available` is the length of the packet from this header on. Aggregates
/// over 64 KiB have a total length of 0 (BIG TCP, Linux 6.3).
#[inline(always)]
pub fn check_ipv4(ip: &Ipv4, available: u32, gso: bool) -> Result<(), Reason> {
    let header = u32::from(ip.version_ihl & 0xf) * 4;
    if ip.version_ihl >> 4 != 4 || header < IPV4_LEN as u32 {
        return Err(Reason::Malformed);
    }
    let total = u32::from(ip.total_length.get());
    if total == 0 && gso {
        return Ok(());
    }
    if total < header {
        return Err(Reason::Malformed);
    }
    if total > available && !gso {
        return Err(Reason::Truncated);
    }
    Ok(())
}

/// Whether a destination is multicast, broadcast or a class E address.
#[inline(always)]
pub fn is_group_address(ip: &Ipv4) -> bool {
    ip.dst[0] >= 224
}

/// Whether a packet with ports is long enough for its transport header, and an SCTP packet for its
/// first chunk. [`check_ipv4`] accepts a total length of 0 for aggregates only.
#[inline(always)]
pub fn holds_transport(ip: &Ipv4) -> bool {
    let total = usize::from(ip.total_length.get());
    let transport = match ip.protocol {
        PROTO_TCP => size_of::<TcpHdr>(),
        PROTO_SCTP => SCTP_CHUNK + 4,
        _ => size_of::<Udp>(),
    };
    total == 0 || total >= usize::from(ip.version_ihl & 0xf) * 4 + transport
}

/// Whether the protocol is ICMP, which carries echo requests.
#[inline(always)]
pub fn is_icmp(ip: &Ipv4) -> bool {
    ip.protocol == PROTO_ICMP
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::{Be16, wire::PROTO_UDP};

    fn header(total: u16) -> Ipv4 {
        Ipv4 { version_ihl: 0x45, total_length: Be16::new(total), ..Ipv4::default() }
    }

    #[test]
    fn an_ipv4_header_is_checked_against_the_packet() {
        assert_eq!(check_ipv4(&header(40), 40, false), Ok(()));
        assert_eq!(check_ipv4(&header(40), 60, false), Ok(()), "Ethernet pads short packets");
        assert_eq!(check_ipv4(&header(41), 40, false), Err(Reason::Truncated));
        assert_eq!(check_ipv4(&header(19), 40, false), Err(Reason::Malformed));
        let version_6 = Ipv4 { version_ihl: 0x65, ..header(40) };
        assert_eq!(check_ipv4(&version_6, 40, false), Err(Reason::Malformed));
        let short_header = Ipv4 { version_ihl: 0x44, ..header(40) };
        assert_eq!(check_ipv4(&short_header, 40, false), Err(Reason::Malformed));
        let options = Ipv4 { version_ihl: 0x4f, ..header(59) };
        assert_eq!(check_ipv4(&options, 100, false), Err(Reason::Malformed));
    }

    #[test]
    fn aggregates_may_have_a_total_length_of_zero() {
        assert_eq!(check_ipv4(&header(0), 80_000, true), Ok(()));
        assert_eq!(check_ipv4(&header(0), 80_000, false), Err(Reason::Malformed));
    }

    #[test]
    fn a_packet_must_hold_its_transport_header() {
        for (protocol, total) in [(PROTO_TCP, 40), (PROTO_UDP, 28), (PROTO_SCTP, 36)] {
            assert!(holds_transport(&Ipv4 { protocol, ..header(total) }));
            assert!(!holds_transport(&Ipv4 { protocol, ..header(total - 1) }));
            let options = Ipv4 { protocol, version_ihl: 0x46, ..header(total) };
            assert!(!holds_transport(&options));
        }
    }
}
