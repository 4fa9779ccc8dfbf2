//! "Only the first fragment of a packet says its ports: for 30 seconds the later ones are taken for what it
//! was."

use overlay_common::{
    Be16, Be32, Reason,
    maps::{Fragment, FragmentKey},
    wire::Udp,
};

use super::{
    frame::{Ip, bytes},
    walk::Walk,
};

const SECOND: u64 = 1_000_000_000;

fn key(ip: &Ip, vni: u32) -> FragmentKey {
    let (saddr, daddr) = (ip.src.into(), ip.dst.into());
    FragmentKey { saddr, daddr, vni, id: Be32::new(ip.id.into()), proto: ip.protocol, pad: [0; 3] }
}

/// Keeps how the transport header of a first fragment begins.
pub fn keep(walk: &mut Walk<'_>, ip: &Ip, vni: u32) -> Result<(), Reason> {
    let [a, b, c, d, e, f, g, h]: [u8; 8] =
        bytes(&walk.frame, ip.payload()).ok_or(Reason::Truncated)?;
    let half = |high, low| Be16::new(u16::from_be_bytes([high, low]));
    let head =
        Udp { source: half(a, b), dest: half(c, d), length: half(e, f), checksum: half(g, h) };
    walk.tables.fragments.insert(key(ip, vni), Fragment { head, seen: walk.now });
    Ok(())
}

/// What was kept of a later fragment's first one.
pub fn head(walk: &Walk<'_>, ip: &Ip, vni: u32) -> Result<Udp, Reason> {
    let kept = walk.tables.fragments.get(&key(ip, vni)).ok_or(Reason::Fragment)?;
    let is_old = walk.now.saturating_sub(kept.seen) > 30 * SECOND;
    if is_old { Err(Reason::Fragment) } else { Ok(kept.head) }
}
