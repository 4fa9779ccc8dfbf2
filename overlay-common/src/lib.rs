//! The contract between the kernel side and the user side of the datapath: the layout of every
//! map's keys and values, the wire formats, the named reasons and the arithmetic that both sides
//! use.
//!
//! Everything here is `no_std`, allocation-free and unit-tested on the host.
#![cfg_attr(not(test), no_std)]

mod addr;
pub mod checksum;
pub mod event;
pub mod flow;
mod frontend;
pub mod hash;
pub mod maps;
pub mod observe;
mod pod;
mod reason;
pub mod wire;

pub use addr::{Be16, Be32, Ip6, Mac};
pub use frontend::Frontend;
pub use pod::Plain;
pub use reason::{COUNTERS, Direction, Reason};

/// Version of the map layouts. It names the pin directory (`.../v2/`), so that a program never
/// reads bytes of another version. The agent migrates what layout 1 holds
/// (`overlay_user::datapath::bpf::migrate`).
pub const LAYOUT_VERSION: u32 = 2;

/// Bytes that VXLAN adds in front of an inner Ethernet frame on an IPv4 underlay: Ethernet 14,
/// IPv4 20, UDP 8, VXLAN 8 (RFC 7348, section 5).
pub const VXLAN_OVERHEAD: u32 = 50;

/// As [`VXLAN_OVERHEAD`] on an IPv6 underlay: the IPv6 header is 20 bytes longer (RFC 8200,
/// section 3).
pub const VXLAN_OVERHEAD6: u32 = 70;

/// The UDP port IANA assigned to VXLAN (RFC 7348, section 5).
pub const DEFAULT_DATA_PATH_PORT: u16 = 4789;

/// VNI of the `ingress` network. Docker's overlay driver starts counting here.
pub const INGRESS_VNI: u32 = 4096;

/// VNI of the node-local `bridge` network. VNIs below [`INGRESS_VNI`] are never allocated to
/// overlay networks. This one is never sent to the wire and never accepted from it.
pub const BRIDGE_VNI: u32 = 1;

/// Pseudo VNI of the underlay in conntrack keys and the peer table (0 is never a network's VNI).
pub const UNDERLAY_VNI: u32 = 0;
