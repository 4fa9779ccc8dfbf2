//! A disagreement, in a form that can be examined and run again.

use std::{
    borrow::Cow,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgBlock as _, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use super::{Step, Underlay};
use crate::model::{Program, Tables};

/// A disagreement between the programs and the model.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The sequence's seed.
    pub seed: u64,
    /// The first difference.
    pub disagreement: String,
    /// The sequence up to the packet with the disagreement.
    pub steps: Vec<Step>,
    /// The maps before that packet.
    pub tables: Tables,
}

impl Failure {
    /// The underlay's family, as the command line calls it.
    pub fn underlay(&self) -> Underlay {
        if self.tables.ipv6 { Underlay::Ipv6 } else { Underlay::Ipv4 }
    }

    /// Writes the sequence as pcapng to `fuzz/SEED-UNDERLAY.pcapng` in cargo's target directory,
    /// and returns its path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_pcapng(&self) -> io::Result<PathBuf> {
        let folder = target(&std::env::current_exe()?).join("fuzz");
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}-{}.pcapng", self.seed, self.underlay()));
        let file = io::BufWriter::new(fs::File::create(&path)?);
        self.write_to(file).map_err(io::Error::other)?;
        Ok(path)
    }

    /// The packets as the programs received them, one per second. Each program has an interface,
    /// and each packet has its number as a comment. The last packet also has the model's
    /// prediction.
    fn write_to(&self, file: impl io::Write) -> Result<(), pcap_file::PcapError> {
        let mut writer = PcapNgWriter::new(file)?;
        for program in Program::ALL {
            let name =
                InterfaceDescriptionOption::IfName(Cow::Borrowed(program.name(self.tables.ipv6)));
            let interface = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: 0,
                options: vec![name, InterfaceDescriptionOption::IfTsResol(NANOSECONDS)],
            };
            writer.write_block(&interface.into_block())?;
        }
        for (i, step) in self.steps.iter().enumerate() {
            let mut comment = format!("step {}", i + 1);
            if step.segment != 0 {
                comment.push_str(&format!(", an aggregate of segments of {}", step.segment));
            }
            if i + 1 == self.steps.len() {
                comment.push_str(&format!(": {}", self.disagreement));
            }
            let interface = Program::ALL.iter().position(|program| *program == step.program);
            let packet = EnhancedPacketBlock {
                interface_id: interface.expect("one of all") as u32,
                timestamp: Duration::from_secs(i as u64),
                original_len: step.packet.len() as u32,
                data: Cow::Borrowed(&step.packet),
                options: vec![EnhancedPacketOption::Comment(Cow::Owned(comment))],
            };
            writer.write_block(&packet.into_block())?;
        }
        Ok(())
    }
}

/// `if_tsresol`: times are in nanoseconds, as pcap-file writes them.
const NANOSECONDS: u8 = 9;

/// Cargo's target directory, from the path of a program in `target/PROFILE` or, for tests, in
/// `target/PROFILE/deps`; otherwise the program's own folder.
fn target(program: &Path) -> PathBuf {
    let folder = program.parent().unwrap_or(Path::new("."));
    let profile = if folder.ends_with("deps") { folder.parent() } else { Some(folder) };
    profile.and_then(Path::parent).unwrap_or(folder).to_owned()
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A debug print with the maps' byte arrays in readable form: addresses with dots, ports as
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
        if let Some(Step { program, packet, segment }) = steps.last() {
            let (name, length) = (program.name(tables.ipv6), packet.len());
            writeln!(f, "program {name}, {length} bytes, segments of {segment}: {}", hex(packet))?;
        }
        writeln!(f, "{disagreement}\n{:?}", tables.config)?;
        let agent = &tables.agent;
        writeln!(f, "links: {:?}\nnetworks: {:?}", agent.links, agent.networks)?;
        writeln!(f, "services: {:?} cursors: {:?}", agent.services, tables.cursors)?;
        writeln!(f, "slots: {:?}\nbackends: {:?}", agent.slots, agent.backends)?;
        writeln!(f, "published: {:?} on {:?}", agent.published, agent.local_addrs)?;
        writeln!(f, "peers: {:?}", agent.peers.keys())?;
        writeln!(f, "egress: {:?} subnets: {:?}", agent.egress, agent.subnets)?;
        writeln!(f, "tables: {:?}", agent.tables)?;
        writeln!(f, "active: {:?} affinity: {:?}", tables.active, tables.affinity)?;
        writeln!(f, "usage: {:?} gone: {:?}", tables.usage, agent.stale_backends)?;
        for (key, endpoint) in &agent.endpoints {
            writeln!(f, "{key:?}: {endpoint:?}")?;
        }
        writeln!(f, "links6: {:?}\nendpoints6: {:?}", agent.links6, agent.endpoints6)?;
        for (key, entry) in tables.flows() {
            writeln!(f, "{key:?}: {entry:?}")?;
        }
        match self.write_pcapng() {
            Ok(path) => write!(f, "the sequence: {}", path.display())?,
            Err(error) => write!(f, "the sequence cannot be written: {error}")?,
        }
        Ok(f)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    #[test]
    fn a_failure_is_written_with_the_program_and_the_number_of_each_packet() {
        let step = |program, byte, segment| Step { program, packet: vec![byte; 60], segment };
        let failure = Failure {
            seed: 7,
            disagreement: "verdict 2".to_owned(),
            steps: vec![step(Program::Container, 1, 0), step(Program::Xdp, 2, 100)],
            tables: Tables::default(),
        };
        let mut file = Vec::new();
        failure.write_to(&mut file).expect("written");
        let mut reader = PcapNgReader::new(Cursor::new(file)).expect("a capture");
        let mut packets = Vec::new();
        while let Some(block) = reader.next_block() {
            if let Block::EnhancedPacket(packet) = block.expect("a block") {
                let EnhancedPacketBlock { interface_id, data, options, .. } = packet.into_owned();
                let [EnhancedPacketOption::Comment(comment)] = &options[..] else {
                    panic!("{options:?}");
                };
                packets.push((interface_id, data[0], comment.to_string()));
            }
        }
        let last = "step 2, an aggregate of segments of 100: verdict 2".to_owned();
        assert_eq!(packets, [(0, 1, "step 1".to_owned()), (3, 2, last)]);
        let interfaces: Vec<String> = reader
            .interfaces()
            .iter()
            .flat_map(|interface| &interface.options)
            .filter_map(|option| match option {
                InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                _ => None,
            })
            .collect();
        assert_eq!(interfaces, Program::ALL.map(|program| program.name(false)));
    }

    #[test]
    fn the_target_directory_is_found_from_programs_and_from_tests() {
        for program in ["/a/target/debug/overlay-fuzz", "/a/target/debug/deps/datapath_60-1"] {
            assert_eq!(target(Path::new(program)), Path::new("/a/target"));
        }
    }

    #[test]
    fn addresses_and_ports_are_told_as_they_are_read() {
        let text = "K { ip: Be32 { bytes: [10, 0, 1, 2] }, p: Be16 { bytes: [0, 80] }, \
                    mac: Mac { bytes: [2, 66, 10, 0, 1, 2] } }";
        assert_eq!(readable(text), "K { ip: 10.0.1.2, p: 80, mac: 02:42:0a:00:01:02 }");
    }
}
