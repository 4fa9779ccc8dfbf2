//! The kernel side of overlay. This file holds the entry points only. Each one passes the packet to
//! its module and turns the outcome into the kernel's verdict in one exhaustive match.
//!
//! The crate also compiles for the host, where the parts without kernel calls are tested.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(missing_docs, reason = "the entry points' macros make undocumented functions")]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "on the host only the parts without kernel calls are exercised")
)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a map key passed by value is copied to the stack once more"
)]

mod answer;
mod clock;
mod family;
mod forward;
mod maps;
mod nat;
mod observe;
mod outcome;
mod packet;
mod program;
mod service;
mod tunnel;
mod walk;

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action},
    macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, SockContext, TcContext, XdpContext},
};
use overlay_common::{
    Reason,
    maps::{DECAP_L4_UDP, Link},
    observe::Traffic,
};

use crate::{
    observe::{Party, event},
    outcome::{Outcome, Verdict},
    program::{
        container, container_flow6, host_flow6, outside, socket, tunnel_flow6, underlay,
        vxlan as vxlan_device, xdp as xdp_program,
    },
    tunnel::vxlan,
};

// The macros wrap each of these functions in one that the kernel calls. The compiler would keep a
// long one as a separate function. On older kernels (6.1) every function in a chain of calls takes
// at least 32 bytes of the shared stack.

/// TC ingress of every endpoint's host-side interface: packets that a container sends.
#[classifier]
#[inline(always)]
pub fn from_container(ctx: TcContext) -> i32 {
    let link = match container::sender(&ctx) {
        Ok(link) => link,
        Err(reason) => return conclude_tc(&ctx, &Party::sender(&Link::default()), 0, Err(reason)),
    };
    let sender = Party::sender(&link);
    let kept = event::keep(&ctx, &sender);
    conclude_tc(&ctx, &sender, kept, container::receive(&ctx, link, kept))
}

/// TC ingress of the underlay interface: tunnel packets and published ports.
#[classifier]
#[inline(always)]
pub fn from_underlay(ctx: TcContext) -> i32 {
    let mut receiver = Party::receiver();
    let outcome = underlay::receive(&ctx, &mut receiver);
    conclude_tc(&ctx, &receiver, 0, outcome)
}

/// As [`from_underlay`], for an IPv6 underlay.
#[classifier]
#[inline(always)]
pub fn from_underlay6(ctx: TcContext) -> i32 {
    let mut receiver = Party::receiver();
    let outcome = underlay::receive6(&ctx, &mut receiver);
    conclude_tc(&ctx, &receiver, 0, outcome)
}

/// TC ingress of the kernel's vxlan device: packets that it has decapsulated.
#[classifier]
#[inline(always)]
pub fn from_vxlan(ctx: TcContext) -> i32 {
    let mut receiver = Party::receiver();
    let outcome = vxlan_device::receive(&ctx, &mut receiver);
    conclude_tc(&ctx, &receiver, 0, outcome)
}

/// Tail-called by `from_container` for IPv6 packets that may belong to a translated flow.
#[classifier]
#[inline(always)]
pub fn container_flow6(ctx: TcContext) -> i32 {
    let Ok((link, kept)) = container_flow6::sender() else {
        return conclude_tc(&ctx, &Party::receiver(), 0, Err(Reason::NotConfigured));
    };
    conclude_tc(&ctx, &Party::sender(&link), kept, container_flow6::receive(&ctx))
}

/// Tail-called by the programs of the host's interfaces for IPv6 packets other than tunnel packets.
#[classifier]
#[inline(always)]
pub fn host_flow6(ctx: TcContext) -> i32 {
    conclude_tc(&ctx, &Party::receiver(), 0, host_flow6::receive(&ctx))
}

/// Tail-called by the programs that receive tunnel packets, if the inner IPv6 packet may belong to
/// a translated flow.
#[classifier]
#[inline(always)]
pub fn tunnel_flow6(ctx: TcContext) -> i32 {
    let mut receiver = Party::receiver();
    let outcome = tunnel_flow6::receive(&ctx, &mut receiver);
    conclude_tc(&ctx, &receiver, 0, outcome)
}

/// Run once by the loader on a tunnel packet, to find out whether this kernel knows `DECAP_L4_UDP`;
/// not attached. Returns 1 if it does.
#[classifier]
#[inline(always)]
pub fn probe_decap(ctx: TcContext) -> i32 {
    i32::from(vxlan::remove(&ctx, DECAP_L4_UDP).is_ok())
}

/// TC ingress of the other interfaces that lead outside: published ports, and replies to
/// containers.
#[classifier]
#[inline(always)]
pub fn from_outside(ctx: TcContext) -> i32 {
    conclude_tc(&ctx, &Party::receiver(), 0, outside::receive(&ctx))
}

/// XDP on the underlay interface: peer check, decapsulation of all but TCP, published ports with a
/// remote backend, and their replies. Other packets pass to `from_underlay`.
#[xdp]
#[inline(always)]
pub fn xdp_underlay(ctx: XdpContext) -> u32 {
    let length = (ctx.data_end() - ctx.data()) as u32;
    let mut receiver = Party::receiver();
    match xdp_program::receive(&ctx, &mut receiver) {
        Ok(Verdict::PASS) => xdp_action::XDP_PASS,
        Ok(verdict) => {
            observe::forwarded(&receiver, verdict, length);
            if verdict.counter() != 0 {
                event::report_delivery_in_xdp(&ctx, verdict.counter(), verdict.reason());
            }
            verdict.action() as u32
        }
        Err(reason) => {
            observe::dropped(&receiver, reason, length);
            event::report_drop_in_xdp(&ctx, &receiver, reason);
            xdp_action::XDP_DROP
        }
    }
}

/// A socket of the host or of a container connects.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect4(&ctx);
    socket::ALLOW
}

/// As [`connect4`], for an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect6(&ctx);
    socket::ALLOW
}

/// An unconnected UDP socket of the host sends.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::sendmsg4(&ctx);
    socket::ALLOW
}

/// A UDP socket of the host learns the source of a datagram.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::recvmsg4(&ctx);
    socket::ALLOW
}

/// As [`recvmsg4`], for an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::show_frontend(&ctx);
    socket::ALLOW
}

/// A socket of the host or of a container asks for its peer.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::getpeername4(&ctx);
    socket::ALLOW
}

/// As [`getpeername4`], for an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::show_frontend(&ctx);
    socket::ALLOW
}

/// A socket is closed.
#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    socket::release(&ctx);
    socket::ALLOW
}

/// Counts and reports the outcome of a packet. `kept` is the result of [`event::keep`] from before
/// the packet was changed.
#[inline(always)]
fn conclude_tc(ctx: &TcContext, party: &Party, kept: i64, outcome: Outcome) -> i32 {
    if kept != 0 {
        let reason = match outcome {
            Ok(Verdict::PASS) => return TC_ACT_OK,
            Ok(verdict) => verdict.reason() as u32,
            Err(reason) => reason as u32,
        };
        event::report_kept(party.vni, party.counter, reason);
    }
    match outcome {
        Ok(Verdict::PASS) => TC_ACT_OK,
        Ok(verdict) => {
            observe::forwarded(party, verdict, ctx.len());
            if verdict.counter() != 0 {
                event::report_delivery(ctx, verdict.counter(), verdict.reason());
            } else if party.traffic == Traffic::Sent && is_answer(verdict.reason()) {
                // An answer goes back to the container that sent the packet.
                event::report_delivery(ctx, party.counter, verdict.reason());
            }
            verdict.action()
        }
        Err(reason) => {
            observe::dropped(party, reason, ctx.len());
            event::report_drop(ctx, party, reason);
            observe::log_drop(ctx, reason);
            TC_ACT_SHOT
        }
    }
}

/// Whether the packet was turned into an answer to its sender.
#[inline(always)]
fn is_answer(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ArpAnswered
            | Reason::NdAnswered
            | Reason::EchoAnswered
            | Reason::TooBigAnswered
            | Reason::TtlExceededAnswered
            | Reason::NoBackendAnswered
            | Reason::BackendGoneAnswered
    )
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The programs use helpers that the kernel offers to GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The host build exists for its tests and does nothing.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
