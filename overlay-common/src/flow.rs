//! How long flows live: checked by the programs on use, and by the agent where it counts flows.

use crate::{
    maps::{
        ANSWERED, CONNTRACK_MASQUERADE, CONNTRACK_UNMASQUERADE, Conntrack, ConntrackKey,
        TCP_SEEN_ACK, TCP_SEEN_FIN, TCP_SEEN_OTHER_FIN, TCP_SEEN_RST,
    },
    wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

const SECOND: u64 = 1_000_000_000;
/// An idle established TCP connection is kept for longer than the two hours after which hosts send
/// keep-alives (RFC 9293, section 3.8.4), in ns.
pub const TCP_ESTABLISHED: u64 = 7_500 * SECOND;
/// A connection that is being opened, in ns.
pub const TCP_OPENING: u64 = 60 * SECOND;
/// A connection after both FINs or a RST, in ns.
pub const TCP_CLOSING: u64 = 30 * SECOND;
/// For how long the side that closed a connection first may still answer for it, in ns: 60 s on Linux
/// (TCP_TIMEWAIT_LEN), and what [`Conntrack::last_seen`] and its timers may be late.
pub const TCP_TIME_WAIT: u64 = 62 * SECOND;
/// A flow without connections, in ns.
pub const UDP: u64 = 60 * SECOND;
/// A UDP flow of which both sides have spoken, in ns: what RFC 4787, REQ-5, wants by default.
pub const UDP_CONVERSATION: u64 = 300 * SECOND;
/// On the backend's node, a flow that another node translates, in ns: at least as long as any service
/// says, which that node knows.
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

/// Whether a connection's entry says that it is over. One that has ended in one direction only goes on in the other,
/// silently maybe (RFC 9293, section 3.6).
#[inline(always)]
const fn has_ended(proto: u8, entry: &Conntrack) -> bool {
    const FINS: u32 = TCP_SEEN_FIN | TCP_SEEN_OTHER_FIN;
    match entry.flags & (FINS | TCP_SEEN_RST) {
        0 => false,
        // SHUTDOWN COMPLETE is said once (RFC 9260, section 9.2).
        TCP_SEEN_FIN | TCP_SEEN_OTHER_FIN => proto == PROTO_SCTP || is_alone(entry),
        _ => true,
    }
}

/// Whether an entry hears of its own direction only: what goes on with the outside keeps the other entry's time up to date
/// instead.
#[inline(always)]
const fn is_alone(entry: &Conntrack) -> bool {
    matches!(entry.action, CONNTRACK_MASQUERADE | CONNTRACK_UNMASQUERADE)
}

/// Whether the flow's entry has been idle for too long at time `now`, in ns of CLOCK_MONOTONIC. Times
/// may be before the clock's beginning, so that an entry can be older than the machine is up.
#[inline(always)]
pub const fn is_expired(key: &ConntrackKey, entry: &Conntrack, now: u64) -> bool {
    now.wrapping_sub(entry.last_seen).cast_signed() > timeout(key.proto, entry).cast_signed()
}

/// Whether another flow may have the tuple of an entry at time `now`: its own is over, and out of TIME-WAIT.
/// Before that a SYN of another host, whose numbers and timestamps do not go on where the old ones ended, is
/// answered with an old acknowledgement and has to be sent again (RFC 9293, sections 3.6.1 and 3.10.7.4; RFC 6191).
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
        // Who does not hear of the other side's FIN.
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
        // What another node translates, that one forgets.
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
