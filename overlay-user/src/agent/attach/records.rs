//! The containers of this host in a file, for the next daemon.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::{Ipv4Net, Ipv6Net};
use overlay_common::Mac;
use serde::{Deserialize, Serialize};

use crate::{
    agent::{
        error::AgentError,
        json_file,
        platform::{NamespaceId, Process},
    },
    api::{AttachedInterface, EndpointCreate},
    link::{EndpointLink, LinkIpv6},
    model::{Endpoint, Id},
};

/// One container attached on this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The container.
    pub container: Id,
    /// Its name.
    pub name: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Which namespace that is.
    pub namespace: NamespaceId,
    /// The process with which the container ends.
    pub process: Option<Process>,
    /// Its interfaces in the order of the networks.
    pub wires: Vec<Wire>,
    /// It takes no flows before a port of its service listens.
    pub wait_listen: bool,
    /// First part of its interfaces' names.
    pub interface_prefix: String,
    /// The request to the manager, kept in case it must be repeated.
    pub request: EndpointCreate,
}

/// One interface of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// The endpoint.
    pub endpoint: Id,
    /// The network.
    pub network: Id,
    /// Name of the network.
    pub network_name: String,
    /// Name of the host-side end.
    pub host_name: String,
    /// Name of the end inside.
    pub name: String,
    /// Address and prefix length.
    pub address: Ipv4Net,
    /// Gateway of the network; `None` on internal ones.
    pub gateway: Option<Ipv4Addr>,
    /// Whether the default route leads here.
    pub default_route: bool,
    /// IPv6 address and prefix length, on dual-stack networks.
    #[serde(default)]
    pub address6: Option<Ipv6Net>,
    /// IPv6 gateway of the network; `None` on internal ones.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    /// Whether the IPv6 default route leads here.
    #[serde(default)]
    pub default_route6: bool,
    /// MTU.
    pub mtu: u32,
}

impl Wire {
    /// Whether it is on the network of `endpoint` and has its addresses.
    pub fn has_addresses_of(&self, endpoint: &Endpoint) -> bool {
        self.network == endpoint.network
            && self.address.addr() == endpoint.ip
            && self.address6.map(|address| address.addr()) == endpoint.ip6
    }

    fn mac(&self) -> Mac {
        Mac::of_ip(self.address.addr().into())
    }

    /// The veth pair to be made for it in `netns`.
    pub fn link(&self, netns: &Path) -> EndpointLink {
        EndpointLink {
            host_name: self.host_name.clone(),
            netns: netns.display().to_string(),
            name: self.name.clone(),
            mac: self.mac(),
            address: self.address,
            gateway: self.gateway.filter(|_| self.default_route),
            ipv6: self.address6.map(|address| LinkIpv6 {
                address,
                gateway: self.gateway6.filter(|_| self.default_route6),
            }),
            mtu: self.mtu,
        }
    }

    /// As the API tells of it.
    pub fn interface(&self) -> AttachedInterface {
        AttachedInterface {
            interface: self.name.clone(),
            network: self.network_name.clone(),
            address: self.address,
            mac: self.mac().to_string(),
            gateway: self.gateway,
            address6: self.address6,
            gateway6: self.gateway6,
            mtu: self.mtu,
            endpoint: self.endpoint.clone(),
        }
    }
}

/// `containers.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Records {
    /// Version of the file.
    pub format: u32,
    /// Boot in which it was written: no namespace survives a boot.
    pub boot: String,
    /// The containers.
    pub containers: Vec<Record>,
}

/// Current version of `containers.json`.
pub const RECORDS_FORMAT: u32 = 1;

impl Records {
    /// Reads `containers.json`; none means no containers.
    ///
    /// # Errors
    /// [`AgentError::Damaged`] when the agent did not write its contents.
    pub fn load(path: &Path) -> Result<Self, AgentError> {
        const REMEDY: &str = "move it away to start without the containers in it; they are then \
                              detached";
        let records: Self = json_file::read(path, REMEDY)?.unwrap_or_default();
        if records.format > RECORDS_FORMAT {
            return Err(AgentError::Damaged {
                path: path.to_owned(),
                reason: format!(
                    "it has format {}, this version reads up to {RECORDS_FORMAT}",
                    records.format
                ),
                remedy: "install the newer version again",
            });
        }
        Ok(records)
    }

    /// Writes `containers.json` in one step.
    ///
    /// # Errors
    /// [`AgentError::Io`] names the file.
    pub fn save(&self, path: &Path) -> Result<(), AgentError> {
        json_file::write(path, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::id;

    fn records() -> Records {
        let wire = Wire {
            endpoint: id("e"),
            network: id("mynet"),
            network_name: "mynet".to_owned(),
            host_name: "ove".to_owned(),
            name: "eth0".to_owned(),
            address: "10.0.1.11/24".parse().expect("an address"),
            gateway: Some(Ipv4Addr::new(10, 0, 1, 1)),
            default_route: false,
            address6: Some("fd00::11/64".parse().expect("an address")),
            gateway6: Some("fd00::1".parse().expect("an address")),
            default_route6: false,
            mtu: 1450,
        };
        let record = Record {
            container: id("c"),
            name: "web".to_owned(),
            netns: "/run/netns/web".into(),
            namespace: NamespaceId { device: 4, inode: 4_026_532_000 },
            process: Some(Process { pid: 4711, started: 12 }),
            wires: vec![wire],
            wait_listen: true,
            interface_prefix: "eth".to_owned(),
            request: EndpointCreate { name: "web".to_owned(), ..EndpointCreate::default() },
        };
        Records { format: RECORDS_FORMAT, boot: "b".to_owned(), containers: vec![record] }
    }

    #[test]
    fn saved_containers_read_back_the_same() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("containers.json");
        assert!(Records::load(&path).expect("none yet").containers.is_empty());
        records().save(&path).expect("saved");
        let loaded = Records::load(&path).expect("loaded");
        assert_eq!(format!("{loaded:?}"), format!("{:?}", records()));
    }

    #[test]
    fn damaged_or_newer_containers_are_refused_with_what_to_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("containers.json");
        std::fs::write(&path, "{\"format\": 1, \"boo").expect("written");
        let error = Records::load(&path).expect_err("damaged").to_string();
        assert!(error.contains("containers.json is damaged") && error.contains("move it away"));
        Records { format: 2, ..records() }.save(&path).expect("saved");
        let error = Records::load(&path).expect_err("newer").to_string();
        assert!(error.contains("format 2"), "{error}");
    }

    #[test]
    fn only_the_interface_of_the_default_route_gets_a_gateway() {
        let mut wire = records().containers[0].wires[0].clone();
        assert_eq!(wire.link(Path::new("/run/netns/web")).gateway, None);
        assert_eq!(wire.interface().gateway, Some(Ipv4Addr::new(10, 0, 1, 1)));
        let ipv6 = wire.link(Path::new("/run/netns/web")).ipv6.expect("dual-stack");
        assert_eq!(ipv6.gateway, None);
        wire.default_route = true;
        wire.default_route6 = true;
        let link = wire.link(Path::new("/run/netns/web"));
        assert_eq!(link.gateway, Some(Ipv4Addr::new(10, 0, 1, 1)));
        assert_eq!(link.mac.to_string(), "02:42:0a:00:01:0b");
        assert_eq!(link.ipv6.expect("dual-stack").gateway, wire.gateway6);
    }

    #[test]
    fn a_wire_of_an_earlier_version_has_no_ipv6() {
        let mut json = serde_json::to_value(&records().containers[0].wires[0]).expect("JSON");
        let fields = json.as_object_mut().expect("an object");
        fields.retain(|name, _| !name.ends_with('6'));
        let wire: Wire = serde_json::from_value(json).expect("read");
        assert_eq!((wire.address6, wire.gateway6, wire.default_route6), (None, None, false));
    }
}
