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
        /// What the system said.
        source: io::Error,
    },
    /// It is a file of another kind, or the agent may not enter it.
    #[error(
        "cannot enter the network namespace {path}: {reason}; it must be a file such as \
         /run/netns/NAME or /proc/PID/ns/net, and the agent needs CAP_SYS_ADMIN"
    )]
    Enter {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        reason: Errno,
    },
    /// `lo` is down there.
    #[error(
        "the DNS server cannot listen on {ADDRESS} in the network namespace {path}: its loopback \
         interface is down or has lost 127.0.0.1/8; `nsenter --net={path} ip link set lo up`",
        path = .path.display()
    )]
    LoopbackDown {
        /// The namespace.
        path: PathBuf,
    },
    /// Something else listens there.
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
    /// The kernel refused something else.
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
        /// What the system said.
        source: io::Error,
    },
}

/// Room for queries while the daemon is restarted: some thousands. The kernel counts the memory of
/// a whole buffer for each, which is used only while they wait.
const QUEUE_BYTES: usize = 2 << 20;

/// A network namespace, opened: it cannot vanish or be mistaken for another one.
#[derive(Debug)]
pub(super) struct Namespace {
    path: PathBuf,
    file: File,
    /// What identifies it.
    pub id: NamespaceId,
}

/// Device and inode number in nsfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamespaceId(pub u64, pub u64);

/// Where a server listens.
#[derive(Debug)]
pub(super) struct Sockets {
    pub udp: tokio::net::UdpSocket,
    pub tcp: tokio::net::TcpListener,
}

impl Sockets {
    /// Takes over sockets that were bound by an earlier daemon, with all that waits in them.
    /// `None` when they are not one of each on our address.
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
        // Bound without blocking, which is a property of the socket and not of its copies.
        let udp = tokio::net::UdpSocket::from_std(udp)?;
        Ok(Some(Self { udp, tcp: tokio::net::TcpListener::from_std(tcp)? }))
    }

    /// What a keeper must have to keep them open.
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

    /// Binds both sockets. Waits for a thread that lives for this alone: `setns` moves a thread for
    /// good, and none of the runtime's may be left in a container.
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

    /// Moves this thread into the namespace.
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
                // Without a route to 127.0.0.0/8 the address is nobody's.
                Errno::EADDRNOTAVAIL => DnsError::LoopbackDown { path },
                Errno::EADDRINUSE => DnsError::Taken { path, transport },
                errno => DnsError::Listen { path, transport, source: errno.into() },
            }
        };
        let address = SocketAddr::from((ADDRESS, PORT));
        Ok((bind_udp(address).map_err(error("UDP"))?, bind_tcp(address).map_err(error("TCP"))?))
    }
}

/// Asked for apart from binding, because in a namespace that never had a route the kernel lets
/// sockets bind any address.
fn loopback_is_up() -> bool {
    getifaddrs().is_ok_and(|mut interfaces| {
        let up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_LOOPBACK;
        interfaces.any(|i| i.flags.contains(up))
    })
}

fn bind_udp(address: SocketAddr) -> nix::Result<std::net::UdpSocket> {
    let socket = open(SockType::Datagram, address)?;
    // Beyond what is usual by the rights of the daemon; without them the usual size does.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES);
    Ok(socket.into())
}

fn bind_tcp(address: SocketAddr) -> nix::Result<std::net::TcpListener> {
    let listener = open(SockType::Stream, address)?;
    listen(&listener, Backlog::new(128)?)?;
    Ok(listener.into())
}

/// A bound socket that shares its port: name servers in containers bind all addresses, and many of
/// them with one of these two options set. Ours is the more specific one and gets its queries.
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
