//! The contents of the maps in readable form: tables and views over a [`Snapshot`].

pub mod address_ids;
pub mod names;
pub mod status;

mod flows;
mod ipvs;
mod lb_tables;
mod sockets;
mod tables;
mod traffic;
pub mod words;

use std::collections::BTreeMap;

use overlay_common::{
    Be32, Ip6, Reason,
    maps::{BackendStats, BackendStatsKey, Conntrack, ConntrackKey, Counter, SockFlow},
};

use self::{address_ids::Numbers, names::Names};
use crate::{
    datapath::{Breakdown, DatapathState, Tables},
    model::ClusterState,
};

/// The maps at one moment.
pub struct Snapshot {
    /// The maps that the agent writes.
    pub held: DatapathState,
    /// Translated flows.
    pub conntrack: Vec<(ConntrackKey, Conntrack)>,
    /// Sockets that are connected to a backend in place of a VIP.
    pub sockets: BTreeMap<u64, SockFlow>,
    /// Statistics of backends.
    pub statistics: BTreeMap<BackendStatsKey, BackendStats>,
    /// IPv6 addresses of clients, by id.
    pub addr6_ids: BTreeMap<Be32, Ip6>,
    /// Tables of schedulers.
    pub lb_tables: Vec<lb_tables::Table>,
    /// Counters of endpoints and networks.
    pub breakdown: Breakdown,
    /// Counters of this host.
    pub counters: Vec<(Reason, Counter)>,
    /// When, in ns of CLOCK_MONOTONIC.
    pub now: u64,
}

/// All tables of a snapshot, with the names of `state`.
pub fn tables(
    snapshot: Snapshot,
    state: &ClusterState,
    names: &Names,
    numbers: &impl Numbers,
) -> Tables {
    let Snapshot { held, conntrack, sockets, statistics, now, .. } = snapshot;
    let mut dumps = tables::dump(&held, names);
    dumps.push(lb_tables::dump(&snapshot.lb_tables, &held, names));
    dumps.push(tables::addr6_ids(&snapshot.addr6_ids));
    dumps.push(sockets::sockets(&sockets, &held, names, now));
    Tables {
        traffic: traffic::rows(&snapshot.breakdown, &held.links, names),
        state: dumps,
        virtual_servers: ipvs::virtual_servers(
            state,
            &held,
            (&conntrack, &sockets, now),
            &statistics,
        ),
        conntrack: flows::conntrack(conntrack, names, numbers, now),
        counters: status::counters(snapshot.counters),
    }
}
