//! Attaching programs. Every function is a *set*: a link that is there gets the new program in one
//! atomic step, one that belongs to an interface or cgroup of the past is replaced.

use std::{
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, LinkOrder, Program, ProgramError, ProgramFd, SchedClassifier,
        TcAttachType, Xdp, links::FdLink, tc::TcAttachOptions,
    },
};
use nix::libc;

use super::{
    TcFlavour, clsact, kernel, netlink,
    object::{SOCKET_PROGRAMS, missing},
    pins::{LinkKind, Pins},
    sys::{self, Target},
    words,
};
use crate::{
    datapath::{DatapathError, XdpMode},
    link::is_physical,
};

/// The loaded programs and the places where they are pinned.
pub(super) struct Attacher {
    pub(super) ebpf: Ebpf,
    pub(super) pins: Pins,
    pub(super) flavour: TcFlavour,
}

impl Attacher {
    /// Attaches a classifier to the ingress of an interface, before the programs of others. A
    /// program that passes a packet ends the chain, and only our program checks the source.
    pub(super) fn classifier(&mut self, name: &str, iface: &str) -> Result<(), DatapathError> {
        let action = || format!("attach {name} to the ingress of {iface}");
        let ifindex = ifindex(iface, &action)?;
        let Self { ebpf, pins, flavour } = self;
        let program: &mut SchedClassifier = program(ebpf, name)?;
        if *flavour == TcFlavour::Clsact {
            return clsact::attach(pins, program, name, (iface, ifindex));
        }
        let place = Place { pins, kind: LinkKind::Tcx, name: iface, target: Target::Tcx(ifindex) };
        if place.replace(program.fd(), &action)? {
            return Ok(());
        }
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program
            .attach_with_options(iface, TcAttachType::Ingress, options)
            .and_then(|id| program.take_link(id))
            .map_err(|e| kernel(action(), words(&e)))?;
        place.pin(link.try_into(), &action)
    }

    /// Attaches the XDP program as `mode` says, or removes it. Returns the mode in force.
    pub(super) fn xdp(&mut self, iface: &str, mode: XdpMode) -> Result<XdpMode, DatapathError> {
        let wanted = match mode {
            XdpMode::Auto if is_physical(iface) => XdpMode::Native,
            XdpMode::Auto => XdpMode::Off,
            mode => mode,
        };
        let outcome = match wanted {
            XdpMode::Native => self.attach_xdp(iface, aya::programs::XdpMode::Driver),
            XdpMode::Generic => self.attach_xdp(iface, aya::programs::XdpMode::Skb),
            XdpMode::Auto | XdpMode::Off => self.pins.remove_link(LinkKind::Xdp, iface),
        };
        match outcome {
            Ok(()) => Ok(wanted),
            // Native mode was not requested, and TC does everything that XDP does.
            Err(e) if mode == XdpMode::Auto => {
                tracing::warn!("XDP stays off: {e}");
                self.pins.remove_link(LinkKind::Xdp, iface)?;
                Ok(XdpMode::Off)
            }
            Err(e) => Err(e),
        }
    }

    fn attach_xdp(
        &mut self,
        iface: &str,
        mode: aya::programs::XdpMode,
    ) -> Result<(), DatapathError> {
        let native = mode == aya::programs::XdpMode::Driver;
        let action = || {
            let mode = if native { "native" } else { "generic" };
            format!("attach xdp_underlay to {iface} in {mode} mode")
        };
        let ifindex = ifindex(iface, &action)?;
        let Self { ebpf, pins, .. } = self;
        let place = Place { pins, kind: LinkKind::Xdp, name: iface, target: Target::Xdp(ifindex) };
        // A link keeps its mode for life.
        if let Some((_, info)) = pins.open_link(LinkKind::Xdp, iface)? {
            let programs = netlink::xdp_programs(ifindex).map_err(|e| kernel(action(), e))?;
            let current = if native { programs.0 } else { programs.1 };
            if current != Some(info.program) {
                pins.remove_link(LinkKind::Xdp, iface)?;
            }
        }
        let program: &mut Xdp = program(ebpf, "xdp_underlay")?;
        if place.replace(program.fd(), &action)? {
            return Ok(());
        }
        let link = program
            .attach(iface, mode)
            .and_then(|id| program.take_link(id))
            .map_err(|e| kernel(action(), xdp_reason(&e, native)))?;
        place.pin(link.try_into(), &action)
    }

    /// Attaches the socket programs to a cgroup, beside those of others.
    pub(super) fn sockets(&mut self, cgroup: &Path) -> Result<(), DatapathError> {
        let shown = cgroup.display();
        let directory = std::fs::File::open(cgroup)
            .map_err(|e| kernel(format!("open the cgroup directory {shown}"), e))?;
        let kind = nix::sys::statfs::fstatfs(&directory).map(|s| s.filesystem_type());
        let is_cgroup2 = kind == Ok(nix::sys::statfs::CGROUP2_SUPER_MAGIC);
        let inode = directory.metadata().map(|m| m.ino());
        let (true, Ok(id)) = (is_cgroup2, inode) else {
            return Err(DatapathError::Unsupported {
                what: format!("{shown} is no cgroup v2 directory"),
                remedy: "name one with --cgroup; `mount -t cgroup2` lists them".to_owned(),
            });
        };
        for name in SOCKET_PROGRAMS {
            let action = || format!("attach {name} to the cgroup {shown}");
            let target = Target::Cgroup(id);
            let place = Place { pins: &self.pins, kind: LinkKind::Socket, name, target };
            let program = self.ebpf.program_mut(name).ok_or_else(|| missing("program", name))?;
            if place.replace(program.fd(), &action)? {
                continue;
            }
            // A cgroup link always stands beside others (cgroup_bpf_link_attach in
            // kernel/bpf/cgroup.c), and refuses the flag that would say so: this mode has none.
            let mode = CgroupAttachMode::Single;
            let link = match program {
                Program::CgroupSockAddr(program) => {
                    let link = program.attach(&directory, mode);
                    link.and_then(|id| program.take_link(id)).map(TryInto::try_into)
                }
                Program::CgroupSock(program) => {
                    let link = program.attach(&directory, mode);
                    link.and_then(|id| program.take_link(id)).map(TryInto::try_into)
                }
                _ => return Err(missing("program of the right type named", name)),
            };
            place.pin(link.map_err(|e| kernel(action(), words(&e)))?, &action)?;
        }
        Ok(())
    }

    /// Removes the pins of interfaces and cgroups that no longer exist.
    pub(super) fn prune(&self) -> Result<(), DatapathError> {
        for (kind, name) in self.pins.list_links()? {
            let gone = match kind {
                LinkKind::Clsact => !clsact::is_attached(&name)?,
                _ => self
                    .pins
                    .open_link(kind, &name)?
                    .is_some_and(|(_, info)| info.target == Target::Gone),
            };
            if gone {
                self.pins.remove_link(kind, &name)?;
            }
        }
        Ok(())
    }

    /// Detaches everything from an interface. A missing attachment is no error.
    pub(super) fn detach(&self, iface: &str) -> Result<(), DatapathError> {
        self.pins.remove_link(LinkKind::Tcx, iface)?;
        self.pins.remove_link(LinkKind::Xdp, iface)?;
        if self.pins.link(LinkKind::Clsact, iface).exists() {
            clsact::detach(&self.pins, iface)?;
        }
        Ok(())
    }

    /// Interfaces with a pinned attachment, sorted.
    pub(super) fn interfaces(&self) -> Result<Vec<String>, DatapathError> {
        let links = self.pins.list_links()?.into_iter();
        let mut names: Vec<String> =
            links.filter(|(kind, _)| *kind != LinkKind::Socket).map(|(_, name)| name).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// A place for one program: the pin of its link and the required target of the link.
struct Place<'a> {
    pins: &'a Pins,
    kind: LinkKind,
    name: &'a str,
    target: Target,
}

impl Place<'_> {
    /// Puts the program into the link that is pinned here. False when no link of this target is
    /// pinned; the pin of a link to another target is removed.
    fn replace(
        &self,
        program: Result<&ProgramFd, ProgramError>,
        action: &dyn Fn() -> String,
    ) -> Result<bool, DatapathError> {
        let program = program.map_err(|e| kernel(action(), words(&e)))?;
        let Some(link) = self.open()? else { return Ok(false) };
        match sys::update_link(link.as_fd(), program.as_fd()) {
            Ok(()) => Ok(true),
            // The interface went since the link was opened.
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {
                self.pins.remove_link(self.kind, self.name)?;
                Ok(false)
            }
            Err(e) => Err(kernel(action(), e)),
        }
    }

    /// The pinned link of this target, also when its interface had another name when it was
    /// pinned: a second link on the same interface would handle every packet twice.
    fn open(&self) -> Result<Option<OwnedFd>, DatapathError> {
        if let Some((link, info)) = self.pins.open_link(self.kind, self.name)? {
            if info.target == self.target {
                return Ok(Some(link));
            }
            self.pins.remove_link(self.kind, self.name)?;
        }
        if self.kind == LinkKind::Socket {
            return Ok(None);
        }
        for (kind, name) in self.pins.list_links()? {
            if kind != self.kind {
                continue;
            }
            if let Some((link, info)) = self.pins.open_link(kind, &name)?
                && info.target == self.target
            {
                let (from, to) = (self.pins.link(kind, &name), self.pins.link(kind, self.name));
                std::fs::rename(&from, &to)
                    .map_err(|e| kernel(format!("rename the pin {}", from.display()), e))?;
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    fn pin(
        &self,
        link: Result<FdLink, aya::programs::links::LinkError>,
        action: &dyn Fn() -> String,
    ) -> Result<(), DatapathError> {
        let path = self.pins.link(self.kind, self.name);
        let link = link.map_err(|e| kernel(action(), words(&e)))?;
        link.pin(&path)
            .map(drop)
            .map_err(|e| kernel(format!("pin the link at {}", path.display()), words(&e)))
    }
}

/// The loaded program of that name and type.
fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, DatapathError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| missing("program", name))?;
    program.try_into().map_err(|_| missing("program of the right type named", name))
}

pub(super) fn ifindex(iface: &str, action: &dyn Fn() -> String) -> Result<u32, DatapathError> {
    nix::net::if_::if_nametoindex(iface).map_err(|_| {
        kernel(action(), "there is no such interface in this network namespace (`ip link`)")
    })
}

fn xdp_reason(error: &ProgramError, native: bool) -> String {
    let number = match error {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        _ => None,
    };
    let said = words(error);
    match number {
        Some(libc::EBUSY | libc::EEXIST) => format!(
            "{said}: another XDP program is attached there; remove it (`ip link set dev IF xdp \
             off`) or use --xdp off"
        ),
        _ if native => format!(
            "{said}: the driver cannot, or not with this MTU or number of queues; use --xdp \
             generic or --xdp off"
        ),
        _ => said,
    }
}
