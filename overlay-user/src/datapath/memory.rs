//! [`Datapath`] as tables in memory, for tests of the controller: any call can be made to fail.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use overlay_common::{
    Be32, Reason,
    event::{EVENT_KINDS, Watch},
    maps::{
        Active, Addr6, BACKEND_COUNTED, BackendStats, BackendStatsKey, Config, Conntrack,
        ConntrackKey, Counter, Cursor, Lru, Slot, SnatUsage, SockFlow, TableKey,
    },
    observe::{DropKey, Tally},
};

use super::{Breakdown, Datapath, DatapathError, DatapathState, Fill, MapOp, XdpMode};

/// The calls of [`Datapath`], to say which one shall fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DatapathCall {
    /// [`Datapath::set_config`]
    SetConfig,
    /// [`Datapath::read`]
    Read,
    /// One operation of [`Datapath::apply`]: those before it are done.
    Apply,
    /// [`Datapath::attach_container`]
    AttachContainer,
    /// [`Datapath::attach_underlay`]
    AttachUnderlay,
    /// [`Datapath::attach_vxlan`]
    AttachVxlan,
    /// [`Datapath::attach_outside`]
    AttachOutside,
    /// [`Datapath::attach_sockets`]
    AttachSockets,
    /// [`Datapath::detach`]
    Detach,
    /// [`Datapath::attachments`]
    Attachments,
    /// [`Datapath::counters`]
    Counters,
    /// [`Datapath::fills`]
    Fills,
    /// [`Datapath::breakdown`]
    Breakdown,
    /// [`Datapath::forget`]
    Forget,
    /// [`Datapath::conntrack`]
    Conntrack,
    /// [`Datapath::snat_usage`]
    SnatUsage,
    /// [`Datapath::set_snat_usage`]
    SetSnatUsage,
}

/// A call that fails: how many go well first, and how many fail then.
#[derive(Clone, Copy, Debug)]
struct Failure {
    after: usize,
    times: usize,
}

#[derive(Debug, Default)]
struct Kernel {
    config: Config,
    state: DatapathState,
    cursors: BTreeMap<u32, Cursor>,
    active: BTreeMap<u32, Active>,
    served: BTreeMap<BackendStatsKey, BackendStats>,
    applied: Vec<MapOp>,
    containers: Vec<String>,
    underlay: Option<(String, XdpMode)>,
    vxlan: Option<String>,
    outside: Vec<String>,
    usage: BTreeMap<u32, SnatUsage>,
    cgroup: Option<PathBuf>,
    counters: BTreeMap<Reason, Counter>,
    fills: BTreeMap<Lru, Fill>,
    breakdown: Breakdown,
    watch: (Watch, BTreeSet<u32>),
    events: VecDeque<Vec<u8>>,
    lost: [u64; EVENT_KINDS],
    conntrack: Vec<(ConntrackKey, Conntrack)>,
    addr6_ids: BTreeMap<Be32, Addr6>,
    sockets: BTreeMap<u64, SockFlow>,
    failures: BTreeMap<DatapathCall, Failure>,
}

impl Kernel {
    fn check(&mut self, call: DatapathCall) -> Result<(), DatapathError> {
        let Some(failure) = self.failures.get_mut(&call) else { return Ok(()) };
        if failure.after > 0 {
            failure.after -= 1;
            return Ok(());
        }
        if failure.times == 0 {
            return Ok(());
        }
        if failure.times != usize::MAX {
            failure.times -= 1;
        }
        let action = format!("{call:?}");
        Err(DatapathError::Kernel { action, reason: "made to fail by the test".to_owned() })
    }

    fn apply(&mut self, op: &MapOp) {
        let state = &mut self.state;
        match op {
            MapOp::Network(key, value) => set(&mut state.networks, *key, *value),
            MapOp::Flood(key, value) => set(&mut state.flood, *key, value.clone()),
            MapOp::Endpoint(key, value) => set(&mut state.endpoints, *key, *value),
            MapOp::Endpoint6(key, value) => set(&mut state.endpoints6, *key, *value),
            MapOp::Address6(key, value) => set(&mut state.addresses6, *key, *value),
            MapOp::Link(key, value) => set(&mut state.links, *key, *value),
            MapOp::Link6(key, value) => set(&mut state.links6, *key, *value),
            MapOp::Peer(key, value) => set(&mut state.peers, *key, *value),
            MapOp::Vtep6(key, value) => set(&mut state.vteps6, *key, *value),
            MapOp::Service(key, value) => {
                set(&mut state.services, *key, *value);
                let cursor = value.map(|_| self.cursors.get(key).copied().unwrap_or_default());
                set(&mut self.cursors, *key, cursor);
            }
            MapOp::Slot(key, value) => set(&mut state.slots, *key, *value),
            MapOp::Table(key, value) => set(&mut state.tables, *key, value.clone()),
            MapOp::Backend(key, value) => {
                set(&mut state.backends, *key, *value);
                let counted = value.filter(|backend| backend.flags & BACKEND_COUNTED != 0);
                let flows = counted.map(|_| self.active.get(key).copied().unwrap_or_default());
                set(&mut self.active, *key, flows);
            }
            MapOp::Published(key, value) => set(&mut state.published, *key, *value),
            MapOp::LocalAddr(key, value) => set(&mut state.local_addrs, *key, *value),
            MapOp::LocalAddr6(key, value) => set(&mut state.local_addrs6, *key, *value),
            MapOp::Egress(key, value) => set(&mut state.egress, *key, *value),
            MapOp::Subnet(key, value) => set(&mut state.subnets, *key, *value),
            MapOp::Subnet6(key, value) => set(&mut state.subnets6, *key, *value),
            MapOp::Frontend6(key, value) => set(&mut state.frontends6, *key, *value),
            MapOp::Netns(key, value) => set(&mut state.netns, *key, *value),
            MapOp::StaleBackend(key, value) => set(&mut state.stale_backends, *key, *value),
        }
        self.applied.push(op.clone());
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// A datapath in memory. Clones share their state, so a test keeps one and gives one away. A clone
/// for a second agent plays the part of the pins after a restart.
#[derive(Clone, Debug, Default)]
pub struct MemoryDatapath {
    kernel: Arc<Mutex<Kernel>>,
}

impl MemoryDatapath {
    /// An empty datapath.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes calls fail: `after` go well first, then `times` fail; `usize::MAX` fails until
    /// [`MemoryDatapath::heal`].
    pub fn fail(&self, call: DatapathCall, after: usize, times: usize) {
        self.kernel().failures.insert(call, Failure { after, times });
    }

    /// Ends the failures of a call.
    pub fn heal(&self, call: DatapathCall) {
        self.kernel().failures.remove(&call);
    }

    /// The tables now.
    pub fn state(&self) -> DatapathState {
        self.kernel().state.clone()
    }

    /// Replaces the tables, as if an earlier process had left them.
    pub fn set_state(&self, state: DatapathState) {
        let mut kernel = self.kernel();
        kernel.cursors = state.services.keys().map(|number| (*number, 0)).collect();
        kernel.state = state;
    }

    /// The config now.
    pub fn config(&self) -> Config {
        self.kernel().config
    }

    /// Every operation applied so far, in order; the list starts anew with each call.
    pub fn take_applied(&self) -> Vec<MapOp> {
        std::mem::take(&mut self.kernel().applied)
    }

    /// Interfaces with `from_container`.
    pub fn containers(&self) -> Vec<String> {
        self.kernel().containers.clone()
    }

    /// The underlay interface and its XDP mode.
    pub fn underlay(&self) -> Option<(String, XdpMode)> {
        self.kernel().underlay.clone()
    }

    /// The vxlan device.
    pub fn vxlan(&self) -> Option<String> {
        self.kernel().vxlan.clone()
    }

    /// The interfaces with `from_outside`.
    pub fn outside(&self) -> Vec<String> {
        self.kernel().outside.clone()
    }

    /// The cgroup of the socket programs.
    pub fn cgroup(&self) -> Option<PathBuf> {
        self.kernel().cgroup.clone()
    }

    /// Advances a service's cursor, as the programs do for each new flow. False when there is none.
    pub fn advance_cursor(&self, service: u32) -> bool {
        let mut kernel = self.kernel();
        let cursor = kernel.cursors.get_mut(&service);
        cursor.is_some_and(|cursor| {
            *cursor = cursor.wrapping_add(1);
            true
        })
    }

    /// A service's cursor.
    pub fn cursor(&self, service: u32) -> Option<Cursor> {
        self.kernel().cursors.get(&service).copied()
    }

    /// Sets a counter.
    pub fn set_counter(&self, reason: Reason, counter: Counter) {
        self.kernel().counters.insert(reason, counter);
    }

    /// Sets how full a map is.
    pub fn set_fill(&self, lru: Lru, fill: Fill) {
        self.kernel().fills.insert(lru, fill);
    }

    /// Sets the counters with an endpoint's counter index.
    pub fn set_tally(&self, counter: u32, tally: Tally) {
        self.kernel().breakdown.forwarded.insert(counter, tally);
    }

    /// Sets a counter of drops.
    pub fn set_drops(&self, key: DropKey, counter: Counter) {
        self.kernel().breakdown.dropped.insert(key, counter);
    }

    /// The watched events, and the slots of the captured endpoints.
    pub fn watch(&self) -> (Watch, BTreeSet<u32>) {
        self.kernel().watch.clone()
    }

    /// Tells of something, as the programs do.
    pub fn push_event(&self, record: Vec<u8>) {
        self.kernel().events.push_back(record);
    }

    /// The number of unread records.
    pub fn events_left(&self) -> usize {
        self.kernel().events.len()
    }

    /// Counts records as lost.
    pub fn lose_events(&self, kind: u8, count: u64) {
        self.kernel().lost[usize::from(kind)] += count;
    }

    /// Adds a conntrack entry.
    pub fn set_backend_stats(&self, key: BackendStatsKey, served: BackendStats) {
        self.kernel().served.insert(key, served);
    }

    /// Connects a socket.
    pub fn add_socket(&self, cookie: u64, flow: SockFlow) {
        self.kernel().sockets.insert(cookie, flow);
    }

    /// Adds a conntrack entry.
    pub fn add_conntrack(&self, key: ConntrackKey, entry: Conntrack) {
        self.kernel().conntrack.push((key, entry));
    }

    /// Gives an address outside a number in IPv6 flows.
    pub fn set_addr6(&self, number: Be32, address: Addr6) {
        self.kernel().addr6_ids.insert(number, address);
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        // A panic elsewhere is reported there; the tables are whole after every call.
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, call: DatapathCall) -> Result<MutexGuard<'_, Kernel>, DatapathError> {
        let mut kernel = self.kernel();
        kernel.check(call)?;
        Ok(kernel)
    }
}

impl Datapath for MemoryDatapath {
    fn set_config(&self, config: &Config) -> Result<(), DatapathError> {
        self.enter(DatapathCall::SetConfig)?.config = *config;
        Ok(())
    }

    fn read(&self) -> Result<DatapathState, DatapathError> {
        Ok(self.enter(DatapathCall::Read)?.state.clone())
    }

    fn apply(&self, ops: &[MapOp]) -> Result<(), DatapathError> {
        let mut kernel = self.kernel();
        for op in ops {
            kernel.check(DatapathCall::Apply)?;
            kernel.apply(op);
        }
        Ok(())
    }

    fn attach_container(&self, iface: &str) -> Result<(), DatapathError> {
        let mut kernel = self.enter(DatapathCall::AttachContainer)?;
        if !kernel.containers.iter().any(|name| name == iface) {
            kernel.containers.push(iface.to_owned());
        }
        Ok(())
    }

    fn attach_underlay(&self, iface: &str, xdp: XdpMode) -> Result<XdpMode, DatapathError> {
        let mut kernel = self.enter(DatapathCall::AttachUnderlay)?;
        // As on a veth.
        let mode = if xdp == XdpMode::Auto { XdpMode::Off } else { xdp };
        kernel.underlay = Some((iface.to_owned(), mode));
        Ok(mode)
    }

    fn attach_vxlan(&self, iface: &str) -> Result<(), DatapathError> {
        self.enter(DatapathCall::AttachVxlan)?.vxlan = Some(iface.to_owned());
        Ok(())
    }

    fn attach_outside(&self, iface: &str) -> Result<(), DatapathError> {
        let mut kernel = self.enter(DatapathCall::AttachOutside)?;
        if !kernel.outside.iter().any(|name| name == iface) {
            kernel.outside.push(iface.to_owned());
        }
        Ok(())
    }

    fn attach_sockets(&self, cgroup: &Path) -> Result<(), DatapathError> {
        self.enter(DatapathCall::AttachSockets)?.cgroup = Some(cgroup.to_owned());
        Ok(())
    }

    fn detach(&self, iface: &str) -> Result<(), DatapathError> {
        let mut kernel = self.enter(DatapathCall::Detach)?;
        kernel.containers.retain(|name| name != iface);
        kernel.outside.retain(|name| name != iface);
        kernel.underlay.take_if(|(name, _)| name == iface);
        kernel.vxlan.take_if(|name| name == iface);
        Ok(())
    }

    fn attachments(&self) -> Result<Vec<String>, DatapathError> {
        let kernel = self.enter(DatapathCall::Attachments)?;
        let others = kernel.underlay.iter().map(|(name, _)| name).chain(&kernel.vxlan);
        let attached = kernel.containers.iter().chain(&kernel.outside).chain(others);
        let mut names: Vec<String> = attached.cloned().collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn counters(&self) -> Result<Vec<(Reason, Counter)>, DatapathError> {
        let kernel = self.enter(DatapathCall::Counters)?;
        let value = |reason: &Reason| kernel.counters.get(reason).copied().unwrap_or_default();
        Ok(Reason::ALL.iter().map(|reason| (*reason, value(reason))).collect())
    }

    fn fills(&self) -> Result<BTreeMap<Lru, Fill>, DatapathError> {
        let kernel = self.enter(DatapathCall::Fills)?;
        let fill = |lru: Lru| (lru, kernel.fills.get(&lru).copied().unwrap_or_default());
        Ok(Lru::ALL.map(fill).into())
    }

    fn breakdown(&self, slots: &BTreeSet<u32>) -> Result<Breakdown, DatapathError> {
        let mut breakdown = self.enter(DatapathCall::Breakdown)?.breakdown.clone();
        breakdown.forwarded.retain(|counter, _| slots.contains(counter));
        Ok(breakdown)
    }

    fn forget(&self, slots: &BTreeSet<u32>, networks: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let mut kernel = self.enter(DatapathCall::Forget)?;
        kernel.breakdown.forwarded.retain(|counter, _| !slots.contains(counter));
        kernel.breakdown.dropped.retain(|key, _| {
            let counter = u32::from(key.counter);
            !slots.contains(&counter) && (counter != 0 || !networks.contains(&key.vni))
        });
        Ok(())
    }

    fn set_watch(&self, watch: &Watch, slots: &BTreeSet<u32>) -> Result<(), DatapathError> {
        self.kernel().watch = (*watch, slots.clone());
        Ok(())
    }

    fn read_events(
        &self,
        within: Duration,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DatapathError> {
        let records = std::mem::take(&mut self.kernel().events);
        if records.is_empty() {
            // No wakeup ever comes; a test waits no longer than this.
            std::thread::sleep(within.min(Duration::from_millis(10)));
        }
        records.iter().for_each(|record| each(record));
        Ok(())
    }

    fn lost_events(&self) -> Result<[u64; EVENT_KINDS], DatapathError> {
        Ok(self.kernel().lost)
    }

    fn conntrack(&self, limit: usize) -> Result<Vec<(ConntrackKey, Conntrack)>, DatapathError> {
        let kernel = self.enter(DatapathCall::Conntrack)?;
        Ok(kernel.conntrack.iter().take(limit).copied().collect())
    }

    fn addr6_ids(&self, limit: usize) -> Result<BTreeMap<Be32, Addr6>, DatapathError> {
        let kernel = self.enter(DatapathCall::Conntrack)?;
        Ok(kernel.addr6_ids.iter().take(limit).map(|(number, ip)| (*number, *ip)).collect())
    }

    fn addr6(&self, number: Be32) -> Result<Option<Addr6>, DatapathError> {
        Ok(self.enter(DatapathCall::Conntrack)?.addr6_ids.get(&number).copied())
    }

    fn snat_usage(&self) -> Result<BTreeMap<u32, SnatUsage>, DatapathError> {
        Ok(self.enter(DatapathCall::SnatUsage)?.usage.clone())
    }

    fn set_snat_usage(&self, ifindex: u32, usage: Option<SnatUsage>) -> Result<(), DatapathError> {
        set(&mut self.enter(DatapathCall::SetSnatUsage)?.usage, ifindex, usage);
        Ok(())
    }

    fn active(&self) -> Result<BTreeMap<u32, Active>, DatapathError> {
        Ok(self.kernel().active.clone())
    }

    fn set_active(&self, backend: u32, flows: Active) -> Result<(), DatapathError> {
        if let Some(active) = self.kernel().active.get_mut(&backend) {
            *active = flows;
        }
        Ok(())
    }

    fn backend_stats(&self) -> Result<BTreeMap<BackendStatsKey, BackendStats>, DatapathError> {
        Ok(self.kernel().served.clone())
    }

    fn forget_backend_stats(&self, backends: &BTreeSet<u32>) -> Result<(), DatapathError> {
        self.kernel().served.retain(|key, _| !backends.contains(&key.backend));
        Ok(())
    }

    fn sockets(&self) -> Result<BTreeMap<u64, SockFlow>, DatapathError> {
        Ok(self.kernel().sockets.clone())
    }

    fn forget_socket(&self, cookie: u64) -> Result<(), DatapathError> {
        self.kernel().sockets.remove(&cookie);
        Ok(())
    }

    fn table(&self, key: TableKey) -> Result<Option<Vec<Slot>>, DatapathError> {
        Ok(self.kernel().state.tables.get(&key).map(super::LbTable::fill))
    }

    fn tc_flavour(&self) -> &'static str {
        "memory"
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::maps::{Network, Service};

    use super::*;
    use crate::datapath::diff;

    #[test]
    fn what_the_diff_says_leads_from_one_state_to_the_other() {
        let datapath = MemoryDatapath::new();
        let mut wanted = DatapathState::default();
        wanted.networks.insert(4097, Network { mtu: 1450, ..Network::default() });
        wanted.services.insert(7, Service { vni: 4097, slots: 2, ..Service::default() });
        datapath.apply(&diff(&datapath.state(), &wanted)).expect("applied");
        assert_eq!(datapath.read().expect("read"), wanted);
        datapath.apply(&diff(&wanted, &DatapathState::default())).expect("applied");
        assert_eq!(datapath.state(), DatapathState::default());
        assert_eq!(datapath.cursor(7), None, "the cursor goes with its service");
    }

    #[test]
    fn a_changed_service_keeps_its_cursor() {
        let datapath = MemoryDatapath::new();
        let service = |slots| Some(Service { slots, ..Service::default() });
        datapath.apply(&[MapOp::Service(7, service(1))]).expect("applied");
        assert!(datapath.advance_cursor(7));
        datapath.apply(&[MapOp::Service(7, service(2))]).expect("applied");
        assert_eq!(datapath.cursor(7), Some(1));
    }

    #[test]
    fn a_failing_operation_leaves_those_before_it_done() {
        let datapath = MemoryDatapath::new();
        let network = |vni| MapOp::Network(vni, Some(Network::default()));
        datapath.fail(DatapathCall::Apply, 1, 1);
        assert!(datapath.apply(&[network(1), network(2), network(3)]).is_err());
        assert_eq!(datapath.take_applied(), vec![network(1)]);
        datapath.apply(&[network(2), network(3)]).expect("the failure has worn off");
        assert_eq!(datapath.state().networks.len(), 3);
    }
}
