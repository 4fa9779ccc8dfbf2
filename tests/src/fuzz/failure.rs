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

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, disagreement, steps, tables } = self;
        writeln!(f, "seed {seed}, step {}: the program and the model disagree", steps.len())?;
        if let Some(Step { program, packet }) = steps.last() {
            writeln!(f, "program {}, {} bytes: {packet:02x?}", program.name(), packet.len())?;
        }
        writeln!(f, "{disagreement}\n{:?}", tables.config)?;
        let agent = &tables.agent;
        writeln!(f, "links: {:?}\nnetworks: {:?}", agent.links, agent.networks)?;
        writeln!(f, "services: {:?} cursors: {:?}", agent.services, tables.cursors)?;
        writeln!(f, "slots: {:?}\nbackends: {:?}", agent.slots, agent.backends)?;
        writeln!(f, "published: {:?} on {:?}", agent.published, agent.local_addrs)?;
        writeln!(f, "peers: {:?}", agent.peers.keys())?;
        for (key, endpoint) in &agent.endpoints {
            writeln!(f, "{key:?}: {endpoint:?}")?;
        }
        for (key, entry) in &tables.conntrack {
            writeln!(f, "{key:?}: {entry:?}")?;
        }
        match self.write_pcap() {
            Ok(path) => write!(f, "the sequence: {}", path.display()),
            Err(error) => write!(f, "the sequence cannot be written: {error}"),
        }
    }
}
