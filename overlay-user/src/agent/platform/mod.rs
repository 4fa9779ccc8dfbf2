//! The host around the agent: namespaces, processes, cgroups, name servers.

mod host;
mod linux;
mod names;
mod probe;
mod process;

pub use host::{Host, NameServers, NamespaceId};
pub use linux::{LinuxHost, boot_id, local_ports, namespace_at};
pub use names::ContainerNames;
pub use probe::Checked;
pub use process::{Process, pidfd, process};
