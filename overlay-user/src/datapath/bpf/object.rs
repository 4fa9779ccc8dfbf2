//! The embedded object: loading it against the pinned maps, and pinning its programs.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    maps::{MapInfo, ProgramArray},
    programs::{Program, ProgramError, SchedClassifier, TestRun as _},
};
use aya_obj::{Object, generated::bpf_map_type};
use overlay_common::{VXLAN_OVERHEAD, maps};

use super::{LoadOptions, bad_pin, kernel, pins::Pins, words};
use crate::datapath::DatapathError;

/// The kernel side as an ELF object, as the build script made it.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/overlay-datapath"));

/// Constant of the programs: 1 for an IPv6 underlay, 0 for IPv4.
pub const UNDERLAY_IPV6: &str = "UNDERLAY_IPV6";

/// The maps, by their names in the object, which are those of their pins.
pub(super) const MAPS: [&str; 46] = [
    "config",
    "generation",
    "networks",
    "flood",
    "endpoints",
    "endpoints6",
    "addresses6",
    "links",
    "links6",
    "peers",
    "vteps6",
    "services",
    "rr_cursor",
    "slots",
    "lb_tables",
    "active",
    "affinity",
    "backends",
    "backend_stats",
    "published",
    "local_addrs",
    "local_addrs6",
    "frontends6",
    "egress",
    "subnets",
    "subnets6",
    "snat_usage",
    "conntrack",
    "ct_new",
    "addr6_ids",
    "addr6_ids_new",
    "addr6_secret",
    "fragments",
    "lru_stats",
    "sock_origin",
    "netns",
    "sock_flows",
    "stale_backends",
    "counters",
    "endpoint_counters",
    "drop_counters",
    "watch",
    "watched",
    "events",
    "lost_events",
    "tail_calls",
];

/// The socket programs, which are attached to a cgroup.
pub(super) const SOCKET_PROGRAMS: [&str; 8] = [
    // The order matters: the programs that remove and show a socket's entry come before the
    // programs that make one.
    "sock_release",
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sendmsg4",
    "connect4",
    "connect6",
];

/// Programs that others go on with, and where map `tail_calls` has them.
pub const TAIL_CALLED: [(&str, u32); 3] = [
    ("container_flow6", maps::TAIL_CALL_CONTAINER),
    ("host_flow6", maps::TAIL_CALL_HOST),
    ("tunnel_flow6", maps::TAIL_CALL_TUNNEL),
];

/// All programs, by their names in the object, which are also the names of their pins. The targets
/// of tail calls come before their callers.
pub(super) const PROGRAMS: [&str; 17] = [
    TAIL_CALLED[0].0,
    TAIL_CALLED[1].0,
    TAIL_CALLED[2].0,
    "from_container",
    "from_underlay",
    "from_underlay6",
    "from_vxlan",
    "from_outside",
    "xdp_underlay",
    SOCKET_PROGRAMS[0],
    SOCKET_PROGRAMS[1],
    SOCKET_PROGRAMS[2],
    SOCKET_PROGRAMS[3],
    SOCKET_PROGRAMS[4],
    SOCKET_PROGRAMS[5],
    SOCKET_PROGRAMS[6],
    SOCKET_PROGRAMS[7],
];

/// Loads maps (adopting pinned ones) and programs, and pins both.
pub(super) fn load(options: &LoadOptions, pins: &Pins) -> Result<Ebpf, DatapathError> {
    check_pinned_maps(pins)?;
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.map_max_entries("conntrack", options.conntrack_size);
    // Never more than the flows in use may be.
    let opening = options.conntrack_size.min(maps::CT_NEW_ENTRIES as u32);
    loader.map_max_entries("ct_new", opening);
    let family = u32::from(options.underlay_ipv6);
    loader.override_global(UNDERLAY_IPV6, &family, true);
    let failed = |e: &aya::EbpfError| kernel("load the datapath's maps", words(e));
    let mut ebpf = loader.load(OBJECT).map_err(|e| failed(&e))?;
    for name in PROGRAMS {
        let program = ebpf.program_mut(name).ok_or_else(|| missing("program", name))?;
        load_program(program)
            .map_err(|e| kernel(format!("load the program {name}"), verifier(&e)))?;
        pin_program(program, &pins.program(name))?;
    }
    set_tail_calls(&mut ebpf)?;
    Ok(ebpf)
}

/// Puts the programs that are called, which are loaded, where the others find them. Programs of an
/// earlier process, against the same pinned map, go on with these from then on.
///
/// # Errors
/// [`DatapathError::Kernel`].
pub fn set_tail_calls(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    for (name, index) in TAIL_CALLED {
        let program = ebpf.program(name).ok_or_else(|| missing("program", name))?;
        let program: &SchedClassifier =
            program.try_into().map_err(|_| missing("program of the right type named", name))?;
        let fd = program.fd().and_then(|fd| fd.try_clone().map_err(ProgramError::from));
        let fd = fd.map_err(|e| kernel(format!("find the program {name}"), words(&e)))?;
        let map = ebpf.map_mut("tail_calls").ok_or_else(|| missing("map", "tail_calls"))?;
        let calls: Result<ProgramArray<_>, _> = map.try_into();
        calls.and_then(|mut calls| calls.set(index, &fd, 0)).map_err(|e| {
            kernel(format!("write the program {name} to the map tail_calls"), words(&e))
        })?;
    }
    Ok(())
}

/// The error for an object that was built from other sources than this program.
pub(super) fn missing(what: &str, name: &str) -> DatapathError {
    kernel(
        "load the datapath",
        format!("the embedded object has no {what} {name}; build the program again"),
    )
}

/// The program that probes the flags of this kernel's `bpf_skb_adjust_room`.
const PROBE: &str = "probe_decap";

/// The value of [`maps::Config::decap_flags`] for this kernel: the flags that it accepts and that
/// are newer than the oldest supported kernel.
///
/// # Errors
/// [`DatapathError::Kernel`] when the probe cannot be loaded or run.
pub fn decap_flags(ebpf: &mut Ebpf) -> Result<u32, DatapathError> {
    let action = || "find out how this kernel removes tunnel headers";
    let program = ebpf.program_mut(PROBE).ok_or_else(|| missing("program", PROBE))?;
    load_program(program).map_err(|e| kernel(action(), verifier(&e)))?;
    let program: &SchedClassifier =
        (&*program).try_into().map_err(|_| missing("program of the right type named", PROBE))?;
    let mut packet = [0; VXLAN_OVERHEAD as usize + 34];
    // An outer and an inner Ethernet header of IPv4, which is all that the kernel looks at.
    for frame in [0, VXLAN_OVERHEAD as usize] {
        packet[frame + 12] = 0x08;
        packet[frame + 14] = 0x45;
    }
    let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::default() };
    let ran = program.test_run(options).map_err(|e| kernel(action(), words(&e)))?;
    Ok(if ran.return_value == 1 { maps::DECAP_L4_UDP } else { 0 })
}

/// How often a load is tried that the kernel gave up: as often as libbpf does.
const LOAD_ATTEMPTS: u32 = 5;

/// Loads a program of the object into the kernel.
///
/// The verifier gives up with EAGAIN when a signal or other work waits for the thread. This
/// happens on a busy machine, so such a load is tried again.
///
/// # Errors
/// The verifier's error.
pub fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    let mut attempt = 1;
    loop {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        match loaded {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == std::io::ErrorKind::WouldBlock && attempt < LOAD_ATTEMPTS =>
            {
                attempt += 1;
            }
            other => return other,
        }
    }
}

/// Pins under the final name in one step, so that a reader always finds a program there.
fn pin_program(program: &mut Program, path: &Path) -> Result<(), DatapathError> {
    let failed = |e: String| kernel(format!("pin the program at {}", path.display()), e);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push("-new");
    let temporary = Path::new(&temporary);
    super::pins::remove_file(temporary)?;
    program.pin(temporary).map_err(|e| failed(words(&e)))?;
    std::fs::rename(temporary, path).map_err(|e| failed(e.to_string()))
}

/// An error with the end of its verifier log, which names the problem. A log can be megabytes long.
fn verifier(error: &ProgramError) -> String {
    let text = words(error);
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        [first, rest @ ..] if rest.len() > 20 => {
            format!("{first}\n[..]\n{}", rest[rest.len() - 20..].join("\n"))
        }
        _ => text,
    }
}

/// aya takes any map that is pinned under the right name. It would then read and write a map of
/// another layout with the wrong types.
fn check_pinned_maps(pins: &Pins) -> Result<(), DatapathError> {
    let object =
        Object::parse(OBJECT).map_err(|e| kernel("read the embedded object", words(&e)))?;
    for name in MAPS {
        let map = object.maps.get(name).ok_or_else(|| missing("map", name))?;
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(|e| bad_pin(&path, &e))?;
        let kind = info.map_type().map_err(|e| bad_pin(&path, &e))? as u32;
        let found = (kind, info.key_size(), info.value_size());
        let wanted = (map.map_type(), map.key_size(), map.value_size());
        let array = [bpf_map_type::BPF_MAP_TYPE_ARRAY, bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY]
            .iter()
            .any(|array| *array as u32 == kind);
        // Hash maps keep the size they were made with; an array is indexed up to its size.
        let sized = !array || info.max_entries() == map.max_entries();
        if found != wanted || !sized {
            return Err(DatapathError::Pin {
                path: path.display().to_string(),
                reason: format!(
                    "its type, key and value sizes and entries are {found:?} and {}, this \
                     program's are {wanted:?} and {}",
                    info.max_entries(),
                    map.max_entries(),
                ),
            });
        }
    }
    Ok(())
}
