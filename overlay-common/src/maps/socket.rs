//! Sockets of the host and of containers.

use crate::{Be16, Be32, Ip6};

/// Key of map `sock_origin`: a socket of the host and where its datagrams really come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SockOriginKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    /// Address the socket was sent to instead.
    pub addr: Be32,
    /// Port the socket was sent to.
    pub port: Be16,
    /// Padding, zero.
    pub pad: u16,
}

/// Map `sock_origin`, LRU hash: what an unconnected socket of the host asked for, so that recvmsg
/// answers with it. Written by `sendmsg4`, read by `recvmsg4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SockOrigin {
    /// Address the application asked for.
    pub addr: Be32,
    /// Port the application asked for.
    pub port: Be16,
    /// Padding, zero.
    pub pad: u16,
}

/// Map `netns`, hash by network namespace cookie (`u64`, `bpf_get_netns_cookie`): the networks that a
/// namespace of containers has endpoints on. Written by the agent, read by `connect4` and `connect6`. Where
/// it has no entry, sockets connect to what they ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Netns {
    /// The networks; behind the last one zeroes.
    pub networks: [NetnsNetwork; NETNS_NETWORKS],
}

/// How many networks of a namespace [`Netns`] holds. Connections on further ones are balanced by packets.
pub const NETNS_NETWORKS: usize = 8;

/// A network that a namespace has an endpoint on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NetnsNetwork {
    /// The network; 0 for none.
    pub vni: u32,
    /// Its subnet's address.
    pub subnet: Be32,
    /// Its subnet's mask.
    pub mask: Be32,
    /// The address that the namespace has on it.
    pub ip: Be32,
}

impl NetnsNetwork {
    /// Whether an address is of the network's subnet.
    #[inline(always)]
    pub const fn contains(&self, ip: Be32) -> bool {
        self.vni != 0 && ip.raw() & self.mask.raw() == self.subnet.raw()
    }
}

/// Map `sock_flows`, hash by socket cookie (`u64`, `bpf_get_socket_cookie`): connected sockets whose peer is
/// not the one that they asked for: a backend in place of a VIP, or the host link's gateway in place of an
/// address of the host. Written by `connect4` and `connect6`, read by the programs of getpeername and recvmsg,
/// removed by `sock_release` and, where the kernel releases a socket without a word, by the agent, which also counts
/// them as flows of their backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SockFlow {
    /// The address that the application asked for, an IPv4 one mapped (RFC 4291, section 2.5.5.2).
    pub asked: Ip6,
    /// Address that it is connected to, on the port that it asked for; of a backend over IPv6 its IPv4 address.
    pub ip: Be32,
    /// The port.
    pub port: Be16,
    /// Padding, zero.
    pub pad: u16,
    /// The network of the backend; 0 for a socket of the host.
    pub vni: u32,
    /// The service's number; 0 for a socket of the host.
    pub service: u32,
    /// The backend's number; 0 for a socket of the host.
    pub backend: u32,
    /// IP protocol number: TCP, or UDP of a socket of the host.
    pub proto: u8,
    /// Padding, zero.
    pub reserved: [u8; 3],
    /// Cookie of the socket's network namespace.
    pub netns: u64,
    /// `bpf_ktime_get_coarse_ns` (CLOCK_MONOTONIC, ns) of when it was connected.
    pub since: u64,
}

/// Most entries of `sock_flows`. Further connections are balanced by packets.
pub const SOCK_FLOWS: usize = 1 << 18;

/// Map `stale_backends`, hash by [`super::EndpointKey`] of `u32`, bits of `STALE_*`: addresses of backends that are gone
/// while sockets are connected to them. Written by the agent, read by `from_container` when nobody has an
/// address; for IPv6 the one in the MAC that the packet is sent to ([`crate::Mac::of_ip`]).
pub type StaleBackend = u32;

/// TCP to the address is answered with a reset.
pub const STALE_RESETS: StaleBackend = 1 << 0;
