//! Counters of endpoints and networks in words.

use std::collections::BTreeMap;

use overlay_common::{
    Be32, Direction, Reason,
    maps::{Counter, Link},
    observe::{ALL_WAYS, Traffic},
};

use super::{names::Names, words::ip};
use crate::{api::TrafficRow, datapath::Breakdown};

/// The counters of the endpoints behind `links` and of their networks, by network and endpoint.
/// Rows without a packet are left out.
pub fn rows(counted: &Breakdown, links: &BTreeMap<u32, Link>, names: &Names) -> Vec<TrafficRow> {
    let by_counter: BTreeMap<u32, &Link> =
        links.values().map(|link| (link.counter, link)).collect();
    let mut rows = Vec::new();
    for (counter, tally) in &counted.forwarded {
        let Some(link) = by_counter.get(counter) else { continue };
        let of = (link.vni, Some(link.ip));
        for (way, traffic, reason) in ALL_WAYS {
            rows.push(row(of, (*traffic, *reason), &tally.ways[*way], names));
        }
    }
    for (key, counter) in &counted.dropped {
        let reason = Reason::from_index(key.reason.into());
        let (Some(reason), Some(traffic)) = (reason, Traffic::from_index(key.traffic)) else {
            continue;
        };
        let of = match (key.counter, by_counter.get(&key.counter.into())) {
            (0, _) => (key.vni, None),
            (_, Some(link)) => (link.vni, Some(link.ip)),
            // An endpoint that is just going.
            (_, None) => continue,
        };
        rows.push(row(of, (traffic, reason), counter, names));
    }
    rows.retain(|row| row.packets > 0);
    rows.sort_by(|a, b| order(a).cmp(&order(b)));
    rows
}

fn order(row: &TrafficRow) -> impl Ord + '_ {
    (row.vni, &row.endpoint, &row.ip, row.traffic == "received", row.direction == "drop")
}

fn row(
    (vni, address): (u32, Option<Be32>),
    (traffic, reason): (Traffic, Reason),
    counter: &Counter,
    names: &Names,
) -> TrafficRow {
    let direction = match reason.direction() {
        Direction::Forward => "forward",
        Direction::Drop => "drop",
    };
    TrafficRow {
        vni,
        network: names.network(vni),
        endpoint: address.and_then(|address| names.endpoint(vni, address)),
        ip: address.map(ip),
        traffic: traffic.name().to_owned(),
        direction: direction.to_owned(),
        reason: reason.name().to_owned(),
        packets: counter.packets,
        bytes: counter.bytes,
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::observe::{DropKey, Tally, way};

    use super::*;
    use crate::agent::testing::TestCluster;

    #[test]
    fn counters_have_the_names_of_their_endpoints_and_networks() {
        let mut cluster = TestCluster::with_nodes(1);
        cluster.network("mynet", "10.0.1.0/24", |_| {});
        cluster.endpoint("a", "mynet", "h1", 11);
        let endpoint = cluster.endpoint_mut("a").ip;
        let vni = cluster.state.networks.values().find(|n| n.name == "mynet").expect("made").vni;
        let link = Link { vni, ip: endpoint.into(), counter: 3, ..Link::default() };
        let mut counted = Breakdown::default();
        let mut tally = Tally::default();
        let counter = |packets| Counter { packets, bytes: packets * 98 };
        tally.ways[way(Traffic::Sent, Reason::Encapsulated) as usize] = counter(5);
        counted.forwarded.insert(3, tally);
        let drop = |counter, vni, reason: Reason, traffic: Traffic| DropKey {
            vni,
            counter,
            reason: reason as u8,
            traffic: traffic as u8,
        };
        for (key, packets) in [
            (drop(3, vni, Reason::SpoofedSource, Traffic::Sent), 2),
            (drop(0, vni, Reason::NoEndpoint, Traffic::Received), 7),
            (drop(0, 0, Reason::NotPeer, Traffic::Received), 1),
            (drop(9, vni, Reason::NoEndpoint, Traffic::Sent), 100),
        ] {
            counted.dropped.insert(key, counter(packets));
        }
        let rows = rows(&counted, &BTreeMap::from([(20, link)]), &Names::new(&cluster.state));
        let seen: Vec<_> = rows
            .iter()
            .map(|r| (r.network.as_deref(), r.endpoint.as_deref(), r.reason.as_str(), r.packets))
            .collect();
        assert_eq!(
            seen,
            [
                (None, None, "not_peer", 1),
                (Some("mynet"), None, "no_endpoint", 7),
                (Some("mynet"), Some("a"), "encapsulated", 5),
                (Some("mynet"), Some("a"), "spoofed_source", 2),
            ],
            "without those of an index that no endpoint has"
        );
        assert_eq!((rows[2].traffic.as_str(), rows[2].bytes), ("sent", 490));
        assert_eq!(rows[2].ip, Some(endpoint.to_string()));
    }
}
