//! Counters by endpoint and by network.

use std::collections::BTreeMap;

use super::format::{Format, print_rows};
use crate::api::TrafficRow;

/// A row for each endpoint, direction and reason; what is no endpoint's is left out.
pub(super) fn print_endpoints(format: Format, rows: &[TrafficRow]) -> anyhow::Result<()> {
    let rows: Vec<&TrafficRow> = rows.iter().filter(|row| row.ip.is_some()).collect();
    let header =
        ["endpoint", "network", "ip", "traffic", "direction", "reason", "packets", "bytes"];
    print_rows(format, &rows, &header, |row| {
        let named = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        [&[named(&row.endpoint), named(&row.network), named(&row.ip)][..], &counted(row)].concat()
    })
}

/// A row for each network, direction and reason.
pub(super) fn print_networks(format: Format, rows: &[TrafficRow]) -> anyhow::Result<()> {
    let header = ["network", "vni", "traffic", "direction", "reason", "packets", "bytes"];
    print_rows(format, &by_network(rows), &header, |row| {
        [&[network(row), row.vni.to_string()][..], &counted(row)].concat()
    })
}

/// Packets that are of no network known here met the host on its underlay.
fn network(row: &TrafficRow) -> String {
    match (&row.network, row.vni) {
        (Some(name), _) => name.clone(),
        (None, overlay_common::UNDERLAY_VNI) => "(underlay)".to_owned(),
        (None, _) => "-".to_owned(),
    }
}

fn counted(row: &TrafficRow) -> [String; 5] {
    let (packets, bytes) = (row.packets.to_string(), row.bytes.to_string());
    [row.traffic.clone(), row.direction.clone(), row.reason.clone(), packets, bytes]
}

/// The sums over the endpoints, in the order of the rows.
fn by_network(rows: &[TrafficRow]) -> Vec<TrafficRow> {
    let mut sums: BTreeMap<(u32, bool, bool, &str), TrafficRow> = BTreeMap::new();
    for row in rows {
        let sent = row.traffic == "sent";
        let key = (row.vni, !sent, row.direction == "drop", row.reason.as_str());
        let sum = sums.entry(key).or_insert_with(|| TrafficRow {
            endpoint: None,
            ip: None,
            packets: 0,
            bytes: 0,
            ..row.clone()
        });
        sum.packets += row.packets;
        sum.bytes += row.bytes;
    }
    sums.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_the_sum_of_its_endpoints_and_what_is_no_endpoints() {
        let row = |endpoint: Option<&str>, vni, reason: &str, packets| TrafficRow {
            vni,
            network: Some(format!("n{vni}")),
            endpoint: endpoint.map(str::to_owned),
            ip: endpoint.map(|_| "10.0.1.2".to_owned()),
            traffic: "received".to_owned(),
            direction: "drop".to_owned(),
            reason: reason.to_owned(),
            packets,
            bytes: 100 * packets,
        };
        let rows = [
            row(Some("a"), 4097, "no_endpoint", 1),
            row(Some("b"), 4097, "no_endpoint", 2),
            row(None, 4097, "no_endpoint", 4),
            row(Some("a"), 4097, "truncated", 8),
            row(Some("c"), 4098, "no_endpoint", 16),
        ];
        let sums = by_network(&rows);
        let seen: Vec<_> =
            sums.iter().map(|r| (r.vni, r.reason.as_str(), r.packets, r.bytes)).collect();
        assert_eq!(
            seen,
            [
                (4097, "no_endpoint", 7, 700),
                (4097, "truncated", 8, 800),
                (4098, "no_endpoint", 16, 1600)
            ]
        );
        assert!(sums.iter().all(|sum| sum.endpoint.is_none()));
    }
}
