//! The tables of the state in words, with names beside the numbers.

use std::collections::BTreeMap;

use overlay_common::{
    Be32, Ip6, UNDERLAY_VNI,
    maps::{
        BACKEND_ACTIVE, BACKEND_DOWN, BACKEND_DRAINING, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST,
        ENDPOINT_FLAG_PUBLISHED, ENDPOINT_GATEWAY, ENDPOINT_LOCAL, ENDPOINT_REMOTE,
        ENDPOINT_SERVICE, Endpoint, Frontend6Key, MAX_FLOOD, NETWORK_INTERNAL, NETWORK_LOCAL,
        NETWORK_REPLICATE, PUBLISHED_IPV6, SERVICE_DSR, Service,
    },
};

use super::{
    lb_tables::{hash_word, scheduler_word},
    names::{Names, named},
    sockets,
    words::{self, beside, flags, ip, ip6, list, table},
};
use crate::{
    agent::compile::HOST_MODE,
    datapath::{DatapathState, TableDump},
};

const ENDPOINT_WORDS: [(u32, &str); 3] = [
    (ENDPOINT_FLAG_BACKEND as u32, "backend"),
    (ENDPOINT_FLAG_HOST as u32, "host"),
    (ENDPOINT_FLAG_PUBLISHED as u32, "published"),
];
const NETWORK_WORDS: [(u32, &str); 3] =
    [(NETWORK_INTERNAL, "internal"), (NETWORK_LOCAL, "local"), (NETWORK_REPLICATE, "replicate")];

/// The tables that [`DatapathState`] has.
pub fn dump(state: &DatapathState, names: &Names) -> Vec<TableDump> {
    vec![
        networks(state, names),
        replicas(state, names),
        endpoints(state, names),
        endpoints6(state, names),
        addresses6(state, names),
        links(state, names),
        links6(state, names),
        peers(state, names),
        services(state, names),
        slots(state, names),
        backends(state, names),
        published(state, names),
        table("local_addrs", &["address"], &state.local_addrs, |address, _| vec![ip(*address)]),
        table("local_addrs6", &["address"], &state.local_addrs6, |address, _| vec![ip6(*address)]),
        frontends6(state, names),
        table("egress", &["ifindex", "interface", "address"], &state.egress, |ifindex, address| {
            vec![ifindex.to_string(), named(&names.interfaces, ifindex), ip(*address)]
        }),
        sockets::netns(state, names),
        sockets::stale_backends(state, names),
    ]
}

fn frontends6(state: &DatapathState, names: &Names) -> TableDump {
    let columns = ["node", "name", "number", "address"];
    table("frontends6", &columns, &state.frontends6, |key, address| {
        let Frontend6Key { node, number } = key;
        vec![ip(*node), named(&names.nodes, node), ip(*number), ip6(*address)]
    })
}

fn networks(state: &DatapathState, names: &Names) -> TableDump {
    let columns = ["vni", "network", "subnet", "gateway", "mtu", "flags"];
    table("networks", &columns, &state.networks, |vni, network| {
        let prefix = network.mask.get().count_ones();
        vec![
            vni.to_string(),
            named(&names.networks, vni),
            format!("{}/{prefix}", ip(network.subnet)),
            ip(network.gateway),
            network.mtu.to_string(),
            flags(network.flags, &NETWORK_WORDS),
        ]
    })
}

fn replicas(state: &DatapathState, names: &Names) -> TableDump {
    let columns = ["vni", "network", "endpoints", "interfaces", "nodes", "names"];
    table("flood", &columns, &state.flood, |vni, replicas| {
        let copied = |count: u32| usize::try_from(count).unwrap_or(usize::MAX).min(MAX_FLOOD);
        let links = &replicas.links[..copied(replicas.endpoints)];
        let vteps = &replicas.vteps[..copied(replicas.nodes)];
        vec![
            vni.to_string(),
            named(&names.networks, vni),
            replicas.endpoints.to_string(),
            list(links.iter().map(|link| named(&names.interfaces, link))),
            replicas.nodes.to_string(),
            list(vteps.iter().map(|vtep| named(&names.nodes, vtep))),
        ]
    })
}

const ENDPOINT_COLUMNS: [&str; 10] =
    ["vni", "network", "ip", "kind", "name", "mac", "interface", "node", "vtep", "flags"];

fn endpoints(state: &DatapathState, names: &Names) -> TableDump {
    table("endpoints", &ENDPOINT_COLUMNS, &state.endpoints, |key, endpoint| {
        let name = named(&names.endpoints, &(key.vni, key.ip));
        endpoint_row(names, (key.vni, ip(key.ip)), name, endpoint)
    })
}

fn endpoints6(state: &DatapathState, names: &Names) -> TableDump {
    table("endpoints6", &ENDPOINT_COLUMNS, &state.endpoints6, |key, endpoint| {
        let name = named(&names.endpoints6, &(key.vni, key.ip));
        endpoint_row(names, (key.vni, ip6(key.ip)), name, endpoint)
    })
}

fn addresses6(state: &DatapathState, names: &Names) -> TableDump {
    let columns = ["vni", "network", "ip", "ip6", "name"];
    table("addresses6", &columns, &state.addresses6, |key, address| {
        let vip = state.endpoints.get(key).filter(|there| there.kind == ENDPOINT_SERVICE);
        vec![
            key.vni.to_string(),
            named(&names.networks, &key.vni),
            ip(key.ip),
            ip6(*address),
            match vip {
                Some(vip) => named(&names.services, &vip.service),
                None => named(&names.endpoints, &(key.vni, key.ip)),
            },
        ]
    })
}

/// Map `addr6_ids`.
pub fn addr6_ids(clients: &BTreeMap<Be32, Ip6>) -> TableDump {
    table("addr6_ids", &["number", "address"], clients, |number, address| {
        vec![ip(*number), ip6(*address)]
    })
}

fn endpoint_row(
    names: &Names,
    (vni, address): (u32, String),
    name: String,
    endpoint: &Endpoint,
) -> Vec<String> {
    let (kind, name) = match endpoint.kind {
        ENDPOINT_LOCAL => ("local", name),
        ENDPOINT_REMOTE => ("remote", name),
        ENDPOINT_GATEWAY => ("gateway", "-".to_owned()),
        ENDPOINT_SERVICE => ("service", named(&names.services, &endpoint.service)),
        _ => ("unknown", "-".to_owned()),
    };
    vec![
        vni.to_string(),
        named(&names.networks, &vni),
        address,
        kind.to_owned(),
        name,
        endpoint.mac.to_string(),
        named(&names.interfaces, &endpoint.ifindex),
        named(&names.nodes, &endpoint.node),
        names.vtep(endpoint.node),
        flags(endpoint.flags.into(), &ENDPOINT_WORDS),
    ]
}

fn links(state: &DatapathState, names: &Names) -> TableDump {
    let columns = ["ifindex", "interface", "vni", "network", "ip", "mac", "flags"];
    table("links", &columns, &state.links, |ifindex, link| {
        vec![
            ifindex.to_string(),
            named(&names.interfaces, ifindex),
            link.vni.to_string(),
            named(&names.networks, &link.vni),
            ip(link.ip),
            link.mac.to_string(),
            flags(link.flags.into(), &ENDPOINT_WORDS),
        ]
    })
}

fn links6(state: &DatapathState, names: &Names) -> TableDump {
    table("links6", &["ifindex", "interface", "ip", "prefix"], &state.links6, |ifindex, link| {
        let bits: u32 = link.mask.octets().iter().map(|byte| byte.count_ones()).sum();
        vec![ifindex.to_string(), named(&names.interfaces, ifindex), ip6(link.ip), bits.to_string()]
    })
}

fn peers(state: &DatapathState, names: &Names) -> TableDump {
    table("peers", &["vni", "network", "vtep", "node"], &state.peers, |key, _| {
        let network = match key.vni {
            UNDERLAY_VNI => "(cluster)".to_owned(),
            vni => named(&names.networks, &vni),
        };
        vec![key.vni.to_string(), network, names.vtep(key.node), named(&names.nodes, &key.node)]
    })
}

fn services(state: &DatapathState, names: &Names) -> TableDump {
    // Not the number of backends where they are in a table.
    let columns = [
        "number", "service", "vni", "network", "vip", "vip6", "slots", "lb", "hash", "affinity",
        "return", "table",
    ];
    table("services", &columns, &state.services, |number, service| {
        vec![
            number.to_string(),
            named(&names.services, number),
            service.vni.to_string(),
            named(&names.networks, &service.vni),
            ip(service.vip),
            beside(state, service.vni, service.vip),
            service.slots.to_string(),
            scheduler_word(service.scheduler).to_owned(),
            hash_word(service).to_owned(),
            if service.affinity == 0 { "-".to_owned() } else { format!("{}s", service.affinity) },
            return_word(service).to_owned(),
            if service.table == 0 { "-".to_owned() } else { format!("{:08x}", service.table) },
        ]
    })
}

/// Which way replies to clients outside take.
fn return_word(service: &Service) -> &'static str {
    if service.flags & SERVICE_DSR == 0 { "asked" } else { "direct" }
}

fn slots(state: &DatapathState, names: &Names) -> TableDump {
    let columns = ["number", "service", "slot", "backend", "name"];
    table("slots", &columns, &state.slots, |key, backend| {
        vec![
            key.service.to_string(),
            named(&names.services, &key.service),
            key.index.to_string(),
            backend.to_string(),
            named(&names.backends, backend),
        ]
    })
}

fn backends(state: &DatapathState, names: &Names) -> TableDump {
    let columns = [
        "number",
        "name",
        "vni",
        "network",
        "ip",
        "ip6",
        "mac",
        "interface",
        "node",
        "vtep",
        "weight",
        "state",
    ];
    table("backends", &columns, &state.backends, |number, backend| {
        let word = match backend.state {
            BACKEND_ACTIVE => "active",
            BACKEND_DRAINING => "draining",
            BACKEND_DOWN => "down",
            _ => "unknown",
        };
        vec![
            number.to_string(),
            named(&names.backends, number),
            backend.vni.to_string(),
            named(&names.networks, &backend.vni),
            ip(backend.ip),
            beside(state, backend.vni, backend.ip),
            backend.mac.to_string(),
            named(&names.interfaces, &backend.ifindex),
            named(&names.nodes, &backend.node),
            names.vtep(backend.node),
            backend.weight.to_string(),
            word.to_owned(),
        ]
    })
}

fn published(state: &DatapathState, names: &Names) -> TableDump {
    let columns = ["port", "protocol", "target", "number", "service", "mode", "ipv6"];
    table("published", &columns, &state.published, |key, published| {
        let mode = if published.service & HOST_MODE == 0 { "ingress" } else { "host" };
        vec![
            key.port.get().to_string(),
            words::protocol(key.proto),
            published.target.get().to_string(),
            published.service.to_string(),
            named(&names.services, &published.service),
            mode.to_owned(),
            if published.flags & PUBLISHED_IPV6 != 0 { "yes" } else { "no" }.to_owned(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use overlay_common::maps::{EndpointKey, STALE_RESETS};

    use super::*;
    use crate::{
        agent::{
            LocalFacts, compile,
            testing::{TestCluster, id, port},
        },
        model::Multicast,
    };

    fn rows<'a>(tables: &'a [TableDump], name: &str) -> &'a TableDump {
        tables.iter().find(|t| t.name == name).expect("a table")
    }

    fn cell<'a>(table: &'a TableDump, row: usize, column: &str) -> &'a str {
        let index = table.columns.iter().position(|c| c == column).expect("a column");
        &table.rows[row][index]
    }

    #[test]
    fn tables_show_names_beside_the_numbers() {
        let mut cluster = TestCluster::with_nodes(2);
        cluster.network("mynet", "10.0.1.0/24", |n| {
            crate::agent::testing::dual_stack(n);
            n.multicast = Multicast::Replicate;
        });
        cluster.service("web", &["mynet"], &[port(8080, 80)]);
        cluster.backend("w1", "web", "h2", 21);
        cluster.endpoint("a", "mynet", "h1", 11);
        let addresses6 = vec!["2001:db8::1".parse().expect("an address")];
        let netns = [(id("a"), 77)].into();
        let facts = LocalFacts { addresses6, netns, ..cluster.facts("h1") };
        let theirs = vec!["2001:db8::2".parse().expect("an address")];
        cluster.state.nodes.get_mut(&id("h2")).expect("a node").addresses6 = theirs;
        let mut state = compile(&cluster.state, &id("h1"), &facts);
        let gone = EndpointKey { vni: 4098, ip: Be32::from_octets([10, 0, 1, 22]) };
        state.stale_backends.insert(gone, STALE_RESETS);
        let tables = dump(&state, &Names::new(&cluster.state));
        for table in &tables {
            assert!(!table.rows.is_empty(), "{} is shown", table.name);
            assert!(table.rows.iter().all(|r| r.len() == table.columns.len()), "{}", table.name);
        }
        let published = rows(&tables, "published");
        assert_eq!(cell(published, 0, "port"), "8080");
        assert_eq!(cell(published, 0, "service"), "web");
        assert_eq!(cell(published, 0, "mode"), "ingress");
        assert_eq!(cell(published, 0, "ipv6"), "yes");
        let backends = rows(&tables, "backends");
        assert_eq!(cell(backends, 0, "name"), "w1");
        assert_eq!(cell(backends, 0, "node"), "h2");
        assert_eq!(cell(backends, 0, "state"), "active");
        assert_eq!(cell(backends, 0, "ip6"), "fd00:1::15");
        assert_eq!(cell(rows(&tables, "services"), 0, "vip6"), "fd00:1::c8");
        let addresses = rows(&tables, "addresses6").rows.iter();
        let addresses: Vec<_> = addresses.map(|row| [&*row[2], &row[3], &row[4]]).collect();
        assert_eq!(
            addresses,
            [
                ["10.0.1.11", "fd00:1::b", "a"],
                ["10.0.1.21", "fd00:1::15", "w1"],
                ["10.0.1.200", "fd00:1::c8", "web"],
            ]
        );
        assert_eq!(cell(rows(&tables, "local_addrs6"), 0, "address"), "2001:db8::1");
        let asked = rows(&tables, "frontends6");
        assert_eq!((cell(asked, 0, "name"), cell(asked, 0, "address")), ("h2", "2001:db8::2"));
        let client = (Be32::from_octets([240, 0, 0, 9]), Ip6::from_octets([0x20; 16]));
        let clients = addr6_ids(&BTreeMap::from([client]));
        assert_eq!(clients.rows, [["240.0.0.9", "2020:2020:2020:2020:2020:2020:2020:2020"]]);
        let vip = rows(&tables, "endpoints").rows.iter().find(|r| r[3] == "service");
        assert_eq!(vip.expect("the VIP")[4], "web");
        assert_eq!(cell(rows(&tables, "peers"), 0, "network"), "(cluster)");
        let ip6 = rows(&tables, "endpoints6").rows.iter().find(|r| r[2] == "fd00:1::b");
        assert_eq!(ip6.expect("an IPv6 address")[4], "a");
        let own = rows(&tables, "links6");
        assert_eq!((cell(own, 0, "ip"), cell(own, 0, "prefix")), ("fd00:1::b", "64"));
        let replicas = rows(&tables, "flood");
        assert_eq!((cell(replicas, 0, "endpoints"), cell(replicas, 0, "names")), ("1", "h2"));
        let netns = rows(&tables, "netns");
        assert_eq!((cell(netns, 0, "netns_cookie"), cell(netns, 0, "name")), ("77", "a"));
        assert_eq!(cell(rows(&tables, "stale_backends"), 0, "answer"), "reset");
    }
}
