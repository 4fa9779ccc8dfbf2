//! The rig of the datapath suites: the real programs, loaded into the kernel and run on single
//! packets with BPF_PROG_TEST_RUN, in a network namespace of the test's own thread.
//!
//! The node under test is 172.16.1.10. Node .11 is a peer, 172.16.1.100 a client outside, and both
//! have neighbour entries, so that forwarding look-ups succeed. BPF_PROG_TEST_RUN runs packets as
//! if they came in by interface 1.

mod declare;
mod family;
mod flows;
mod lru_stats;
mod observe;
pub mod packets;
pub mod packets6;
mod pool;
pub mod underlay6;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    process::{Command, Stdio},
};

use aya::{
    Pod, TestRunOptions,
    maps::{Array, HashMap, HashOfMaps, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunResult, Xdp},
    util::nr_cpus,
};
pub use family::Family;
pub use flows::wait_for_uptime;
pub use observe::{Record, Told};
use overlay::datapath::{DatapathState, LbTable, MapOp, diff, set_table};
use overlay_common::{
    Be16, Be32, Ip6, Mac, Reason, hash,
    maps::{self, Config, Counter, Subnet, TableKey},
};

use self::pool::{Kind, Lent};
use crate::bpf;

/// The node under test.
pub const NODE: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 10);
/// Another node.
pub const PEER: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 11);
/// A client outside the cluster.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 16, 1, 100);
/// The client's IPv6 address.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
/// MAC of the other node.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];
/// MAC of the client.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x64];
/// MAC of the node's NIC.
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
/// The network most tests use.
pub const VNI: u32 = 4097;
/// Another network.
pub const OTHER_VNI: u32 = 4098;
/// Entries of the tests' conntrack.
const TRACKED: u32 = 4096;
/// The interface that BPF_PROG_TEST_RUN reports.
pub const IFINDEX: u32 = 1;

/// The maps of flows: in use, and those that begin.
pub const FLOWS: [&str; 2] = ["conntrack", "ct_new"];

/// TC verdict: on to the host's stack.
pub const PASS: u32 = 0;
/// TC verdict: dropped.
pub const DROP: u32 = 2;
/// TC verdict: sent by the program.
pub const REDIRECT: u32 = 7;
/// XDP verdict: dropped.
pub const XDP_DROP: u32 = 1;
/// XDP verdict: on to the kernel.
pub const XDP_PASS: u32 = 2;
/// XDP verdict: sent back out of its interface.
pub const XDP_TX: u32 = 3;
/// XDP verdict: sent by the program.
pub const XDP_REDIRECT: u32 = 4;

/// The result of running a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The program's verdict.
    pub verdict: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// The counters that moved.
    pub counted: Vec<Reason>,
    /// How far they moved.
    pub moved: BTreeMap<Reason, Counter>,
    /// The counters of endpoints and networks.
    pub told: Told,
}

/// The programs, their maps and the namespace they run in.
pub struct Rig {
    ebpf: Lent,
    state: DatapathState,
    ipv6: bool,
    /// Counter indexes of the endpoints that are captured.
    watched: BTreeSet<u32>,
    /// Index of the underlay interface.
    pub underlay: u32,
    /// Index of an interface that is up and does not forward.
    pub no_forwarding: u32,
    /// Index of the kernel's vxlan device.
    pub vxlan: u32,
}

/// The node under test on an IPv6 underlay.
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10);
/// The other node there.
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11);

/// The IPv6 address of a node with this IPv4 address: 172.16.1.11 has fd00::11. A node of another
/// subnet has an address without a route.
pub fn vtep6(node: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, last] = node.octets();
    let last = u16::from(last) / 10 * 16 + u16::from(last) % 10;
    let subnet = if [a, b, c] == [172, 16, 1] { 0xfd00 } else { 0x2001 };
    Ipv6Addr::new(subnet, 0, 0, 0, 0, 0, 0, last)
}

/// The MAC of an address.
pub fn mac(ip: Ipv4Addr) -> Mac {
    Mac::of_ip(ip.into())
}

/// The counter index of an endpoint of this node.
pub fn counter_of(ip: Ipv4Addr) -> u32 {
    100 + u32::from(ip.octets()[3])
}

/// The IPv6 address of 10.0.N.X in the tests.
pub fn ip6(n: u8, last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, last.into())
}

/// The link-local address of an endpoint or node with this IPv4 address.
pub fn link_local(ip: Ipv4Addr) -> Ipv6Addr {
    Ip6::link_local(mac(ip)).into()
}

/// `struct __sk_buff` of an aggregate, as `convert___skb_to_skb` of the kernel's net/bpf/test_run.c
/// reads it: the fields that it does not read are zero.
fn aggregate(segment: u16) -> [u8; 192] {
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut context = [0; 192];
    context[GSO_SEGS..][..4].copy_from_slice(&2u32.to_ne_bytes());
    context[GSO_SIZE..][..4].copy_from_slice(&u32::from(segment).to_ne_bytes());
    context
}

/// The links, addresses and neighbours of a rig's namespace, as commands of ip(8). The kernel sends
/// packets of its own for link-local IPv6 addresses, and the tests would count them.
const SURROUNDINGS: &str = "\
link set lo up
link add u0 address 02:00:00:00:00:0a type veth peer name u1
link set u1 addrgenmode none
addr add 172.16.1.10/24 dev u0
link set u0 up
link set u1 up
link add vx0 type vxlan external dstport 4789
link set vx0 addrgenmode none
link set vx0 up
neigh add 172.16.1.11 lladdr 02:00:00:00:00:0b dev u0 nud permanent
neigh add 172.16.1.100 lladdr 02:00:00:00:00:64 dev u0 nud permanent
addr add fd00::10/64 dev u0 nodad
neigh add fd00::11 lladdr 02:00:00:00:00:0b dev u0 nud permanent
neigh add fd00::100 lladdr 02:00:00:00:00:64 dev u0 nud permanent
";

/// Runs the lines as a batch of ip(8), in one process.
fn ip(lines: &str) {
    let mut ip = Command::new("ip");
    let mut ip = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip (iproute2)");
    ip.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("lines are taken");
    let status = ip.wait().expect("ip ends");
    assert!(status.success(), "ip -batch: {status}");
}

/// Every entry of a hash map.
fn entries<K: Pod, V: Pod>(map: &Map) -> Vec<(K, V)> {
    let (Map::HashMap(data) | Map::LruHashMap(data)) = map else {
        panic!("{map:?} is no hash map")
    };
    let (keys, values) = bpf::typed_entries(data.fd().as_fd()).expect("a map is read");
    keys.into_iter().zip(values).collect()
}

impl Rig {
    /// Loads the programs in a fresh namespace of this thread, which ends with it.
    #[expect(clippy::new_without_default, reason = "it loads programs into the kernel")]
    pub fn new() -> Self {
        Self::over(Kind { ipv6: false, conntrack: TRACKED })
    }

    /// Like [`Rig::new`], on an IPv6 underlay: [`NODE6`] is the node, [`PEER6`] the peer. Clients
    /// outside are IPv4.
    pub fn on_ipv6() -> Self {
        let mut rig = Self::over(Kind { ipv6: true, conntrack: TRACKED });
        let peer = rig.number(PEER);
        rig.set(|state| {
            state.vteps6.insert(peer, PEER6.into());
        });
        rig
    }

    /// Like [`Rig::new`], with a conntrack of so many entries.
    pub fn with_conntrack(entries: u32) -> Self {
        Self::over(Kind { ipv6: false, conntrack: entries })
    }

    fn over(kind: Kind) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the datapath suites need root");
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ip(SURROUNDINGS);
        std::fs::write("/proc/sys/net/ipv4/conf/u0/forwarding", "1").expect("forwarding on");
        std::fs::write("/proc/sys/net/ipv4/conf/u1/forwarding", "0").expect("forwarding off");
        std::fs::write("/proc/sys/net/ipv6/conf/u0/forwarding", "1").expect("forwarding on");
        let underlay = nix::net::if_::if_nametoindex("u0").expect("u0 has an index");
        let no_forwarding = nix::net::if_::if_nametoindex("u1").expect("u1 has an index");
        let vxlan = nix::net::if_::if_nametoindex("vx0").expect("vx0 has an index");

        let ebpf = Lent::take(kind);
        let state = DatapathState::default();
        let watched = BTreeSet::new();
        let mut rig =
            Self { ebpf, state, ipv6: kind.ipv6, watched, underlay, no_forwarding, vxlan };
        let config = rig.config();
        rig.set_config(&config);
        rig
    }

    /// Whether another rig has used these programs and maps before.
    pub fn is_reused(&self) -> bool {
        self.ebpf.reused
    }

    /// Whether the underlay is IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The maps' id of the node with this IPv4 address, or with the IPv6 address that belongs to
    /// it.
    pub fn number(&self, node: Ipv4Addr) -> Be32 {
        if self.ipv6 { hash::of_node(&vtep6(node).into()) } else { node.into() }
    }

    /// The node's configuration, as the rig sets it.
    pub fn config(&self) -> Config {
        Config {
            vtep: self.number(NODE),
            vtep6: if self.ipv6 { NODE6.into() } else { Ip6::UNSPECIFIED },
            ingress_gateway: Ipv4Addr::new(10, 255, 0, 1).into(),
            host_ip: Ipv4Addr::new(10, 255, 0, 2).into(),
            underlay_ifindex: self.underlay,
            host_link_ifindex: self.underlay,
            vxlan_ifindex: self.vxlan,
            underlay_mtu: 1500,
            vxlan_port: Be16::new(4789),
            underlay_mac: Mac::new(NODE_MAC),
            decap_flags: self.ebpf.decap_flags(),
            outside_ports: [61_000, 65_535],
            outside_flows: 4096,
            flags: maps::CONFIG_XDP_DECAP,
            ..Config::default()
        }
    }

    /// Replaces the node's configuration.
    pub fn set_config(&mut self, config: &Config) {
        let map = self.ebpf.map_mut("config").expect("map config");
        let mut map: Array<&mut MapData, Config> = Array::try_from(map).expect("map config");
        map.set(0, *config, 0).expect("config written");
    }

    fn write<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: Option<V>) {
        let map = self.ebpf.map_mut(name).expect(name);
        let mut map: HashMap<&mut MapData, K, V> = HashMap::try_from(map).expect(name);
        match value {
            Some(value) => map.insert(key, value, 0).expect(name),
            // Removing a missing entry is not an error.
            None => match map.remove(&key) {
                Ok(()) => {}
                Err(MapError::SyscallError(e)) if e.io_error.kind() == ErrorKind::NotFound => {}
                Err(error) => panic!("{name}: {error}"),
            },
        }
    }

    fn next_generation(&mut self) {
        let map = self.ebpf.map_mut("generation").expect("map generation");
        let mut map: Array<&mut MapData, maps::Generation> =
            Array::try_from(map).expect("map generation");
        let generation = map.get(&0, 0).expect("the generation");
        map.set(0, generation + 1, 0).expect("the next generation");
    }

    fn write_prefix<A: Pod>(&mut self, map: &str, key: (u32, A), value: Option<Subnet>) {
        let map = self.ebpf.map_mut(map).expect("a map of subnets");
        let mut map: LpmTrie<&mut MapData, A, Subnet> = LpmTrie::try_from(map).expect("a trie");
        let key = Key::new(key.0, key.1);
        match value {
            Some(value) => map.insert(&key, value, 0).expect("a subnet"),
            None => map.remove(&key).expect("a subnet that was there"),
        }
    }

    /// Changes the content of the maps.
    pub fn set(&mut self, change: impl FnOnce(&mut DatapathState)) {
        let mut new = self.state.clone();
        change(&mut new);
        for op in diff(&self.state, &new) {
            let ends_generation = matches!(op, MapOp::Endpoint(..) | MapOp::Link(..));
            match op {
                MapOp::Network(k, v) => self.write("networks", k, v),
                MapOp::Flood(k, v) => self.write("flood", k, v.map(|v| *v)),
                MapOp::Endpoint(k, v) => self.write("endpoints", k, v),
                MapOp::Endpoint6(k, v) => self.write("endpoints6", k, v),
                MapOp::Address6(k, v) => self.write("addresses6", k, v),
                MapOp::Link(k, v) => self.write("links", k, v),
                MapOp::Link6(k, v) => self.write("links6", k, v),
                MapOp::Peer(k, v) => self.write("peers", k, v),
                MapOp::Vtep6(k, v) => self.write("vteps6", k, v),
                MapOp::Service(k, v) => {
                    self.write("services", k, v);
                    self.write("rr_cursor", k, v.map(|_| maps::Cursor::default()));
                }
                MapOp::Slot(k, v) => self.write("slots", k, v),
                MapOp::Table(k, v) => self.write_table(k, &v),
                MapOp::Backend(k, v) => {
                    self.write("backends", k, v);
                    let counted = v.filter(|b| b.flags & maps::BACKEND_COUNTED != 0);
                    let flows = self.active(k).unwrap_or_default();
                    self.set_active(k, counted.map(|_| flows));
                }
                MapOp::Published(k, v) => self.write("published", k, v),
                MapOp::LocalAddr(k, v) => self.write("local_addrs", k, v),
                MapOp::LocalAddr6(k, v) => self.write("local_addrs6", k, v),
                MapOp::Egress(k, v) => self.write("egress", k, v),
                MapOp::Frontend6(k, v) => self.write("frontends6", k, v),
                MapOp::Subnet(k, v) => self.write_prefix("subnets", (k.prefix, k.ip), v),
                MapOp::Subnet6(k, v) => self.write_prefix("subnets6", (k.prefix, k.ip), v),
                MapOp::Netns(k, v) => self.write("netns", k, v),
                MapOp::StaleBackend(k, v) => self.write("stale_backends", k, v),
            }
            if ends_generation {
                self.next_generation();
            }
        }
        self.state = new;
    }

    /// Runs a program on a packet.
    pub fn run(&mut self, program: &str, packet: &[u8]) -> Ran {
        self.run_aggregate(program, packet, 0)
    }

    /// Runs a TC program on an aggregate with `segment` bytes of payload in each segment. The
    /// kernel knows no protocol of it (the test run cannot set `gso_type`, Linux 6.18), so no
    /// header is pushed onto it or popped from it. A `segment` of 0 means a single packet, and XDP
    /// takes nothing else.
    pub fn run_aggregate(&mut self, program: &str, packet: &[u8], segment: u16) -> Ran {
        let before = self.counters();
        let mut out = vec![0u8; 65_536 + 256];
        let context = aggregate(segment);
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: (segment != 0).then_some(&context[..]),
            repeat: 1,
            ..Default::default()
        };
        let result = self
            .test_run(program, options)
            .unwrap_or_else(|e| panic!("{program} on {} bytes: {e:?}", packet.len()));
        out.truncate(result.data_size_out as usize);
        let after = self.counters();
        let moved: BTreeMap<_, _> = after
            .into_iter()
            .filter_map(|(reason, now)| {
                let then = before.get(&reason).copied().unwrap_or_default();
                let packets = now.packets - then.packets;
                let bytes = now.bytes - then.bytes;
                (packets > 0).then_some((reason, Counter { packets, bytes }))
            })
            .collect();
        let counted = moved.keys().copied().collect();
        let told = self.take_told();
        Ran { verdict: result.return_value, packet: out, counted, moved, told }
    }

    fn test_run(
        &mut self,
        program: &str,
        options: TestRunOptions<'_>,
    ) -> Result<TestRunResult, ProgramError> {
        let loaded = &*self.ebpf.program(program);
        if program == "xdp_underlay" {
            let program: &Xdp = loaded.try_into().expect("xdp");
            program.test_run(options)
        } else {
            let program: &SchedClassifier = loaded.try_into().expect("tc");
            program.test_run(options)
        }
    }

    /// Runs a program on a packet, for its verdict and the nanoseconds it took.
    pub fn time(&mut self, program: &str, packet: &[u8]) -> (u32, u64) {
        let options =
            TestRunOptions { data_in: Some(packet), repeat: 1, ..TestRunOptions::default() };
        let result = self.test_run(program, options).expect("it runs");
        (result.return_value, u64::try_from(result.duration.as_nanos()).expect("a short run"))
    }

    /// All counters that are not zero.
    pub fn counters(&self) -> BTreeMap<Reason, Counter> {
        let Some(Map::PerCpuArray(map)) = self.ebpf.map("counters") else { panic!("no counters") };
        let stride = size_of::<Counter>() * nr_cpus().expect("the number of CPUs");
        let (_, values) = bpf::entries(map.fd().as_fd(), (4, stride)).expect("counters are read");
        let sum = |reason: Reason| {
            let mut sum = Counter::default();
            let values = &values[reason as usize * stride..][..stride];
            for value in values.chunks_exact(size_of::<Counter>()) {
                // SAFETY: as many bytes as a counter has.
                let Counter { packets, bytes } = unsafe { bpf::read(value) };
                sum.packets += packets;
                sum.bytes += bytes;
            }
            sum
        };
        let sums = Reason::ALL.iter().map(|reason| (*reason, sum(*reason)));
        sums.filter(|(_, sum)| sum.packets > 0).collect()
    }

    fn write_table(&mut self, key: TableKey, table: &Option<LbTable>) {
        let map = self.ebpf.map_mut("lb_tables").expect("map lb_tables");
        let mut map: HashOfMaps<&mut MapData, TableKey> =
            HashOfMaps::try_from(map).expect("lb_tables");
        set_table(&mut map, key, table).expect("a table");
    }
}
