//! How long flows live: checked by the programs on use, and by the agent where it counts flows.

use crate::{
    maps::{Conntrack, ConntrackKey, TCP_SEEN_ACK, TCP_SEEN_FIN, TCP_SEEN_RST, UDP_ANSWERED},
    wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

const SECOND: u64 = 1_000_000_000;
/// An idle established TCP connection is kept for longer than the two hours after which hosts send
/// keep-alives (RFC 9293, section 3.8.4), in ns.
pub const TCP_ESTABLISHED: u64 = 7_500 * SECOND;
/// A connection that is being opened, in ns.
pub const TCP_OPENING: u64 = 60 * SECOND;
/// A connection after a FIN or RST of this direction, in ns.
pub const TCP_CLOSING: u64 = 30 * SECOND;
/// A flow without connections, in ns.
pub const UDP: u64 = 60 * SECOND;
/// A UDP flow to the outside of which both sides have spoken, in ns: what RFC 4787, REQ-5, wants
/// by default.
pub const UDP_CONVERSATION: u64 = 300 * SECOND;

/// How long an entry with these flags may be idle, in ns.
#[inline(always)]
pub const fn timeout(proto: u8, state: u8) -> u64 {
    if proto == PROTO_UDP && state & UDP_ANSWERED != 0 {
        UDP_CONVERSATION
    } else if proto != PROTO_TCP && proto != PROTO_SCTP {
        UDP
    } else if state & (TCP_SEEN_FIN | TCP_SEEN_RST) != 0 {
        TCP_CLOSING
    } else if state & TCP_SEEN_ACK != 0 {
        TCP_ESTABLISHED
    } else {
        TCP_OPENING
    }
}

/// Whether the flow's entry has been idle for too long at time `now`, in ns of CLOCK_MONOTONIC.
#[inline(always)]
pub const fn is_expired(key: &ConntrackKey, entry: &Conntrack, now: u64) -> bool {
    now.wrapping_sub(entry.last_seen) > timeout(key.proto, entry.state) && now > entry.last_seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{maps::TCP_SEEN_SYN, wire::PROTO_ICMP};

    #[test]
    fn timeouts_follow_the_state_of_the_flow() {
        assert_eq!(timeout(PROTO_TCP, TCP_SEEN_SYN), TCP_OPENING);
        assert_eq!(timeout(PROTO_TCP, TCP_SEEN_SYN | TCP_SEEN_ACK), TCP_ESTABLISHED);
        assert_eq!(timeout(PROTO_TCP, TCP_SEEN_ACK | TCP_SEEN_FIN), TCP_CLOSING);
        assert_eq!(timeout(PROTO_TCP, TCP_SEEN_ACK | TCP_SEEN_RST), TCP_CLOSING);
        assert_eq!(timeout(PROTO_SCTP, TCP_SEEN_SYN), TCP_OPENING);
        assert_eq!(timeout(PROTO_SCTP, TCP_SEEN_SYN | TCP_SEEN_ACK), TCP_ESTABLISHED);
        assert_eq!(timeout(PROTO_UDP, 0), UDP);
        assert_eq!(timeout(PROTO_UDP, UDP_ANSWERED), UDP_CONVERSATION);
        assert_eq!(timeout(PROTO_ICMP, 0), UDP);
        const { assert!(TCP_ESTABLISHED > 7200 * SECOND, "longer than a host's keep-alive") };
    }

    #[test]
    fn an_entry_expires_after_its_timeout_and_not_before() {
        let key = ConntrackKey { proto: PROTO_TCP, ..ConntrackKey::default() };
        let entry = Conntrack { last_seen: 1_000, state: TCP_SEEN_SYN, ..Conntrack::default() };
        assert!(!is_expired(&key, &entry, 1_000 + TCP_OPENING));
        assert!(is_expired(&key, &entry, 1_001 + TCP_OPENING));
        assert!(!is_expired(&key, &entry, 999), "clocks of two CPUs may differ a little");
    }
}
