//! The counters and fills of the maps in words.

use std::collections::BTreeMap;

use overlay_common::{
    Direction, Reason,
    maps::{Counter, Lru},
};

use crate::{
    api::{CounterRow, FillRow},
    datapath::{DatapathState, Fill, XdpMode},
};

/// Counters, in the order of the reasons.
pub fn counters(counters: impl IntoIterator<Item = (Reason, Counter)>) -> Vec<CounterRow> {
    let row = |(reason, counter): (Reason, Counter)| CounterRow {
        reason: reason.name().to_owned(),
        direction: match reason.direction() {
            Direction::Forward => "forward",
            Direction::Drop => "drop",
        }
        .to_owned(),
        packets: counter.packets,
        bytes: counter.bytes,
        description: reason.description().to_owned(),
    };
    counters.into_iter().map(row).collect()
}

/// How full the LRU maps are, in the order of their counters.
pub fn fills(fills: impl IntoIterator<Item = (Lru, Fill)>) -> Vec<FillRow> {
    let row = |(lru, fill): (Lru, Fill)| FillRow {
        map: lru.name().to_owned(),
        entries: fill.entries,
        room: fill.room,
        evicted: fill.evicted,
        description: lru.description().to_owned(),
    };
    fills.into_iter().map(row).collect()
}

/// Number of entries by map.
pub fn entries(state: &DatapathState) -> BTreeMap<String, u64> {
    [
        ("networks", state.networks.len()),
        ("flood", state.flood.len()),
        ("endpoints", state.endpoints.len()),
        ("endpoints6", state.endpoints6.len()),
        ("addresses6", state.addresses6.len()),
        ("links", state.links.len()),
        ("links6", state.links6.len()),
        ("peers", state.peers.len()),
        ("services", state.services.len()),
        ("slots", state.slots.len()),
        ("backends", state.backends.len()),
        ("published", state.published.len()),
        ("local_addrs", state.local_addrs.len()),
        ("local_addrs6", state.local_addrs6.len()),
        ("frontends6", state.frontends6.len()),
        ("egress", state.egress.len()),
        ("subnets", state.subnets.len()),
        ("subnets6", state.subnets6.len()),
        ("netns", state.netns.len()),
        ("stale_backends", state.stale_backends.len()),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), u64::try_from(count).unwrap_or(u64::MAX)))
    .collect()
}

/// A mode of XDP as the CLI writes it.
pub const fn xdp_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
        XdpMode::Off => "off",
    }
}
