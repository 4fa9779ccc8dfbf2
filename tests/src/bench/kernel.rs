//! The bpf(2) calls that aya lacks: programs of a few instructions, runs with live frames, runs of
//! programs that another process has pinned.

use std::{
    ffi::CString,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::Context as _;
use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{self, NlOptions, TcAttachOptions},
};
use nix::libc;

use crate::bpf::Attr;

/// `enum bpf_cmd` of the kernel's uapi/linux/bpf.h.
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;

/// `BPF_MAP_TYPE_ARRAY`.
const MAP_TYPE_ARRAY: u32 = 2;
/// `BPF_TCX_INGRESS` (Linux 6.6).
const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`: in front of all programs that are there.
const BEFORE: u32 = 1 << 3;
/// `BPF_F_TEST_XDP_LIVE_FRAMES` (Linux 5.18).
const LIVE_FRAMES: u32 = 1 << 1;
/// Offset of `ifindex` in `struct __sk_buff`, and the length of the part that is passed to the
/// kernel.
const SK_BUFF_IFINDEX: usize = 40;
const SK_BUFF: usize = 64;

/// `enum bpf_prog_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramType {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    Tc = 3,
    /// `BPF_PROG_TYPE_XDP`.
    Xdp = 6,
}

/// One instruction: opcode, destination and source register, offset, immediate value.
pub fn instruction(code: u8, (dst, src): (u8, u8), offset: i16, value: u32) -> u64 {
    let mut bytes = [code, src << 4 | dst, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// `MOV64 dst, value`.
pub fn set(dst: u8, value: u32) -> u64 {
    instruction(0xb7, (dst, 0), 0, value)
}

const CALL: u8 = 0x85;
const EXIT: u64 = 0x95;

/// Has the verifier look at a program.
///
/// # Errors
/// The kernel rejects the program.
pub fn load(kind: ProgramType, instructions: &[u64]) -> anyhow::Result<OwnedFd> {
    Attr::default()
        .u32(0, kind as u32)
        .u32(4, u32::try_from(instructions.len())?)
        .pointer(8, instructions.as_ptr())
        .pointer(16, c"GPL".as_ptr())
        .open(PROG_LOAD)
        .context("load a program")
}

/// A program that does nothing.
///
/// # Errors
/// The kernel rejects the program.
pub fn empty(kind: ProgramType) -> anyhow::Result<OwnedFd> {
    load(kind, &[set(0, 0), EXIT])
}

/// An XDP program that writes `beginning` into every frame and sends it out of an interface. It
/// must write it each time: the kernel sends its live frames again and again as they come back,
/// with the changes of all programs on their path.
///
/// # Errors
/// The kernel rejects the program, for example because the beginning is larger than a frame's first
/// page.
pub fn sender(ifindex: u32, beginning: &[u8]) -> anyhow::Result<OwnedFd> {
    load(ProgramType::Xdp, &sending(ifindex, beginning)?)
}

/// The instructions of [`sender`]. At their start, r1 is the context.
///
/// # Errors
/// If the beginning is too long to be counted.
pub fn sending(ifindex: u32, beginning: &[u8]) -> anyhow::Result<Vec<u64>> {
    const REDIRECT: u32 = 23;
    let length = u32::try_from(beginning.len())?;
    let mut program = Vec::new();
    if length > 0 {
        program.extend([
            // r2 = data, r3 = data_end
            instruction(0x61, (2, 1), 0, 0),
            instruction(0x61, (3, 1), 4, 0),
            // r4 = r2 + length; if r4 > r3 return XDP_ABORTED
            instruction(0xbf, (4, 2), 0, 0),
            instruction(0x07, (4, 0), 0, length),
            instruction(0xbd, (4, 3), 2, 0),
            set(0, 0),
            EXIT,
        ]);
        for (at, byte) in (0i16..).zip(beginning) {
            // *(u8 *)(r2 + at) = byte
            program.push(instruction(0x72, (2, 0), at, u32::from(*byte)));
        }
    }
    program.extend([set(1, ifindex), set(2, 0), instruction(CALL, (0, 0), 0, REDIRECT), EXIT]);
    Ok(program)
}

/// An array of values of this size, all zero. Its keys are numbers from 0 on.
///
/// # Errors
/// The kernel rejects the map.
pub fn array(value: u32, count: u32) -> anyhow::Result<OwnedFd> {
    let attr = Attr::default().u32(0, MAP_TYPE_ARRAY).u32(4, 4).u32(8, value).u32(12, count);
    attr.open(MAP_CREATE).context("make an array")
}

/// A pinned program or map.
///
/// # Errors
/// There is no such object.
pub fn pinned(path: &Path) -> anyhow::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    Attr::default()
        .pointer(0, name.as_ptr())
        .open(OBJ_GET)
        .with_context(|| path.display().to_string())
}

/// Counts the packets that an interface receives, and drops them there, before any other program.
/// Dropping this value detaches it.
#[derive(Debug)]
pub struct Sink {
    map: OwnedFd,
    _attached: Attached,
}

/// The attachment of a program, which ends with it.
#[derive(Debug)]
enum Attached {
    Link(#[expect(dead_code, reason = "it lives as long as this")] OwnedFd),
    Filter(#[expect(dead_code, reason = "it lives as long as this")] Box<SchedClassifier>),
}

impl Sink {
    /// Attaches a counter of the kernel's packets to an interface of this namespace.
    ///
    /// # Errors
    /// The kernel rejects the program.
    pub fn attach(device: &str) -> anyhow::Result<Self> {
        const DROP: u32 = 2;
        let (map, program) = counting(ProgramType::Tc, DROP)?;
        let link = Attr::default()
            .fd(0, &program)
            .u32(4, index_of(device)?)
            .u32(8, TCX_INGRESS)
            .u32(12, BEFORE)
            .open(LINK_CREATE);
        let attached = match link {
            Ok(link) => Attached::Link(link),
            Err(_) => filter(device, &program).map(Box::new).map(Attached::Filter)?,
        };
        Ok(Self { map, _attached: attached })
    }

    /// Attaches a counter of frames as native XDP to a veth of this namespace. The frames come from
    /// XDP on the other end, which can send only if this end has a program (`veth_xdp_xmit`). The
    /// kernel would have to copy packets of the stack to pass them to XDP here.
    ///
    /// # Errors
    /// The kernel rejects the program.
    pub fn attach_xdp(device: &str) -> anyhow::Result<Self> {
        const DROP: u32 = 1;
        /// `BPF_XDP` of `enum bpf_attach_type`.
        const XDP: u32 = 37;
        /// `XDP_FLAGS_DRV_MODE` of linux/if_link.h.
        const NATIVE: u32 = 1 << 2;
        let (map, program) = counting(ProgramType::Xdp, DROP)?;
        let link = Attr::default()
            .fd(0, &program)
            .u32(4, index_of(device)?)
            .u32(8, XDP)
            .u32(12, NATIVE)
            .open(LINK_CREATE)
            .context("attach the counter as XDP")?;
        Ok(Self { map, _attached: Attached::Link(link) })
    }

    /// Packets so far.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn packets(&self) -> anyhow::Result<u64> {
        let mut packets = [0; 8];
        look_up(&self.map, 0, &mut packets).context("read the counter")?;
        Ok(u64::from_ne_bytes(packets))
    }
}

/// The number of an interface of this namespace.
///
/// # Errors
/// There is no interface with that name.
pub fn index_of(device: &str) -> anyhow::Result<u32> {
    nix::net::if_::if_nametoindex(device).with_context(|| format!("interface {device}"))
}

/// A counter, and a program that counts in it and drops every packet.
fn counting(kind: ProgramType, drop: u32) -> anyhow::Result<(OwnedFd, OwnedFd)> {
    const LOOKUP: u32 = 1;
    let map = array(8, 1).context("make the counter")?;
    let program = load(
        kind,
        &[
            // The map, in two halves.
            instruction(0x18, (1, 1), 0, map.as_raw_fd().unsigned_abs()),
            0,
            // *(u32 *)(r10 - 4) = 0; r2 = r10 - 4
            instruction(0x62, (10, 0), -4, 0),
            instruction(0xbf, (2, 10), 0, 0),
            instruction(0x07, (2, 0), 0, 4u32.wrapping_neg()),
            instruction(CALL, (0, 0), 0, LOOKUP),
            // if r0 == 0 skip two
            instruction(0x15, (0, 0), 2, 0),
            set(1, 1),
            // lock *(u64 *)r0 += r1
            instruction(0xdb, (0, 1), 0, 0),
            set(0, drop),
            EXIT,
        ],
    )?;
    Ok((map, program))
}

/// Attaches a TC program on a kernel without tcx (before Linux 6.6): as the first filter of the
/// interface. aya accepts programs that another library loaded from a bpffs only.
fn filter(device: &str, program: &OwnedFd) -> anyhow::Result<SchedClassifier> {
    let path = format!("/sys/fs/bpf/overlay-bench-{}", std::process::id());
    let name = CString::new(path.as_str())?;
    let mut attr = Attr::default().pointer(0, name.as_ptr()).fd(8, program);
    attr.call(OBJ_PIN).with_context(|| format!("pin the counter as {path}"))?;
    let taken = SchedClassifier::from_pin(&path);
    std::fs::remove_file(&path).with_context(|| format!("remove {path}"))?;
    let mut program = taken.context("take the counter from its pin")?;
    // overlay's own end has this queueing discipline already.
    let _ = tc::qdisc_add_clsact(device);
    let first = TcAttachOptions::Netlink(NlOptions { priority: 1, ..NlOptions::default() });
    program
        .attach_with_options(device, TcAttachType::Ingress, first)
        .with_context(|| format!("attach the counter to {device}"))?;
    Ok(program)
}

/// Reads an element of an array map with values as large as `value`.
///
/// # Errors
/// The kernel rejects the call.
pub fn look_up(map: &OwnedFd, key: u32, value: &mut [u8]) -> anyhow::Result<()> {
    Attr::default()
        .fd(0, map)
        .pointer(8, &raw const key)
        .pointer(16, value.as_mut_ptr())
        .call(MAP_LOOKUP_ELEM)
        .context("read a map")
        .map(drop)
}

/// Runs a TC program once on a frame, as if it came in by an interface of this namespace. Returns
/// its verdict and the nanoseconds it took.
///
/// # Errors
/// The kernel rejects the run.
pub fn run_tc(program: &OwnedFd, frame: &[u8], ifindex: u32) -> anyhow::Result<(u32, u32)> {
    let mut context = [0u8; SK_BUFF];
    context[SK_BUFF_IFINDEX..SK_BUFF_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    let mut attr = Attr::default()
        .fd(0, program)
        .u32(8, u32::try_from(frame.len())?)
        .pointer(16, frame.as_ptr())
        .u32(32, 1)
        .u32(40, u32::try_from(context.len())?)
        .pointer(48, context.as_ptr());
    attr.call(PROG_TEST_RUN).context("run a TC program")?;
    Ok((attr.read(4), attr.read(36)))
}

/// Runs an XDP program once on a frame.
///
/// # Errors
/// The kernel rejects the run.
pub fn run_xdp(program: &OwnedFd, frame: &[u8]) -> anyhow::Result<(u32, u32)> {
    let mut attr = Attr::default()
        .fd(0, program)
        .u32(8, u32::try_from(frame.len())?)
        .pointer(16, frame.as_ptr())
        .u32(32, 1);
    attr.call(PROG_TEST_RUN).context("run an XDP program")?;
    Ok((attr.read(4), attr.read(36)))
}

/// Runs an XDP program on `count` copies of a frame, and executes its verdicts.
///
/// # Errors
/// The kernel rejects the run.
pub fn run_live(program: &OwnedFd, frame: &[u8], count: u32) -> anyhow::Result<()> {
    Attr::default()
        .fd(0, program)
        .u32(8, u32::try_from(frame.len())?)
        .pointer(16, frame.as_ptr())
        .u32(32, count)
        .u32(64, LIVE_FRAMES)
        .u32(72, 64)
        .call(PROG_TEST_RUN)
        .context("send live frames")
        .map(drop)
}
