//! Sockets inside a container's network namespace.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
        sockopt,
    },
};

use rustix::net::{SocketType, sockopt::socket_type};
use serde::{Deserialize, Serialize};

use super::{ADDRESS, PORT};
use crate::model::Id;

/// Why a container has no DNS server.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The namespace cannot be opened.
    #[error("cannot open the network namespace {path}: {source}; has the container ended?")]
    NoNamespace {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The path is another kind of file, or the agent may not enter the namespace.
    #[error(
        "cannot enter the network namespace {path}: {reason}; it must be a file such as \
         /run/netns/NAME or /proc/PID/ns/net, and the agent needs CAP_SYS_ADMIN"
    )]
    Enter {
        /// Its path.
        path: PathBuf,
        /// The kernel's error.
        reason: Errno,
    },
    /// `lo` is down in the namespace.
    #[error(
        "the DNS server cannot listen on {ADDRESS} in the network namespace {path}: its loopback \
         interface is down or has lost 127.0.0.1/8; `nsenter --net={path} ip link set lo up`",
        path = .path.display()
    )]
    LoopbackDown {
        /// The namespace.
        path: PathBuf,
    },
    /// Another process already listens there.
    #[error(
        "the DNS server cannot listen on {ADDRESS}:{PORT} ({transport}) in the network namespace \
         {path}: something else listens on port {PORT} there; `nsenter --net={path} ss -lnp` \
         shows what. Bind that to the container's own address instead of to all",
        path = .path.display()
    )]
    Taken {
        /// The namespace.
        path: PathBuf,
        /// UDP or TCP.
        transport: &'static str,
    },
    /// Another container has the same namespace.
    #[error(
        "container {other} already has a DNS server in the network namespace {path}; detach it \
         first"
    )]
    Shared {
        /// The namespace.
        path: PathBuf,
        /// The other container.
        other: Id,
    },
    /// Any other error of the kernel.
    #[error(
        "the DNS server cannot listen on {ADDRESS}:{PORT} ({transport}) in the network namespace \
         {path}: {source}",
        path = .path.display()
    )]
    Listen {
        /// The namespace.
        path: PathBuf,
        /// UDP or TCP.
        transport: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Buffer size for the queries during a restart of the daemon. Some thousands fit. The kernel
/// counts the memory of a whole buffer for each query, but uses it only while queries wait.
const QUEUE_BYTES: usize = 2 << 20;

/// An open network namespace. It cannot vanish or be confused with another one.
#[derive(Debug)]
pub(super) struct Namespace {
    path: PathBuf,
    file: File,
    /// Identifies the namespace.
    pub id: NamespaceId,
}

/// Device and inode number in nsfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamespaceId(pub u64, pub u64);

/// Sockets of a server.
#[derive(Debug)]
pub(super) struct Sockets {
    pub udp: tokio::net::UdpSocket,
    pub tcp: tokio::net::TcpListener,
}

impl Sockets {
    /// Takes over sockets that an earlier daemon has bound, with all waiting queries. Returns
    /// `None` unless there is one of each kind, bound to our address.
    pub fn adopt(kept: Vec<OwnedFd>) -> io::Result<Option<Self>> {
        let (mut udp, mut tcp) = (None, None);
        for socket in kept {
            match socket_type(&socket)? {
                SocketType::DGRAM => udp = Some(std::net::UdpSocket::from(socket)),
                SocketType::STREAM => tcp = Some(std::net::TcpListener::from(socket)),
                _ => {}
            }
        }
        let (Some(udp), Some(tcp)) = (udp, tcp) else { return Ok(None) };
        let address = SocketAddr::from((ADDRESS, PORT));
        if udp.local_addr()? != address || tcp.local_addr()? != address {
            return Ok(None);
        }
        // The socket is already non-blocking, because that is a property of the socket that all
        // copies share.
        let udp = tokio::net::UdpSocket::from_std(udp)?;
        Ok(Some(Self { udp, tcp: tokio::net::TcpListener::from_std(tcp)? }))
    }

    /// Returns the descriptors that a keeper needs to keep the sockets open.
    pub fn handles(&self) -> [BorrowedFd<'_>; 2] {
        [self.udp.as_fd(), self.tcp.as_fd()]
    }
}

impl Namespace {
    pub fn open(path: &Path) -> Result<Self, DnsError> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((metadata, file)) => {
                let id = NamespaceId(metadata.dev(), metadata.ino());
                Ok(Self { path: path.to_owned(), file, id })
            }
            Err(source) => Err(DnsError::NoNamespace { path: path.to_owned(), source }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Binds both sockets. Uses a temporary thread and waits for it, because `setns` moves a thread
    /// for good, and no thread of the runtime may stay in a container.
    pub async fn listen(self) -> Result<Sockets, DnsError> {
        let path = self.path.clone();
        let failed = |source| DnsError::Listen { path: path.clone(), transport: "UDP", source };
        let (send, receive) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("dns-listen".to_owned())
            .spawn(move || drop(send.send(self.enter_and_bind())))
            .map_err(failed)?;
        let (udp, tcp) = receive.await.map_err(|e| failed(io::Error::other(e)))??;
        Ok(Sockets {
            udp: tokio::net::UdpSocket::from_std(udp).map_err(failed)?,
            tcp: tokio::net::TcpListener::from_std(tcp).map_err(|source| DnsError::Listen {
                path,
                transport: "TCP",
                source,
            })?,
        })
    }

    /// Moves this thread into the namespace and binds the sockets.
    fn enter_and_bind(self) -> Result<(std::net::UdpSocket, std::net::TcpListener), DnsError> {
        let Self { path, file, .. } = self;
        setns(&file, CloneFlags::CLONE_NEWNET)
            .map_err(|reason| DnsError::Enter { path: path.clone(), reason })?;
        if !loopback_is_up() {
            return Err(DnsError::LoopbackDown { path });
        }
        let error = |transport: &'static str| {
            let path = path.clone();
            move |errno: Errno| match errno {
                // Without a route to 127.0.0.0/8 the address is not local.
                Errno::EADDRNOTAVAIL => DnsError::LoopbackDown { path },
                Errno::EADDRINUSE => DnsError::Taken { path, transport },
                errno => DnsError::Listen { path, transport, source: errno.into() },
            }
        };
        let address = SocketAddr::from((ADDRESS, PORT));
        Ok((bind_udp(address).map_err(error("UDP"))?, bind_tcp(address).map_err(error("TCP"))?))
    }
}

/// Returns true if `lo` is up. Binding does not show this: in a namespace that never had a route,
/// the kernel lets sockets bind any address.
fn loopback_is_up() -> bool {
    getifaddrs().is_ok_and(|mut interfaces| {
        let up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_LOOPBACK;
        interfaces.any(|i| i.flags.contains(up))
    })
}

fn bind_udp(address: SocketAddr) -> nix::Result<std::net::UdpSocket> {
    let socket = open(SockType::Datagram, address)?;
    // The daemon's privileges allow more than the usual size. Without them the usual size is
    // enough.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES);
    Ok(socket.into())
}

fn bind_tcp(address: SocketAddr) -> nix::Result<std::net::TcpListener> {
    let listener = open(SockType::Stream, address)?;
    listen(&listener, Backlog::new(128)?)?;
    Ok(listener.into())
}

/// Opens a bound socket that shares its port. Name servers in containers bind all addresses, and
/// many of them set one of these two options. Our socket is more specific, so it gets its queries.
fn open(kind: SockType, address: SocketAddr) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, kind, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    let SocketAddr::V4(address) = address else { return Err(Errno::EAFNOSUPPORT) };
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::from(address))?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
