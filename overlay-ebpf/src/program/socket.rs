//! The programs of sockets.
//!
//! If an IPv6 socket of the host connects to a published port on `::1`, or on another IPv6 address
//! of the host, it is connected to the same port over IPv4. The kernel accepts a mapped address
//! (RFC 4291, section 2.5.5.2) from `connect6` as if the application had named it. It does not
//! accept one from a sendmsg program (udpv6_sendmsg returns ENOTSUPP), so datagrams of unconnected
//! IPv6 sockets are not changed. A socket that names a mapped address is handled as an IPv4 socket.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_socket_cookie,
        generated::{bpf_skc_to_tcp6_sock, bpf_skc_to_udp6_sock},
    },
    programs::{SockAddrContext, SockContext},
};
use overlay_common::{
    Be16, Ip6,
    maps::{SockOrigin, SockOriginKey},
};

use crate::{
    maps::{CONFIG, SOCK_ORIGIN},
    service::socket::{self, Call, address4, cookie, is_published},
};

/// Return value of a cgroup program: the call continues.
pub const ALLOW: i32 = 1;

/// `connect4`
#[inline(always)]
pub fn connect4(ctx: &SockAddrContext) {
    if let Some(addr) = socket::connect(ctx, address4(ctx)) {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*ctx.sock_addr).user_ip4 = addr.raw() };
    }
}

/// `sendmsg4`: an unconnected socket sends to a published port of this host.
#[inline(always)]
pub fn sendmsg4(ctx: &SockAddrContext) {
    let Some(config) = CONFIG.get(0) else { return };
    let Some(call) = Call::of(ctx, address4(ctx)) else { return };
    if call.netns != config.netns_cookie || !is_published(&call) {
        return;
    }
    let gateway = config.ingress_gateway;
    let key = SockOriginKey { cookie: call.socket, addr: gateway, port: call.port, pad: 0 };
    let frontend = SockOrigin { addr: call.addr, port: call.port, pad: 0 };
    if SOCK_ORIGIN.replace(&key, &frontend).is_ok() {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*ctx.sock_addr).user_ip4 = gateway.raw() };
    }
}

/// `getpeername4`: returns the frontend.
#[inline(always)]
pub fn getpeername4(ctx: &SockAddrContext) {
    if let Some(frontend) = socket::frontend(ctx, address4(ctx)) {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*ctx.sock_addr).user_ip4 = frontend.words()[3] };
    }
}

/// `recvmsg4`: returns the frontend, for connected and unconnected sockets.
#[inline(always)]
pub fn recvmsg4(ctx: &SockAddrContext) {
    let addr = address4(ctx);
    if let Some(frontend) = socket::frontend(ctx, addr) {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { (*ctx.sock_addr).user_ip4 = frontend.words()[3] };
        return;
    }
    // SAFETY: as above.
    let address: &mut bpf_sock_addr = unsafe { &mut *ctx.sock_addr };
    let port = Be16::from_raw(address.user_port as u16);
    let key = SockOriginKey { cookie: cookie(ctx), addr, port, pad: 0 };
    if let Some(frontend) = SOCK_ORIGIN.get_ptr(&key) {
        // SAFETY: the pointer comes from a successful look-up.
        let frontend = unsafe { *frontend };
        address.user_ip4 = frontend.addr.raw();
        address.user_port = u32::from(frontend.port.raw());
    }
}

/// `sock_release`: the application has closed the socket.
#[inline(always)]
pub fn release(ctx: &SockContext) {
    // SAFETY: the context is the program's own.
    socket::forget(unsafe { bpf_get_socket_cookie(ctx.sock.cast()) });
}

/// Offset of IPV6_V6ONLY in `struct sock`, and its bit: `skc_ipv6only` in `struct sock_common`, in
/// the byte behind `skc_state`, after `skc_reuse:4` and `skc_reuseport:1` (since Linux 3.14,
/// unchanged in 6.18).
const V6ONLY_AT: usize = 19;
const V6ONLY_BIT: u8 = 1 << 5;

#[inline(always)]
fn address6(ctx: &SockAddrContext) -> Ip6 {
    // Word by word, because the kernel lets programs read no more at once.
    // SAFETY: the context is valid for the whole run of the program.
    let word = |i: usize| unsafe { (&raw const (*ctx.sock_addr).user_ip6[i]).read_volatile() };
    Ip6::from_words([word(0), word(1), word(2), word(3)])
}

#[inline(always)]
fn set_address6(ctx: &SockAddrContext, ip: Ip6) {
    let [a, b, c, d] = ip.words();
    // SAFETY: as above.
    let set =
        |i: usize, w: u32| unsafe { (&raw mut (*ctx.sock_addr).user_ip6[i]).write_volatile(w) };
    set(0, a);
    set(1, b);
    set(2, c);
    set(3, d);
}

/// `connect6`
#[inline(always)]
pub fn connect6(ctx: &SockAddrContext) {
    let frontend = address6(ctx);
    let instead = match frontend.unmapped() {
        Some(ip) => socket::connect(ctx, ip).map(Ip6::mapped),
        None => socket::connect6(ctx, frontend, || takes_ipv4(ctx)),
    };
    if let Some(ip) = instead {
        set_address6(ctx, ip);
    }
}

/// Whether the socket may be connected to a mapped address. For one with IPV6_V6ONLY, connect would
/// fail with "network unreachable".
#[inline(always)]
fn takes_ipv4(ctx: &SockAddrContext) -> bool {
    // SAFETY: as above. The helpers return the socket itself if it has the right type, and the
    // kernel checks the bounds of reads from it.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() {
            return false;
        }
        let tcp = bpf_skc_to_tcp6_sock(sk.cast());
        if !tcp.is_null() {
            return *tcp.cast::<u8>().add(V6ONLY_AT) & V6ONLY_BIT == 0;
        }
        let udp = bpf_skc_to_udp6_sock(sk.cast());
        !udp.is_null() && *udp.cast::<u8>().add(V6ONLY_AT) & V6ONLY_BIT == 0
    }
}

/// `getpeername6` and `recvmsg6`: return the frontend.
#[inline(always)]
pub fn show_frontend(ctx: &SockAddrContext) {
    let frontend = match address6(ctx).unmapped() {
        Some(ip) => socket::frontend(ctx, ip),
        None => socket::frontend6(ctx),
    };
    if let Some(frontend) = frontend {
        set_address6(ctx, frontend);
    }
}
