//! The cluster-in-a-box: hosts as network namespaces on one underlay segment, with real `overlay`
//! daemons, real containers and real traffic. The suites under `tests/` and the walk-through
//! (`overlay-demo`) are written with it.
//!
//! ```no_run
//! use overlay_tests::{Cluster, Options, Place as _};
//!
//! # fn main() -> anyhow::Result<()> {
//! let cluster = Cluster::formed(3, Options::default())?;
//! cluster.host(1).network_create("mynet", &[])?;
//! let hello = cluster.host(2).container("hello").network("mynet").http(8080)?;
//! let asker = cluster.host(3).container("asker").network("mynet").idle()?;
//! assert_eq!(asker.http_get("hello:8080")?.name, "hello");
//! # drop(hello);
//! # Ok(())
//! # }
//! ```
//!
//! Everything of one instance carries its prefix: namespaces, pins, the directory, and an
//! environment variable of every process. Whatever happens to the process that made it, a
//! guardian process removes it all (see [`cleanup`]).

pub mod bench;
pub mod binaries;
pub mod bpf;
pub mod bpffs;
pub mod cleanup;
pub mod demo;
pub mod fuzz;
pub mod model;
pub mod netns;
pub mod process;
pub mod rig;
pub mod testkit;

mod api;
mod cluster;
mod container;
mod guardian;
mod host;
mod place;
mod shared;
mod wait;

pub use cluster::{Client, Cluster, Options};
pub use container::{Container, ContainerBuilder};
pub use host::{Host, refusal};
pub use place::{Place, Running, wait_listening};
pub use shared::Shared;
pub use wait::{check_interrupted, eventually, on_interrupt, patience};
