//! Sockets of containers that are connected to a backend in place of a VIP: in which namespaces they are
//! looked for, what becomes of them when their backend goes, and which of them are no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use overlay_common::maps::{EndpointKey, SERVICE_RESETS, STALE_RESETS, SockFlow, StaleBackend};
use overlay_common::wire::PROTO_TCP;

use crate::{
    agent::{
        Agent, AgentError,
        attach::records::Record,
        lock,
        show::names::Names,
        show::tables::{beside, ip, monotonic_ns, protocol},
    },
    datapath::{Datapath, DatapathState, TableDump},
    link::Links,
    model::Id,
};

const SWEEPING: &str = "looking for sockets that are no more";
const LEARNING: &str = "learning which namespaces connect to VIPs";
/// How old what is noted of a socket must be before its absence means anything, ns: a socket that is just being
/// connected is in no table of the kernel yet.
const SETTLED: u64 = 60_000_000_000;
/// Many sockets take a while to be listed: at most one part in so many of the time.
const SHARE: u32 = 20;
/// In how many looks the kernel is asked once which sockets there are.
const ASK_ONE_IN: u32 = 15;

impl<D: Datapath, L: Links> Agent<D, L> {
    /// Notes the cookie of a namespace for one of its endpoints. Where the kernel does not tell, VIPs are
    /// balanced by packets there.
    pub(in crate::agent) fn note_space(&self, netns: &Path, endpoint: &Id) {
        if lock(&self.facts).spaces.contains_key(endpoint) {
            return;
        }
        match self.host.netns_cookie_of(netns) {
            Ok(cookie) => {
                lock(&self.facts).spaces.insert(endpoint.clone(), cookie);
                self.overcome(LEARNING);
            }
            Err(error) => self.trouble(LEARNING, error),
        }
    }

    /// The addresses of backends that are gone and that sockets are connected to, when the maps hold
    /// `current` and are to hold `target`. What is connected to nothing else is not looked for.
    ///
    /// # Errors
    /// [`AgentError::Datapath`] when the map cannot be read.
    pub(in crate::agent) fn gone(
        &self,
        current: &DatapathState,
        target: &DatapathState,
    ) -> Result<BTreeMap<EndpointKey, StaleBackend>, AgentError> {
        let due = self.gone_due.swap(false, Ordering::Relaxed);
        let removed = || current.backends.keys().any(|n| !target.backends.contains_key(n));
        if !due && current.stale_backends.is_empty() && !removed() {
            return Ok(BTreeMap::new());
        }
        Ok(gone(&self.datapath.sockets()?, target))
    }

    /// Brings what is known of sockets up to date: addresses of backends that are gone, and, now and then,
    /// sockets that the kernel has let go without a word.
    pub(in crate::agent) async fn look_at_sockets(self: &Arc<Self>) {
        let agent = self.clone();
        let done = tokio::task::spawn_blocking(move || agent.look_at_sockets_now()).await;
        match done {
            Ok(Ok(())) => self.overcome(SWEEPING),
            Ok(Err(error)) => self.trouble(SWEEPING, error),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn look_at_sockets_now(&self) -> Result<(), AgentError> {
        let start = Instant::now();
        if lock(&self.sockets_due).is_some_and(|due| start < due) {
            return Ok(());
        }
        let sockets = self.datapath.sockets()?;
        let stale = |known: &DatapathState| known.stale_backends != gone(&sockets, known);
        if lock(&self.applied).known.as_ref().is_some_and(stale) {
            self.gone_due.store(true, Ordering::Relaxed);
            self.wake.notify_one();
        }
        if self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(ASK_ONE_IN) {
            self.sweep_sockets(&sockets)?;
        }
        *lock(&self.sockets_due) = Some(Instant::now() + start.elapsed() * SHARE);
        Ok(())
    }

    /// Forgets sockets that the kernel does not have: it tells nobody of the end of its own, as those of
    /// MPTCP's subflows and of network file systems.
    pub(in crate::agent) fn sweep_sockets(
        &self,
        sockets: &BTreeMap<u64, SockFlow>,
    ) -> Result<(), AgentError> {
        let now = monotonic_ns();
        let is_old =
            |flow: &SockFlow| flow.proto == PROTO_TCP && now.saturating_sub(flow.since) > SETTLED;
        let old: Vec<_> = sockets.iter().filter(|(_, flow)| is_old(flow)).collect();
        if old.is_empty() {
            return Ok(());
        }
        let spaces = self.spaces();
        let asked: BTreeSet<u64> = old.iter().map(|(_, flow)| flow.netns).collect();
        let mut alive: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for netns in asked {
            // Of a namespace that has no endpoint any more no connection is left that works.
            let found = match spaces.get(&netns).map(|path| self.host.tcp_sockets(path.as_deref()))
            {
                Some(Ok(found)) => found,
                Some(Err(error)) => {
                    // A namespace that has just gone, or a kernel without CONFIG_INET_DIAG.
                    tracing::debug!("its sockets are taken for alive: {error}");
                    continue;
                }
                None => BTreeSet::new(),
            };
            alive.insert(netns, found);
        }
        for (cookie, flow) in old {
            if alive.get(&flow.netns).is_some_and(|alive| !alive.contains(cookie)) {
                self.datapath.forget_socket(*cookie)?;
            }
        }
        Ok(())
    }

    /// The namespaces whose sockets are looked at, by cookie; `None` is the host's own.
    fn spaces(&self) -> BTreeMap<u64, Option<PathBuf>> {
        let records: Vec<Record> = self.containers.all().iter().map(|c| c.record()).collect();
        let facts = lock(&self.facts);
        let of = |record: &Record| {
            let cookie = record.wires.iter().find_map(|w| facts.spaces.get(&w.endpoint).copied());
            cookie.map(|cookie| (cookie, Some(record.netns.clone())))
        };
        let mut spaces: BTreeMap<_, _> = records.iter().filter_map(of).collect();
        spaces.extend(self.host.netns_cookie().ok().map(|own| (own, None)));
        spaces
    }
}

/// Where sockets are connected to a backend that `state` does not have, at an address that nobody has.
fn gone(
    sockets: &BTreeMap<u64, SockFlow>,
    state: &DatapathState,
) -> BTreeMap<EndpointKey, StaleBackend> {
    let mut gone = BTreeMap::new();
    for flow in sockets.values() {
        let key = EndpointKey { vni: flow.vni, ip: flow.ip };
        let is_gone = flow.backend != 0
            && !state.backends.contains_key(&flow.backend)
            && !state.endpoints.contains_key(&key);
        if is_gone {
            let service = state.services.get(&flow.service);
            let resets = service.is_some_and(|service| service.flags & SERVICE_RESETS != 0);
            *gone.entry(key).or_default() |= if resets { STALE_RESETS } else { 0 };
        }
    }
    gone
}

/// How many connections of sockets each backend has.
pub(in crate::agent) fn by_backend(sockets: &BTreeMap<u64, SockFlow>) -> BTreeMap<u32, u32> {
    let mut flows = BTreeMap::new();
    for flow in sockets.values().filter(|flow| flow.backend != 0) {
        *flows.entry(flow.backend).or_default() += 1;
    }
    flows
}

/// `netns` in words: a row for each network.
pub(in crate::agent) fn dump_spaces(state: &DatapathState, names: &Names) -> TableDump {
    let rows = state.netns.iter().flat_map(|(cookie, space)| {
        let networks = space.networks.iter().filter(|network| network.vni != 0);
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
pub(in crate::agent) fn dump_gone(state: &DatapathState, names: &Names) -> TableDump {
    let row = |(key, gone): (&EndpointKey, &StaleBackend)| {
        let answer = if gone & STALE_RESETS != 0 { "reset" } else { "drop" };
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
pub(in crate::agent) fn dump_sockets(
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

#[cfg(test)]
mod tests {
    use overlay_common::{
        Be32,
        maps::{Backend, Endpoint, Service},
    };

    use super::*;

    const BACKEND: u32 = 7;
    const SERVICE: u32 = 3;

    fn key() -> EndpointKey {
        EndpointKey { vni: 4098, ip: Be32::from_octets([10, 0, 1, 21]) }
    }

    fn sockets() -> BTreeMap<u64, SockFlow> {
        let EndpointKey { vni, ip } = key();
        let flow = SockFlow { vni, ip, service: SERVICE, backend: BACKEND, ..SockFlow::default() };
        let of_host = SockFlow { ip, ..SockFlow::default() };
        [(1, flow), (2, flow), (3, of_host)].into()
    }

    fn state(flags: u16) -> DatapathState {
        let mut state = DatapathState::default();
        state.services.insert(SERVICE, Service { flags, ..Service::default() });
        state
    }

    #[test]
    fn the_address_of_a_backend_that_is_gone_is_answered_as_its_service_says() {
        assert_eq!(gone(&sockets(), &state(SERVICE_RESETS)), [(key(), STALE_RESETS)].into());
        assert_eq!(gone(&sockets(), &state(0)), [(key(), 0)].into());
        assert_eq!(gone(&sockets(), &DatapathState::default()), [(key(), 0)].into());
    }

    #[test]
    fn an_address_is_not_gone_while_somebody_has_it() {
        let mut held = state(SERVICE_RESETS);
        held.backends.insert(BACKEND, Backend::default());
        assert!(gone(&sockets(), &held).is_empty(), "the backend itself, though it drains");
        let mut taken = state(SERVICE_RESETS);
        taken.endpoints.insert(key(), Endpoint::default());
        assert!(gone(&sockets(), &taken).is_empty(), "another container");
    }

    #[test]
    fn connections_count_for_their_backends_and_those_of_the_host_for_none() {
        assert_eq!(by_backend(&sockets()), [(BACKEND, 2)].into());
    }
}
