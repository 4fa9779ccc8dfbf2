//! Sockets of the host itself: a connection to a published port on localhost or on an address of
//! the host is sent into the host link, where `from_container` balances it like any other.

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use overlay_common::{
    Be16, Be32,
    maps::{SockOrigin, SockOriginKey},
    wire::{PROTO_TCP, PROTO_UDP},
};

use crate::{
    maps::{CONFIG, LOCAL_ADDRS, SOCK_ORIGIN, lookup},
    published,
};

/// Return value of a cgroup program: the call goes on.
pub const ALLOW: i32 = 1;

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the program's own.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

/// Rewrites the destination of connect() and sendmsg(), if it is a published port of this host.
#[inline(always)]
pub fn to_published(ctx: &SockAddrContext) {
    let Some(config) = CONFIG.get(0) else { return };
    // SAFETY: the context is valid for the whole run of the program.
    let address: &mut bpf_sock_addr = unsafe { &mut *ctx.sock_addr };
    let proto = address.protocol as u8;
    if proto != PROTO_TCP && proto != PROTO_UDP {
        return;
    }
    // Several hosts may share a cgroup tree: act for sockets of our own namespace only.
    // SAFETY: as above.
    if unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) } != config.netns_cookie {
        return;
    }
    let asked = SockOrigin {
        addr: Be32::from_raw(address.user_ip4),
        port: Be16::from_raw(address.user_port as u16),
        pad: 0,
    };
    if published::find(proto, asked.port).is_none() {
        return;
    }
    let loopback = asked.addr.octets()[0] == 127;
    if !loopback && lookup(&LOCAL_ADDRS, &asked.addr).is_none() {
        return;
    }
    let key = SockOriginKey {
        cookie: cookie(ctx),
        addr: config.ingress_gateway,
        port: asked.port,
        pad: 0,
    };
    if SOCK_ORIGIN.insert(&key, &asked, u64::from(BPF_ANY)).is_ok() {
        address.user_ip4 = config.ingress_gateway.raw();
    }
}

/// Rewrites the source of recvmsg() and the answer of getpeername() to what the application asked.
#[inline(always)]
pub fn to_asked(ctx: &SockAddrContext) {
    // SAFETY: as above.
    let address: &mut bpf_sock_addr = unsafe { &mut *ctx.sock_addr };
    let key = SockOriginKey {
        cookie: cookie(ctx),
        addr: Be32::from_raw(address.user_ip4),
        port: Be16::from_raw(address.user_port as u16),
        pad: 0,
    };
    if let Some(asked) = SOCK_ORIGIN.get_ptr(&key) {
        // SAFETY: the pointer comes from a successful look-up.
        let asked = unsafe { *asked };
        address.user_ip4 = asked.addr.raw();
        address.user_port = u32::from(asked.port.raw());
    }
}
