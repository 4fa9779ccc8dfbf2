//! [`Datapath`] on the kernel, through aya.
//!
//! Everything is pinned, so it outlives the process: maps keep their contents, links keep
//! forwarding. A new process loads its programs against the pinned maps and puts them into the
//! pinned links, one atomic step each.

mod attach;
mod clsact;
mod events;
mod lb_table;
mod lru;
pub mod migrate;
pub use lb_table::set as set_table;
#[cfg(feature = "log")]
mod log;
mod netlink;
mod object;
mod observe;
pub use object::{OBJECT, TAIL_CALLED, UNDERLAY_IPV6, decap_flags, load_program, set_tail_calls};
mod pins;
mod sys;
mod tables;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use attach::Attacher;
use aya::maps::{Array, Map, MapData};
use events::{EventRing, WatchTables};
use lru::LruTables;
use migrate::Migration;
use observe::TrafficTables;
use overlay_common::{
    Be32, Reason,
    event::{EVENT_KINDS, Watch},
    maps::{
        Active, Addr6, BackendStats, BackendStatsKey, Config, Conntrack, ConntrackKey, Counter,
        Lru, Slot, SnatUsage, SockFlow, TableKey,
    },
};
use pins::Pins;
pub use pins::{Inventory, PinnedAttachment, PinnedMap, PinnedProgram};
use tables::{AgentTables, ProgramTables, SnatUsageTable, SocketTable};

use super::{Breakdown, Datapath, DatapathError, DatapathState, Fill, MapOp, XdpMode, host};

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where to pin: a directory in a bpffs, made when missing.
    pub pin_dir: PathBuf,
    /// Entries of the conntrack table. A pinned table keeps the size it was made with.
    pub conntrack_size: u32,
    /// Whether the underlay is IPv6. Processes that load against the same pins say the same.
    pub underlay_ipv6: bool,
}

/// How classifiers are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcFlavour {
    /// Links, from 6.6.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl TcFlavour {
    /// The features of this kernel.
    pub fn detect() -> Self {
        if host::kernel_version() >= (6, 6) { Self::Tcx } else { Self::Clsact }
    }
}

/// The datapath of this host.
pub struct BpfDatapath {
    config: Mutex<Array<MapData, Config>>,
    agent: Mutex<AgentTables>,
    programs: ProgramTables,
    traffic: Mutex<TrafficTables>,
    usage: Mutex<SnatUsageTable>,
    sockets: Mutex<SocketTable>,
    lru: Mutex<LruTables>,
    watch: Mutex<WatchTables>,
    events: Mutex<EventRing>,
    attacher: Mutex<Attacher>,
    flavour: TcFlavour,
    decap_flags: u32,
    underlay_ipv6: bool,
}

impl BpfDatapath {
    /// Loads the programs against the maps pinned in the pin directory, or new ones, and pins
    /// everything. Attachments stay as they are until they are set again. Pins of interfaces that
    /// no longer exist are removed.
    ///
    /// # Errors
    /// [`DatapathError::Pin`] when a pin does not fit, [`DatapathError::Kernel`] when the kernel
    /// rejects a load. After such an error, a first load leaves nothing behind.
    pub fn load(options: &LoadOptions) -> Result<Self, DatapathError> {
        Self::load_as(options, TcFlavour::detect())
    }

    /// [`BpfDatapath::load`] with a choice of how to attach classifiers.
    ///
    /// # Errors
    /// As [`BpfDatapath::load`].
    pub fn load_as(options: &LoadOptions, flavour: TcFlavour) -> Result<Self, DatapathError> {
        if options.conntrack_size == 0 {
            return Err(DatapathError::Unsupported {
                what: "a conntrack table of 0 entries cannot hold a flow".to_owned(),
                remedy: "give --conntrack-size at least 1".to_owned(),
            });
        }
        match Self::load_until(options, flavour, None)? {
            Some(datapath) => Ok(datapath),
            None => Err(kernel("load the datapath", "the migration ended early")),
        }
    }

    /// [`BpfDatapath::load_as`], where a migration ends after `until`, as if the process had been
    /// killed there: for tests. `None` when it did.
    ///
    /// # Errors
    /// As [`BpfDatapath::load`].
    pub fn load_until(
        options: &LoadOptions,
        flavour: TcFlavour,
        until: Option<migrate::Step>,
    ) -> Result<Option<Self>, DatapathError> {
        let pins = Pins::new(&options.pin_dir);
        if let Some(migration) = Migration::find(&options.pin_dir, &pins, until)? {
            return Self::migrate(options, pins, flavour, migration);
        }
        let first = !pins.exist();
        let loaded =
            pins.create(&options.pin_dir, None).and_then(|()| Self::adopt(options, pins, flavour));
        if loaded.is_err() && first {
            // The error of the load is the one to report.
            let _ = pins::remove_all(&options.pin_dir);
        }
        loaded.map(Some)
    }

    /// Takes the datapath of layout 1 over. When that fails before the first program is replaced,
    /// layout 1 is in force as before, and nothing is left of layout 2.
    fn migrate(
        options: &LoadOptions,
        pins: Pins,
        flavour: TcFlavour,
        migration: Migration,
    ) -> Result<Option<Self>, DatapathError> {
        pins.create(&options.pin_dir, Some(migration.old()))?;
        let undone = migration.may_begin_anew().then(|| pins.clone());
        let undo = |error: DatapathError| {
            if let Some(pins) = undone.filter(|pins| !migrate::is_marked(pins)) {
                // The error of the load is the one to report.
                let _ = pins.forget();
            }
            error
        };
        let mut options = options.clone();
        let loaded = migration.conntrack_size().and_then(|size| {
            options.conntrack_size = size.unwrap_or(options.conntrack_size);
            Self::adopt(&options, pins.clone(), flavour)
        });
        let mut datapath = match loaded {
            Ok(datapath) => datapath,
            Err(error) => return Err(undo(error)),
        };
        let attacher = datapath.attacher.get_mut().unwrap_or_else(PoisonError::into_inner);
        match migration.run(&mut attacher.ebpf, &pins) {
            Ok(()) => Ok(Some(datapath)),
            Err(migrate::Stop::There) => Ok(None),
            Err(migrate::Stop::Failed(error)) => Err(undo(error)),
        }
    }

    fn adopt(options: &LoadOptions, pins: Pins, flavour: TcFlavour) -> Result<Self, DatapathError> {
        let is_new = !pins.map(lru::LRU_STATS).exists();
        let mut ebpf = object::load(options, &pins)?;
        #[cfg(feature = "log")]
        log::start(&mut ebpf)?;
        let decap_flags = decap_flags(&mut ebpf)?;
        let config = Mutex::new(tables::take_config(&mut ebpf)?);
        let agent = Mutex::new(AgentTables::take(&mut ebpf)?);
        let programs = ProgramTables::take(&mut ebpf)?;
        let traffic = Mutex::new(TrafficTables::take(&mut ebpf)?);
        let usage = Mutex::new(SnatUsageTable::take(&mut ebpf)?);
        let sockets = Mutex::new(SocketTable::take(&mut ebpf)?);
        let lru = Mutex::new(LruTables::take(&mut ebpf, &pins, is_new)?);
        let mut watch = WatchTables::take(&mut ebpf)?;
        // Whoever watched an earlier process is gone.
        watch.set(&Watch::default(), &BTreeSet::new())?;
        let events = Mutex::new(EventRing::take(&mut ebpf)?);
        let attacher = Attacher { ebpf, pins, flavour };
        attacher.prune()?;
        let attacher = Mutex::new(attacher);
        Ok(Self {
            config,
            agent,
            programs,
            traffic,
            usage,
            sockets,
            lru,
            watch: Mutex::new(watch),
            events,
            attacher,
            flavour,
            decap_flags,
            underlay_ipv6: options.underlay_ipv6,
        })
    }

    /// Detaches and removes everything in a pin directory, of any version: links, filters and the
    /// qdiscs that they leave empty, programs, maps, directories. Returns a description of each
    /// removed object; the list is empty if nothing was loaded. Call it in the network namespace of
    /// the interfaces.
    ///
    /// # Errors
    /// [`DatapathError::Kernel`] names the first object that could not be removed. The removal
    /// continues with the others.
    pub fn unload(pin_dir: &Path) -> Result<Vec<String>, DatapathError> {
        pins::remove_all(pin_dir)
    }

    /// The config pinned in a pin directory; `None` when nothing is loaded there.
    ///
    /// # Errors
    /// [`DatapathError::Pin`] when the pin holds something else.
    pub fn pinned_config(pin_dir: &Path) -> Result<Option<Config>, DatapathError> {
        // The map is the same one in the layout that is migrated from.
        let paths = [Pins::new(pin_dir), Pins::of(pin_dir, migrate::FROM)];
        let paths = paths.map(|pins| pins.map("config"));
        let Some(path) = paths.into_iter().find(|path| path.exists()) else {
            return Ok(None);
        };
        let map = MapData::from_pin(&path).map_err(|e| bad_pin(&path, &e))?;
        let config = Array::<_, Config>::try_from(Map::Array(map));
        let config = config.map_err(|e| bad_pin(&path, &e))?;
        config.get(&0, 0).map(Some).map_err(|e| bad_pin(&path, &e))
    }

    fn attacher(&self) -> MutexGuard<'_, Attacher> {
        lock(&self.attacher)
    }
}

impl Datapath for BpfDatapath {
    fn set_config(&self, config: &Config) -> Result<(), DatapathError> {
        let config = Config { decap_flags: self.decap_flags, ..*config };
        lock(&self.config).set(0, config, 0).map_err(|e| kernel("write the map config", words(&e)))
    }

    fn read(&self) -> Result<DatapathState, DatapathError> {
        lock(&self.agent).read()
    }

    fn apply(&self, ops: &[MapOp]) -> Result<(), DatapathError> {
        let mut tables = lock(&self.agent);
        ops.iter().try_for_each(|op| tables.apply(op))
    }

    fn attach_container(&self, iface: &str) -> Result<(), DatapathError> {
        self.attacher().classifier("from_container", iface)
    }

    fn attach_underlay(&self, iface: &str, xdp: XdpMode) -> Result<XdpMode, DatapathError> {
        let mut attacher = self.attacher();
        let program = if self.underlay_ipv6 { "from_underlay6" } else { "from_underlay" };
        attacher.classifier(program, iface)?;
        attacher.xdp(iface, xdp)
    }

    fn attach_vxlan(&self, iface: &str) -> Result<(), DatapathError> {
        self.attacher().classifier("from_vxlan", iface)
    }

    fn attach_outside(&self, iface: &str) -> Result<(), DatapathError> {
        let mut attacher = self.attacher();
        // It may have been the underlay's interface before.
        attacher.pins.remove_link(pins::LinkKind::Xdp, iface)?;
        attacher.classifier("from_outside", iface)
    }

    fn attach_sockets(&self, cgroup: &Path) -> Result<(), DatapathError> {
        self.attacher().sockets(cgroup)
    }

    fn detach(&self, iface: &str) -> Result<(), DatapathError> {
        self.attacher().detach(iface)
    }

    fn attachments(&self) -> Result<Vec<String>, DatapathError> {
        self.attacher().interfaces()
    }

    fn counters(&self) -> Result<Vec<(Reason, Counter)>, DatapathError> {
        self.programs.counters()
    }

    fn fills(&self) -> Result<BTreeMap<Lru, Fill>, DatapathError> {
        lock(&self.lru).read()
    }

    fn breakdown(&self, slots: &BTreeSet<u32>) -> Result<Breakdown, DatapathError> {
        lock(&self.traffic).read(slots)
    }

    fn forget(&self, slots: &BTreeSet<u32>, networks: &BTreeSet<u32>) -> Result<(), DatapathError> {
        lock(&self.traffic).forget(slots, networks)
    }

    fn set_watch(&self, watch: &Watch, slots: &BTreeSet<u32>) -> Result<(), DatapathError> {
        lock(&self.watch).set(watch, slots)
    }

    fn read_events(
        &self,
        within: Duration,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DatapathError> {
        lock(&self.events).read(within, each)
    }

    fn lost_events(&self) -> Result<[u64; EVENT_KINDS], DatapathError> {
        lock(&self.watch).lost()
    }

    fn conntrack(&self, limit: usize) -> Result<Vec<(ConntrackKey, Conntrack)>, DatapathError> {
        self.programs.conntrack(limit)
    }

    fn addr6_ids(&self, limit: usize) -> Result<BTreeMap<Be32, Addr6>, DatapathError> {
        self.programs.addr6_ids(limit)
    }

    fn addr6(&self, number: Be32) -> Result<Option<Addr6>, DatapathError> {
        self.programs.addr6(number)
    }

    fn snat_usage(&self) -> Result<BTreeMap<u32, SnatUsage>, DatapathError> {
        lock(&self.usage).read()
    }

    fn set_snat_usage(&self, ifindex: u32, usage: Option<SnatUsage>) -> Result<(), DatapathError> {
        lock(&self.usage).set(ifindex, usage)
    }

    fn active(&self) -> Result<BTreeMap<u32, Active>, DatapathError> {
        lock(&self.agent).active()
    }

    fn set_active(&self, backend: u32, flows: Active) -> Result<(), DatapathError> {
        lock(&self.agent).set_active(backend, flows)
    }

    fn backend_stats(&self) -> Result<BTreeMap<BackendStatsKey, BackendStats>, DatapathError> {
        lock(&self.traffic).backend_stats()
    }

    fn forget_backend_stats(&self, backends: &BTreeSet<u32>) -> Result<(), DatapathError> {
        lock(&self.traffic).forget_backend_stats(backends)
    }

    fn sockets(&self) -> Result<BTreeMap<u64, SockFlow>, DatapathError> {
        lock(&self.sockets).read()
    }

    fn forget_socket(&self, cookie: u64) -> Result<(), DatapathError> {
        lock(&self.sockets).forget(cookie)
    }

    fn table(&self, key: TableKey) -> Result<Option<Vec<Slot>>, DatapathError> {
        lock(&self.agent).table(key)
    }

    fn tc_flavour(&self) -> &'static str {
        match self.flavour {
            TcFlavour::Tcx => "tcx",
            TcFlavour::Clsact => "clsact",
        }
    }
}

/// Ignores the poison of a lock: a panic is reported where it happens, and the guarded data is
/// consistent after every call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a [`DatapathError::Kernel`] from the operation and the kernel's error.
fn kernel(action: impl Into<String>, reason: impl std::fmt::Display) -> DatapathError {
    DatapathError::Kernel { action: action.into(), reason: reason.to_string() }
}

/// The error for a pin that does not open as the expected kind of object.
fn bad_pin(path: &Path, error: &dyn std::error::Error) -> DatapathError {
    DatapathError::Pin { path: path.display().to_string(), reason: words(error) }
}

/// An error with its causes: aya's outer errors leave out the system's error.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
