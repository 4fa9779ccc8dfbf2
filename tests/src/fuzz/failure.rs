//! A disagreement, told so that it can be looked at and run again.

use std::{fmt, fs::File, io, path::PathBuf, time::Duration};

use pcap_file::pcap::{PcapPacket, PcapWriter};

use super::Step;
use crate::model::Tables;

/// Where the programs and the model disagree.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The sequence's seed.
    pub seed: u64,
    /// What differs.
    pub disagreement: String,
    /// The sequence up to the packet that they disagree on.
    pub steps: Vec<Step>,
    /// The maps before that packet.
    pub tables: Tables,
}

impl Failure {
    /// Writes the sequence as a pcap beside this program, which is in cargo's target directory,
    /// and returns its path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_pcap(&self) -> io::Result<PathBuf> {
        let program = std::env::current_exe()?;
        let path = program.with_file_name(format!("fuzz-{}.pcap", self.seed));
        let mut pcap = PcapWriter::new(File::create(&path)?).map_err(io::Error::other)?;
        for (i, Step { packet, .. }) in self.steps.iter().enumerate() {
            let packet =
                PcapPacket::new(Duration::from_secs(i as u64), packet.len() as u32, packet);
            pcap.write_packet(&packet).map_err(io::Error::other)?;
        }
        Ok(path)
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A debug print with the maps' byte arrays as they are read: addresses with dots, ports as
/// numbers.
fn readable(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in text.split(" { bytes: [").enumerate() {
        let Some((bytes, rest)) = part.split_once("] }").filter(|_| i > 0) else {
            out.push_str(part);
            continue;
        };
        for name in ["Be16", "Be32", "Ip6", "Mac"] {
            if let Some(without) = out.strip_suffix(name) {
                out.truncate(without.len());
            }
        }
        let bytes: Vec<u8> = bytes.split(", ").filter_map(|byte| byte.parse().ok()).collect();
        match bytes[..] {
            [high, low] => out += &u16::from_be_bytes([high, low]).to_string(),
            [a, b, c, d] => out += &std::net::Ipv4Addr::new(a, b, c, d).to_string(),
            _ if bytes.len() == 16 => {
                let octets: [u8; 16] = std::array::from_fn(|i| bytes[i]);
                out += &std::net::Ipv6Addr::from(octets).to_string();
            }
            _ => out += &bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"),
        }
        out.push_str(rest);
    }
    out
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&readable(&self.tell().unwrap_or_default()))
    }
}

impl Failure {
    fn tell(&self) -> Result<String, fmt::Error> {
        use fmt::Write as _;
        let mut f = String::new();
        let Self { seed, disagreement, steps, tables } = self;
        writeln!(f, "seed {seed}, step {}: the program and the model disagree", steps.len())?;
        if let Some(Step { program, packet }) = steps.last() {
            writeln!(f, "program {}, {} bytes: {}", program.name(), packet.len(), hex(packet))?;
        }
        writeln!(f, "{disagreement}\n{:?}", tables.config)?;
        let agent = &tables.agent;
        writeln!(f, "links: {:?}\nnetworks: {:?}", agent.links, agent.networks)?;
        writeln!(f, "services: {:?} cursors: {:?}", agent.services, tables.cursors)?;
        writeln!(f, "slots: {:?}\nbackends: {:?}", agent.slots, agent.backends)?;
        writeln!(f, "published: {:?} on {:?}", agent.published, agent.local_addrs)?;
        writeln!(f, "peers: {:?}", agent.peers.keys())?;
        writeln!(f, "egress: {:?} subnets: {:?}", agent.egress, agent.subnets)?;
        writeln!(f, "usage: {:?}", tables.usage)?;
        for (key, endpoint) in &agent.endpoints {
            writeln!(f, "{key:?}: {endpoint:?}")?;
        }
        writeln!(f, "links6: {:?}\nendpoints6: {:?}", agent.links6, agent.endpoints6)?;
        for (key, entry) in &tables.conntrack {
            writeln!(f, "{key:?}: {entry:?}")?;
        }
        match self.write_pcap() {
            Ok(path) => write!(f, "the sequence: {}", path.display())?,
            Err(error) => write!(f, "the sequence cannot be written: {error}")?,
        }
        Ok(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_told_as_they_are_read() {
        let text = "K { ip: Be32 { bytes: [10, 0, 1, 2] }, p: Be16 { bytes: [0, 80] }, \
                    mac: Mac { bytes: [2, 66, 10, 0, 1, 2] } }";
        assert_eq!(readable(text), "K { ip: 10.0.1.2, p: 80, mac: 02:42:0a:00:01:02 }");
    }
}
