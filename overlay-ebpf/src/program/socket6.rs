//! IPv6 sockets. In containers those that ask for a VIP are connected to a backend, as IPv4 ones are. Of the host, to a
//! published port on `::1`, or on another IPv6 address of the host, they are connected as to
//! the same port over IPv4: the kernel takes a mapped address (RFC 4291, section 2.5.5.2) from `connect6` as if the
//! application had asked for it. From a program of sendmsg it does not (udpv6_sendmsg returns ENOTSUPP), so
//! datagrams of unconnected IPv6 sockets are left alone. Applications that ask for a mapped address get what
//! IPv4 sockets get.

use aya_ebpf::{
    helpers::generated::{bpf_skc_to_tcp6_sock, bpf_skc_to_udp6_sock},
    programs::SockAddrContext,
};
use overlay_common::Ip6;

use crate::program::socket;

/// Where `struct sock` says IPV6_V6ONLY, and the bit there: `skc_ipv6only` in `struct sock_common`, in the
/// byte behind `skc_state`, after `skc_reuse:4` and `skc_reuseport:1` (since Linux 3.14, unchanged in 6.18).
const V6ONLY_AT: usize = 19;
const V6ONLY_BIT: u8 = 1 << 5;

#[inline(always)]
fn address(ctx: &SockAddrContext) -> Ip6 {
    // Word by word: the kernel lets programs read no more of it at once.
    // SAFETY: the context is valid for the whole run of the program.
    let word = |i: usize| unsafe { (&raw const (*ctx.sock_addr).user_ip6[i]).read_volatile() };
    Ip6::from_words([word(0), word(1), word(2), word(3)])
}

#[inline(always)]
fn set_address(ctx: &SockAddrContext, ip: Ip6) {
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
    let asked = address(ctx);
    let instead = match asked.unmapped() {
        Some(ip) => socket::connect(ctx, ip).map(Ip6::mapped),
        None => socket::connect_ipv6(ctx, asked, || takes_ipv4(ctx)),
    };
    if let Some(ip) = instead {
        set_address(ctx, ip);
    }
}

/// Whether the socket may be connected to a mapped address. One that says IPV6_V6ONLY would be told that the
/// network is unreachable.
#[inline(always)]
fn takes_ipv4(ctx: &SockAddrContext) -> bool {
    // SAFETY: as above; the helpers return the socket itself if it is of that kind, and the kernel checks
    // that what is read of it is there.
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

/// `getpeername6` and `recvmsg6`: shows what the application asked.
#[inline(always)]
pub fn show_asked(ctx: &SockAddrContext) {
    let asked = match address(ctx).unmapped() {
        Some(ip) => socket::asked(ctx, ip),
        None => socket::asked_ipv6(ctx),
    };
    if let Some(asked) = asked {
        set_address(ctx, asked);
    }
}
