//! The names of the interfaces that the agent makes.

use crate::model::Id;

/// The kernel's vxlan device.
pub const VXLAN: &str = "ovl-vxlan";
/// The host's end of the host link.
pub const HOST_END: &str = "ovl-host";
/// The programs' end of the host link.
pub const PROGRAM_END: &str = "ovl-prog";
/// The prefix of these three names, and of no other interface that the agent makes.
pub const OWN_PREFIX: &str = "ovl-";
/// The prefix of the host-side end of an endpoint's veth pair; 12 characters of the endpoint's id
/// follow.
pub const ENDPOINT_PREFIX: &str = "ov";

/// Name of the host-side end of an endpoint's link.
pub fn host_name(endpoint: &Id) -> String {
    format!("{ENDPOINT_PREFIX}{}", endpoint.short())
}

/// Whether [`host_name`] gives such a name. Other software has interfaces that begin with the same
/// two letters.
pub fn is_endpoint_link(name: &str) -> bool {
    let id = name.strip_prefix(ENDPOINT_PREFIX).unwrap_or_default();
    let ours = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    id.len() == host_name(&Id::random()).len() - ENDPOINT_PREFIX.len() && id.bytes().all(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_endpoints_are_taken_for_ours() {
        assert!(is_endpoint_link(&host_name(&Id::random())));
        for name in ["ovs-system", "ovl-vxlan", "ovn0", "ov", "ovABCDEFGHIJKL", "ov1234567890123"] {
            assert!(!is_endpoint_link(name), "{name}");
        }
    }
}
