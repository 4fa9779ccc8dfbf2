//! The daemon's side: it calls the keeper, and starts one if there is none.

use std::{
    collections::BTreeSet,
    fmt, io,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    io::retry_on_intr,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
        socket_with,
        sockopt::{Timeout, set_socket_timeout, socket_peercred},
    },
    process::{Pid, Signal, geteuid, getpid, kill_process},
};

use super::{
    NamespaceId, process,
    protocol::{ProtocolError, Reply, Request, receive, send},
    server::may_ask,
};
use crate::model::Id;

/// Timeout for the keeper to answer or to end. A working keeper answers at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Pause after a failed start before the next attempt.
const START_AGAIN: Duration = Duration::from_secs(10);

/// Why sockets are not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// There is no keeper.
    #[error("nobody listens on {path}: {source}")]
    Unreachable {
        /// Path of the socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// No keeper could be started.
    #[error("`overlay keep-sockets` could not be started: {0}")]
    Start(io::Error),
    /// The keeper rejected a request.
    #[error("the keeper of DNS sockets refused: {0}")]
    Refused(String),
    /// The process that listens there cannot be used as keeper.
    #[error("the keeper of DNS sockets on {path}: {reason}")]
    Broken {
        /// Path of the socket.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// Starts a keeper and returns once it listens.
type Start = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The keeper of this host. Its calls block for microseconds, or longer if a keeper must be started
/// or hangs. Each new failure is logged once. After a failure, the sockets are not kept.
pub struct Keeper {
    path: PathBuf,
    start: Start,
    starting: Mutex<Starting>,
    /// The last failure. It was logged when it was new.
    trouble: Mutex<Option<String>>,
}

#[derive(Default)]
struct Starting {
    failed: Option<Instant>,
    /// True after the keeper was told to end. No sockets are kept any more.
    over: bool,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Uses the keeper that listens on `path`. If needed, starts this program as a detached keeper.
    pub fn new(path: PathBuf) -> Self {
        let start = {
            let path = path.clone();
            move || process::start(&path)
        };
        Self::started_by(path, Box::new(start))
    }

    /// Like [`Self::new`], with another way to start the keeper.
    pub(super) fn started_by(path: PathBuf, start: Start) -> Self {
        Self { path, start, starting: Mutex::default(), trouble: Mutex::default() }
    }

    /// Starts the keeper if there is none.
    pub(in crate::dns) fn awake(&self) {
        let awake = self.try_awake();
        self.note(awake);
    }

    /// Takes the sockets that an earlier daemon left for a container, if they are in this
    /// namespace.
    pub(in crate::dns) fn take(&self, name: &Id, namespace: NamespaceId) -> Vec<OwnedFd> {
        let request = Request::Take { name: name.as_str().to_owned(), namespace };
        let taken = self.try_awake().and_then(|()| self.call(&request, &[]));
        self.note(taken).map(|(_, sockets)| sockets).unwrap_or_default()
    }

    /// Gives the keeper copies of a container's sockets. They replace earlier ones.
    pub(in crate::dns) fn store(
        &self,
        name: &Id,
        namespace: NamespaceId,
        sockets: &[BorrowedFd<'_>],
    ) {
        let request = Request::Store { name: name.as_str().to_owned(), namespace };
        let stored = self.call(&request, sockets);
        self.note(stored);
    }

    /// Drops a container's sockets. Without a keeper there are none to drop.
    pub(in crate::dns) fn forget(&self, name: &Id) {
        match self.call(&Request::Drop { name: name.as_str().to_owned() }, &[]) {
            Err(KeeperError::Unreachable { .. }) => {}
            forgotten => drop(self.note(forgotten)),
        }
    }

    /// Drops the sockets of all other containers, because kept sockets keep their namespaces alive.
    pub(in crate::dns) fn retain(&self, containers: &BTreeSet<Id>) {
        match self.try_retain(containers) {
            Err(KeeperError::Unreachable { .. }) => {}
            retained => drop(self.note(retained)),
        }
    }

    /// Ends the keeper and waits for its end. Returns `None` if there was none. No other keeper is
    /// started afterwards.
    ///
    /// # Errors
    /// [`KeeperError::Broken`] if it does not end.
    pub fn end(&self) -> Result<Option<u32>, KeeperError> {
        lock(&self.starting).over = true;
        process::quit(&self.path)
    }

    fn try_retain(&self, containers: &BTreeSet<Id>) -> Result<(), KeeperError> {
        let mut after = String::new();
        loop {
            let (reply, _) = self.call(&Request::List { after: after.clone() }, &[])?;
            let Reply::Names { names } = reply else { return Ok(()) };
            let Some(last) = names.last() else { return Ok(()) };
            after.clone_from(last);
            for name in names.into_iter().filter(|n| !containers.contains(&Id::from_text(n))) {
                tracing::info!(container = name, "letting go of the DNS sockets it left");
                self.call(&Request::Drop { name }, &[])?;
            }
        }
    }

    fn try_awake(&self) -> Result<(), KeeperError> {
        let mut starting = lock(&self.starting);
        let missing = match Connection::open(&self.path) {
            Err(error @ KeeperError::Unreachable { .. }) => error,
            outcome => return outcome.map(drop),
        };
        if starting.over || starting.failed.is_some_and(|at| at.elapsed() < START_AGAIN) {
            return Err(missing);
        }
        let started = (self.start)();
        starting.failed = started.is_err().then(Instant::now);
        started.map_err(KeeperError::Start)?;
        tracing::debug!(socket = %self.path.display(), "started a keeper of DNS sockets");
        Ok(())
    }

    /// Sends one request on a separate connection.
    fn call(
        &self,
        request: &Request,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), KeeperError> {
        let connection = Connection::open(&self.path)?;
        let outcome = connection.ask(request, sockets);
        if matches!(outcome, Err(KeeperError::Broken { .. })) {
            // Without this, its sockets would still receive queries (SO_REUSEPORT), and no process
            // would read them.
            connection.replace();
        }
        outcome
    }

    /// Logs a failure if it differs from the last one.
    fn note<T>(&self, outcome: Result<T, KeeperError>) -> Option<T> {
        let mut trouble = lock(&self.trouble);
        match outcome {
            Ok(value) => {
                if trouble.take().is_some() {
                    tracing::info!("DNS sockets are kept again");
                }
                Some(value)
            }
            // After a failed start, the error of the start says more than the later ones.
            Err(KeeperError::Unreachable { .. }) if trouble.is_some() => None,
            Err(error) => {
                let error = error.to_string();
                if trouble.as_ref() != Some(&error) {
                    tracing::warn!("a restart of the daemon would lose DNS queries: {error}");
                    *trouble = Some(error);
                }
                None
            }
        }
    }
}

/// A connection to a keeper of a permitted user.
pub(super) struct Connection {
    path: PathBuf,
    socket: OwnedFd,
    /// The process that listens, which is the keeper.
    pub pid: Pid,
}

impl Connection {
    pub fn open(path: &Path) -> Result<Self, KeeperError> {
        let unreachable =
            |e: rustix::io::Errno| KeeperError::Unreachable { path: path.into(), source: e.into() };
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(unreachable)?;
        for timeout in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&socket, timeout, Some(ANSWER_WITHIN)).map_err(unreachable)?;
        }
        let address = SocketAddrUnix::new(path).map_err(unreachable)?;
        retry_on_intr(|| connect(&socket, &address)).map_err(unreachable)?;
        let peer = socket_peercred(&socket).map_err(unreachable)?;
        if !may_ask(peer.uid.as_raw(), geteuid().as_raw()) {
            return Err(KeeperError::Broken {
                path: path.to_owned(),
                reason: format!("a process of user {} listens there", peer.uid.as_raw()),
            });
        }
        Ok(Self { path: path.to_owned(), socket, pid: peer.pid })
    }

    /// Sends a request and reads its reply.
    pub fn ask(
        &self,
        request: &Request,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), KeeperError> {
        let asked = send(&self.socket, request, sockets, SendFlags::empty());
        match asked.and_then(|()| receive(&self.socket, RecvFlags::empty())) {
            Ok((Reply::Refused { reason }, _)) => Err(KeeperError::Refused(reason)),
            Ok(answer) => Ok(answer),
            Err(ProtocolError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                Err(self.broken(format!("no answer within {} s", ANSWER_WITHIN.as_secs())))
            }
            Err(error) => Err(self.broken(error.to_string())),
        }
    }

    /// Waits for the keeper to end. The last thing it does is close its end of this connection.
    pub fn wait_for_end(&self) -> Result<(), KeeperError> {
        match receive::<Reply>(&self.socket, RecvFlags::empty()) {
            Err(ProtocolError::Closed) => Ok(()),
            // It was killed while a message was unread.
            Err(ProtocolError::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            _ => Err(self.broken(format!("it goes on for {} s", ANSWER_WITHIN.as_secs()))),
        }
    }

    /// Ends the process and removes its socket, so that another keeper can start.
    pub fn replace(&self) {
        // A keeper of a test runs in a thread of this process.
        if self.pid != getpid() && kill_process(self.pid, Signal::KILL).is_ok() {
            // If it still does not end, the next keeper runs beside it.
            let _ = self.wait_for_end();
        }
        let _ = std::fs::remove_file(&self.path);
    }

    fn broken(&self, reason: String) -> KeeperError {
        KeeperError::Broken { path: self.path.clone(), reason }
    }
}

/// The data under these locks is consistent at every point that can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
