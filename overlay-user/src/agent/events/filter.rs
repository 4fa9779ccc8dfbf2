//! The request of one watcher, and the union of all requests for the programs.

use std::collections::BTreeSet;

use overlay_common::{
    Be16, Be32, Reason,
    event::{
        EVENT_CAPTURE, EVENT_DROP, EVENT_FLOW, SNAP_MAX, WATCH_ALL, WATCH_CAPTURE, WATCH_DROPS,
        WATCH_FLOWS, Watch,
    },
};

use super::record::{Owners, Record};
use crate::{
    api::{ApiError, DEFAULT_SNAPLEN, ErrorCode, EventKind, EventRequest},
    model::{ClusterState, Id},
    packet::Headers,
};

/// The request of a watcher.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    kinds: BTreeSet<EventKind>,
    network: Option<u32>,
    endpoint: Option<(u32, Be32)>,
    reason: Option<Reason>,
    protocol: Option<u8>,
    port: Option<u16>,
    host: Option<std::net::IpAddr>,
    snaplen: u32,
    sample: u32,
}

fn missing(what: &str, name: &str, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no {what} {name:?}")).hint(hint)
}

impl Filter {
    /// # Errors
    /// [`ErrorCode::NotFound`] when nothing has the name.
    pub(super) fn new(
        request: &EventRequest,
        state: &ClusterState,
        node: &Id,
    ) -> Result<Self, ApiError> {
        let network = request.network.as_deref().map(|name| network(state, name)).transpose()?;
        let endpoint = match request.endpoint.as_deref() {
            Some(name) => Some(endpoint(state, node, network, name)?),
            None => None,
        };
        let reason = match request.reason.as_deref() {
            Some(name) => Some(reason(name)?),
            None => None,
        };
        let snaplen = request.snaplen.unwrap_or(DEFAULT_SNAPLEN).clamp(1, SNAP_MAX as u32);
        Ok(Self {
            kinds: request.kinds.clone(),
            network,
            endpoint,
            reason,
            protocol: request.protocol,
            port: request.port,
            host: request.host,
            snaplen,
            sample: request.sample.unwrap_or(1).max(1),
        })
    }

    /// Most bytes of a packet.
    pub(super) fn snaplen(&self) -> usize {
        self.snaplen as usize
    }

    /// Whether it is about events of this kind.
    pub(super) fn wants_kind(&self, kind: usize) -> bool {
        self.kinds.contains(&match u8::try_from(kind) {
            Ok(EVENT_DROP) => EventKind::Drop,
            Ok(EVENT_FLOW) => EventKind::Flow,
            _ => EventKind::Capture,
        })
    }

    /// Whether packets of the endpoint at an address of a network are to be captured.
    fn captures(&self, owner: (u32, Be32)) -> bool {
        self.endpoint.is_none_or(|endpoint| endpoint == owner)
            && self.network.is_none_or(|network| network == owner.0)
    }

    /// Whether the watcher is to hear of it. The programs chose among the packets to be captured
    /// as `told`.
    pub(super) fn lets_through(&self, record: &Record, told: &Watch) -> bool {
        self.kinds.contains(&record.kind)
            && self.network.is_none_or(|network| record.vni == network)
            && self.endpoint.is_none_or(|endpoint| record.owner == Some(endpoint))
            && self.reason.is_none_or(|reason| record.reason == reason)
            && self.lets_headers_through(record)
            && (record.kind != EventKind::Capture || self.is_sampled(told))
    }

    /// Headers are looked at only when something is asked of them.
    fn lets_headers_through(&self, record: &Record) -> bool {
        let asked = self.protocol.is_some() || self.port.is_some() || self.host.is_some();
        !asked || record.packets().iter().any(|headers| self.lets_packet_through(headers))
    }

    fn lets_packet_through(&self, headers: &Headers) -> bool {
        let port = |port| [headers.source_port, headers.destination_port].contains(&Some(port));
        let host = |host| [headers.source, headers.destination].contains(&Some(host));
        self.protocol.is_none_or(|protocol| headers.protocol == Some(protocol))
            && self.port.is_none_or(port)
            && self.host.is_none_or(host)
    }

    /// Another watcher may want more of the packets than this one.
    fn is_sampled(&self, told: &Watch) -> bool {
        let known = told.sample.max(1);
        self.sample <= known || rand::random_range(0..self.sample) < known
    }
}

fn network(state: &ClusterState, name: &str) -> Result<u32, ApiError> {
    let found = state.networks.values().find(|n| n.name == name || n.id.as_str() == name);
    let hint = "`overlay network ls` lists them";
    found.map(|n| n.vni).ok_or_else(|| missing("network", name, hint))
}

fn endpoint(
    state: &ClusterState,
    node: &Id,
    network: Option<u32>,
    name: &str,
) -> Result<(u32, Be32), ApiError> {
    let mine = state.endpoints.values().filter(|e| e.node == *node && e.name == name);
    let places = mine.filter_map(|e| Some((state.networks.get(&e.network)?.vni, Be32::from(e.ip))));
    let places: Vec<_> =
        places.filter(|(vni, _)| network.is_none_or(|network| network == *vni)).collect();
    match places.as_slice() {
        [place] => Ok(*place),
        [] => Err(missing(
            "endpoint",
            name,
            "only endpoints of this host can be watched: `overlay endpoint ls` lists them",
        )),
        _ => Err(ApiError::new(
            ErrorCode::Conflict,
            format!("the endpoint {name:?} is on {} networks", places.len()),
        )
        .hint("name one of them with --network")),
    }
}

fn reason(name: &str) -> Result<Reason, ApiError> {
    let found = Reason::ALL.iter().find(|reason| reason.name() == name);
    let hint = "`overlay bpf counters` lists them";
    found.copied().ok_or_else(|| missing("reason", name, hint))
}

/// The one value that all have.
fn common<T: PartialEq>(mut values: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = values.next()??;
    values.all(|value| value.as_ref() == Some(&first)).then_some(first)
}

/// The events that the programs must report to satisfy every watcher, and the counter indexes of
/// the endpoints to capture. Each watcher then picks its own events.
pub(super) fn union<'a>(
    filters: impl Iterator<Item = &'a Filter> + Clone,
    owners: &Owners,
) -> (Watch, BTreeSet<u32>) {
    let mut watch = Watch::default();
    let kinds = [
        (EventKind::Drop, WATCH_DROPS),
        (EventKind::Flow, WATCH_FLOWS),
        (EventKind::Capture, WATCH_CAPTURE),
    ];
    for (kind, flag) in kinds {
        if filters.clone().any(|filter| filter.kinds.contains(&kind)) {
            watch.flags |= flag;
        }
    }
    let captures = filters.filter(|filter| filter.wants_kind(EVENT_CAPTURE.into()));
    let mut counters = BTreeSet::new();
    for filter in captures.clone() {
        if filter.network.is_none() && filter.endpoint.is_none() {
            watch.flags |= WATCH_ALL;
        } else {
            let its = owners.iter().filter(|(_, owner)| filter.captures(**owner));
            counters.extend(its.map(|(counter, _)| *counter));
        }
    }
    watch.snap = captures.clone().map(|filter| filter.snaplen).max().unwrap_or_default();
    watch.sample = captures.clone().map(|filter| filter.sample).min().unwrap_or_default();
    watch.protocol = common(captures.clone().map(|filter| filter.protocol)).unwrap_or_default();
    watch.port = Be16::new(common(captures.clone().map(|filter| filter.port)).unwrap_or_default());
    watch.host = match common(captures.map(|filter| filter.host)) {
        Some(std::net::IpAddr::V4(host)) => host.to_ipv6_mapped().octets(),
        Some(std::net::IpAddr::V6(host)) => host.octets(),
        None => [0; 16],
    };
    (watch, counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(change: impl FnOnce(&mut Filter)) -> Filter {
        let request =
            EventRequest { kinds: BTreeSet::from([EventKind::Capture]), ..EventRequest::default() };
        let state = ClusterState::default();
        let mut filter = Filter::new(&request, &state, &Id::from_text("h1")).expect("a filter");
        change(&mut filter);
        filter
    }

    fn owners() -> Owners {
        let ip = |last| Be32::from_octets([10, 0, 1, last]);
        Owners::from([(1, (4097, ip(2))), (2, (4097, ip(3))), (3, (4098, ip(2)))])
    }

    #[test]
    fn the_programs_tell_of_what_any_watcher_wants() {
        let drops = filter(|f| f.kinds = BTreeSet::from([EventKind::Drop, EventKind::Flow]));
        let one = filter(|f| {
            f.endpoint = Some((4097, Be32::from_octets([10, 0, 1, 3])));
            f.snaplen = 96;
            f.sample = 10;
        });
        let (watch, counters) = union([&drops, &one].into_iter(), &owners());
        assert_eq!(watch.flags, WATCH_DROPS | WATCH_FLOWS | WATCH_CAPTURE);
        assert_eq!((counters, watch.snap, watch.sample), (BTreeSet::from([2]), 96, 10));
        let network = filter(|f| f.network = Some(4098));
        let (watch, counters) = union([&one, &network].into_iter(), &owners());
        assert_eq!((counters, watch.snap, watch.sample), (BTreeSet::from([2, 3]), 2_048, 1));
        let (watch, _) = union([&one, &filter(|_| {})].into_iter(), &owners());
        assert_eq!(watch.flags, WATCH_CAPTURE | WATCH_ALL);
        assert_eq!(union(std::iter::empty(), &owners()), (Watch::default(), BTreeSet::new()));
    }

    #[test]
    fn a_filter_is_the_programs_only_when_all_have_it() {
        let web = filter(|f| (f.protocol, f.port) = (Some(6), Some(80)));
        let other = filter(|f| (f.protocol, f.port) = (Some(6), Some(443)));
        let host = filter(|f| f.host = Some([10, 0, 1, 2].into()));
        let (watch, _) = union([&web, &web].into_iter(), &owners());
        assert_eq!((watch.protocol, watch.port), (6, Be16::new(80)));
        let (watch, _) = union([&web, &other].into_iter(), &owners());
        assert_eq!((watch.protocol, watch.port), (6, Be16::ZERO));
        let (watch, _) = union([&host].into_iter(), &owners());
        assert_eq!(watch.host, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 1, 2]);
        let (watch, _) = union([&host, &web].into_iter(), &owners());
        assert_eq!((watch.host, watch.protocol), ([0; 16], 0));
    }
}
