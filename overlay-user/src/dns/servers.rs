//! The DNS servers of all containers of this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{sync::watch, task::AbortHandle};

use super::{
    Directory, DnsError, DnsView, Keeper, Limits,
    server::{self, Responder},
    sockets::{Namespace, NamespaceId, Sockets},
};
use crate::model::{ClusterState, Id};

/// The DNS servers of all containers of this host. All of them answer from one view.
pub struct DnsServers {
    directories: Arc<Directories>,
    limits: Limits,
    keeper: Option<Arc<Keeper>>,
    answering: watch::Sender<bool>,
    servers: Mutex<BTreeMap<Id, Server>>,
    attempts: AtomicU64,
}

/// A container's server. It ends when this is dropped.
struct Server {
    namespace: NamespaceId,
    /// The call of `ensure` that made it. If calls overlap, the last one wins.
    attempt: u64,
    /// `None` while it binds.
    running: Option<Running>,
}

/// The parts of a server that listens.
struct Running {
    task: AbortHandle,
    sockets: Arc<Sockets>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }
}

impl fmt::Debug for DnsServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.servers).keys()).finish()
    }
}

impl DnsServers {
    /// Starts without servers. A new value of `view` applies from the next question on.
    pub fn new(view: Arc<ArcSwap<DnsView>>) -> Self {
        Self::with_limits(view, Limits::default())
    }

    /// Like [`Self::new`], with other limits than Docker's.
    pub fn with_limits(view: Arc<ArcSwap<DnsView>>, limits: Limits) -> Self {
        let directories = Arc::new(Directories::new(view));
        let (servers, attempts) = (Mutex::default(), AtomicU64::new(0));
        let answering = watch::Sender::new(true);
        Self { directories, limits, keeper: None, answering, servers, attempts }
    }

    /// Adds a keeper: the sockets stay open when this process ends, and sockets that an earlier
    /// process left are taken over.
    pub fn kept_by(self, keeper: Arc<Keeper>) -> Self {
        Self { keeper: Some(keeper), ..self }
    }

    /// Makes queries wait until [`Self::answer`] is called. Kept sockets may have queries before
    /// this process has the data to answer them.
    pub fn waiting(self) -> Self {
        self.answering.send_replace(false);
        self
    }

    /// Answers queries from now on, the waiting ones first.
    pub fn answer(&self) {
        self.answering.send_replace(true);
    }

    /// Makes sure that a server for `container` listens on 127.0.0.11:53, UDP and TCP, inside the
    /// namespace at `netns`. A server that already listens there stays unchanged. A server in
    /// another namespace is replaced.
    ///
    /// Must be called in a tokio runtime with threads in the host's namespace, because the
    /// upstreams are queried from there. The server's sockets keep the namespace alive until
    /// [`Self::remove`], or until [`Self::retain`] of a later process.
    ///
    /// # Errors
    /// [`DnsError`] explains why it cannot listen. The container then has no server.
    pub async fn ensure(&self, container: &Id, netns: &Path) -> Result<(), DnsError> {
        let namespace = Namespace::open(netns)?;
        let Some(attempt) = self.reserve(container, &namespace)? else {
            self.keep_again(container).await;
            return Ok(());
        };
        let sockets = match self.kept(container, namespace.id).await {
            Some(sockets) => Ok(sockets),
            None => namespace.listen().await,
        };
        let mut servers = lock(&self.servers);
        let Some(server) = servers.get_mut(container).filter(|s| s.attempt == attempt) else {
            // The server was removed or replaced in the meantime, so the sockets close here.
            return sockets.map(drop);
        };
        let sockets = match sockets {
            Ok(sockets) => Arc::new(sockets),
            Err(error) => {
                servers.remove(container);
                self.directories.stop_serving(container);
                return Err(error);
            }
        };
        let responder =
            Responder::new(container.clone(), Arc::clone(&self.directories), self.limits);
        self.directories.start_serving(container);
        let serving = server::serve(Arc::clone(&sockets), Arc::new(responder));
        let mut answering = self.answering.subscribe();
        let task = tokio::spawn(async move {
            // Fails only when the servers are gone.
            if answering.wait_for(|answering| *answering).await.is_ok() {
                serving.await;
            }
        });
        let task = task.abort_handle();
        server.running = Some(Running { task, sockets });
        self.keep(container, server);
        Ok(())
    }

    /// Ends a container's server. The namespace may already be gone. It is no error if there is no
    /// server.
    pub fn remove(&self, container: &Id) {
        let mut servers = lock(&self.servers);
        servers.remove(container);
        self.directories.stop_serving(container);
        if let Some(keeper) = &self.keeper {
            keeper.forget(container);
        }
    }

    /// Drops the sockets that an earlier process left for other containers.
    pub async fn retain(&self, containers: BTreeSet<Id>) {
        self.with_keeper(move |keeper| keeper.retain(&containers)).await;
    }

    /// Returns the sockets that an earlier process left for a container.
    async fn kept(&self, container: &Id, namespace: NamespaceId) -> Option<Sockets> {
        let name = container.clone();
        let kept = self.with_keeper(move |keeper| keeper.take(&name, namespace)).await?;
        match Sockets::adopt(kept) {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::warn!(%container, "its DNS sockets are not taken over: {error}");
                None
            }
        }
    }

    /// Gives a server's sockets to the keeper, which may have been restarted.
    async fn keep_again(&self, container: &Id) {
        self.with_keeper(Keeper::awake).await;
        if let Some(server) = lock(&self.servers).get(container) {
            self.keep(container, server);
        }
    }

    /// Runs under the lock, so that no sockets are kept after [`Self::remove`].
    fn keep(&self, container: &Id, server: &Server) {
        if let (Some(keeper), Some(running)) = (&self.keeper, &server.running) {
            keeper.store(container, server.namespace, &running.sockets.handles());
        }
    }

    /// Runs outside the runtime's threads, because a keeper may have to be started.
    async fn with_keeper<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Keeper) -> T + Send + 'static,
    ) -> Option<T> {
        let keeper = Arc::clone(self.keeper.as_ref()?);
        let done = tokio::task::spawn_blocking(move || work(&keeper)).await;
        Some(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())))
    }

    /// Records that `container` is served in `namespace`, and ends its server in another namespace.
    /// Returns `None` if it is already served there.
    fn reserve(&self, container: &Id, namespace: &Namespace) -> Result<Option<u64>, DnsError> {
        let mut servers = lock(&self.servers);
        if servers.get(container).is_some_and(|s| s.serves(namespace.id)) {
            return Ok(None);
        }
        let other = servers.iter().find(|(c, s)| *c != container && s.namespace == namespace.id);
        if let Some((other, _)) = other {
            let (path, other) = (namespace.path().to_owned(), other.clone());
            return Err(DnsError::Shared { path, other });
        }
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let server = Server { namespace: namespace.id, attempt, running: None };
        servers.insert(container.clone(), server);
        Ok(Some(attempt))
    }
}

impl Server {
    fn serves(&self, namespace: NamespaceId) -> bool {
        self.namespace == namespace && self.running.as_ref().is_some_and(|r| !r.task.is_finished())
    }
}

/// The view, and its [`Directory`] for the containers that are served.
///
/// The directory is built at the first question after a change, so that a burst of changes without
/// questions costs nothing.
pub(super) struct Directories {
    view: Arc<ArcSwap<DnsView>>,
    served: Mutex<BTreeSet<Id>>,
    built: ArcSwapOption<Built>,
}

/// A directory and the state that it was built from. The reference to the state is weak, because
/// otherwise the old state would stay in memory until the next question.
struct Built {
    state: Weak<ClusterState>,
    directory: Arc<Directory>,
}

impl Directories {
    pub fn new(view: Arc<ArcSwap<DnsView>>) -> Self {
        Self { view, served: Mutex::default(), built: ArcSwapOption::empty() }
    }

    /// Returns the directory of the current state.
    pub fn current(&self) -> Arc<Directory> {
        let state = Arc::clone(&self.view.load().state);
        if let Some(directory) = self.built_from(&state) {
            return directory;
        }
        let served = lock(&self.served);
        if let Some(directory) = self.built_from(&state) {
            return directory;
        }
        let directory = Arc::new(Directory::build(&state, &served));
        let built = Built { state: Arc::downgrade(&state), directory: Arc::clone(&directory) };
        self.built.store(Some(Arc::new(built)));
        directory
    }

    /// Returns the current upstreams.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.view.load().upstreams.clone()
    }

    /// Adds this container to the directory from now on.
    pub fn start_serving(&self, container: &Id) {
        let mut served = lock(&self.served);
        if served.insert(container.clone()) {
            self.built.store(None);
        }
    }

    fn stop_serving(&self, container: &Id) {
        lock(&self.served).remove(container);
    }

    fn built_from(&self, state: &Arc<ClusterState>) -> Option<Arc<Directory>> {
        let built = self.built.load();
        let built = built.as_ref()?;
        // The weak reference prevents reuse of the address.
        std::ptr::eq(built.state.as_ptr(), Arc::as_ptr(state)).then(|| Arc::clone(&built.directory))
    }
}

/// The data under these locks is consistent at every point that can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
