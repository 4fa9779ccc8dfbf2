//! Sockets of the host.

use crate::{Be16, Be32};

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

/// Map `sock_origin`, LRU hash: what the application asked for, so that getpeername and recvmsg
/// answer with it. Written by `connect4` and `sendmsg4`, read by `recvmsg4` and `getpeername4`.
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
