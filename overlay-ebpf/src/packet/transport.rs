//! TCP, UDP and SCTP: ports, and the flags that conntrack tracks.

use core::mem::offset_of;

use network_types::tcp::TcpHdr;
use overlay_common::{
    Reason,
    maps::{TCP_SEEN_ACK, TCP_SEEN_FIN, TCP_SEEN_RST, TCP_SEEN_SYN},
    wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

/// Offset of the flags byte in a TCP header (RFC 9293, section 3.1).
pub const TCP_FLAGS: usize = offset_of!(TcpHdr, window) - 1;

/// Offset of the type of the first chunk in an SCTP packet (RFC 9260, section 3).
pub const SCTP_CHUNK: usize = 12;

/// The type of a packet's first SCTP chunk (RFC 9260, section 3.2) as `TCP_SEEN_*`: associations
/// have the same states as connections.
#[inline(always)]
pub fn sctp_flags(chunk: u8) -> u32 {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const ABORT: u8 = 6;
    const SHUTDOWN_COMPLETE: u8 = 14;
    match chunk {
        INIT => TCP_SEEN_SYN,
        INIT_ACK => TCP_SEEN_SYN | TCP_SEEN_ACK,
        ABORT => TCP_SEEN_RST,
        SHUTDOWN_COMPLETE => TCP_SEEN_FIN | TCP_SEEN_ACK,
        _ => TCP_SEEN_ACK,
    }
}

/// Checks that a TCP may send `flags` together: a segment that opens a connection does not end it.
///
/// # Errors
/// [`Reason::Malformed`].
#[inline(always)]
pub fn possible(flags: u32) -> Result<u32, Reason> {
    let ends = flags & (TCP_SEEN_FIN | TCP_SEEN_RST) != 0;
    if flags & TCP_SEEN_SYN != 0 && ends { Err(Reason::Malformed) } else { Ok(flags) }
}

/// The flags byte of a TCP header as `TCP_SEEN_*`.
#[inline(always)]
pub fn tcp_flags(byte: u8) -> u32 {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    let mut flags = 0;
    if byte & SYN != 0 {
        flags |= TCP_SEEN_SYN;
    }
    if byte & ACK != 0 {
        flags |= TCP_SEEN_ACK;
    }
    if byte & FIN != 0 {
        flags |= TCP_SEEN_FIN;
    }
    if byte & RST != 0 {
        flags |= TCP_SEEN_RST;
    }
    flags
}

/// Whether the protocol's header starts with ports: TCP, UDP and SCTP.
#[inline(always)]
pub fn has_ports(protocol: u8) -> bool {
    protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_association_opens_and_ends_as_a_connection_does() {
        assert_eq!(sctp_flags(1), TCP_SEEN_SYN);
        assert_eq!(sctp_flags(2), TCP_SEEN_SYN | TCP_SEEN_ACK);
        assert_eq!(sctp_flags(6), TCP_SEEN_RST);
        assert_eq!(sctp_flags(14), TCP_SEEN_FIN | TCP_SEEN_ACK);
        assert_eq!(sctp_flags(0), TCP_SEEN_ACK, "data");
        assert_eq!(sctp_flags(4), TCP_SEEN_ACK, "heartbeat");
    }

    #[test]
    fn tcp_flags_are_those_of_rfc_9293() {
        assert_eq!(tcp_flags(0x02), TCP_SEEN_SYN);
        assert_eq!(tcp_flags(0x12), TCP_SEEN_SYN | TCP_SEEN_ACK);
        assert_eq!(tcp_flags(0x11), TCP_SEEN_FIN | TCP_SEEN_ACK);
        assert_eq!(tcp_flags(0x04), TCP_SEEN_RST);
        assert_eq!(tcp_flags(0xe8), 0, "PSH, URG, ECE and CWR say nothing of the state");
    }
}
