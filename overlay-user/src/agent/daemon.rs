//! The daemon: an agent on the real kernel, and the manager where this host is one.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Agent, AgentConfig, AgentError, Checked, Host, NameServers, NamespaceId, Parts, boot_id,
    local_ports, namespace_at, platform::probe, serve,
};
use crate::{
    datapath::{BpfDatapath, DatapathError, LoadOptions, host},
    dns::{DnsServers, DnsView, Keeper, read_resolv_conf},
    link::{NetlinkLinks, netns::in_netns, tcp_cookies},
    manager::{Controller, Manager, RemoteManager, ServerHandle},
    model::{ClusterState, Id, Probe, Role},
    paths::Paths,
    pki::NodePki,
    store::{RedbStore, StoreError},
};

/// Where the host's own name servers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Runs the daemon of this host until SIGTERM, SIGINT or `leave`. Ending it detaches nothing:
/// traffic goes on, and the next daemon adopts what is there.
///
/// # Errors
/// What the host lacks, what is damaged or taken, and what to do.
pub async fn daemon(paths: Paths) -> anyhow::Result<()> {
    // Asked for first: a signal during the start ends the daemon after it, not in the middle.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let config = AgentConfig::load(&paths.config())?;
    std::fs::create_dir_all(&paths.run_dir)
        .with_context(|| format!("cannot make {}", paths.run_dir.display()))?;
    let lock = Lock::take(&paths.lock())?;
    host::preflight(&paths)?;

    let (controller, _manager) = controller(&config, &paths).await?;
    let options = LoadOptions {
        pin_dir: paths.pin_dir.clone(),
        conntrack_size: config.conntrack_size,
        underlay_ipv6: config.data_path_addr.is_ipv6(),
    };
    let socket = paths.socket();
    let agent = Agent::new(Parts {
        datapath: BpfDatapath::load(&options)?,
        links: NetlinkLinks::new()?,
        control: Arc::new(controller),
        names: Arc::new(ContainerNames::new(&config, &paths)),
        host: Arc::new(LinuxHost { pin_dir: paths.pin_dir.clone() }),
        config,
        paths,
    });
    let mut tasks = agent.start().await?;
    let server = serve::serve(agent.clone(), &socket)?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("systemd's notify socket")?;
    tracing::info!(socket = %socket.display(), "ready");

    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = agent.stopped() => Ok(()),
        () = tasks.failed() => Err(anyhow::anyhow!("a task of the agent failed; see the log above")),
    };
    tracing::info!("ending; what is attached stays attached");
    // Without systemd there is nobody to tell, and nothing depends on it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    agent.end_events();
    server.end().await;
    tasks.end().await;
    drop(lock);
    outcome
}

/// The manager of this host if it is one, served to the others; else those of the cluster.
async fn controller(
    config: &AgentConfig,
    paths: &Paths,
) -> anyhow::Result<(Controller, Option<ServerHandle>)> {
    let pki = NodePki::load(&paths.pki_dir())?;
    if config.role == Role::Agent {
        return Ok((Controller::Remote(RemoteManager::new(config.managers.clone(), &pki)?), None));
    }
    let store = open_store(paths).await?;
    let manager = Manager::open(Arc::new(store))?;
    let listen: SocketAddr = config.listen.with_context(|| {
        format!("{} names no address to listen on (\"listen\")", paths.config().display())
    })?;
    let server = manager.serve(listen, &pki).await?;
    tracing::info!(listen = %server.addr, "manager");
    Ok((Controller::Local(manager, config.node.clone()), Some(server)))
}

/// How long a process that is just ending may still hold the store: a daemon that was killed, or
/// `overlay init`.
const STORE_WITHIN: Duration = Duration::from_secs(3);

async fn open_store(paths: &Paths) -> Result<RedbStore, StoreError> {
    let end = Instant::now() + STORE_WITHIN;
    loop {
        match RedbStore::open(paths.store()) {
            Err(StoreError::Locked(_)) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}

/// Held as long as the daemon lives, so that there is one per host.
struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// # Errors
    /// [`AgentError::Locked`] names the daemon that holds it.
    fn take(path: &Path) -> Result<Self, AgentError> {
        let failed = |e: std::io::Error| AgentError::io(path, e);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let mut holder = String::new();
        file.read_to_string(&mut holder).map_err(failed)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::Error::EWOULDBLOCK)) => {
                let pid = match holder.trim() {
                    "" => "unknown".to_owned(),
                    pid => pid.to_owned(),
                };
                return Err(AgentError::Locked { pid, path: path.to_owned() });
            }
            Err((_, e)) => return Err(failed(e.into())),
        };
        file.rewind().map_err(failed)?;
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// The host that this process runs on.
struct LinuxHost {
    pin_dir: PathBuf,
}

impl Host for LinuxHost {
    fn namespace(&self, netns: &Path) -> Result<NamespaceId, AgentError> {
        namespace_at(netns)
    }

    fn netns_cookie(&self) -> Result<u64, AgentError> {
        Ok(host::netns_cookie()?)
    }

    fn netns_cookie_of(&self, netns: &Path) -> Result<u64, AgentError> {
        Ok(in_netns(netns, host::netns_cookie)??)
    }

    fn tcp_sockets(&self, netns: Option<&Path>) -> Result<BTreeSet<u64>, AgentError> {
        Ok(match netns {
            Some(path) => in_netns(path, tcp_cookies)??,
            None => tcp_cookies()?,
        })
    }

    fn cgroup2(&self) -> Option<PathBuf> {
        host::cgroup2_mount()
    }

    fn local_ports(&self) -> Option<(u16, u16)> {
        local_ports()
    }

    fn boot_id(&self) -> String {
        boot_id()
    }

    fn probe<'a>(
        &'a self,
        backend: &'a Checked,
        probe: &'a Probe,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(probe::probe(backend, probe))
    }

    fn unload(&self) -> Result<Vec<String>, DatapathError> {
        BpfDatapath::unload(&self.pin_dir)
    }
}

/// The DNS servers of the containers and what they answer from.
struct ContainerNames {
    servers: DnsServers,
    keeper: Arc<Keeper>,
    view: Arc<ArcSwap<DnsView>>,
}

impl ContainerNames {
    fn new(config: &AgentConfig, paths: &Paths) -> Self {
        let upstreams = if config.dns_upstreams.is_empty() {
            // Without any, names of the cluster still resolve.
            read_resolv_conf(Path::new(RESOLV_CONF)).unwrap_or_else(|error| {
                tracing::warn!("{error}");
                Vec::new()
            })
        } else {
            config.dns_upstreams.clone()
        };
        let view = Arc::new(ArcSwap::from_pointee(DnsView { upstreams, ..DnsView::default() }));
        let keeper = Arc::new(Keeper::new(paths.keeper()));
        let servers = DnsServers::new(view.clone()).waiting().kept_by(keeper.clone());
        Self { servers, keeper, view }
    }
}

impl NameServers for ContainerNames {
    fn ensure<'a>(
        &'a self,
        container: &'a Id,
        netns: &'a Path,
    ) -> BoxFuture<'a, Result<(), AgentError>> {
        Box::pin(async move {
            let served = self.servers.ensure(container, netns).await;
            served.map_err(|e| AgentError::Names(e.to_string()))
        })
    }

    fn remove(&self, container: &Id) {
        self.servers.remove(container);
    }

    fn retain(&self, containers: BTreeSet<Id>) -> BoxFuture<'_, ()> {
        Box::pin(self.servers.retain(containers))
    }

    fn end(&self) -> BoxFuture<'_, Result<Option<String>, AgentError>> {
        let keeper = self.keeper.clone();
        Box::pin(async move {
            let ended = tokio::task::spawn_blocking(move || keeper.end()).await;
            let ended = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            match ended {
                Ok(ended) => Ok(ended.map(|pid| format!("keeper of DNS sockets (process {pid})"))),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn answer(&self) {
        self.servers.answer();
    }

    fn show(&self, state: &Arc<ClusterState>) {
        let upstreams = self.view.load().upstreams.clone();
        self.view.store(Arc::new(DnsView { state: state.clone(), upstreams }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_a_host_is_told_about_the_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("overlay.lock");
        let first = Lock::take(&path).expect("taken");
        let error = Lock::take(&path).err().expect("refused").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Lock::take(&path).expect("free again");
    }

    #[tokio::test]
    async fn a_host_that_is_in_no_cluster_is_told_what_to_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sub = |name: &str| dir.path().join(name);
        let paths = Paths { state_dir: sub("state"), run_dir: sub("run"), pin_dir: sub("pins") };
        let error = daemon(paths).await.expect_err("refused").to_string();
        assert!(error.contains("overlay init") && error.contains("overlay join"), "{error}");
        assert!(!dir.path().join("run").exists(), "nothing is made");
    }
}
