//! Sockets of the host and of containers, and the frontends that they name. A connection of the
//! host to a published port on localhost or on an address of the host goes into the host link.
//! There `from_container` balances it like any other flow.
//!
//! Socket programs run in the context of the process and can be interrupted by packet programs. So
//! they must not use the per-CPU areas of packet programs.

pub mod netns;

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use overlay_common::{
    Be16, Be32, Ip6,
    maps::{Config, SockFlow},
    wire::{PROTO_TCP, PROTO_UDP},
};

use crate::{
    clock::now,
    maps::{CONFIG, LOCAL_ADDRS, LOCAL_ADDRS6, SOCK_FLOWS, lookup},
    service::published,
};

/// A call on a socket. The address is IPv4.
#[derive(Clone, Copy)]
pub struct Call {
    /// The socket's cookie (`bpf_get_socket_cookie`).
    pub socket: u64,
    /// The cookie of the network namespace (`bpf_get_netns_cookie`).
    pub netns: u64,
    /// IP protocol number.
    pub proto: u8,
    /// The address in the call.
    pub addr: Be32,
    /// The port in the call.
    pub port: Be16,
}

impl Call {
    /// The call of a TCP or UDP socket, with an address that the caller gives.
    #[inline(always)]
    pub fn of(ctx: &SockAddrContext, addr: Be32) -> Option<Self> {
        // SAFETY: the context is valid for the whole run of the program.
        let address: &bpf_sock_addr = unsafe { &*ctx.sock_addr };
        let proto = address.protocol as u8;
        if proto != PROTO_TCP && proto != PROTO_UDP {
            return None;
        }
        let port = Be16::from_raw(address.user_port as u16);
        // SAFETY: as above.
        let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
        Some(Self { socket: cookie(ctx), netns, proto, addr, port })
    }

    /// The entry of `sock_flows` for a socket that named `frontend` and is connected to `addr`.
    #[inline(always)]
    pub fn flow(&self, frontend: Ip6, addr: Be32) -> SockFlow {
        SockFlow {
            asked: frontend,
            ip: addr,
            port: self.port,
            proto: self.proto,
            netns: self.netns,
            since: now(),
            ..SockFlow::default()
        }
    }
}

#[inline(always)]
pub fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the program's own.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

/// The IPv4 address of a call on an IPv4 socket.
#[inline(always)]
pub fn address4(ctx: &SockAddrContext) -> Be32 {
    // SAFETY: the context is valid for the whole run of the program.
    Be32::from_raw(unsafe { (*ctx.sock_addr).user_ip4 })
}

/// The address to connect to in place of the IPv4 address that a socket names; `None` to leave the
/// call alone.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, frontend: Be32) -> Option<Be32> {
    let config = CONFIG.get(0)?;
    let call = Call::of(ctx, frontend)?;
    // Several hosts may share a cgroup tree: act for sockets of our own namespaces only.
    if call.netns != config.netns_cookie {
        return netns::connect(ctx, &call);
    }
    forget(call.socket);
    if !is_published(&call) {
        return None;
    }
    remember(&call, Ip6::mapped(frontend), config)
}

/// As [`connect`], for an IPv6 address: of a VIP, or of the host if the socket accepts a mapped
/// address.
#[inline(always)]
pub fn connect6(
    ctx: &SockAddrContext,
    frontend: Ip6,
    takes_ipv4: impl FnOnce() -> bool,
) -> Option<Ip6> {
    let config = CONFIG.get(0)?;
    let call = Call::of(ctx, Be32::ZERO)?;
    if call.netns != config.netns_cookie {
        return netns::connect6(ctx, &call, frontend);
    }
    forget(call.socket);
    if !takes_ipv4() {
        return None;
    }
    let is_here = || frontend == Ip6::LOOPBACK || lookup(&LOCAL_ADDRS6, &frontend).is_some();
    if published::find(call.proto, call.port).is_none() || !is_here() {
        return None;
    }
    remember(&call, frontend, config).map(Ip6::mapped)
}

/// Whether the call is for a published port on an address of this host.
#[inline(always)]
pub fn is_published(call: &Call) -> bool {
    let is_here = || call.addr.octets()[0] == 127 || lookup(&LOCAL_ADDRS, &call.addr).is_some();
    published::find(call.proto, call.port).is_some() && is_here()
}

/// Records the frontend of a socket of the host that is connected to the host link's gateway.
/// Returns the gateway.
#[inline(always)]
fn remember(call: &Call, frontend: Ip6, config: &Config) -> Option<Be32> {
    let gateway = config.ingress_gateway;
    let flow = call.flow(frontend, gateway);
    SOCK_FLOWS.insert(&call.socket, &flow, u64::from(BPF_ANY)).ok().map(|()| gateway)
}

/// The frontend of a socket that is connected to this address.
#[inline(always)]
pub fn frontend(ctx: &SockAddrContext, addr: Be32) -> Option<Ip6> {
    // SAFETY: the context is valid for the whole run of the program.
    let port = Be16::from_raw(unsafe { (*ctx.sock_addr).user_port } as u16);
    let flow = lookup(&SOCK_FLOWS, &cookie(ctx))?;
    (flow.ip == addr && flow.port == port).then_some(flow.asked)
}

/// The frontend of a socket that is connected to a backend's IPv6 address.
#[inline(always)]
pub fn frontend6(ctx: &SockAddrContext) -> Option<Ip6> {
    // The socket has one connection, and its entry stays even if the backend is gone.
    let flow = lookup(&SOCK_FLOWS, &cookie(ctx))?;
    (flow.backend != 0 && flow.asked.unmapped().is_none()).then_some(flow.asked)
}

/// Removes the socket's entry, because the socket is closed or connects again.
#[inline(always)]
pub fn forget(socket: u64) {
    let Some(flow) = lookup(&SOCK_FLOWS, &socket) else { return };
    if SOCK_FLOWS.remove(&socket).is_ok() && flow.backend != 0 {
        netns::ended(flow.backend);
    }
}
