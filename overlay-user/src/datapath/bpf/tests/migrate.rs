//! A datapath of layout 1, made of the object that its last commit built, taken over.

use std::os::fd::AsFd as _;

use aya::{EbpfLoader, programs::SchedClassifier};
use overlay_common::maps::{
    ANSWERED, Affinity, AffinityKey, CONNTRACK_FORWARD, CONNTRACK_REPLY, TCP_SEEN_ACK,
    TCP_SEEN_SYN, VIA_VIP,
};

use super::{
    super::{
        attach::Attacher,
        migrate::{Step, downgrade},
    },
    *,
};

/// Stripped of DWARF; see the README beside it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fixtures/layout-1.o"
));

/// The start of the last version with layout 1.
struct Old {
    attacher: Attacher,
}

impl Old {
    fn start(host: &Host, flavour: TcFlavour) -> Self {
        let pins = Pins::of(&host.pin_dir(), 1);
        host.netns.run(|| {
            pins.make_directories().expect("made");
            let mut loader = EbpfLoader::new();
            let object = aya_obj::Object::parse(OBJECT).expect("an object");
            let areas = ["hops", "known_ends", "known_links", "work", "scratch", "event"];
            for name in object.maps.keys() {
                if !name.starts_with('.') && !areas.contains(&name.as_str()) {
                    loader.map_pin_path(name, pins.map(name));
                }
            }
            loader.map_max_entries("conntrack", 1024).map_max_entries("opening", 512);
            loader.override_global(UNDERLAY_IPV6, &0_u32, true);
            let mut ebpf = loader.load(OBJECT).expect("layout 1 loads");
            for name in object::PROGRAMS {
                let program = ebpf.program_mut(name).expect("a program");
                load_program(program).expect("layout 1 is verified");
                let path = pins.program(name);
                pins::remove_file(&path).expect("removed");
                program.pin(&path).expect("pinned");
            }
            let mut attacher = Attacher { ebpf, pins, flavour };
            attacher.classifier("from_container", "ov1").expect("attached");
            attacher.classifier("from_underlay", "eth0").expect("attached");
            attacher.xdp("eth0", XdpMode::Generic).expect("attached");
            Self { attacher }
        })
    }

    fn put(&self, map: &str, key: &[u8], value: &[u8]) {
        let fd = sys::open_pin(&self.attacher.pins.map(map)).expect("a map");
        sys::set(fd.as_fd(), key, value, 0).expect("written");
    }

    fn count(&self, map: &str, key: &[u8], value: &[u8]) {
        let cpus = aya::util::nr_cpus().expect("the number of CPUs");
        self.put(map, key, &value.repeat(cpus));
    }

    fn get(&self, map: &str, key: &[u8], size: usize) -> Option<Vec<u8>> {
        let fd = sys::open_pin(&self.attacher.pins.map(map)).expect("a map");
        let mut value = vec![0; size];
        sys::get(fd.as_fd(), key, &mut value).expect("read").then_some(value)
    }
}

fn key(last: u8) -> ConntrackKey {
    ConntrackKey {
        saddr: Be32::from_octets([10, 0, 1, last]),
        daddr: Be32::from_octets([10, 0, 1, 100]),
        sport: Be16::new(40_000),
        dport: Be16::new(80),
        vni: 4097,
        proto: 6,
        scope: [0; 3],
    }
}

fn entry(action: u8, flags: u32, last_seen: u64) -> Conntrack {
    Conntrack {
        saddr: Be32::from_octets([10, 0, 1, 2]),
        daddr: Be32::from_octets([10, 0, 1, 3]),
        sport: Be16::new(40_000),
        dport: Be16::new(8080),
        vni: 4097,
        service: 5,
        backend: 6,
        action,
        idle: 30,
        flags,
        last_seen,
        ..Conntrack::default()
    }
}

fn bytes<T: overlay_common::Plain>(value: &T) -> Vec<u8> {
    // SAFETY: the type has no padding, so that all of its bytes are initialized.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
        .to_vec()
}

/// An entry as layout 1 had it.
fn old(entry: &Conntrack) -> Vec<u8> {
    let new = bytes(entry);
    let state = u8::try_from(entry.flags).expect("flags of layout 1");
    [&new[..28], &[entry.action, state], &entry.idle.to_ne_bytes(), &entry.last_seen.to_ne_bytes()]
        .concat()
}

const FORWARD: u32 = TCP_SEEN_SYN | TCP_SEEN_ACK | VIA_VIP;

/// Fills the maps as a host does that has been running.
fn fill(before: &Old) {
    before.put("conntrack", &bytes(&key(2)), &old(&entry(CONNTRACK_FORWARD, FORWARD, 1_000)));
    before.put("opening", &bytes(&key(9)), &old(&entry(CONNTRACK_REPLY, ANSWERED, 2_000)));
    let client = AffinityKey { service: 5, vni: 0, client: Be32::new(7) };
    let keeps = Affinity { backend: 6, pad: 0, last_used: 77 };
    before.put("affinity", &bytes(&client), &bytes(&keeps));
    before.put("clients6", &[240, 0, 0, 1], &[0x20; 16]);
    before.put("seed6", &[0; 4], &[9; 16]);
    before.count("counters", &59_u32.to_ne_bytes(), &[1; 16]);
    before.count("counters", &1_u32.to_ne_bytes(), &[2; 16]);
    before.count("endpoint_counters", &3_u32.to_ne_bytes(), &[3; 384]);
    before.count("drop_counters", &[1, 16, 0, 0, 3, 0, 26, 0], &[4; 16]);
    let served = BackendStatsKey { service: 5, backend: 6, port: Be16::new(80), proto: 6, ipv6: 0 };
    before.count("served", &bytes(&served), &[5; 40]);
    before.put("networks", &4097_u32.to_ne_bytes(), &[6; 20]);
    before.put("peers", &[0; 8], &[0; 4]);
    before.put("subnets", &[24, 0, 0, 0, 10, 0, 1, 0], &4097_u32.to_ne_bytes());
    let socket = SockFlow { vni: 4097, service: 5, backend: 6, proto: 6, ..SockFlow::default() };
    before.put("sock_flows", &77_u64.to_ne_bytes(), &bytes(&socket));
}

/// The entries of [`fill`] that layout 2 must hold.
fn check(after: &BpfDatapath) {
    let flows: BTreeMap<_, _> =
        after.conntrack(100).expect("read").into_iter().map(|(k, e)| (bytes(&k), e)).collect();
    assert_eq!(flows.len(), 2, "{flows:?}");
    assert_eq!(flows[&bytes(&key(2))], entry(CONNTRACK_FORWARD, FORWARD, 1_000));
    assert_eq!(flows[&bytes(&key(9))], entry(CONNTRACK_REPLY, ANSWERED, 2_000));
    let cpus = aya::util::nr_cpus().expect("the number of CPUs") as u64;
    let counted: BTreeMap<_, _> = after.counters().expect("read").into_iter().collect();
    let times = |byte: u8| u64::from_ne_bytes([byte; 8]).wrapping_mul(cpus);
    assert_eq!(counted[&Reason::NoBackendAnswered].packets, times(1));
    assert_eq!(counted[&Reason::Encapsulated].bytes, times(2));
    let breakdown = after.breakdown(&[3].into()).expect("read");
    assert_eq!(breakdown.forwarded[&3].ways[23].packets, times(3));
    assert_eq!(breakdown.forwarded[&3].ways[24], Counter::default());
    let (drop, times_dropped) = breakdown.dropped.iter().next().expect("a drop");
    assert_eq!((drop.vni, drop.counter, drop.reason), (4097, 3, Reason::NoRoute as u8));
    assert_eq!(times_dropped.packets, times(4));
    let served = after.backend_stats().expect("read");
    assert_eq!(served.values().next().map(|s| s.flows), Some(times(5)));
    let state = after.read().expect("read");
    let network = state.networks[&4097];
    assert_eq!((network.mtu, network.flags, network.policy), (0x0606_0606, 0x0606_0606, 0));
    assert_eq!(state.peers.len(), 1);
    assert_eq!(state.subnets.len(), 1);
    assert_eq!(after.addr6_ids(10).expect("read").len(), 1);
    assert_eq!(after.sockets().expect("read").len(), 1);
    assert_eq!(after.attachments().expect("listed"), ["eth0", "ov1"]);
}

fn pinned(pin_dir: &Path, version: u32) -> bool {
    Pins::of(pin_dir, version).exist()
}

/// The ids of the programs that are attached.
fn attached(host: &Host, version: u32) -> Vec<u32> {
    let pins = Pins::of(&host.pin_dir(), version);
    let links = host.netns.run(|| pins.list_links().expect("listed"));
    let mut ids = Vec::new();
    for (kind, name) in links {
        if kind != pins::LinkKind::Clsact {
            let (_, info) = pins.open_link(kind, &name).expect("opened").expect("a link");
            ids.push(info.program);
        }
    }
    ids
}

#[test]
fn a_datapath_of_layout_1_is_taken_over_with_what_it_holds() {
    for flavour in [TcFlavour::detect(), TcFlavour::Clsact] {
        let Some(host) = Host::new() else { return };
        let before = Old::start(&host, flavour);
        fill(&before);
        let programs = attached(&host, 1);
        drop(before);
        let after = host.load(flavour);
        assert!(!pinned(&host.pin_dir(), 1), "{flavour:?}");
        check(&after);
        assert!(attached(&host, 2).iter().all(|id| !programs.contains(id)), "{flavour:?}");
        drop(after);
        check(&host.load(flavour));
    }
}

#[test]
fn a_migration_that_is_killed_anywhere_is_gone_on_with() {
    for step in Step::ALL {
        let Some(host) = Host::new() else { return };
        let flavour = TcFlavour::detect();
        let before = Old::start(&host, flavour);
        fill(&before);
        drop(before);
        let ended =
            host.netns.run(|| BpfDatapath::load_until(&host.options(), flavour, Some(step)));
        assert!(ended.expect("no error").is_none(), "{step:?}");
        let after = host.load(flavour);
        assert!(!pinned(&host.pin_dir(), 1), "{step:?}");
        check(&after);
        assert!(!Pins::new(&host.pin_dir()).map("migration").exists(), "{step:?}");
    }
}

#[test]
fn what_the_old_programs_note_after_the_copy_is_carried_too() {
    let Some(host) = Host::new() else { return };
    let flavour = TcFlavour::detect();
    let before = Old::start(&host, flavour);
    fill(&before);
    let until = Some(Step::AllSwitched);
    let ended = host.netns.run(|| BpfDatapath::load_until(&host.options(), flavour, until));
    assert!(ended.expect("no error").is_none());
    let later = entry(CONNTRACK_FORWARD, FORWARD | ANSWERED, 9_000);
    before.put("conntrack", &bytes(&key(2)), &old(&later));
    before.put("opening", &bytes(&key(7)), &old(&later));
    let after = host.load(flavour);
    let flows: BTreeMap<_, _> =
        after.conntrack(100).expect("read").into_iter().map(|(k, e)| (bytes(&k), e)).collect();
    assert_eq!(flows.len(), 3);
    assert_eq!(flows[&bytes(&key(2))], later);
    assert_eq!(flows[&bytes(&key(7))], later);
}

#[test]
fn pins_that_are_not_those_of_layout_1_are_refused_and_left_alone() {
    let Some(host) = Host::new() else { return };
    let before = Old::start(&host, TcFlavour::detect());
    let path = before.attacher.pins.map("published");
    pins::remove_file(&path).expect("removed");
    let shape = sys::MapShape { kind: 1, key: 4, value: 12, entries: 16, flags: 0 };
    let other = sys::create_map(shape, None).expect("made");
    sys::pin(other.as_fd(), &path).expect("pinned");
    let refused = host.netns.run(|| BpfDatapath::load(&host.options()));
    let Err(DatapathError::Pin { path, reason }) = refused else { panic!("taken over") };
    assert!(path.ends_with("v1/maps/published") && reason.contains("layout 1"), "{reason}");
    assert!(pinned(&host.pin_dir(), 1) && !pinned(&host.pin_dir(), 2));
}

#[test]
fn going_back_hands_flows_and_attachments_to_the_older_version() {
    let flavour = TcFlavour::detect();
    let Some(host) = Host::new() else { return };
    assert!(downgrade(&host.pin_dir()).expect("nothing").is_none());
    let before = Old::start(&host, flavour);
    fill(&before);
    drop(before);
    let new = host.load(flavour);
    // The scheduler of this service has a table, which both layouts share.
    let table = LbTable::new(Filling::Turns, &[(1, 1), (2, 3)]);
    let at = TableKey { service: 5, table: table.digest() };
    new.apply(&[MapOp::Table(at, Some(table))]).expect("written");
    drop(new);
    let programs = attached(&host, 2);
    let done = host.netns.run(|| downgrade(&host.pin_dir())).expect("handed over");
    assert_eq!(done.map(|done| done.attachments), Some(3));
    assert!(pinned(&host.pin_dir(), 1) && !pinned(&host.pin_dir(), 2));
    assert_eq!(attached(&host, 1), programs, "which forward until the older version starts");
    let again = Old::start(&host, flavour);
    assert!(attached(&host, 1).iter().all(|id| !programs.contains(id)));
    let flow = again.get("conntrack", &bytes(&key(2)), 40);
    assert_eq!(flow, Some(old(&entry(CONNTRACK_FORWARD, FORWARD, 1_000))));
    let begun = again.get("opening", &bytes(&key(9)), 40);
    assert_eq!(begun, Some(old(&entry(CONNTRACK_REPLY, ANSWERED, 2_000))));
    assert_eq!(again.get("seed6", &[0; 4], 16), Some(vec![9; 16]));
    let program: &SchedClassifier =
        again.attacher.ebpf.program("from_container").expect("it").try_into().expect("it");
    assert!(program.fd().is_ok());
    drop(again);
    let after = host.load(flavour);
    check(&after);
    let entries = after.table(at).expect("read").expect("the table");
    assert_eq!(entries.iter().filter(|slot| **slot == 2).count(), entries.len() * 3 / 4);
}
