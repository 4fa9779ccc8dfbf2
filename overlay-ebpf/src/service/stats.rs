//! Statistics of backends, counted on the node that translates.

use overlay_common::{
    Be16, Reason,
    maps::{BackendStats, BackendStatsKey, VIA_VIP, VNI_FLAG_IPV6},
};

use crate::{
    maps::{BACKEND_STATS, work::Work},
    outcome,
};

/// The value of a new entry. It is not on the stack, which is short here.
static ZERO: BackendStats =
    BackendStats { flows: 0, in_packets: 0, in_bytes: 0, out_packets: 0, out_bytes: 0 };

/// A new flow.
const FLOW: u32 = 0;
/// A packet from the client.
const IN: u32 = 1;
/// A packet from the backend.
const OUT: u32 = 2;
/// Flag with one of them: IPv6.
const IPV6: u32 = 1 << 7;

/// Counts the new flow of `work`.
#[inline(always)]
pub fn flow(work: &Work) {
    count(work, work.flow.key.dport, 0, FLOW);
}

/// Counts a packet from the client, of `length` bytes, Ethernet header included.
#[inline(always)]
pub fn request(work: &Work, length: u32) {
    count(work, work.flow.key.dport, length, IN);
}

/// Counts a packet from the backend, of `length` bytes, Ethernet header included.
#[inline(always)]
pub fn reply(work: &Work, length: u32) {
    count(work, work.entry.sport, length, OUT);
}

/// `port` is the frontend's.
#[inline(always)]
fn count(work: &Work, port: Be16, length: u32, what: u32) {
    let entry = &work.entry;
    if entry.backend == 0 {
        // The flow has no service: it is translated because of a collision.
        return;
    }
    let port = if entry.flags & VIA_VIP != 0 { Be16::ZERO } else { port };
    let what = if work.flow.key.vni & VNI_FLAG_IPV6 != 0 { what | IPV6 } else { what };
    let way = u32::from(port.raw()) << 16 | u32::from(work.flow.key.proto) << 8 | what;
    // A packet that is not counted is forwarded all the same.
    let _ = count_backend_stats(entry.service, entry.backend, way, length);
}

/// `way` has the port in its upper half, in wire order, then the protocol, then the kind of count.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn count_backend_stats(service: u32, backend: u32, way: u32, length: u32) -> i64 {
    let [what, proto, ..] = way.to_le_bytes();
    let port = Be16::from_raw((way >> 16) as u16);
    let what = u32::from(what);
    let ipv6 = u8::from(what & IPV6 != 0);
    let key = BackendStatsKey { service, backend, port, proto, ipv6 };
    let stats = match BACKEND_STATS.get_ptr_mut(&key) {
        Some(stats) => stats,
        None => {
            // Another CPU may insert first.
            let _ = BACKEND_STATS.insert(&key, &ZERO, 0);
            match BACKEND_STATS.get_ptr_mut(&key) {
                Some(stats) => stats,
                None => return outcome::pack(Err(Reason::ConntrackFull)),
            }
        }
    };
    // SAFETY: the pointer comes from a successful look-up, and the value is this CPU's own.
    let stats = unsafe { &mut *stats };
    let length = u64::from(length);
    match what & !IPV6 {
        FLOW => stats.flows += 1,
        IN => {
            stats.in_packets += 1;
            stats.in_bytes += length;
        }
        _ => {
            stats.out_packets += 1;
            stats.out_bytes += length;
        }
    }
    0
}
