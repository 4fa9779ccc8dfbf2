//! The loaded object, which the rigs of one process use one after another. So the kernel's verifier
//! runs once and not for every test; in an emulated machine it takes seconds each time. A program
//! is loaded when it is first run. The entries that a rig leaves in the maps are removed.

use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
    os::fd::AsFd as _,
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, RingBuf},
    programs::Program,
    util::nr_cpus,
};

use crate::bpf;

/// The object, with the programs that were run so far.
pub(super) struct Loaded {
    ebpf: Ebpf,
    kind: Kind,
    decap_flags: u32,
    programs: BTreeSet<String>,
}

/// The most entries of a conntrack that is used again.
const LARGEST: u32 = 1 << 14;

/// The constants that the object is loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// The underlay's family.
    pub(super) ipv6: bool,
    /// How many entries `conntrack` has.
    pub(super) conntrack: u32,
}

static FREE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

/// An object of the pool, which gets it back with empty maps, unless a test has failed.
pub(super) struct Lent {
    // There but for the end of `drop`.
    loaded: Option<Loaded>,
    /// Whether another rig has used it before.
    pub(super) reused: bool,
}

impl Lent {
    /// An object of this kind, with nothing in its maps.
    pub(super) fn take(kind: Kind) -> Self {
        let free = {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            let found = free.iter().position(|loaded| loaded.kind == kind);
            found.map(|found| free.swap_remove(found))
        };
        let reused = free.is_some();
        Self { loaded: Some(free.unwrap_or_else(|| Loaded::new(kind))), reused }
    }

    /// The flags that the kernel's `bpf_skb_adjust_room` knows:
    /// [`overlay_common::maps::Config::decap_flags`].
    pub(super) fn decap_flags(&self) -> u32 {
        self.loaded().decap_flags
    }

    /// A program, loaded, with the programs that it may tail-call.
    pub(super) fn program(&mut self, name: &str) -> &mut Program {
        let Loaded { ebpf, programs, .. } = self.loaded.as_mut().expect("an object");
        let called = overlay::datapath::TAIL_CALLED.map(|(name, _)| name);
        if name != "xdp_underlay" && !programs.contains(called[0]) {
            for name in called {
                let program = ebpf.program_mut(name).expect(name);
                overlay::datapath::load_program(program).expect(name);
                programs.insert(name.to_owned());
            }
            overlay::datapath::set_tail_calls(ebpf).expect("programs that are called");
        }
        let program = ebpf.program_mut(name).expect(name);
        if !programs.contains(name) {
            overlay::datapath::load_program(program).expect(name);
            programs.insert(name.to_owned());
        }
        program
    }

    fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().expect("an object")
    }
}

impl Deref for Lent {
    type Target = Ebpf;

    fn deref(&self) -> &Ebpf {
        &self.loaded().ebpf
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Ebpf {
        &mut self.loaded.as_mut().expect("an object").ebpf
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(mut loaded) = self.loaded.take() else { return };
        // Emptying a large table takes longer than making it.
        if std::thread::panicking() || loaded.kind.conntrack > LARGEST {
            return;
        }
        loaded.clear();
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(loaded);
    }
}

impl Loaded {
    fn new(kind: Kind) -> Self {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("conntrack", kind.conntrack)
            .map_max_entries(
                "ct_new",
                kind.conntrack.min(overlay_common::maps::CT_NEW_ENTRIES as u32),
            )
            .map_max_entries("affinity", 4096)
            .map_max_entries("addr6_ids", 4096)
            .map_max_entries("addr6_ids_new", 4096)
            .map_max_entries("fragments", 4096)
            .override_global(overlay::datapath::UNDERLAY_IPV6, &u32::from(kind.ipv6), true)
            .load(overlay::datapath::OBJECT)
            .expect("the object loads");
        let decap_flags = overlay::datapath::decap_flags(&mut ebpf).expect("the probe runs");
        Self { ebpf, kind, decap_flags, programs: BTreeSet::new() }
    }

    /// Makes every map as the kernel makes it.
    fn clear(&mut self) {
        let cpus = nr_cpus().expect("the number of CPUs");
        for (name, map) in self.ebpf.maps_mut() {
            match map {
                // The programs' constants.
                Map::Array(_) if name.starts_with(".rodata") => {}
                // The programs themselves.
                Map::ProgramArray(_) => {}
                Map::Array(data) => zero(data, |size| size),
                // The kernel gives each CPU's value a multiple of eight bytes.
                Map::PerCpuArray(data) => zero(data, |size| size.next_multiple_of(8) * cpus),
                Map::HashMap(data)
                | Map::LruHashMap(data)
                | Map::PerCpuHashMap(data)
                | Map::LpmTrie(data)
                | Map::HashOfMaps(data) => {
                    let key = data.info().expect(name).key_size();
                    bpf::empty(data.fd().as_fd(), key as usize).expect(name);
                }
                Map::RingBuf(_) => {
                    let mut ring = RingBuf::try_from(map).expect("a ring");
                    while ring.next().is_some() {}
                }
                other => panic!("{name} is a map that the rig cannot clear: {other:?}"),
            }
        }
    }
}

fn zero(map: &MapData, stride: impl Fn(usize) -> usize) {
    let info = map.info().expect("a map");
    let size = stride(info.value_size() as usize);
    bpf::zero(map.fd().as_fd(), size, info.max_entries()).expect("an array is zeroed");
}
