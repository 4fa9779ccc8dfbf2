//! A small cluster, queries and upstreams for the tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::mpsc,
    thread::JoinHandle,
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use nix::{
    sched::CloneFlags,
    unistd::{getpid, gettid},
};
use tokio::net::{TcpListener, UdpSocket};

use super::{
    Directory,
    message::{Request, Transport},
};
use crate::model::{
    Availability, ClusterState, Driver, Endpoint, EndpointMode, EndpointState, Id, Multicast,
    Network, Node, NodeState, Role, Service, ServiceNetwork,
};

pub fn id(text: &str) -> Id {
    Id::from_text(text)
}

/// Builds a state. Every name is also the id.
#[derive(Default)]
pub struct Cluster {
    pub state: ClusterState,
    number: u32,
}

impl Cluster {
    pub fn node(mut self, name: &str, state: NodeState, availability: Availability) -> Self {
        let number = self.next();
        let node = Node {
            id: id(name),
            name: name.to_owned(),
            role: Role::Agent,
            created: Timestamp::UNIX_EPOCH,
            data_path_addr: Ipv4Addr::from(0xac10_0100 + number).into(),
            api_addr: None,
            ingress_ip: Ipv4Addr::from(0x0aff_0000 + number),
            state,
            availability,
            addresses6: Vec::new(),
        };
        self.state.nodes.insert(node.id.clone(), node);
        self
    }

    pub fn network(mut self, name: &str, subnet: &str) -> Self {
        let subnet: Ipv4Net = subnet.parse().expect("a subnet");
        let gateway = subnet.hosts().next().expect("an address");
        let network = Network {
            id: id(name),
            name: name.to_owned(),
            created: Timestamp::UNIX_EPOCH,
            driver: Driver::Overlay,
            vni: 4096 + self.next(),
            subnet,
            ip_range: None,
            gateway,
            aux_addresses: BTreeMap::new(),
            mtu: None,
            multicast: Multicast::Drop,
            internal: false,
            attachable: true,
            ingress: false,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            next_address: gateway,
            ipv6: None,
        };
        self.state.networks.insert(network.id.clone(), network);
        self
    }

    pub fn edit_network(mut self, name: &str, edit: impl FnOnce(&mut Network)) -> Self {
        edit(self.state.networks.get_mut(&id(name)).expect("the network"));
        self
    }

    /// Adds a service: in vip mode with a VIP, in dnsrr mode without one.
    pub fn service(mut self, name: &str, network: &str, vip: Option<&str>) -> Self {
        let on = ServiceNetwork {
            network: id(network),
            vip: vip.map(|v| v.parse().expect("an address")),
            vip6: None,
            number: self.next(),
        };
        let service = Service {
            id: id(name),
            name: name.to_owned(),
            created: Timestamp::UNIX_EPOCH,
            mode: if vip.is_some() { EndpointMode::Vip } else { EndpointMode::Dnsrr },
            networks: vec![on],
            ports: vec![],
            labels: BTreeMap::new(),
            balance: Default::default(),
            health: None,
            drain_ms: 5000,
            owner: None,
        };
        self.state.services.insert(service.id.clone(), service);
        self
    }

    pub fn edit_service(mut self, name: &str, edit: impl FnOnce(&mut Service)) -> Self {
        edit(self.state.services.get_mut(&id(name)).expect("the service"));
        self
    }

    /// Adds a running endpoint `NAME@NETWORK` of the container `NAME`.
    pub fn endpoint(mut self, name: &str, network: &str, node: &str, ip: &str) -> Self {
        let endpoint = Endpoint {
            id: id(&format!("{name}@{network}")),
            number: self.next(),
            name: name.to_owned(),
            container: id(name),
            network: id(network),
            node: id(node),
            ip: ip.parse().expect("an address"),
            ip6: None,
            aliases: vec![],
            service: None,
            weight: 1,
            health: Default::default(),
            state: EndpointState::Running,
            created: Timestamp::UNIX_EPOCH,
        };
        self.state.endpoints.insert(endpoint.id.clone(), endpoint);
        self
    }

    pub fn edit(mut self, endpoint: &str, edit: impl FnOnce(&mut Endpoint)) -> Self {
        edit(self.state.endpoints.get_mut(&id(endpoint)).expect("the endpoint"));
        self
    }

    pub fn backend(self, endpoint: &str, service: &str, state: EndpointState) -> Self {
        self.edit(endpoint, |e| {
            e.service = Some(id(service));
            e.state = state;
        })
    }

    /// Returns the directory of a host that serves all containers.
    pub fn directory(&self) -> Directory {
        let containers: BTreeSet<Id> =
            self.state.endpoints.values().map(|e| e.container.clone()).collect();
        Directory::build(&self.state, &containers)
    }

    fn next(&mut self) -> u32 {
        self.number += 1;
        self.number
    }
}

pub fn question(name: &str, kind: RecordType) -> Query {
    Query::query(Name::from_ascii(name).expect("a name"), kind)
}

/// Makes a query as a container's resolver does.
pub fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(question(name, kind));
    message
}

pub fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("encoded")
}

pub fn decoded(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("a well-formed message")
}

pub fn request(message: &Message, transport: Transport) -> Request {
    Request::parse(&bytes(message), transport).expect("a well-formed query")
}

/// Returns the addresses in a reply, sorted.
pub fn addresses(reply: &Message) -> Vec<Ipv4Addr> {
    let address = |r: &Record| match r.data {
        RData::A(rdata::A(ip)) => Some(ip),
        _ => None,
    };
    let mut addresses: Vec<Ipv4Addr> = reply.answers.iter().filter_map(address).collect();
    addresses.sort();
    addresses
}

/// Makes an upstream's reply to `query`: these addresses, or an error.
pub fn upstream_reply(query: &[u8], outcome: Result<&[Ipv4Addr], ResponseCode>) -> Message {
    let query = decoded(query);
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.add_queries(query.queries.clone());
    match outcome {
        Ok(addresses) => {
            let name = query.queries[0].name.clone();
            for ip in addresses {
                let data = RData::A(rdata::A(*ip));
                reply.add_answer(Record::from_rdata(name.clone(), 300, data));
            }
        }
        Err(code) => reply.metadata.response_code = code,
    }
    reply
}

/// Starts a name server on a free port of 127.0.0.1. It answers every datagram with all results of
/// `answer`. It ends with the test's runtime.
pub async fn upstream(answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let (udp, _) = bind_pair().await;
    let address = udp.local_addr().expect("bound");
    tokio::spawn(serve_udp(udp, answer));
    address
}

pub async fn serve_udp(udp: UdpSocket, answer: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
    let mut buffer = vec![0; 65536];
    loop {
        let (length, client) = udp.recv_from(&mut buffer).await.expect("received");
        for reply in answer(&buffer[..length]) {
            udp.send_to(&reply, client).await.expect("sent");
        }
    }
}

/// Binds UDP and TCP on the same free port.
pub async fn bind_pair() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let address = udp.local_addr().expect("bound");
        // Another test may use this port for TCP.
        if let Ok(tcp) = TcpListener::bind(address).await {
            return (udp, tcp);
        }
    }
}

/// A network namespace that lives as long as this. It belongs to a thread, so it has no name that
/// could collide, and it ends with the process in any case.
pub struct TestNamespace {
    path: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl TestNamespace {
    /// Makes a new namespace with `lo` down. Returns `None`, with a message on stderr, if the user
    /// is not root.
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root may make a network namespace");
            return None;
        }
        let (jobs, receive) = mpsc::channel::<Job>();
        let (made, made_here) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let path = format!("/proc/{}/task/{}/ns/net", getpid(), gettid());
            made.send(PathBuf::from(path)).expect("the test waits");
            receive.into_iter().for_each(|job| job());
        });
        let path = made_here.recv().expect("the thread runs");
        Some(Self { path, jobs: Some(jobs), thread: Some(thread) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a job inside the namespace.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || drop(done.send(job())));
        self.jobs.as_ref().expect("until dropped").send(job).expect("the thread runs");
        result.recv().expect("the job succeeded")
    }

    pub fn bring_lo_up(&self) {
        let status = self
            .run(|| std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status());
        assert!(status.expect("iproute2 is installed").success());
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // If the job panicked, the test has already failed.
            drop(thread.join());
        }
    }
}
