//! Sockets of the host and of containers.

use crate::{Be16, Be32, Ip6};

/// Key of map `sock_origin`: a socket of the host and the backend address of its datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SockOriginKey {
    /// The socket's cookie (`bpf_get_socket_cookie`).
    pub cookie: u64,
    /// The destination address after translation.
    pub addr: Be32,
    /// The destination port after translation.
    pub port: Be16,
    /// Padding, zero.
    pub pad: u16,
}

/// Map `sock_origin`, LRU hash: the original destination of datagrams of unconnected sockets of the
/// host, which recvmsg reports as source of the answers. Written by `sendmsg4`, read by `recvmsg4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SockOrigin {
    /// The address that the application sent to.
    pub addr: Be32,
    /// The port that the application sent to.
    pub port: Be16,
    /// Padding, zero.
    pub pad: u16,
}

/// Map `netns`, hash by network namespace cookie (`u64`, `bpf_get_netns_cookie`): the networks on
/// which a namespace of containers has endpoints. Written by the agent; read by `connect4` and
/// `connect6`. Sockets of a namespace without an entry connect to the address that they name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Netns {
    /// The networks, followed by zeroes.
    pub networks: [NetnsNetwork; NETNS_NETWORKS],
}

/// Most networks of a namespace in [`Netns`]. On further ones the packet path balances connections.
pub const NETNS_NETWORKS: usize = 8;

/// A network on which a namespace has an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NetnsNetwork {
    /// The network's VNI; 0 for an unused entry.
    pub vni: u32,
    /// Its subnet's address.
    pub subnet: Be32,
    /// Its subnet's mask.
    pub mask: Be32,
    /// The namespace's address on the network.
    pub ip: Be32,
}

impl NetnsNetwork {
    /// Whether an address is in the network's subnet.
    #[inline(always)]
    pub const fn contains(&self, ip: Be32) -> bool {
        self.vni != 0 && ip.raw() & self.mask.raw() == self.subnet.raw()
    }
}

/// Map `sock_flows`, hash by socket cookie (`u64`, `bpf_get_socket_cookie`): connected sockets
/// whose peer differs from the one that the application named. The peer is a backend in place of a
/// VIP, or the host link's gateway in place of an address of the host. Written by `connect4` and
/// `connect6`; read by the programs of getpeername and recvmsg; removed by `sock_release`. The
/// kernel releases some sockets without calling that program: the agent removes their entries. It
/// also counts entries as flows of their backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SockFlow {
    /// The address that the application named; an IPv4 address is mapped (RFC 4291, section
    /// 2.5.5.2).
    pub asked: Ip6,
    /// The address of the peer, on the same port; for a backend over IPv6 its IPv4 address.
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
    /// IP protocol number: TCP, or UDP for a socket of the host.
    pub proto: u8,
    /// Padding, zero.
    pub reserved: [u8; 3],
    /// Cookie of the socket's network namespace.
    pub netns: u64,
    /// Time of the connect in ns of `bpf_ktime_get_coarse_ns` (CLOCK_MONOTONIC).
    pub since: u64,
}

/// Most entries of `sock_flows`. The packet path balances connections beyond them.
pub const SOCK_FLOWS: usize = 1 << 18;

/// Map `stale_backends`, hash by [`super::EndpointKey`] of `u32`, bits of `STALE_*`: addresses of
/// removed backends that sockets are still connected to. Written by the agent; read by
/// `from_container` when no endpoint has the destination address. For IPv6 the key is the IPv4
/// address in the destination MAC ([`crate::Mac::of_ip`]).
pub type StaleBackend = u32;

/// A TCP packet to the address is rejected with a reset.
pub const STALE_RESETS: StaleBackend = 1 << 0;
