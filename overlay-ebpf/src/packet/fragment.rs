//! Fragments of IPv4 packets that may belong to translated flows. Only the first fragment has the
//! ports, so the first bytes of its transport header are kept for the later ones (RFC 791, section
//! 3.2). A later fragment without its first one is dropped and counted. It never goes to another
//! backend.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Be32, Reason,
    maps::{FRAGMENT_TIME, Fragment, FragmentKey},
    wire::{Ipv4, Udp},
};

use crate::{
    clock::now,
    maps::{
        FRAGMENTS,
        work::{Scratch, scratch},
    },
    outcome,
    packet::frame::load_at,
};

/// The first bytes of the transport header for a fragment with its IPv4 header at `offset`, on
/// network `vni`. Keeps them if the fragment is the first one.
///
/// # Errors
/// [`Reason::Fragment`] for a later fragment without its first one, [`Reason::Truncated`].
#[inline(always)]
pub fn head(ctx: &TcContext, offset: usize, vni: u32) -> Result<Udp, Reason> {
    outcome::unpack(fragment_head_packed(ctx.skb.skb, offset as u32, vni))?;
    Ok(scratch()?.fragment.head)
}

/// Leaves its result in the scratch area.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn fragment_head_packed(skb: *mut __sk_buff, offset: u32, vni: u32) -> i64 {
    // Headers are near the start of the packet. The mask shows that to the verifier in this
    // separate function.
    outcome::pack(find_head(&TcContext::new(skb), (offset & 0xff) as usize, vni).map(|()| 0))
}

#[inline(always)]
fn find_head(ctx: &TcContext, offset: usize, vni: u32) -> Result<(), Reason> {
    let ip: Ipv4 = load_at(ctx, offset)?;
    let packet = FragmentKey {
        saddr: ip.saddr(),
        daddr: ip.daddr(),
        vni,
        id: Be32::new(ip.id.get().into()),
        proto: ip.protocol,
        pad: [0; 3],
    };
    let transport = offset + usize::from(ip.version_ihl & 0xf) * 4;
    keep_or_find(ctx, &packet, transport, ip.is_later_fragment())
}

/// Leaves the first bytes of the transport header of `packet` in the scratch area. Reads them at
/// `transport` and keeps them if this is the first fragment; otherwise finds the kept ones.
///
/// # Errors
/// [`Reason::Fragment`] for a later fragment without its first one, [`Reason::Truncated`].
#[inline(always)]
pub fn keep_or_find(
    ctx: &TcContext,
    packet: &FragmentKey,
    transport: usize,
    is_later: bool,
) -> Result<(), Reason> {
    let now = now();
    let Scratch { fragment_key: key, fragment, .. } = scratch()?;
    *key = *packet;
    if !is_later {
        *fragment = Fragment { head: load_at(ctx, transport)?, seen: now };
        // If the map takes no entry, the later fragments are dropped and counted as such.
        let _ = FRAGMENTS.insert(&*key, &*fragment, 0);
        return Ok(());
    }
    let kept = FRAGMENTS.get_ptr(&*key).ok_or(Reason::Fragment)?;
    // SAFETY: the pointer comes from a successful look-up. If the kernel reuses the LRU entry at
    // this moment, the result belongs to another packet. The receiver combines no fragments of the
    // two packets.
    *fragment = unsafe { *kept };
    let is_old = now.wrapping_sub(fragment.seen) > FRAGMENT_TIME && now > fragment.seen;
    if is_old { Err(Reason::Fragment) } else { Ok(()) }
}
