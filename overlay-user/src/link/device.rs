//! Settings of one interface that netlink does not carry: sysctls and ethtool's features.
//! Everything here acts in the namespace of the calling thread.

use std::io;

use super::{LinkError, netns::kernel};

/// Sets `net.FAMILY.conf.DEVICE.KEY`: of this device only, never `all` or `default`.
///
/// A value that is already there is not written again, so a host that sets it and mounts
/// /proc/sys read-only works.
///
/// # Errors
/// [`LinkError::Kernel`] names the sysctl.
pub(super) fn set_sysctl(
    family: &str,
    device: &str,
    key: &str,
    value: &str,
) -> Result<(), LinkError> {
    // /proc/sys/net shows the namespace of the thread that opens it.
    let path = format!("/proc/sys/net/{family}/conf/{device}/{key}");
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|e| kernel(format!("write {value} to {path}"), e))
}

/// IPv6 off: nothing on the interface answers it, and its multicast would only be noise. To be
/// called after the MTU is set: below 1280 an interface has no IPv6 and no sysctls of it, and
/// raising the MTU brings both back (RFC 8200, section 5; net/ipv6/addrconf.c).
///
/// # Errors
/// [`LinkError::Kernel`] names the sysctl.
pub(super) fn disable_ipv6(device: &str) -> Result<(), LinkError> {
    if !std::path::Path::new("/proc/sys/net/ipv6/conf").join(device).exists() {
        return Ok(());
    }
    set_sysctl("ipv6", device, "disable_ipv6", "1")
}

/// Turns IPv6 forwarding on, for route lookups with this interface as the input interface. An
/// interface without IPv6 (see [`disable_ipv6`]) is left alone.
///
/// # Errors
/// [`LinkError::Kernel`] names the sysctl.
pub(super) fn forward_ipv6(device: &str) -> Result<(), LinkError> {
    if !std::path::Path::new("/proc/sys/net/ipv6/conf").join(device).exists() {
        return Ok(());
    }
    set_sysctl("ipv6", device, "forwarding", "1")
}

/// IPv6 on for an endpoint of a dual-stack network, before it is brought up: its addresses are the
/// manager's alone, so there is no autoconfiguration, no router is listened to, and no time is
/// spent on looking for duplicates. The link-local address is that of the MAC, which is the only
/// one the datapath lets through.
///
/// # Errors
/// [`LinkError::Kernel`] when the namespace has no IPv6, the MTU is too small for it (1280), or a
/// sysctl cannot be written.
pub(super) fn enable_ipv6(device: &str) -> Result<(), LinkError> {
    if !std::path::Path::new("/proc/sys/net/ipv6/conf").join(device).exists() {
        return Err(kernel(
            format!("give {device} an IPv6 address"),
            "the kernel has IPv6 off (ipv6.disable=1), or the MTU is below 1280; use a network \
             without --ipv6, or one with a larger MTU",
        ));
    }
    let settings = [
        ("disable_ipv6", "0"),
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("accept_redirects", "0"),
        ("accept_dad", "0"),
        ("addr_gen_mode", "0"),
    ];
    settings.iter().try_for_each(|(key, value)| set_sysctl("ipv6", device, key, value))
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `ETHTOOL_GTXCSUM` of linux/ethtool.h.
const ETHTOOL_GTXCSUM: u32 = 0x16;
/// `ETHTOOL_SGRO` of linux/ethtool.h.
const ETHTOOL_SGRO: u32 = 0x2c;
/// `ETHTOOL_GDRVINFO` of linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x03;

/// Turns GRO on, as `ethtool -K DEVICE gro on` does. On a veth this starts NAPI. Without NAPI,
/// XDP_REDIRECT into the veth drops every packet.
///
/// # Errors
/// [`LinkError::Kernel`] names the interface.
pub(super) fn enable_gro(device: &str) -> Result<(), LinkError> {
    let mut value = EthtoolValue { command: ETHTOOL_SGRO, data: 1 };
    ethtool(device, &raw mut value).map_err(|e| kernel(format!("turn GRO on for {device}"), e))
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    erom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// Whether the interface is a device on a bus (PCI, virtio, ..), as opposed to one of software:
/// veth, bridge, bond, VLAN. sysfs would tell too, but it shows the namespace it was mounted in.
pub(crate) fn is_physical(device: &str) -> bool {
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        erom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    // Devices of software have no bus: the kernel leaves the field empty, or veth-like drivers
    // fail the call.
    ethtool(device, &raw mut info).is_ok() && info.bus[0] != 0 && !info.bus.starts_with(b"N/A")
}

/// Whether packets that the interface receives have complete checksums. On the wire of a NIC they
/// always do. A driver that may get unfinished packets from its other side (virtio) turns that off
/// for XDP. On a veth the sender leaves the checksum incomplete unless its own offload is off. The
/// sender's setting is not visible from here, but a pair that is set up as a wire has the offload
/// off at both ends, so this function looks at this end.
pub(super) fn receives_checksums(device: &str) -> bool {
    let mut value = EthtoolValue { command: ETHTOOL_GTXCSUM, data: 1 };
    is_physical(device) || (ethtool(device, &raw mut value).is_ok() && value.data == 0)
}

/// One `SIOCETHTOOL` call. `argument` points to a structure with the command as its first word.
fn ethtool<T>(device: &str, argument: *mut T) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)))?;
    // SAFETY: an all-zero ifreq is valid: it is a name and a union of integers and pointers.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as nix::libc::c_char;
    }
    request.ifr_ifru.ifru_data = argument.cast();
    // SAFETY: the request holds a name that ends in a zero byte and a pointer to a live structure
    // of the size that its command word says, which the kernel reads and writes during the call.
    let status =
        unsafe { nix::libc::ioctl(socket.as_raw_fd(), nix::libc::SIOCETHTOOL as _, &mut request) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::testing::{TestNetns, is_root};

    #[test]
    fn gro_sysctls_and_drivers_of_a_veth() {
        if !is_root("changing a veth") {
            return;
        }
        let host = TestNetns::new();
        host.command("ip link add veth-a type veth peer name veth-b");
        host.run(|| {
            enable_gro("veth-a").expect("GRO on");
            set_sysctl("ipv4", "veth-a", "forwarding", "1").expect("forwarding on");
            disable_ipv6("veth-a").expect("IPv6 off");
            assert!(!is_physical("veth-a"), "a veth is no physical device");
            assert!(!is_physical("lo"));
            assert!(!receives_checksums("veth-a"), "a veth leaves checksums to the receiver");
            assert!(enable_gro("missing").is_err(), "a missing interface is an error");
            assert!(!receives_checksums("missing"));
            assert!(set_sysctl("ipv4", "missing", "forwarding", "1").is_err());
            let read = |path: &str| std::fs::read_to_string(path).expect("a sysctl");
            assert_eq!(read("/proc/sys/net/ipv4/conf/veth-a/forwarding"), "1\n");
            assert_eq!(
                read("/proc/sys/net/ipv4/conf/veth-b/forwarding"),
                "0\n",
                "the other is left alone"
            );
            assert_eq!(read("/proc/sys/net/ipv4/ip_forward"), "0\n", "and so is the host");
        });
    }
}
