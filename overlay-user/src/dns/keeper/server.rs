//! The keeper's loop: one thread, one request at a time.

use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, fchmod},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
        bind, listen, socket_with, sockopt::socket_peercred,
    },
    process::geteuid,
};

use super::{
    NamespaceId,
    protocol::{MAX_NAME, MAX_PACKET, MAX_SOCKETS, ProtocolError, Reply, Request, receive, send},
};

/// Most open connections. A daemon has one for the duration of a call.
const MAX_CONNECTIONS: usize = 32;

/// Descriptors that are not available for kept sockets: connections, the listener, stdio, and the
/// sockets of a message before it is rejected.
const RESERVED: usize = MAX_CONNECTIONS + 2 * MAX_SOCKETS + 16;

/// Interval at which the keeper checks that its socket file still exists.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Pause after an error that may last, such as a lack of free files.
const PAUSE: Duration = Duration::from_millis(100);

/// A keeper that listens.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Device and inode of the socket's file. Another keeper may take the path over.
    file: (u64, u64),
    listener: OwnedFd,
    connections: Vec<OwnedFd>,
    kept: BTreeMap<String, Kept>,
    /// Most sockets that it keeps.
    capacity: usize,
}

#[derive(Debug)]
struct Kept {
    namespace: NamespaceId,
    sockets: Vec<OwnedFd>,
}

/// What the loop does after a request.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Another,
    Close,
    Quit,
}

impl Server {
    /// Listens at `path`, where it replaces the socket of an ended keeper. May use this many
    /// descriptors.
    ///
    /// # Errors
    /// The system's error.
    pub fn listen(path: &Path, descriptors: usize) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // The file gets the mode of the socket itself (unix_bind in the kernel), so other users can
        // never connect to it.
        fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
        bind(&listener, &SocketAddrUnix::new(path)?)?;
        listen(&listener, 64)?;
        let file = identity(path)?;
        let capacity = descriptors.saturating_sub(RESERVED);
        let (connections, kept) = (Vec::new(), BTreeMap::new());
        Ok(Self { path: path.to_owned(), file, listener, connections, kept, capacity })
    }

    /// Answers requests until it is told to quit, or until its socket file is gone and no daemon
    /// could reach it any more. The process that sent the quit request sees the end when this is
    /// dropped.
    pub fn run(&mut self) {
        loop {
            match self.wait() {
                Ok(0) if !self.is_reachable() => return,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => std::thread::sleep(PAUSE),
            }
            if self.serve() == Next::Quit {
                if self.is_reachable() {
                    // If the file stays, the next daemon takes it for that of a killed keeper and
                    // replaces it.
                    let _ = std::fs::remove_file(&self.path);
                }
                return;
            }
            self.accept();
        }
    }

    /// Waits for an event or the timeout. Returns 0 on a timeout.
    fn wait(&self) -> rustix::io::Result<usize> {
        let all = std::iter::once(&self.listener).chain(&self.connections);
        let mut waited: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        poll(&mut waited, Some(&LOOK_EVERY))
    }

    fn is_reachable(&self) -> bool {
        identity(&self.path).is_ok_and(|file| file == self.file)
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let connection = match accept_with(&self.listener, flags) {
                Ok(connection) => connection,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(_) => return std::thread::sleep(PAUSE),
            };
            let peer = socket_peercred(&connection);
            if !peer.is_ok_and(|peer| may_ask(peer.uid.as_raw(), geteuid().as_raw())) {
                continue;
            }
            if self.connections.len() == MAX_CONNECTIONS {
                // An idle open connection must not lock out a daemon.
                self.connections.remove(0);
            }
            self.connections.push(connection);
        }
    }

    /// Answers one request of every connection that has one.
    fn serve(&mut self) -> Next {
        for connection in std::mem::take(&mut self.connections) {
            match self.converse(&connection) {
                Next::Another => self.connections.push(connection),
                Next::Close => {}
                Next::Quit => {
                    self.connections.push(connection);
                    return Next::Quit;
                }
            }
        }
        Next::Another
    }

    fn converse(&mut self, connection: &OwnedFd) -> Next {
        let (reply, sockets, next) = match receive(connection, RecvFlags::DONTWAIT) {
            Ok((request, sockets)) => {
                let next = if request == (Request::Quit {}) { Next::Quit } else { Next::Another };
                let (reply, sockets) = self.answer(request, sockets);
                (reply, sockets, next)
            }
            Err(ProtocolError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                return Next::Another;
            }
            Err(ProtocolError::Io(_) | ProtocolError::Closed) => return Next::Close,
            Err(error) => (refused(error), &[][..], Next::Close),
        };
        let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
        match send(connection, &reply, &sockets, SendFlags::DONTWAIT) {
            Err(_) if next == Next::Another => Next::Close,
            _ => next,
        }
    }

    fn answer(&mut self, request: Request, sockets: Vec<OwnedFd>) -> (Reply, &[OwnedFd]) {
        let reply = match request {
            Request::Store { name, namespace } => self.store(name, Kept { namespace, sockets }),
            Request::Take { name, namespace } => match self.kept.get(&name) {
                Some(kept) if kept.namespace == namespace => {
                    return (Reply::Sockets {}, &kept.sockets);
                }
                _ => Reply::Unknown {},
            },
            Request::List { after } => Reply::Names { names: self.names_after(&after) },
            Request::Drop { name } => {
                self.kept.remove(&name);
                Reply::Done {}
            }
            Request::Quit {} => Reply::Done {},
        };
        (reply, &[])
    }

    fn store(&mut self, name: String, new: Kept) -> Reply {
        if name.is_empty() || name.len() > MAX_NAME {
            return refused(format!("a name of {} bytes", name.len()));
        }
        if new.sockets.is_empty() {
            return refused(format!("no sockets to keep for {name}"));
        }
        let others = self.kept.iter().filter(|(other, _)| **other != name);
        let count: usize = others.map(|(_, kept)| kept.sockets.len()).sum();
        if count + new.sockets.len() > self.capacity {
            return refused(format!(
                "the keeper may have no more sockets than {} (RLIMIT_NOFILE)",
                self.capacity
            ));
        }
        self.kept.insert(name, new);
        Reply::Done {}
    }

    fn names_after(&self, after: &str) -> Vec<String> {
        // In JSON, a byte of a name takes at most six bytes. Each name also needs quotes and a
        // comma, and the reply needs space around the names.
        let mut room = MAX_PACKET - 64;
        let names = self.kept.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let fits = |name: &&String| {
            let fits = room.checked_sub(6 * name.len() + 3);
            room = fits.unwrap_or(0);
            fits.is_some()
        };
        names.map(|(name, _)| name).take_while(fits).cloned().collect()
    }
}

fn refused(reason: impl ToString) -> Reply {
    Reply::Refused { reason: reason.to_string() }
}

/// Returns true if a process of user `peer` may call a keeper of user `own`.
pub fn may_ask(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests;
