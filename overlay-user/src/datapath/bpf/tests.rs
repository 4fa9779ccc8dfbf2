//! The datapath on the real kernel: each test has a bpffs and network namespaces of its own.

mod lru;
mod migrate;

use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use overlay_common::{
    Be16, Be32, Ip6,
    maps::{
        Backend, Endpoint, Endpoint6Key, EndpointKey, Frontend6Key, Link, Network, PeerKey,
        Published, PublishedKey, Service, SlotKey, Subnet6Key, SubnetKey, TableKey,
    },
};

use super::*;
use crate::{
    datapath::{Filling, LbTable, diff},
    link::testing::{TestNetns, is_root, unique},
};

/// A host: a network namespace, a bpffs and interfaces `eth0` (the underlay) and `ov1`.
struct Host {
    netns: TestNetns,
    bpffs: tempfile::TempDir,
}

impl Host {
    fn new() -> Option<Self> {
        if !is_root("loading programs") {
            return None;
        }
        let host = Self {
            netns: TestNetns::new(),
            bpffs: tempfile::tempdir().expect("a temporary directory"),
        };
        mount(Some("bpf"), host.bpffs.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("a bpffs");
        host.netns.command("ip link add eth0 type veth peer name wire");
        host.netns.command("ip link add ov1 type veth peer name container");
        Some(host)
    }

    fn options(&self) -> LoadOptions {
        LoadOptions { pin_dir: self.pin_dir(), conntrack_size: 1024, underlay_ipv6: false }
    }

    fn pin_dir(&self) -> PathBuf {
        self.bpffs.path().join("overlay")
    }

    fn load(&self, flavour: TcFlavour) -> BpfDatapath {
        self.netns.run(|| BpfDatapath::load_as(&self.options(), flavour).expect("loaded"))
    }

    fn links(&self) -> Vec<PinnedAttachment> {
        self.netns.run(|| Inventory::read(&self.pin_dir()).expect("read").links)
    }

    fn program_of(&self, name: &str) -> u32 {
        let links = self.links();
        let link = links.iter().find(|l| l.name == name && l.kind != "xdp");
        link.and_then(|l| l.program).unwrap_or_else(|| panic!("no link {name} in {links:?}"))
    }

    fn unload(&self) -> Vec<String> {
        self.netns.run(|| BpfDatapath::unload(&self.pin_dir()).expect("unloaded"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(e) = umount2(self.bpffs.path(), MntFlags::MNT_DETACH) {
            eprintln!("left mounted: {}: {e}", self.bpffs.path().display());
        }
    }
}

/// A cgroup without processes that is removed with the value.
struct TestCgroup {
    path: PathBuf,
}

impl TestCgroup {
    fn new(root: &Path) -> Self {
        let path = root.join(unique("overlay-test"));
        std::fs::create_dir(&path).expect("a cgroup");
        Self { path }
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir(&self.path) {
            eprintln!("left behind: {}: {e}", self.path.display());
        }
    }
}

fn state() -> DatapathState {
    let mut state = DatapathState::default();
    let ip = |last| Be32::from_octets([10, 0, 1, last]);
    let network = Network { subnet: ip(0), mtu: 1450, ..Network::default() };
    state.networks.insert(4097, network);
    state.endpoints.insert(EndpointKey { vni: 4097, ip: ip(2) }, Default::default());
    let ip6 = Ip6::from_octets([0xfd; 16]);
    state.endpoints6.insert(Endpoint6Key { vni: 4097, ip: ip6 }, Default::default());
    state.addresses6.insert(EndpointKey { vni: 4097, ip: ip(2) }, ip6);
    state.links.insert(3, Default::default());
    state.links6.insert(3, Default::default());
    state.peers.insert(PeerKey { vni: 4097, node: ip(9) }, Default::default());
    state.services.insert(7, Service { vni: 4097, vip: ip(5), slots: 1, ..Service::default() });
    let table = LbTable::new(Filling::Maglev, &[(11, 1)]);
    state.tables.insert(TableKey { service: 7, table: table.digest() }, table);
    state.slots.insert(SlotKey { service: 7, index: 0 }, 11);
    state.backends.insert(11, Backend { vni: 4097, ip: ip(2), ..Backend::default() });
    let port = PublishedKey { port: Be16::new(8080), proto: 6, pad: 0 };
    state.published.insert(port, Published { service: 7, target: Be16::new(80), flags: 0 });
    state.local_addrs.insert(ip(1), 1);
    state.local_addrs6.insert(ip6, 1);
    state.egress.insert(2, ip(1));
    state.subnets.insert(SubnetKey { prefix: 24, ip: ip(0) }, 4097);
    state.subnets6.insert(Subnet6Key { prefix: 64, ip: ip6 }, 4097);
    state.frontends6.insert(Frontend6Key { node: ip(9), number: ip(8) }, ip6);
    state.subnets.insert(SubnetKey { prefix: 16, ip: Be32::from_octets([10, 9, 0, 0]) }, 4098);
    state
}

#[test]
fn every_table_is_written_read_back_adopted_and_emptied() {
    let Some(host) = Host::new() else { return };
    let datapath = host.load(TcFlavour::detect());
    assert_eq!(datapath.read().expect("read"), DatapathState::default());
    let wanted = state();
    datapath.apply(&diff(&DatapathState::default(), &wanted)).expect("applied");
    datapath.set_config(&Config { underlay_mtu: 1500, ..Config::default() }).expect("set");
    assert_eq!(datapath.read().expect("read"), wanted);
    drop(datapath);
    let options = LoadOptions { conntrack_size: 4096, ..host.options() };
    let second = host.netns.run(|| BpfDatapath::load(&options).expect("adopted"));
    assert_eq!(second.read().expect("read"), wanted, "a new process finds what was pinned");
    let config = BpfDatapath::pinned_config(&host.pin_dir()).expect("read").expect("pinned");
    assert_eq!(config.underlay_mtu, 1500);
    let nowhere = BpfDatapath::pinned_config(&host.bpffs.path().join("other"));
    assert_eq!(nowhere.expect("asked"), None);
    let maps = Inventory::read(&host.pin_dir()).expect("read").maps;
    let conntrack = maps.iter().find(|m| m.name == "conntrack").expect("pinned");
    assert_eq!(conntrack.max_entries, 1024, "an adopted table keeps its size");
    second.apply(&diff(&wanted, &DatapathState::default())).expect("emptied");
    second.apply(&[MapOp::Network(4097, None)]).expect("removing a missing key is no error");
    assert_eq!(second.read().expect("read"), DatapathState::default());
    assert!(second.conntrack(10).expect("listed").is_empty());
    assert!(second.counters().expect("read").iter().all(|(_, c)| *c == Counter::default()));
}

#[test]
fn every_write_of_endpoints_and_links_and_every_start_ends_the_epoch() {
    let Some(host) = Host::new() else { return };
    let generation = || {
        let path = Pins::new(&host.pin_dir()).map("generation");
        let map = aya::maps::Map::Array(MapData::from_pin(path).expect("pinned"));
        let map = aya::maps::Array::<_, u64>::try_from(map).expect("an array");
        map.get(&0, 0).expect("one value")
    };
    let datapath = host.load(TcFlavour::detect());
    let mut last = generation();
    assert_ne!(last, 0, "nothing would be remembered");
    let key = EndpointKey { vni: 4097, ip: Be32::from_octets([10, 0, 1, 2]) };
    for (op, ends) in [
        (MapOp::Endpoint(key, Some(Endpoint::default())), true),
        (MapOp::Endpoint(key, None), true),
        (MapOp::Link(7, Some(Link::default())), true),
        (MapOp::Link(7, None), true),
        (MapOp::Network(4097, None), false),
    ] {
        datapath.apply(std::slice::from_ref(&op)).expect("applied");
        assert_eq!(generation() != last, ends, "{op:?}");
        last = generation();
    }
    drop(datapath);
    let _second = host.load(TcFlavour::detect());
    assert_ne!(generation(), last, "the daemon before may have ended between two writes");
}

#[test]
fn a_service_keeps_its_cursor_until_it_is_removed() {
    let Some(host) = Host::new() else { return };
    let datapath = host.load(TcFlavour::detect());
    let cursor = |number: u32| {
        let path = Pins::new(&host.pin_dir()).map("rr_cursor");
        let map = aya::maps::Map::HashMap(MapData::from_pin(path).expect("pinned"));
        let map = aya::maps::HashMap::<_, u32, u32>::try_from(map).expect("a hash map");
        (map.get(&number, 0).ok(), map)
    };
    let service = |slots| Some(Service { slots, ..Service::default() });
    datapath.apply(&[MapOp::Service(7, service(1))]).expect("applied");
    let (first, mut map) = cursor(7);
    assert_eq!(first, Some(0));
    map.insert(7, 41, 0).expect("advanced");
    datapath.apply(&[MapOp::Service(7, service(2))]).expect("applied");
    assert_eq!(cursor(7).0, Some(41));
    datapath.apply(&[MapOp::Service(7, None)]).expect("removed");
    assert_eq!(cursor(7).0, None);
}

/// Before 6.6 there are no tcx links to test.
fn has(flavour: TcFlavour) -> bool {
    let has = flavour == TcFlavour::Clsact || TcFlavour::detect() == TcFlavour::Tcx;
    if !has {
        eprintln!("skipped: tcx links need Linux 6.6");
    }
    has
}

fn programs_are_replaced_in_place(flavour: TcFlavour) {
    if !has(flavour) {
        return;
    }
    let Some(host) = Host::new() else { return };
    let attach = |datapath: &BpfDatapath| {
        host.netns.run(|| {
            datapath.attach_container("ov1").expect("attached");
            datapath.attach_underlay("eth0", XdpMode::Auto).expect("attached")
        })
    };
    let first = host.load(flavour);
    assert_eq!(attach(&first), XdpMode::Off, "XDP is off on veth");
    let before = (host.program_of("ov1"), host.program_of("eth0"));
    assert_eq!(attach(&first), XdpMode::Off, "attaching again changes nothing");
    assert_eq!((host.program_of("ov1"), host.program_of("eth0")), before);
    drop(first);
    assert!(host.links().iter().all(|l| l.attached), "{:?}", host.links());
    let second = host.load(flavour);
    assert_eq!(attach(&second), XdpMode::Off);
    let after = (host.program_of("ov1"), host.program_of("eth0"));
    assert!(after.0 != before.0 && after.1 != before.1, "{before:?} {after:?}");
    assert_eq!(second.attachments().expect("listed"), ["eth0", "ov1"]);
    host.netns.run(|| second.detach("ov1").expect("detached"));
    host.netns.run(|| second.detach("ov1").expect("a missing one is no error"));
    assert_eq!(second.attachments().expect("listed"), ["eth0"]);
    let filters = host.netns.command("tc filter show dev ov1 ingress");
    assert!(filters.trim().is_empty(), "{filters}");
    let removed = host.unload();
    assert!(removed.iter().any(|what| what.contains("eth0")), "{removed:?}");
    assert!(removed.contains(&"map conntrack".to_owned()), "{removed:?}");
    assert!(removed.contains(&"program from_underlay".to_owned()), "{removed:?}");
    assert!(!host.pin_dir().exists());
    let qdiscs = host.netns.command("tc qdisc show");
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    assert!(host.unload().is_empty(), "nothing is left to unload");
}

#[test]
fn a_restart_replaces_the_programs_in_tcx_links() {
    programs_are_replaced_in_place(TcFlavour::Tcx);
}

#[test]
fn a_restart_replaces_the_programs_of_clsact_filters() {
    programs_are_replaced_in_place(TcFlavour::Clsact);
}

#[test]
fn other_peoples_filters_are_left_alone() {
    let Some(host) = Host::new() else { return };
    let datapath = host.load(TcFlavour::Clsact);
    let theirs = Pins::new(&host.pin_dir()).program("from_container");
    host.netns.command("tc qdisc add dev eth0 clsact");
    let line = format!("tc filter add dev eth0 egress prio 7 bpf da pinned {}", theirs.display());
    host.netns.command(&line);
    host.netns.run(|| datapath.attach_underlay("eth0", XdpMode::Off).expect("attached"));
    let ours = host.netns.command("tc filter show dev eth0 ingress");
    assert!(ours.contains("pref 1") && ours.contains("from_underlay"), "{ours}");
    host.unload();
    assert!(host.netns.command("tc filter show dev eth0 ingress").trim().is_empty());
    assert!(host.netns.command("tc filter show dev eth0 egress").contains("pref 7"));
}

fn an_interface_made_again_gets_a_new_attachment(flavour: TcFlavour) {
    if !has(flavour) {
        return;
    }
    let Some(host) = Host::new() else { return };
    let datapath = host.load(flavour);
    host.netns.run(|| datapath.attach_container("ov1").expect("attached"));
    host.netns.command("ip link del ov1");
    host.netns.command("ip link add ov1 type veth peer name container");
    assert!(!host.links()[0].attached, "the pin is there, its interface is gone");
    host.netns.run(|| datapath.attach_container("ov1").expect("attached anew"));
    assert!(host.links()[0].attached);
    host.netns.command("ip link del ov1");
    drop(datapath);
    let datapath = host.load(flavour);
    assert!(datapath.attachments().expect("listed").is_empty(), "a load drops stale pins");
    let missing = host.netns.run(|| datapath.attach_container("ov1"));
    assert!(matches!(missing, Err(DatapathError::Kernel { .. })), "{missing:?}");
    assert!(host.links().is_empty(), "and a failed attachment leaves none");
}

#[test]
fn a_veth_made_again_gets_a_new_tcx_link() {
    an_interface_made_again_gets_a_new_attachment(TcFlavour::Tcx);
}

#[test]
fn a_veth_made_again_gets_a_new_clsact_filter() {
    an_interface_made_again_gets_a_new_attachment(TcFlavour::Clsact);
}

#[test]
fn an_interface_with_a_dot_or_a_new_name_has_one_link() {
    if !has(TcFlavour::Tcx) {
        return;
    }
    let Some(host) = Host::new() else { return };
    let datapath = host.load(TcFlavour::detect());
    host.netns.command("ip link set eth0 name eth0.100");
    host.netns.run(|| datapath.attach_underlay("eth0.100", XdpMode::Generic).expect("attached"));
    assert_eq!(datapath.attachments().expect("listed"), ["eth0.100"]);
    host.netns.command("ip link set eth0.100 name uplink");
    host.netns.run(|| datapath.attach_underlay("uplink", XdpMode::Generic).expect("attached"));
    assert_eq!(datapath.attachments().expect("listed"), ["uplink"]);
    assert_eq!(host.links().len(), 2, "one tcx and one XDP link");
}

#[test]
fn xdp_follows_its_mode_and_says_what_is_in_its_way() {
    let Some(host) = Host::new() else { return };
    let shown = |host: &Host| host.netns.command("ip link show dev eth0");
    let first = host.load(TcFlavour::detect());
    let attach =
        |datapath: &BpfDatapath, mode| host.netns.run(|| datapath.attach_underlay("eth0", mode));
    assert_eq!(attach(&first, XdpMode::Generic).expect("attached"), XdpMode::Generic);
    assert!(shown(&host).contains("xdpgeneric"), "{}", shown(&host));
    let second = host.load(TcFlavour::detect());
    assert_eq!(attach(&second, XdpMode::Generic).expect("replaced"), XdpMode::Generic);
    assert_eq!(attach(&second, XdpMode::Native).expect("switched"), XdpMode::Native);
    let text = shown(&host);
    assert!(text.contains(" xdp ") && !text.contains("xdpgeneric"), "{text}");
    assert_eq!(attach(&second, XdpMode::Off).expect("off"), XdpMode::Off);
    assert!(!shown(&host).contains("xdp"), "{}", shown(&host));
    host.netns.command("ip link add none type bridge");
    let native = host.netns.run(|| second.attach_underlay("none", XdpMode::Native));
    let error = native.expect_err("a bridge has no native XDP").to_string();
    assert!(error.contains("in native mode") && error.contains("--xdp generic"), "{error}");
}

#[test]
fn the_first_program_on_the_underlay_is_ours() {
    if !has(TcFlavour::Tcx) {
        return;
    }
    let Some(host) = Host::new() else { return };
    // A foreign program: another datapath on the same interface, attached earlier.
    let Some(other) = Host::new() else { return };
    let theirs = host.netns.run(|| BpfDatapath::load(&other.options()).expect("loaded"));
    host.netns.run(|| theirs.attach_container("eth0").expect("attached"));
    let ours = host.load(TcFlavour::detect());
    host.netns.run(|| ours.attach_underlay("eth0", XdpMode::Off).expect("attached"));
    let (_, programs) = host.netns.run(|| {
        aya::programs::SchedClassifier::query_tcx("eth0", aya::programs::TcAttachType::Ingress)
            .expect("listed")
    });
    let names: Vec<_> = programs.iter().filter_map(|p| p.name_as_str()).collect();
    assert_eq!(names, ["from_underlay", "from_container"]);
}

#[test]
fn socket_programs_are_attached_replaced_and_follow_their_cgroup() {
    let Some(host) = Host::new() else { return };
    let Some(root) = host::cgroup2_mount() else {
        eprintln!("skipped: this host has no cgroup v2");
        return;
    };
    let (one, two) = (TestCgroup::new(&root), TestCgroup::new(&root));
    let first = host.load(TcFlavour::detect());
    first.attach_sockets(&one.path).expect("attached");
    assert_eq!(host.links().len(), 8);
    let before = host.program_of("connect4");
    let second = host.load(TcFlavour::detect());
    second.attach_sockets(&one.path).expect("replaced");
    assert_ne!(host.program_of("connect4"), before);
    second.attach_sockets(&two.path).expect("moved");
    assert!(second.attachments().expect("listed").is_empty(), "a cgroup is no interface");
    let nowhere = second.attach_sockets(host.bpffs.path());
    assert!(matches!(nowhere, Err(DatapathError::Unsupported { .. })), "{nowhere:?}");
    drop((first, second, two));
    // The kernel lets go of a removed cgroup's links a moment later.
    for _ in 0..500 {
        if host.links().iter().all(|l| !l.attached) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    host.load(TcFlavour::detect());
    assert!(host.links().is_empty(), "{:?}", host.links());
}

#[test]
fn a_pin_of_another_layout_is_refused_and_left_alone() {
    let Some(host) = Host::new() else { return };
    drop(host.load(TcFlavour::detect()));
    let pins = Pins::new(&host.pin_dir());
    // A possible leftover of another version: a map of another size under the same name.
    std::fs::remove_file(pins.map("config")).expect("removed");
    std::fs::rename(pins.map("networks"), pins.map("config")).expect("renamed");
    let refused = BpfDatapath::load(&host.options()).err();
    let Some(DatapathError::Pin { path, reason }) = refused else { panic!("{refused:?}") };
    assert!(path.ends_with("maps/config") && reason.contains("its type"), "{path}: {reason}");
    std::fs::remove_file(pins.map("config")).expect("removed");
    std::fs::rename(pins.program("connect4"), pins.map("config")).expect("renamed");
    let refused = BpfDatapath::load(&host.options()).err();
    assert!(matches!(refused, Some(DatapathError::Pin { .. })), "a program as a map: {refused:?}");
    assert!(pins.map("peers").exists(), "what was there before a failed load stays");
    host.unload();
    host.load(TcFlavour::detect());
}

#[test]
fn a_first_load_that_fails_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let nothing = LoadOptions { conntrack_size: 0, ..host.options() };
    assert!(matches!(BpfDatapath::load(&nothing), Err(DatapathError::Unsupported { .. })));
    // More entries than the kernel can allocate.
    let huge = LoadOptions { conntrack_size: u32::MAX, ..host.options() };
    let refused = BpfDatapath::load(&huge).err();
    assert!(matches!(refused, Some(DatapathError::Kernel { .. })), "{refused:?}");
    assert!(!host.pin_dir().exists());
}

#[test]
fn bpftool_shows_the_fields_of_a_pinned_map() {
    let Some(host) = Host::new() else { return };
    let datapath = host.load(TcFlavour::detect());
    datapath
        .apply(&[MapOp::Network(4097, Some(Network { mtu: 1450, ..Network::default() }))])
        .expect("applied");
    let path = Pins::new(&host.pin_dir()).map("networks");
    let output =
        std::process::Command::new("bpftool").args(["map", "dump", "pinned"]).arg(&path).output();
    let Ok(output) = output else {
        eprintln!("skipped: bpftool is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"mtu\": 1450") && text.contains("4097"), "{text}");
}

/// A packet's whole way on one host, with the agent's part played by the test.
#[test]
fn endpoints_reach_each_other_and_a_restart_loses_no_packet() {
    use crate::link::{EndpointLink, Links as _, NetlinkLinks};
    use overlay_common::{
        Mac,
        maps::{ENDPOINT_GATEWAY, ENDPOINT_LOCAL, Endpoint, Link},
    };
    let Some(host) = Host::new() else { return };
    let (one, two) = (TestNetns::new(), TestNetns::new());
    let ip = |last: u8| Be32::from_octets([10, 0, 1, last]);
    let gateway =
        Endpoint { kind: ENDPOINT_GATEWAY, mac: Mac::of_ip(ip(1)), ..Endpoint::default() };
    let mask = Be32::from_octets([255, 255, 255, 0]);
    let network = Network { subnet: ip(0), mask, gateway: ip(1), mtu: 1450, flags: 0, policy: 0 };
    let mut state = DatapathState::default();
    state.networks.insert(4097, network);
    state.endpoints.insert(EndpointKey { vni: 4097, ip: ip(1) }, gateway);
    let datapath = host.load(TcFlavour::detect());
    for (container, last) in [(&one, 2), (&two, 3)] {
        let link = EndpointLink {
            host_name: format!("ov-{last}"),
            netns: container.name(),
            name: "eth0".to_owned(),
            mac: Mac::of_ip(ip(last)),
            address: format!("10.0.1.{last}/24").parse().expect("an address"),
            gateway: Some([10, 0, 1, 1].into()),
            ipv6: None,
            mtu: 1450,
        };
        let ifindex = host.netns.block_on(async {
            NetlinkLinks::new().expect("links").ensure_endpoint_link(&link).await.expect("made")
        });
        let endpoint = Endpoint { kind: ENDPOINT_LOCAL, mac: link.mac, ifindex, ..gateway };
        state.endpoints.insert(EndpointKey { vni: 4097, ip: ip(last) }, endpoint);
        state
            .links
            .insert(ifindex, Link { vni: 4097, ip: ip(last), mac: link.mac, ..Link::default() });
        host.netns.run(|| datapath.attach_container(&link.host_name).expect("attached"));
    }
    datapath.apply(&diff(&DatapathState::default(), &state)).expect("applied");
    drop(datapath);
    let bind = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:7000").expect("a socket");
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("set");
        socket
    };
    let (client, server) = (one.run(bind), two.run(bind));
    client.connect("10.0.1.3:7000").expect("connected");
    server.connect("10.0.1.2:7000").expect("connected");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| {
            for _ in 0..3 {
                let datapath = host.load(TcFlavour::detect());
                for name in ["ov-2", "ov-3"] {
                    host.netns.run(|| datapath.attach_container(name).expect("replaced"));
                }
            }
        });
        let mut sent = 0_u32;
        while sent < 100 || !reload.is_finished() {
            let mut answer = [0; 4];
            client.send(&sent.to_be_bytes()).expect("sent");
            server.recv(&mut answer).expect("there");
            server.send(&answer).expect("answered");
            client.recv(&mut answer).expect("and back");
            assert_eq!(u32::from_be_bytes(answer), sent);
            sent += 1;
        }
    });
    let counters = host.load(TcFlavour::detect()).counters().expect("read");
    let delivered = counters.iter().find(|(r, _)| *r == Reason::DeliveredLocal).expect("counted");
    assert!(delivered.1.packets >= 200, "both directions: {delivered:?}");
}
