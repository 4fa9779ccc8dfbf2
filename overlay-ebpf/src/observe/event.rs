//! Reports of drops, new flows and captured packets, while a watcher is there.
//!
//! The packet is first copied to a per-CPU buffer and then to the ring. Otherwise a record could
//! not have the length of the packet, because `bpf_ringbuf_reserve` takes constants only.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, xdp_md},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_skb_load_bytes, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};
use overlay_common::{
    Reason,
    event::{
        DROP_SNAP, EVENT_CAPTURE, EVENT_DROP, EVENT_FLOW, Event, FlowEvent, FlowStart, SNAP_MAX,
        WATCH_ALL, WATCH_CAPTURE, WATCH_DROPS, WATCH_FLOWS, Watch,
    },
    maps::{Conntrack, ConntrackKey},
    observe::Traffic,
    wire::{ETHERTYPE_IPV4, PROTO_TCP, PROTO_UDP},
};

use crate::{
    maps::work::Buffer,
    maps::{EVENT, EVENTS, LOST_EVENTS, WATCH, WATCHED},
    observe::Party,
};

/// Ethertype of IPv6 (RFC 2464, section 3).
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Bytes that the filter may read: Ethernet, IPv4 with all options, and ports.
const FILTERED: u32 = 14 + 60 + 4;

/// A packet of a TC or XDP program.
#[derive(Clone, Copy)]
enum Packet {
    Tc(*mut __sk_buff),
    Xdp(*mut xdp_md),
}

impl Packet {
    #[inline(always)]
    fn length(self) -> u32 {
        // SAFETY: contexts are valid for the whole run of the program.
        unsafe {
            match self {
                Self::Tc(skb) => (*skb).len,
                Self::Xdp(xdp) => (*xdp).data_end - (*xdp).data,
            }
        }
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe {
            match self {
                Self::Tc(skb) => (*skb).ifindex,
                Self::Xdp(xdp) => (*xdp).ingress_ifindex,
            }
        }
    }

    /// Copies the first `length` bytes; `length` is from 1 to [`SNAP_MAX`] and at most the packet's
    /// length.
    #[inline(always)]
    fn copy(self, to: *mut u8, length: u32) -> bool {
        // SAFETY: the buffer has room for SNAP_MAX bytes.
        let failed = unsafe {
            match self {
                Self::Tc(skb) => bpf_skb_load_bytes(skb.cast(), 0, to.cast(), length),
                Self::Xdp(xdp) => bpf_xdp_load_bytes(xdp, 0, to.cast(), length),
            }
        };
        failed == 0
    }
}

/// The current watch; `None` without one. A packet pays no more than this look-up then.
#[inline(always)]
pub fn watching() -> Option<&'static Watch> {
    WATCH.get(0).filter(|watch| watch.flags != 0)
}

/// The watch and the time in ns, if it has one of `flags` and has not ended.
#[inline(always)]
fn watched_now(flags: u32) -> Option<(&'static Watch, u64)> {
    let watch = watching().filter(|watch| watch.flags & flags != 0)?;
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    (now <= watch.until).then_some((watch, now))
}

/// Copies a packet that an endpoint sends to the buffer, before it is changed, if it is to be
/// captured. [`report_kept`] sends the record when the outcome is known. Returns 1 if the packet
/// was kept.
#[inline(always)]
pub fn keep(ctx: &TcContext, sender: &Party) -> i64 {
    if watching().is_none() {
        return 0;
    }
    keep_tc(ctx.skb.skb, sender.counter)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn keep_tc(skb: *mut __sk_buff, counter: u32) -> i64 {
    i64::from(capture(Packet::Tc(skb), counter, Traffic::Sent).is_some())
}

/// Sends the record of a kept packet.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn report_kept(vni: u32, counter: u32, reason: u32) -> i64 {
    let Some(buffer) = EVENT.get_ptr_mut(0) else { return 0 };
    // SAFETY: a per-CPU buffer that only this program run touches.
    unsafe {
        (*buffer).event.vni = vni;
        (*buffer).event.counter = counter;
        (*buffer).event.reason = reason as u8;
    }
    send(buffer);
    0
}

/// Reports a packet that is delivered to the endpoint with this counter index, if it is to be
/// captured.
#[inline(always)]
pub fn report_delivery(ctx: &TcContext, counter: u32, reason: Reason) {
    if watching().is_some() {
        report_received(ctx.skb.skb, counter, reason as u32);
    }
}

/// As [`report_delivery`], for the XDP program.
#[inline(always)]
pub fn report_delivery_in_xdp(ctx: &XdpContext, counter: u32, reason: Reason) {
    if watching().is_some() {
        report_received_in_xdp(ctx.as_ptr().cast(), counter, reason as u32);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn report_received(skb: *mut __sk_buff, counter: u32, reason: u32) -> i64 {
    received(Packet::Tc(skb), counter, reason)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn report_received_in_xdp(xdp: *mut xdp_md, counter: u32, reason: u32) -> i64 {
    received(Packet::Xdp(xdp), counter, reason)
}

#[inline(always)]
fn received(packet: Packet, counter: u32, reason: u32) -> i64 {
    if let Some(buffer) = capture(packet, counter, Traffic::Received) {
        // SAFETY: as above.
        unsafe {
            (*buffer).event.counter = counter;
            (*buffer).event.reason = reason as u8;
        }
        send(buffer);
    }
    0
}

/// Reports a packet that a TC program drops.
#[inline(always)]
pub fn report_drop(ctx: &TcContext, party: &Party, reason: Reason) {
    if watching().is_some() {
        let told = (party.traffic as u32) << 8 | reason as u32;
        report_drop_tc(ctx.skb.skb, party.vni, party.counter, told);
    }
}

/// Reports a packet that the XDP program drops.
#[inline(always)]
pub fn report_drop_in_xdp(ctx: &XdpContext, party: &Party, reason: Reason) {
    if watching().is_some() {
        let told = (party.traffic as u32) << 8 | reason as u32;
        report_drop_xdp(ctx.as_ptr().cast(), party.vni, party.counter, told);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn report_drop_tc(skb: *mut __sk_buff, vni: u32, counter: u32, told: u32) -> i64 {
    drop_event(Packet::Tc(skb), (vni, counter), told)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn report_drop_xdp(xdp: *mut xdp_md, vni: u32, counter: u32, told: u32) -> i64 {
    drop_event(Packet::Xdp(xdp), (vni, counter), told)
}

#[inline(always)]
fn drop_event(packet: Packet, (vni, counter): (u32, u32), told: u32) -> i64 {
    let Some((_, now)) = watched_now(WATCH_DROPS) else { return 0 };
    let Some(buffer) = EVENT.get_ptr_mut(0) else { return 0 };
    let event = Event {
        time: now,
        kind: EVENT_DROP,
        traffic: (told >> 8) as u8,
        reason: told as u8,
        vni,
        counter,
        ..Event::default()
    };
    if fill(buffer, packet, event, DROP_SNAP as u32) {
        send(buffer);
    }
    0
}

/// Reports a flow that got a backend.
#[inline(always)]
pub fn report_flow(key: &ConntrackKey, entry: &Conntrack, reason: Reason) {
    if watching().is_some() {
        report_flow_packed(key, entry, reason as u32);
    }
}

#[inline(never)]
fn report_flow_packed(key: &ConntrackKey, entry: &Conntrack, reason: u32) -> i64 {
    let Some((_, now)) = watched_now(WATCH_FLOWS) else { return 0 };
    let Some(mut record) = EVENTS.reserve_untyped::<FlowEvent>(0) else {
        lose(EVENT_FLOW);
        return 0;
    };
    let event = Event {
        time: now,
        kind: EVENT_FLOW,
        reason: reason as u8,
        vni: key.vni,
        captured: size_of::<FlowStart>() as u32,
        ..Event::default()
    };
    record.write(FlowEvent { event, flow: FlowStart { key: *key, pad: 0, entry: *entry } });
    record.submit(0);
    0
}

/// Copies the packet to the buffer if it is to be captured.
#[inline(always)]
fn capture(packet: Packet, counter: u32, traffic: Traffic) -> Option<*mut Buffer> {
    let (watch, now) = watched_now(WATCH_CAPTURE)?;
    if watch.flags & WATCH_ALL == 0 && WATCHED.get(counter).is_none_or(|watched| *watched == 0) {
        return None;
    }
    if watch.sample > 1 {
        // SAFETY: a helper without preconditions.
        let random = u64::from(unsafe { bpf_get_prandom_u32() });
        // Zero with a probability of 1 / `sample`.
        if (random * u64::from(watch.sample)) >> 32 != 0 {
            return None;
        }
    }
    let buffer = EVENT.get_ptr_mut(0)?;
    let event =
        Event { time: now, kind: EVENT_CAPTURE, traffic: traffic as u8, ..Event::default() };
    let filtered = watch.protocol != 0 || watch.port.raw() != 0 || watch.host != [0; 16];
    let least = if filtered { FILTERED } else { 1 };
    if !fill(buffer, packet, event, if watch.snap > least { watch.snap } else { least }) {
        return None;
    }
    if filtered && !matches(watch, buffer) {
        return None;
    }
    // SAFETY: a per-CPU buffer that only this program run touches.
    let captured = unsafe { &mut (*buffer).event.captured };
    if *captured > watch.snap {
        *captured = watch.snap;
    }
    Some(buffer)
}

/// Starts a record and copies up to `snap` bytes of the packet.
#[inline(always)]
fn fill(buffer: *mut Buffer, packet: Packet, event: Event, snap: u32) -> bool {
    let length = packet.length();
    let captured = if length < snap { length } else { snap };
    if captured == 0 {
        return false;
    }
    // SAFETY: a per-CPU buffer that only this program run touches.
    let (data, captured) = unsafe {
        (*buffer).event = Event { length, captured, ifindex: packet.ifindex(), ..event };
        // Read from memory, where LLVM cannot follow the value, so that the bound below stays in
        // the program. The verifier of 6.1 accepts no other proof of "from 1 to SNAP_MAX".
        (&raw mut (*buffer).data, ptr::read_volatile(&raw const (*buffer).event.captured))
    };
    packet.copy(data.cast(), (captured.wrapping_sub(1) & (SNAP_MAX as u32 - 1)) + 1)
}

/// Writes a record to the ring, or counts it as lost.
#[inline(always)]
fn send(buffer: *mut Buffer) {
    // SAFETY: as in `fill`; the record is at most as long as the buffer.
    let (record, kind) = unsafe {
        let captured = ptr::read_volatile(&raw const (*buffer).event.captured);
        let captured = (captured.wrapping_sub(1) & (SNAP_MAX as u32 - 1)) + 1;
        let length = size_of::<Event>() + captured as usize;
        (core::slice::from_raw_parts(buffer.cast::<u8>(), length), (*buffer).event.kind)
    };
    if EVENTS.output_untyped::<[u8]>(record, 0).is_err() {
        lose(kind);
    }
}

#[inline(always)]
fn lose(kind: u8) {
    if let Some(lost) = LOST_EVENTS.get_ptr_mut(u32::from(kind)) {
        // SAFETY: a per-CPU value from a successful look-up.
        unsafe { *lost += 1 };
    }
}

/// Whether a captured packet passes the filter.
#[inline(always)]
fn matches(watch: &Watch, buffer: *const Buffer) -> bool {
    // SAFETY: a per-CPU buffer that only this program run touches, long enough for every offset.
    unsafe {
        let data = (&raw const (*buffer).data).cast::<u8>();
        let captured = (*buffer).event.captured;
        let byte = |at: usize| data.add(at).read();
        let ethertype = u16::from_be_bytes([byte(12), byte(13)]);
        let (ports, protocol) = match ethertype {
            ETHERTYPE_IPV4 if captured >= 34 => {
                let later = byte(20) & 0x1f != 0 || byte(21) != 0;
                let ports = 14 + usize::from(byte(14) & 0xf) * 4;
                (if later { SNAP_MAX } else { ports }, byte(23))
            }
            ETHERTYPE_IPV6 if captured >= 54 => (54, byte(20)),
            _ => return false,
        };
        if watch.protocol != 0 && watch.protocol != protocol {
            return false;
        }
        if watch.port.raw() != 0 {
            if (protocol != PROTO_TCP && protocol != PROTO_UDP) || ports + 4 > captured as usize {
                return false;
            }
            // The mask bounds the offset for the verifier; it is at most 74.
            let ports = data.add(ports & 0x7f).cast::<[u16; 2]>().read_unaligned();
            if ports[0] != watch.port.raw() && ports[1] != watch.port.raw() {
                return false;
            }
        }
        watch.host == [0; 16] || matches_host(watch, data, ethertype == ETHERTYPE_IPV4)
    }
}

/// Whether the packet is to or from the filter's host.
///
/// # Safety
/// `data` is readable for [`FILTERED`] bytes.
#[inline(always)]
unsafe fn matches_host(watch: &Watch, data: *const u8, ipv4: bool) -> bool {
    let host = (&raw const watch.host).cast::<[u32; 4]>();
    // SAFETY: all offsets are within the bytes that the caller promises, and within the host's 16
    // bytes.
    unsafe {
        let host = host.read_unaligned();
        let word = |at: usize| data.add(at).cast::<u32>().read_unaligned();
        if ipv4 {
            let mapped = host[0] == 0 && host[1] == 0 && host[2] == u32::from_be(0xffff);
            return mapped && (word(26) == host[3] || word(30) == host[3]);
        }
        let same = |at: usize| {
            word(at) == host[0]
                && word(at + 4) == host[1]
                && word(at + 8) == host[2]
                && word(at + 12) == host[3]
        };
        same(22) || same(38)
    }
}
