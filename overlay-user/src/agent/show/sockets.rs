//! The tables of sockets that are connected to a backend in place of a VIP, in words.

use std::{collections::BTreeMap, net::Ipv6Addr};

use overlay_common::maps::{EndpointKey, STALE_RESETS, SockFlow, StaleBackend};

use super::{
    names::Names,
    words::{beside, ip, protocol},
};
use crate::datapath::{DatapathState, TableDump};

/// `netns` in words: a row for each network.
pub fn netns(state: &DatapathState, names: &Names) -> TableDump {
    let rows = state.netns.iter().flat_map(|(cookie, namespace)| {
        let networks = namespace.networks.iter().filter(|network| network.vni != 0);
        networks.map(|network| {
            let prefix = network.mask.get().count_ones();
            vec![
                cookie.to_string(),
                network.vni.to_string(),
                names.network(network.vni).unwrap_or_else(|| "-".to_owned()),
                format!("{}/{prefix}", ip(network.subnet)),
                ip(network.ip),
                names.endpoint(network.vni, network.ip).unwrap_or_else(|| "-".to_owned()),
            ]
        })
    });
    let columns = ["netns_cookie", "vni", "network", "subnet", "ip", "name"];
    TableDump {
        name: "netns".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

/// `stale_backends` in words.
pub fn stale_backends(state: &DatapathState, names: &Names) -> TableDump {
    let row = |(key, backend): (&EndpointKey, &StaleBackend)| {
        let answer = if backend & STALE_RESETS != 0 { "reset" } else { "drop" };
        let network = names.network(key.vni).unwrap_or_else(|| "-".to_owned());
        vec![key.vni.to_string(), network, ip(key.ip), answer.to_owned()]
    };
    TableDump {
        name: "stale_backends".to_owned(),
        columns: ["vni", "network", "ip", "answer"].map(str::to_owned).to_vec(),
        rows: state.stale_backends.iter().map(row).collect(),
    }
}

/// Where a socket is connected to. IPv6 addresses are those that backends have now.
fn connected_to(flow: &SockFlow, state: &DatapathState) -> String {
    let is_ipv6 = flow.backend != 0 && flow.asked.unmapped().is_none();
    if is_ipv6 { beside(state, flow.vni, flow.ip) } else { ip(flow.ip) }
}

/// `sock_flows` in words.
pub fn sockets(
    sockets: &BTreeMap<u64, SockFlow>,
    state: &DatapathState,
    names: &Names,
    now: u64,
) -> TableDump {
    let columns =
        ["cookie", "protocol", "asked", "port", "connected_to", "service", "backend", "age_s"];
    let row = |(cookie, flow): (&u64, &SockFlow)| {
        let asked = Ipv6Addr::from(flow.asked).to_canonical();
        let or_none = |name: Option<String>| name.unwrap_or_else(|| "-".to_owned());
        vec![
            cookie.to_string(),
            protocol(flow.proto),
            asked.to_string(),
            flow.port.get().to_string(),
            connected_to(flow, state),
            or_none(names.service(flow.service)),
            or_none(names.backend(flow.backend)),
            (now.saturating_sub(flow.since) / 1_000_000_000).to_string(),
        ]
    };
    TableDump {
        name: "sock_flows".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: sockets.iter().map(row).collect(),
    }
}
