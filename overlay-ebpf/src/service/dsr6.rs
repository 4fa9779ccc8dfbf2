//! DSR on the backend's node for IPv6. The tables of flows have ids for the addresses of clients
//! and frontends.

use aya_ebpf::{bindings::__sk_buff, btf_maps::lpm_trie::Key, programs::TcContext};
use overlay_common::{
    Frontend, Ip6, Reason,
    maps::{Frontend6Key, PUBLISHED_IPV6, Published},
    wire::Ethernet,
};

use crate::{
    forward::route,
    maps::{
        FRONTENDS6, LOCAL_ADDRS6, SUBNETS6, addr6_id,
        work::{PART_QUOTED, work},
    },
    nat::rewrite6,
    outcome::{self, Outcome, Verdict},
    packet::frame::load_at,
};

/// The frontend that the frame in the tunnel carries: [`Frontend::bits`] with this node's id of the
/// address. 0 if it carries none, or if the sending node has no frontend address with that number.
#[inline(always)]
pub fn frontend(ctx: &TcContext) -> u64 {
    frontend6_packed(ctx.skb.skb)
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn frontend6_packed(skb: *mut __sk_buff) -> u64 {
    told(&TcContext::new(skb)).map_or(0, Frontend::to_bits)
}

#[inline(always)]
fn told(ctx: &TcContext) -> Option<Frontend> {
    let work = &mut work().ok()?.ipv6;
    // Outer headers are short. The mask shows that to the verifier in this separate function.
    let ethernet: Ethernet = load_at(ctx, (work.outer & 0xff) as usize).ok()?;
    let Frontend { address, port } = Frontend::from_bits(Frontend::bits(&ethernet))?;
    let frontend = FRONTENDS6.get_ptr(&Frontend6Key { node: work.sender, number: address })?;
    // SAFETY: the pointer comes from a successful look-up and is read before anything else runs.
    work.new[0] = unsafe { *frontend };
    let number = addr6_id::outside(&work.new[0], true);
    (number != addr6_id::NONE).then_some(Frontend { address: number, port })
}

/// Whether this node may answer the client of the packet in the work area under a published port.
/// The port must be published on IPv6 addresses, and the client must be neither this host nor in a
/// network of the cluster. The agent has checked the same for the frontend's address.
#[inline(always)]
pub fn may_answer(published: &Published) -> bool {
    let Ok(work) = work() else { return false };
    let client =
        if work.flow.part == PART_QUOTED { &work.ipv6.quoted.dst } else { &work.ipv6.ip.src };
    published.flags & PUBLISHED_IPV6 != 0 && is_elsewhere(client)
}

/// Whether an address is neither one of this host nor in a network of the cluster.
#[inline(always)]
fn is_elsewhere(address: &Ip6) -> bool {
    LOCAL_ADDRS6.get_ptr(address).is_none() && SUBNETS6.get(&Key::new(128, *address)).is_none()
}

/// As [`crate::service::dsr::send`].
///
/// # Errors
/// [`Reason::NoRoute`], also if the id of the frontend's address is no longer known, and
/// [`Reason::TooBig`]; both leave the packet as sent. Those of [`rewrite6::translate`].
#[inline(always)]
pub fn send(ctx: &TcContext) -> Outcome {
    let action = outcome::unpack(send_dsr6_packed(ctx.skb.skb))?;
    Ok(Verdict::done(action as i32, Reason::SentDsr))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn send_dsr6_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(route_and_translate(&TcContext::new(skb)))
}

#[inline(always)]
fn route_and_translate(ctx: &TcContext) -> Result<u32, Reason> {
    let work = work()?;
    let frontend = addr6_id::address(work.entry.vni, work.entry.saddr).ok_or(Reason::NoRoute)?;
    work.ipv6.new = [*frontend, work.ipv6.ip.dst];
    let routed = route::route_egress6(ctx)?;
    rewrite6::translate(ctx, usize::from(work.flow.transport))?;
    Ok(routed.action() as u32)
}
