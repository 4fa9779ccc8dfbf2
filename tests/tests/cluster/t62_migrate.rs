//! Migration back to the last version of layout 1 and forward again, while traffic flows. The
//! programs of the older version come from its own object; this test plays its daemon.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, bail, ensure};
use aya::{
    EbpfLoader,
    maps::ProgramArray,
    programs::{ProgramFd, SchedClassifier, loaded_programs},
};
use overlay::datapath::{TAIL_CALLED, load_program};
use overlay_tests::{
    Cluster, Container, Host, Options, Place as _, Running, bpf::Attr, bpffs, testkit::Pinged,
};

/// Stripped of DWARF; see the README beside it.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/layout-1.o"));

/// `BPF_OBJ_GET` and `BPF_LINK_UPDATE` of the kernel's uapi/linux/bpf.h.
const OBJ_GET: std::ffi::c_long = 7;
const LINK_UPDATE: std::ffi::c_long = 29;

/// Acts as the older version's daemon at its start: it loads its programs against the pinned maps
/// and puts them into the pinned links.
fn start_older_version(pins: &Path) -> anyhow::Result<usize> {
    let pins = pins.join("v1");
    let object = aya_obj::Object::parse(OBJECT)?;
    let mut loader = EbpfLoader::new();
    for name in object.maps.keys() {
        let path = pins.join("maps").join(name);
        if path.exists() {
            loader.map_pin_path(name, path);
        }
    }
    loader.override_global("UNDERLAY_IPV6", &0_u32, true);
    let mut ebpf = loader.load(OBJECT).context("load layout 1")?;
    for (name, program) in ebpf.programs_mut().filter(|(name, _)| *name != "probe_decap") {
        load_program(program).with_context(|| name.to_owned())?;
        program.pin(pins.join("progs").join(name))?;
    }
    for (name, index) in TAIL_CALLED {
        let program: &SchedClassifier = ebpf.program(name).context(name)?.try_into()?;
        let fd: ProgramFd = program.fd()?.try_clone()?;
        let calls = ebpf.map_mut("calls").context("map calls")?;
        ProgramArray::try_from(calls)?.set(index, &fd, 0)?;
    }
    let links = bpffs::pins(&pins.join("links"));
    for path in &links {
        let text = path.to_string_lossy().into_owned();
        let link =
            Attr::default().pointer(0, std::ffi::CString::new(text)?.as_ptr()).open(OBJ_GET)?;
        let name = program_in(path)?;
        let program = ebpf.program(&name).with_context(|| name.clone())?;
        Attr::default().fd(0, &link).fd(4, program.fd()?).call(LINK_UPDATE)?;
    }
    Ok(links.len())
}

/// The name of the program in a pinned link.
fn program_in(path: &Path) -> anyhow::Result<String> {
    let id = bpffs::program_of(path)?;
    for info in loaded_programs() {
        let info = info?;
        if info.id() == id {
            return Ok(info.name_as_str().context("a name")?.to_owned());
        }
    }
    bail!("there is no program {id}")
}

/// A conversation from outside through a published port, and one between containers of two hosts.
/// New connections may need a second attempt while the programs are replaced link by link, so both
/// are open before.
struct Traffic {
    published: Running,
    direct: Running,
}

impl Traffic {
    fn start(cluster: &Cluster, asker: &Container) -> anyhow::Result<Self> {
        let traffic = Self {
            published: cluster.client().chat(&cluster.host(1).port(3306))?,
            direct: asker.chat("db.1:3306")?,
        };
        pause();
        Ok(traffic)
    }

    /// Checks that no conversation broke.
    fn check(self) -> anyhow::Result<()> {
        pause();
        for chat in [self.published, self.direct] {
            let report = chat.chat_report()?;
            ensure!(report.failure.is_none() && report.lines > 10, "{report:?}");
        }
        Ok(())
    }
}

fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(800));
}

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

#[test]
fn a_host_goes_back_to_layout_1_and_forward_again_without_losing_anything() -> anyhow::Result<()> {
    let cluster = Cluster::formed(2, Options::default())?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let pins = h1.dirs().pins.clone();
    h1.network_create("mynet", &[])?;
    h1.service_create("db", &["--network", "mynet", "-p", "3306:3306"])?;
    h1.service_create("web", &["--network", "mynet", "-p", "8080:80"])?;
    let _db = h2.container("db.1").service("db").tcp_id(3306)?;
    let web = h2.container("web.1").service("web").http(80)?;
    let asker = h1.container("asker").network("mynet").idle()?;
    if !bpffs::pins(&pins).iter().all(|pin| !pin.to_string_lossy().contains("/clsact-")) {
        eprintln!("not tested under traffic: this kernel has no tcx links (Linux 6.6)");
        return Ok(());
    }
    let traffic = Traffic::start(&cluster, &asker)?;
    let before = counter(h1, "encapsulated")?;
    let target = web.ip()?.to_string();
    // One echo after the other through the tunnel while something changes.
    let pinged = |change: &dyn Fn() -> anyhow::Result<()>| {
        let ends = AtomicBool::new(false);
        let echoes = || -> anyhow::Result<u32> {
            let mut answered = 0;
            while !ends.load(Ordering::Relaxed) {
                let pinged: Pinged = asker.ask(&["ping", &target, "--count", "500"])?;
                ensure!(pinged.sent == pinged.answered, "{pinged:?}");
                answered += u32::from(pinged.answered);
            }
            Ok(answered)
        };
        std::thread::scope(|scope| {
            let echoes = scope.spawn(echoes);
            let changed = change();
            ends.store(true, Ordering::Relaxed);
            ensure!(echoes.join().expect("no panic")? > 0);
            changed
        })
    };
    h1.stop_agent()?;
    pinged(&|| {
        h1.overlay(&["datapath", "downgrade"])?;
        ensure!(!pins.join("v2").exists(), "nothing is left of layout 2");
        ensure!(start_older_version(&pins)? > 2, "links were handed over");
        Ok(())
    })?;
    // For a while, the older version forwards.
    pause();
    pinged(&|| h1.start_agent())?;
    ensure!(!pins.join("v1").exists(), "nothing is left of layout 1");
    traffic.check()?;
    let requests = cluster.client().load(&[h1.port(8080)])?;
    pause();
    let report = requests.load_report()?;
    ensure!(report.failures() == 0 && !report.answered_by.is_empty(), "{report:?}");
    ensure!(counter(h1, "encapsulated")? > before, "what was counted before is counted");
    Ok(())
}
