//! The whole controller in a process: a manager with a store in memory, agents with datapaths and
//! links in memory.

mod api;
mod connection;
mod events;
mod health;
mod lifecycle;
mod outside;
mod repair;
mod restart;
mod rollback;
mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream};
use overlay_common::Mac;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::{
    api::{ApiError, Attach, Attached, ErrorCode, Identity, NetworkCreate, Request, ServiceCreate},
    datapath::{Datapath as _, DatapathError, MemoryDatapath, XdpMode},
    link::{LinkError, Links as _, MemoryLinks, UnderlayFacts},
    lock::lock,
    manager::{Controller, InitCluster, Manager},
    model::{
        Availability, Change, ClusterState, Id, Network, Node, NodeState, Object, Port, Probe,
        Role, Service,
    },
    paths::Paths,
    store::{MemoryStore, Store},
};

/// The agent under test.
type TestAgent = Agent<MemoryDatapath, MemoryLinks>;
type TestTasks = Tasks<MemoryDatapath, MemoryLinks>;

/// The manager and its store.
struct World {
    store: Arc<MemoryStore>,
    manager: Arc<Manager>,
    first: Node,
}

impl World {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let init = InitCluster {
            name: "h1".to_owned(),
            data_path_addr: [172, 16, 1, 10].into(),
            api_addr: SocketAddr::from(([172, 16, 1, 10], 2377)),
            default_pool: "10.0.0.0/8".parse().expect("a subnet"),
            pool_prefix: 24,
            data_path_port: 4789,
            ingress_subnet: None,
            bridge_subnet: "172.17.0.0/16".parse().expect("a subnet"),
            node_timeout_ms: 600_000,
        };
        let initialized = Manager::init(&*store, init).expect("a new cluster");
        let manager = Manager::open(store.clone()).expect("a manager");
        Self { store, manager, first: initialized.node }
    }

    /// Writes past the manager, as another one would.
    fn commit(&self, changes: Vec<Change>) {
        let revision = self.store.load().expect("a state").revision;
        self.store.commit(revision, changes, Vec::new()).expect("committed");
    }

    /// Adds a node that is ready without an agent that runs.
    fn add_node(&self, last: u8) -> Node {
        let node = Node {
            id: Id::random(),
            name: format!("h{}", last - 9),
            role: Role::Agent,
            data_path_addr: [172, 16, 1, last].into(),
            api_addr: None,
            ingress_ip: Ipv4Addr::new(10, 255, 0, last),
            state: NodeState::Down,
            availability: Availability::Active,
            ..self.first.clone()
        };
        self.commit(vec![Change::Put(Object::Node(node.clone()))]);
        node
    }

    async fn administer<R: DeserializeOwned>(&self, request: Request) -> R {
        let answer = self.manager.call(&Identity::Administrator, request).await.expect("answered");
        serde_json::from_value(answer).expect("an answer")
    }

    async fn network(&self, name: &str) -> Network {
        let create =
            NetworkCreate { name: name.to_owned(), attachable: true, ..NetworkCreate::default() };
        self.administer(Request::NetworkCreate(create)).await
    }

    async fn service(&self, name: &str, network: &str, ports: &[Port], drain_ms: u64) -> Service {
        let create = ServiceCreate {
            name: name.to_owned(),
            networks: vec![network.to_owned()],
            ports: ports.to_vec(),
            drain_ms: Some(drain_ms),
            ..ServiceCreate::default()
        };
        self.administer(Request::ServiceCreate(create)).await
    }
}

/// A connection to the manager that can be cut, and calls that can be made to fail.
struct Wire {
    controller: Controller,
    administers: bool,
    cut: watch::Sender<bool>,
    failing: Mutex<BTreeSet<&'static str>>,
}

impl Wire {
    fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    fn fail(&self, method: &'static str) {
        lock(&self.failing).insert(method);
    }

    fn heal(&self) {
        lock(&self.failing).clear();
    }
}

fn unavailable() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the connection is cut by the test")
}

impl Control for Wire {
    fn call(&self, request: Request) -> BoxFuture<'_, Result<Value, ApiError>> {
        Box::pin(async move {
            if *self.cut.borrow() {
                return Err(unavailable());
            }
            let wire = serde_json::to_value(&request).expect("JSON");
            let method = wire["method"].as_str().expect("a method").to_owned();
            if lock(&self.failing).contains(method.as_str()) {
                return Err(ApiError::new(ErrorCode::Internal, "made to fail by the test"));
            }
            self.controller.call(request).await
        })
    }

    fn watch(&self) -> BoxFuture<'_, Result<Watch, ApiError>> {
        Box::pin(async move {
            if *self.cut.borrow() {
                return Err(unavailable());
            }
            let events = self.controller.watch().await?;
            let mut cut = self.cut.subscribe();
            let cut = stream::once(async move {
                let _ = cut.wait_for(|cut| *cut).await;
                Err(unavailable())
            });
            Ok(stream::select(events, cut).boxed())
        })
    }

    fn administer(&self, request: Request) -> Option<BoxFuture<'_, Result<Value, ApiError>>> {
        match &self.controller {
            Controller::Local(manager, _) if self.administers => {
                Some(Box::pin(async move { manager.call(&Identity::Administrator, request).await }))
            }
            _ => None,
        }
    }

    fn manager(&self) -> Option<SocketAddr> {
        Control::manager(&self.controller)
    }

    fn learn(&self, _: Vec<SocketAddr>) {}
}

/// Namespaces, DNS servers and cgroups of a host in memory.
#[derive(Default)]
struct MemoryHost {
    datapath: MemoryDatapath,
    namespaces: Mutex<BTreeMap<PathBuf, u64>>,
    next: AtomicU64,
    cgroup: Mutex<Option<PathBuf>>,
    /// Cookies of the TCP sockets in namespaces.
    sockets: Mutex<BTreeMap<Option<PathBuf>, BTreeSet<u64>>>,
    boot: Mutex<String>,
    local_ports: Mutex<Option<(u16, u16)>>,
    served: Mutex<BTreeSet<Id>>,
    shown: AtomicU64,
    /// The state that was applied when the DNS servers began to answer.
    answered_from: AtomicU64,
    names_fail: std::sync::atomic::AtomicBool,
    /// Namespaces in which health checks fail.
    unhealthy: Mutex<BTreeSet<PathBuf>>,
    /// Namespaces in which health checks never end.
    hanging: Mutex<BTreeSet<PathBuf>>,
}

use std::sync::atomic::Ordering::SeqCst;

impl MemoryHost {
    fn add_namespace(&self, path: &str) {
        let inode = self.next.fetch_add(1, SeqCst);
        lock(&self.namespaces).insert(path.into(), inode);
    }
}

impl Host for MemoryHost {
    fn namespace(&self, netns: &Path) -> Result<NamespaceId, AgentError> {
        let found = lock(&self.namespaces).get(netns).copied();
        let inode = found.ok_or_else(|| LinkError::NoNamespace(netns.display().to_string()))?;
        Ok(NamespaceId { device: 4, inode })
    }

    fn netns_cookie(&self) -> Result<u64, AgentError> {
        Ok(77)
    }

    fn netns_cookie_of(&self, netns: &Path) -> Result<u64, AgentError> {
        Ok(1000 + self.namespace(netns)?.inode)
    }

    fn tcp_sockets(&self, netns: Option<&Path>) -> Result<BTreeSet<u64>, AgentError> {
        let sockets = lock(&self.sockets);
        Ok(sockets.get(&netns.map(Path::to_owned)).cloned().unwrap_or_default())
    }

    fn cgroup2(&self) -> Option<PathBuf> {
        lock(&self.cgroup).clone()
    }

    fn local_ports(&self) -> Option<(u16, u16)> {
        *lock(&self.local_ports)
    }

    fn boot_id(&self) -> String {
        lock(&self.boot).clone()
    }

    fn probe<'a>(
        &'a self,
        backend: &'a Checked,
        _: &'a Probe,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            if lock(&self.hanging).contains(&backend.netns) {
                std::future::pending::<()>().await;
            }
            match lock(&self.unhealthy).contains(&backend.netns) {
                false => Ok(()),
                true => Err("made to fail by the test".to_owned()),
            }
        })
    }

    fn unload(&self) -> Result<Vec<String>, DatapathError> {
        let attached = self.datapath.attachments()?;
        attached.iter().try_for_each(|name| self.datapath.detach(name))?;
        Ok(vec!["pins".to_owned()])
    }
}

impl NameServers for MemoryHost {
    fn ensure<'a>(
        &'a self,
        container: &'a Id,
        _: &'a Path,
    ) -> BoxFuture<'a, Result<(), AgentError>> {
        Box::pin(async move {
            if self.names_fail.load(SeqCst) {
                return Err(AgentError::Names("made to fail by the test".to_owned()));
            }
            lock(&self.served).insert(container.clone());
            Ok(())
        })
    }

    fn remove(&self, container: &Id) {
        lock(&self.served).remove(container);
    }

    fn retain(&self, containers: BTreeSet<Id>) -> BoxFuture<'_, ()> {
        lock(&self.served).retain(|container| containers.contains(container));
        Box::pin(std::future::ready(()))
    }

    fn end(&self) -> BoxFuture<'_, Result<Option<String>, AgentError>> {
        Box::pin(std::future::ready(Ok(Some("what keeps sockets".to_owned()))))
    }

    fn answer(&self) {
        self.answered_from.store(self.shown.load(SeqCst), SeqCst);
    }

    fn show(&self, state: &Arc<ClusterState>) {
        self.shown.store(state.revision, SeqCst);
    }
}

/// One host: the parts that outlive its daemon.
struct TestHost {
    dir: TempDir,
    node: Node,
    config: AgentConfig,
    datapath: MemoryDatapath,
    links: MemoryLinks,
    wire: Arc<Wire>,
    host: Arc<MemoryHost>,
}

impl TestHost {
    /// The host of the first node.
    fn first(world: &World) -> Self {
        Self::new(world, &world.first)
    }

    fn new(world: &World, node: &Node) -> Self {
        let links = MemoryLinks::new();
        let mac = Mac::new([2, 0, 0, 0, 0, 1]);
        let facts = UnderlayFacts { ifindex: 0, mac, mtu: 1500, checksums: true };
        links.add_underlay("eth0", facts, &[crate::agent::testing::ipv4_of(node)]);
        let datapath = MemoryDatapath::new();
        let host = MemoryHost { datapath: datapath.clone(), ..MemoryHost::default() };
        *lock(&host.cgroup) = Some("/cgroup".into());
        let config = AgentConfig {
            format: CONFIG_FORMAT,
            cluster: world.manager.state().cluster.as_ref().expect("a cluster").id.clone(),
            node: node.id.clone(),
            name: node.name.clone(),
            role: node.role,
            data_path_addr: node.data_path_addr,
            iface: "eth0".to_owned(),
            data_path_port: 4789,
            listen: node.api_addr,
            managers: world.first.api_addr.into_iter().collect(),
            xdp: XdpMode::Auto,
            conntrack_size: 1024,
            outside_ports: OUTSIDE_PORTS,
            outside_flows: OUTSIDE_FLOWS,
            cgroup: None,
            socket_lb: true,
            dns_upstreams: Vec::new(),
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["state", "run"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let test = Self {
            dir,
            node: node.clone(),
            config,
            datapath,
            links,
            wire: Arc::new(Wire {
                controller: Controller::Local(world.manager.clone(), node.id.clone()),
                administers: node.role == Role::Manager,
                cut: watch::Sender::new(false),
                failing: Mutex::default(),
            }),
            host: Arc::new(host),
        };
        test.config.save(&test.paths().config()).expect("saved");
        test
    }

    fn paths(&self) -> Paths {
        let sub = |name: &str| self.dir.path().join(name);
        Paths { state_dir: sub("state"), run_dir: sub("run"), pin_dir: sub("pins") }
    }

    /// A daemon's agent on this host, not started.
    fn agent(&self) -> Arc<TestAgent> {
        Agent::new(Parts {
            paths: self.paths(),
            config: self.config.clone(),
            datapath: self.datapath.clone(),
            links: self.links.clone(),
            control: self.wire.clone(),
            names: self.host.clone(),
            host: self.host.clone(),
        })
    }

    /// A daemon's agent on this host, started.
    async fn start(&self) -> (Arc<TestAgent>, TestTasks) {
        let agent = self.agent();
        let tasks = agent.start().await.expect("started");
        (agent, tasks)
    }

    /// The request to attach a container. Its namespace is made here.
    fn attach(&self, name: &str, network: &str) -> Attach {
        let netns = format!("/run/netns/{name}");
        self.host.add_namespace(&netns);
        Attach {
            netns,
            name: Some(name.to_owned()),
            networks: vec![network.to_owned()],
            ..Attach::default()
        }
    }

    fn backend(&self, name: &str, service: &str) -> Attach {
        Attach { networks: Vec::new(), service: Some(service.to_owned()), ..self.attach(name, "") }
    }
}

/// Waits until something holds. The limit is there to end a test that has failed.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came to be that {what}");
}

/// The state of a service's slots and backends in a datapath.
fn slots(datapath: &MemoryDatapath, service: &Service) -> u32 {
    datapath.state().services.get(&service.networks[0].number).map_or(0, |s| s.slots)
}

/// Names of the endpoints' links that exist, by the programs attached and by the links.
fn endpoint_links(test: &TestHost) -> (Vec<String>, Vec<String>) {
    let attached = test.datapath.containers();
    let attached = attached.into_iter().filter(|n| !n.starts_with("ovl-")).collect();
    (attached, test.links.endpoints().into_keys().collect())
}

async fn attach(agent: &Arc<TestAgent>, attach: Attach) -> Attached {
    agent.attachments.attach(attach).await.expect("attached")
}
