//! Translated flows in words.

use overlay_common::{
    Be32,
    maps::{
        ANSWERED, CONNTRACK_FORWARD, CONNTRACK_MASQUERADE, CONNTRACK_REPLY, CONNTRACK_REVERSE,
        CONNTRACK_UNMASQUERADE, Conntrack, ConntrackKey, DSR, TCP_SEEN_ACK, TCP_SEEN_FIN,
        TCP_SEEN_OTHER_FIN, TCP_SEEN_RST, TCP_SEEN_SYN,
    },
};

use super::{
    address_ids::{Numbers, Sockets, is_ipv6, network},
    names::Names,
    words::protocol,
};
use crate::datapath::ConntrackRow;

/// Most conntrack entries shown.
const CONNTRACK_ROWS: usize = 10_000;

/// Newest first, at most [`CONNTRACK_ROWS`].
pub fn conntrack(
    mut entries: Vec<(ConntrackKey, Conntrack)>,
    names: &Names,
    numbers: &impl Numbers,
    now: u64,
) -> Vec<ConntrackRow> {
    entries.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(entry.last_seen));
    entries.truncate(CONNTRACK_ROWS);
    let row = |(key, entry): &_| row(key, entry, names, &Sockets::of(key, entry, numbers), now);
    entries.iter().map(row).collect()
}

fn row(
    key: &ConntrackKey,
    entry: &Conntrack,
    names: &Names,
    sockets: &Sockets,
    now: u64,
) -> ConntrackRow {
    let action = match entry.action {
        CONNTRACK_FORWARD => "forward",
        CONNTRACK_REPLY => "reply",
        CONNTRACK_REVERSE => "return",
        CONNTRACK_MASQUERADE => "masquerade",
        CONNTRACK_UNMASQUERADE => "unmasquerade",
        _ => "unknown",
    };
    // A UDP flow with an answer is shown like an established TCP flow. f: the other side's FIN.
    // D: DSR, replies go straight to the client.
    let seen = [
        (TCP_SEEN_SYN, 'S'),
        (TCP_SEEN_ACK | ANSWERED, 'A'),
        (TCP_SEEN_FIN, 'F'),
        (TCP_SEEN_OTHER_FIN, 'f'),
        (TCP_SEEN_RST, 'R'),
        (DSR, 'D'),
    ];
    ConntrackRow {
        protocol: protocol(key.proto),
        ipv6: is_ipv6(key.vni),
        vni: network(key.vni),
        source: sockets.source,
        destination: sockets.destination,
        action: action.to_owned(),
        new_source: sockets.new_source,
        new_destination: sockets.new_destination,
        new_vni: network(entry.vni),
        service: entry.service,
        backend: entry.backend,
        node: (entry.node != Be32::ZERO).then(|| names.address(entry.node)),
        state: seen.iter().filter(|(bit, _)| entry.flags & bit != 0).map(|(_, c)| c).collect(),
        idle_ms: now.saturating_sub(entry.last_seen) / 1_000_000,
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::{maps::VNI_FLAG_IPV6, wire::PROTO_TCP};

    use super::super::address_ids::tests::Known;
    use super::*;

    #[test]
    fn conntrack_is_shown_newest_first_with_its_flags() {
        let entry = |seen, state| Conntrack {
            action: CONNTRACK_FORWARD,
            last_seen: seen,
            flags: state,
            ..Conntrack::default()
        };
        let key = ConntrackKey { proto: PROTO_TCP, ..ConntrackKey::default() };
        let entries = vec![
            (key, entry(1_000_000, TCP_SEEN_SYN)),
            (key, entry(5_000_000, TCP_SEEN_SYN | TCP_SEEN_ACK)),
            (key, entry(3_000_000, ANSWERED | DSR)),
        ];
        let rows = conntrack(entries, &Names::default(), &Known::default(), 7_000_000);
        assert_eq!(rows[0].state, "SA");
        assert_eq!(rows[1].state, "AD");
        assert_eq!((rows[0].idle_ms, rows[2].idle_ms), (2, 6));
        assert_eq!((rows[0].protocol.as_str(), rows[0].action.as_str()), ("tcp", "forward"));
    }

    #[test]
    fn ipv6_flows_are_shown_with_their_addresses_and_networks() {
        let ip = |last| Be32::from_octets([10, 0, 1, last]);
        let vni = VNI_FLAG_IPV6 | 4097;
        let key = ConntrackKey {
            saddr: ip(2),
            daddr: ip(9),
            vni,
            proto: PROTO_TCP,
            ..ConntrackKey::default()
        };
        let entry = Conntrack { saddr: ip(2), daddr: ip(3), vni, ..Conntrack::default() };
        let known = Known::default()
            .with(4097, [10, 0, 1, 2], "fd00:1::2")
            .with(4097, [10, 0, 1, 9], "fd00:1::9")
            .with(4097, [10, 0, 1, 3], "fd00:1::3");
        let rows = conntrack(vec![(key, entry)], &Names::default(), &known, 0);
        let row = &rows[0];
        assert_eq!((row.vni, row.new_vni, row.ipv6), (4097, 4097, true));
        assert_eq!(row.destination.to_string(), "[fd00:1::9]:0");
        assert_eq!(row.new_destination.to_string(), "[fd00:1::3]:0");
        let json = serde_json::to_value(row).expect("JSON");
        assert_eq!((&json["source"], &json["ipv6"]), (&"[fd00:1::2]:0".into(), &true.into()));
    }
}
