//! The places of a comparison: a cluster of two hosts with two services. The backends of one
//! service are on the ingress node, and those of the other elsewhere. Beside it is the same without
//! overlay.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::Context as _;

use super::{
    super::{
        drive::Driven,
        pin::Placement,
        rig::{Spot, ip, wire},
    },
    cases::Value,
    report::Subject,
    routed::{self, Against, Routed},
    web,
};
use crate::{
    Cluster, Container, Options, Place as _, eventually, process::Process, wait_listening,
};

const NETWORK: &str = "bench";
/// Ports of the far service's backends, also on the ingress node; those of the near one are higher
/// there.
pub const PORTS: std::ops::RangeInclusive<u16> = 7001..=web::PORT;
/// By so much.
pub const SHIFT: u16 = 1000;
/// The ingress node's address on the client's side.
const ASKED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The destination of a client's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A container, by a virtual address.
    Vip,
    /// A machine outside, by a port of a host.
    Published,
}

/// The place of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// On another host than the ingress node.
    Remote = 0,
    /// On the asked host.
    Local = 1,
}

/// The places.
#[derive(Debug)]
pub struct Rig {
    client: Spot,
    /// Like `client`, for requests to backends without a service, so that no two flows have the
    /// same tuple.
    other: Spot,
    outside: Spot,
    against: Against,
    vips: [Ipv4Addr; 2],
    backends: [Ipv4Addr; 2],
    /// The script for wrk, if wrk measures.
    script: Option<PathBuf>,
    routed: Routed,
    _servers: Vec<Process>,
    _containers: Vec<Container>,
    cluster: Cluster,
}

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("the path of this program")
}

impl Rig {
    /// Builds it and starts the servers, web servers only if they are wanted.
    ///
    /// # Errors
    /// The process is not root, or the kernel or a tool reports an error. Everything is removed
    /// then.
    pub fn new(placement: Placement, against: Against, with_web: bool) -> anyhow::Result<Self> {
        let cluster = Cluster::new(2, Options::default())?;
        let [host1, host2] = [1, 2].map(|n| cluster.host(n).tag().to_owned());
        // The harness joins hosts by a switch. A plain link between them adds no cost of its own.
        ip(&format!("-n {host1} link del eth0"))?;
        ip(&format!("-n {host2} link del eth0"))?;
        wire(&host1, &host2, "eth0", "172.16.1")?;
        let [h1, h2] = [cluster.host(1), cluster.host(2)];
        let ends = [h1, h2].map(Spot::of);
        routed::neighbours((&ends[0], h1.address()), (&ends[1], h2.address()), "eth0")?;
        cluster.form()?;
        h1.network_create(NETWORK, &[])?;
        let cpu = placement.server_cpu().to_string();
        let serve = ["serve", "--cpu", &cpu];
        // It has another path, because the harness treats processes of this program as its own.
        let server = cluster.instance().dir.join("server");
        std::fs::copy(program()?, &server).context("copy the server")?;
        let mut containers = Vec::new();
        for (name, host, shift) in [("far", h1, 0), ("near", h2, SHIFT)] {
            let publish: Vec<String> = PORTS
                .flat_map(|port| ["tcp", "udp"].map(|p| format!("{}:{port}/{p}", port + shift)))
                .collect();
            let mut args = vec!["--network", NETWORK];
            publish.iter().for_each(|port| args.extend(["-p", port]));
            h1.service_create(name, &args)?;
            let container = host.container(&format!("{name}.1")).service(name);
            containers.push(container.run(&server, &serve)?);
        }
        let client = h2.container("client").network(NETWORK).idle()?;
        let other = h2.container("other").network(NETWORK).idle()?;
        let outside =
            cluster.behind(h2, "eth2", "outside", (ASKED, Ipv4Addr::new(198, 51, 100, 2)))?;
        cluster.settle()?;
        let state = h1.state()?;
        let vip = |name: &str| -> anyhow::Result<Ipv4Addr> {
            let service = state.services.values().find(|service| service.name == name);
            let service = service.context("the service was made and is not there")?;
            service.networks.iter().find_map(|on| on.vip).context("the service has no VIP")
        };
        let vips = [vip("far")?, vip("near")?];
        let backends = [containers[0].ip()?, containers[1].ip()?];
        let routed = Routed::new(&cluster, against)?;
        let mut servers = Vec::new();
        for spot in routed.backends.iter().chain(&routed.nodes) {
            let mut server = spot.spawn(&program()?, &serve)?;
            wait_listening(&mut server)?;
            servers.push(server);
        }
        let mut script = None;
        if with_web {
            let folder = &cluster.instance().dir;
            let ours: Vec<Spot> = containers.iter().map(Spot::of).collect();
            let all = ours.iter().chain(&routed.backends).chain(&routed.nodes);
            for (number, spot) in all.enumerate() {
                servers.push(web::serve(spot, &folder.join(format!("web{number}")), placement)?);
            }
            script = Some(web::script(folder)?);
        }
        let spots = [Spot::of(&client), Spot::of(&other), Spot::of(&outside)];
        containers.extend([client, other]);
        let [client, other, outside] = spots;
        let rig = Self {
            client,
            other,
            outside,
            against,
            vips,
            backends,
            script,
            routed,
            _servers: servers,
            _containers: containers,
            cluster,
        };
        rig.settle()?;
        Ok(rig)
    }

    /// Waits until everything that is measured answers.
    fn settle(&self) -> anyhow::Result<()> {
        for way in [Way::Vip, Way::Published] {
            for backend in [Backend::Remote, Backend::Local] {
                for subject in [Subject::Direct, self.against.subject(), Subject::Overlay] {
                    let what = format!("{way:?} {backend:?} {subject:?} answers");
                    eventually(&what, Duration::from_secs(30), || {
                        self.drive((way, backend), subject, &["connect", "--milliseconds", "50"])
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The hosts.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The same without overlay.
    pub fn routed(&self) -> &Routed {
        &self.routed
    }

    /// Runs the traffic program at the client's place. `traffic` is its kind and further arguments.
    ///
    /// # Errors
    /// If the traffic does not get through.
    pub fn drive(
        &self,
        (way, backend): (Way, Backend),
        subject: Subject,
        traffic: &[&str],
    ) -> anyhow::Result<Driven> {
        let (from, to, shift) = self.reach((way, backend), subject);
        let (to, shift) = (to.to_string(), shift.to_string());
        let args = [&["drive", traffic[0], &to, "--shift", &shift], &traffic[1..]].concat();
        from.exec(&program()?.to_string_lossy(), &args)?.json()
    }

    /// Runs wrk at the client's place, under the name of a case.
    ///
    /// # Errors
    /// [`web::Failed`] if a request is not answered as it should be.
    pub fn ask(
        &self,
        (way, backend): (Way, Backend),
        subject: Subject,
        connections: web::Connections,
        name: &str,
    ) -> anyhow::Result<Vec<Value>> {
        let script = self.script.as_deref().context("no web server was started")?;
        let (from, to, shift) = self.reach((way, backend), subject);
        web::ask(from, script, (to, web::PORT + shift), connections, name)
    }

    /// The client's place, the address of its requests, and the offset of the ports there.
    fn reach(&self, (way, backend): (Way, Backend), subject: Subject) -> (&Spot, Ipv4Addr, u16) {
        let number = backend as usize;
        let shift = if backend == Backend::Local { SHIFT } else { 0 };
        let routed = &self.routed;
        match (way, subject) {
            (Way::Vip, Subject::Direct) => (&self.other, self.backends[number], 0),
            (Way::Vip, Subject::Nftables | Subject::Ipvs) => {
                (&routed.client, routed::VIPS[number], 0)
            }
            (Way::Vip, Subject::Overlay) => (&self.client, self.vips[number], 0),
            // A server of the host itself. The ingress node is a router to that host, or is that
            // host.
            (Way::Published, Subject::Direct) => (&routed.outside, routed::SELVES[number], 0),
            (Way::Published, Subject::Nftables | Subject::Ipvs) => {
                (&routed.outside, routed::NODE, shift)
            }
            (Way::Published, Subject::Overlay) => (&self.outside, ASKED, shift),
        }
    }
}
