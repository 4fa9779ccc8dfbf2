//! Services, their backends and published ports.

use crate::{Be16, Be32, Mac};

/// Map `services`, hash by service number (`u32`): written by the agent; read where a flow is new.
/// A number stands for one service on one network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// The network of the backends.
    pub vni: u32,
    /// The VIP on that network; zero when the service has none (dnsrr, or ports only).
    pub vip: Be32,
    /// How many entries of `slots` the service has: 0 means no backend takes new flows.
    pub slots: u32,
    /// Spare, zero.
    pub flags: u32,
}

/// Map `rr_cursor`, hash by service number (`u32`) of `u32`: how many picks were made. Created and
/// removed by the agent, advanced by the programs, and so kept apart from [`Service`].
pub type Cursor = u32;

/// Key of map `slots`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// The service's number.
    pub service: u32,
    /// 0 to [`Service::slots`] - 1.
    pub index: u32,
}

/// Map `slots`, hash of backend numbers (`u32`): the backends that take new flows.
pub type Slot = u32;

/// Map `backends`, hash by backend number (`u32`): every backend that may have flows, draining
/// ones included. A number is never given twice in the life of a cluster. Written by the agent;
/// read on every packet of a translated flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// Its network.
    pub vni: u32,
    /// Its address.
    pub ip: Be32,
    /// VTEP of its node; zero when it is on this one.
    pub node: Be32,
    /// Index of its host-side interface when it is on this node, otherwise 0.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: Mac,
    /// One of `BACKEND_*`.
    pub state: u16,
    /// Its slot in `endpoint_counters` when it is on this node, otherwise 0.
    pub slot: u32,
}

/// The backend takes new flows.
pub const BACKEND_ACTIVE: u16 = 1;
/// The backend keeps its flows and takes no new ones.
pub const BACKEND_DRAINING: u16 = 2;

/// Key of map `published`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PublishedKey {
    /// The published port.
    pub port: Be16,
    /// IP protocol number.
    pub proto: u8,
    /// Padding, zero.
    pub pad: u8,
}

/// Map `published`, hash: ports of the host that a service answers. Written by the agent; read by
/// `from_underlay`, `xdp_underlay`, `from_container` (host link) and the socket programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Published {
    /// The service's number.
    pub service: u32,
    /// The backends' port.
    pub target: Be16,
    /// Padding, zero.
    pub pad: u16,
}

/// Map `local_addrs`, hash by address ([`Be32`]) of `u32`: addresses of the host on which
/// published ports answer. Written by the agent.
pub type LocalAddr = u32;
