//! Timeouts of flows. The programs check them on use, and the agent checks them when it counts
//! flows.

use crate::{
    maps::{
        ANSWERED, CONNTRACK_MASQUERADE, CONNTRACK_UNMASQUERADE, Conntrack, ConntrackKey,
        TCP_SEEN_ACK, TCP_SEEN_FIN, TCP_SEEN_OTHER_FIN, TCP_SEEN_RST,
    },
    wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

const SECOND: u64 = 1_000_000_000;
/// Timeout of an established TCP connection in ns. It is longer than the two hours after which
/// hosts send keep-alives (RFC 9293, section 3.8.4).
pub const TCP_ESTABLISHED: u64 = 7_500 * SECOND;
/// Timeout of a connection during its handshake, in ns.
pub const TCP_OPENING: u64 = 60 * SECOND;
/// Timeout of a connection after both FINs or a RST, in ns.
pub const TCP_CLOSING: u64 = 30 * SECOND;
/// Time in ns during which the side that closed a connection first may still answer for it: 60 s on
/// Linux (TCP_TIMEWAIT_LEN), plus the delay of [`Conntrack::last_seen`] and of the timer.
pub const TCP_TIME_WAIT: u64 = 62 * SECOND;
/// Timeout of a flow of a protocol without connections, in ns.
pub const UDP: u64 = 60 * SECOND;
/// Timeout of a UDP flow with packets in both directions, in ns: the default of RFC 4787, REQ-5.
pub const UDP_CONVERSATION: u64 = 300 * SECOND;
/// Timeout on the backend's node of a flow that another node translates, in ns. Only that other
/// node knows the service's own timeout, so this is the longest one that a service can have.
pub const RETURNING: u64 = u16::MAX as u64 * SECOND;

/// How long an entry may be idle, in ns.
#[inline(always)]
pub const fn timeout(proto: u8, entry: &Conntrack) -> u64 {
    let connects = proto == PROTO_TCP || proto == PROTO_SCTP;
    let own = entry.idle as u64 * SECOND;
    if connects && has_ended(proto, entry) {
        TCP_CLOSING
    } else if connects && entry.flags & TCP_SEEN_ACK == 0 {
        TCP_OPENING
    } else if entry.node.raw() != 0 {
        RETURNING
    } else if own != 0 {
        own
    } else if connects {
        TCP_ESTABLISHED
    } else if proto == PROTO_UDP && entry.flags & ANSWERED != 0 {
        UDP_CONVERSATION
    } else {
        UDP
    }
}

/// Whether a connection's entry says that both directions are closed. A connection that is closed
/// in one direction may stay open in the other one, even without traffic (RFC 9293, section 3.6).
#[inline(always)]
const fn has_ended(proto: u8, entry: &Conntrack) -> bool {
    const FINS: u32 = TCP_SEEN_FIN | TCP_SEEN_OTHER_FIN;
    match entry.flags & (FINS | TCP_SEEN_RST) {
        0 => false,
        // An SCTP endpoint sends SHUTDOWN COMPLETE once (RFC 9260, section 9.2).
        TCP_SEEN_FIN | TCP_SEEN_OTHER_FIN => proto == PROTO_SCTP || is_alone(entry),
        _ => true,
    }
}

/// Whether an entry learns of the FINs of its own direction only. This holds for flows to the
/// outside: a packet of such a flow updates the other entry's time, and tells it of a RST but not
/// of a FIN.
#[inline(always)]
const fn is_alone(entry: &Conntrack) -> bool {
    matches!(entry.action, CONNTRACK_MASQUERADE | CONNTRACK_UNMASQUERADE)
}

/// Whether the flow's entry has been idle for too long at time `now`, in ns of CLOCK_MONOTONIC.
/// Times may lie before the start of the clock, so that an entry can be older than the machine's
/// uptime.
#[inline(always)]
pub const fn is_expired(key: &ConntrackKey, entry: &Conntrack, now: u64) -> bool {
    now.wrapping_sub(entry.last_seen).cast_signed() > timeout(key.proto, entry).cast_signed()
}

/// Whether another flow may take the tuple of an entry at time `now` (ns of CLOCK_MONOTONIC). The
/// entry's own flow must be over and out of TIME-WAIT. Before that, a SYN of another host has
/// sequence numbers and timestamps that do not continue the old ones. The backend would answer it
/// with an old acknowledgement, and the client would have to send it again (RFC 9293, sections
/// 3.6.1 and 3.10.7.4; RFC 6191).
#[inline(always)]
pub const fn is_free_again(key: &ConntrackKey, entry: &Conntrack, now: u64) -> bool {
    let waits = key.proto == PROTO_TCP && entry.flags & TCP_SEEN_FIN != 0;
    is_expired(key, entry, now) && (!waits || now.wrapping_sub(entry.last_seen) > TCP_TIME_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Be32,
        maps::{CONNTRACK_FORWARD, CONNTRACK_REPLY, CONNTRACK_REVERSE, DSR, TCP_SEEN_SYN},
        wire::PROTO_ICMP,
    };

    const BOTH_FINS: u32 = TCP_SEEN_FIN | TCP_SEEN_OTHER_FIN;

    fn entry(state: u32) -> Conntrack {
        Conntrack { flags: state, ..Conntrack::default() }
    }

    #[test]
    fn timeouts_follow_the_state_of_the_flow() {
        for proto in [PROTO_TCP, PROTO_SCTP] {
            let timeout = |state| timeout(proto, &entry(state));
            assert_eq!(timeout(TCP_SEEN_SYN), TCP_OPENING);
            assert_eq!(timeout(TCP_SEEN_SYN | TCP_SEEN_ACK), TCP_ESTABLISHED);
            assert_eq!(timeout(TCP_SEEN_ACK | BOTH_FINS), TCP_CLOSING);
            assert_eq!(timeout(TCP_SEEN_ACK | TCP_SEEN_RST), TCP_CLOSING);
            assert_eq!(timeout(TCP_SEEN_ACK | TCP_SEEN_FIN | TCP_SEEN_RST), TCP_CLOSING);
        }
        assert_eq!(timeout(PROTO_UDP, &entry(0)), UDP);
        assert_eq!(timeout(PROTO_UDP, &entry(ANSWERED)), UDP_CONVERSATION);
        assert_eq!(timeout(PROTO_ICMP, &entry(0)), UDP);
        const { assert!(TCP_ESTABLISHED > 7200 * SECOND, "longer than a host's keep-alive") };
    }

    #[test]
    fn a_connection_is_over_when_both_sides_have_ended_it() {
        let timeout = |proto, action, state| {
            timeout(proto, &Conntrack { action, ..entry(TCP_SEEN_ACK | state) })
        };
        for fin in [TCP_SEEN_FIN, TCP_SEEN_OTHER_FIN, TCP_SEEN_FIN | DSR] {
            for action in [CONNTRACK_FORWARD, CONNTRACK_REPLY, CONNTRACK_REVERSE] {
                assert_eq!(timeout(PROTO_TCP, action, fin), TCP_ESTABLISHED);
                assert_eq!(timeout(PROTO_TCP, action, BOTH_FINS), TCP_CLOSING);
                assert_eq!(timeout(PROTO_SCTP, action, fin), TCP_CLOSING);
            }
        }
        // These entries do not learn of the other side's FIN.
        for action in [CONNTRACK_MASQUERADE, CONNTRACK_UNMASQUERADE] {
            assert_eq!(timeout(PROTO_TCP, action, TCP_SEEN_FIN), TCP_CLOSING);
        }
    }

    #[test]
    fn a_service_may_say_how_long_its_flows_are_idle() {
        let own = |state| Conntrack { idle: 7, ..entry(state) };
        assert_eq!(timeout(PROTO_TCP, &own(TCP_SEEN_ACK)), 7 * SECOND);
        assert_eq!(timeout(PROTO_TCP, &own(TCP_SEEN_SYN)), TCP_OPENING);
        assert_eq!(timeout(PROTO_TCP, &own(TCP_SEEN_ACK | TCP_SEEN_FIN)), 7 * SECOND);
        assert_eq!(timeout(PROTO_TCP, &own(BOTH_FINS)), TCP_CLOSING);
        assert_eq!(timeout(PROTO_UDP, &own(0)), 7 * SECOND);
        assert_eq!(timeout(PROTO_UDP, &own(ANSWERED)), 7 * SECOND);
        // The node that translates the flow decides when it expires.
        let returning = |state| Conntrack { node: Be32::new(1), ..entry(state) };
        assert_eq!(timeout(PROTO_UDP, &returning(0)), RETURNING);
        assert_eq!(timeout(PROTO_TCP, &returning(TCP_SEEN_ACK)), RETURNING);
        assert_eq!(timeout(PROTO_TCP, &returning(TCP_SEEN_SYN)), TCP_OPENING);
    }

    #[test]
    fn a_tuple_is_free_again_after_time_wait() {
        let key = |proto| ConntrackKey { proto, ..ConntrackKey::default() };
        let free_after = |proto, state| {
            let entry = Conntrack { last_seen: SECOND, ..entry(state) };
            let is_free = |time: &u64| is_free_again(&key(proto), &entry, SECOND + time);
            [TCP_CLOSING, TCP_OPENING, TCP_TIME_WAIT, TCP_ESTABLISHED]
                .into_iter()
                .find(|time| !is_free(time) && is_free(&(time + 1)))
        };
        const { assert!(TCP_TIME_WAIT > 61 * SECOND, "TIME-WAIT, and a time of last_seen late by one") };
        assert_eq!(free_after(PROTO_TCP, TCP_SEEN_ACK | BOTH_FINS), Some(TCP_TIME_WAIT));
        assert_eq!(free_after(PROTO_TCP, TCP_SEEN_ACK | TCP_SEEN_RST), Some(TCP_CLOSING));
        assert_eq!(free_after(PROTO_TCP, TCP_SEEN_SYN), Some(TCP_OPENING));
        assert_eq!(free_after(PROTO_TCP, TCP_SEEN_ACK), Some(TCP_ESTABLISHED));
        // SCTP tells a new association from an old one by its tag (RFC 9260, section 8.5.1).
        assert_eq!(free_after(PROTO_SCTP, TCP_SEEN_ACK | TCP_SEEN_FIN), Some(TCP_CLOSING));
    }

    #[test]
    fn an_entry_expires_after_its_timeout_and_not_before() {
        let key = ConntrackKey { proto: PROTO_TCP, ..ConntrackKey::default() };
        let entry = Conntrack { last_seen: 1_000, flags: TCP_SEEN_SYN, ..Conntrack::default() };
        assert!(!is_expired(&key, &entry, 1_000 + TCP_OPENING));
        assert!(is_expired(&key, &entry, 1_001 + TCP_OPENING));
        assert!(!is_expired(&key, &entry, 999), "clocks of two CPUs may differ a little");
        let entry = Conntrack { last_seen: 0_u64.wrapping_sub(TCP_OPENING), ..entry };
        assert!(
            !is_expired(&key, &entry, 0) && is_expired(&key, &entry, 1),
            "before the clock began"
        );
    }
}
