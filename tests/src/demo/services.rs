//! Step 3: the services of the walk-through and their replicas.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use anyhow::Context as _;

use super::report::Report;
use crate::{
    binaries,
    cluster::Cluster,
    container::{Container, ContainerBuilder},
    host::Host,
    place::Place as _,
};

/// The three services of the walk-through: name and port.
pub const SERVICES: [(&str, u16); 3] = [("etcd", 2379), ("mysql-galera", 3306), ("hello", 8080)];

/// The running services.
pub struct Services {
    /// Replicas by service.
    pub replicas: BTreeMap<&'static str, Vec<Container>>,
    /// A container on mynet to ask from.
    pub asker: Container,
    /// VIPs by service.
    pub vips: BTreeMap<&'static str, Ipv4Addr>,
}

impl Services {
    /// Makes the services and runs their replicas.
    pub fn start(cluster: &Cluster, report: &mut Report) -> anyhow::Result<Self> {
        report.step("Services on mynet: etcd, mysql-galera, hello");
        let first = cluster.host(1);
        for (name, port) in SERVICES {
            report.need(&format!("service create {name} -p {port}:{port}"), || {
                let publish = format!("{port}:{port}");
                let args = ["--network", "mynet", "--publish", &publish, "--drain", "2s"];
                first.service_create(name, &args)?;
                Ok(((), String::new()))
            })?;
        }
        let mut replicas: BTreeMap<&str, Vec<Container>> = BTreeMap::new();
        let last = cluster.hosts().last().context("no hosts")?;
        let mut run = |report: &mut Report,
                       service: &'static str,
                       name: &str,
                       host: &Host,
                       make: &dyn Fn(ContainerBuilder<'_>) -> anyhow::Result<Container>|
         -> anyhow::Result<()> {
            let replica = report.need(&format!("{name} runs on {}", host.name()), || {
                let container = make(host.container(name).service(service))?;
                let detail = format!("address {}", container.ip()?);
                Ok((container, detail))
            })?;
            replicas.entry(service).or_default().push(replica);
            Ok(())
        };
        run(report, "etcd", "etcd.1", first, &|builder| etcd(builder, cluster))?;
        for (index, host) in cluster.hosts().iter().take(3).enumerate() {
            let name = format!("mysql-galera.{}", index + 1);
            run(report, "mysql-galera", &name, host, &|builder| builder.tcp_id(3306))?;
        }
        for name in ["hello.1", "hello.2"] {
            run(report, "hello", name, last, &|builder| builder.http(8080))?;
        }
        let asker = report.need(&format!("asker runs on {}", cluster.host(2).name()), || {
            let asker = cluster.host(2).container("asker").network("mynet").idle()?;
            Ok((asker, String::new()))
        })?;
        let vips = vips(first)?;
        Ok(Self { replicas, asker, vips })
    }

    /// Replicas of one service.
    pub fn of(&self, service: &str) -> &[Container] {
        self.replicas.get(service).map_or(&[], Vec::as_slice)
    }
}

fn etcd(builder: ContainerBuilder<'_>, cluster: &Cluster) -> anyhow::Result<Container> {
    let program = binaries::system("etcd", "etcd-server")?;
    let data: PathBuf = cluster.instance().dir.join("etcd");
    let data = data.to_string_lossy().into_owned();
    builder.run(
        &program,
        &[
            "--data-dir",
            data.as_str(),
            "--listen-client-urls=http://0.0.0.0:2379",
            "--advertise-client-urls=http://etcd:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ],
    )
}

fn vips(host: &Host) -> anyhow::Result<BTreeMap<&'static str, Ipv4Addr>> {
    let state = host.state()?;
    SERVICES
        .iter()
        .map(|(name, _)| {
            let service = state.service(name).with_context(|| format!("no service {name}"))?;
            let vip = service.networks.first().and_then(|network| network.vip);
            Ok((*name, vip.with_context(|| format!("{name} has no VIP"))?))
        })
        .collect()
}
