//! Captured packets as pcapng (draft-ietf-opsawg-pcapng), which tcpdump and Wireshark read: an
//! interface for each endpoint, and with each packet its direction and its outcome.

use std::{borrow::Cow, collections::BTreeMap, io::Write, time::Duration};

use pcap_file::{
    DataLink, Endianness,
    pcapng::{
        PcapNgBlock as _, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};

use super::events::bytes;
use crate::api::Event;

/// `epb_flags`, bits 0 and 1: the endpoint received the packet.
const INBOUND: u32 = 1;
/// `epb_flags`, bits 0 and 1: the endpoint sent the packet.
const OUTBOUND: u32 = 2;
/// `if_tsresol`: times are in nanoseconds, as pcap-file writes them.
const NANOSECONDS: u8 = 9;

/// A capture that is being written.
pub(super) struct CaptureFile<W: Write> {
    /// Big endian: of the time of an interface's statistics the upper half comes first, which in
    /// the other order pcap-file 2.0 gets wrong.
    writer: PcapNgWriter<W>,
    snaplen: u32,
    /// Number of each endpoint's interface, and packets captured there.
    interfaces: BTreeMap<(u32, Option<String>), (u32, u64)>,
    lost: u64,
    last: Duration,
}

impl<W: Write> CaptureFile<W> {
    /// Begins a capture of packets of at most `snaplen` bytes.
    ///
    /// # Errors
    /// The writer's error.
    pub(super) fn new(writer: W, snaplen: u32) -> anyhow::Result<Self> {
        let program = concat!("overlay ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Big,
            options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed(program))],
            ..SectionHeaderBlock::default()
        };
        Ok(Self {
            writer: PcapNgWriter::with_section_header(writer, section)?,
            snaplen,
            interfaces: BTreeMap::new(),
            lost: 0,
            last: Duration::ZERO,
        })
    }

    /// Writes a packet, with its endpoint's interface if it is the first one there.
    ///
    /// # Errors
    /// The writer's error.
    pub(super) fn write(&mut self, event: &Event) -> anyhow::Result<()> {
        let interface_id = self.interface(event)?;
        let direction = if event.traffic.as_deref() == Some("sent") { OUTBOUND } else { INBOUND };
        let fate = if event.dropped { "dropped" } else { "went on" };
        let comment = format!("{fate}: {}", event.reason);
        self.last = Duration::try_from(event.time.as_duration()).unwrap_or_default();
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: self.last,
            original_len: event.length,
            data: Cow::Owned(bytes(event)),
            options: vec![
                EnhancedPacketOption::Comment(Cow::Owned(comment)),
                EnhancedPacketOption::Flags(direction),
            ],
        };
        self.writer.write_block(&block.into_block())?;
        Ok(())
    }

    fn interface(&mut self, event: &Event) -> anyhow::Result<u32> {
        let key = (event.vni, event.ip.clone());
        if let Some((number, packets)) = self.interfaces.get_mut(&key) {
            *packets += 1;
            return Ok(*number);
        }
        let named = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        let ip = named(&event.ip);
        let name = event.endpoint.clone().unwrap_or_else(|| ip.clone());
        let network = event.network.clone().unwrap_or_else(|| format!("vni {}", event.vni));
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snaplen,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(format!("{name}@{network}"))),
                InterfaceDescriptionOption::IfDescription(Cow::Owned(format!(
                    "endpoint {name} with address {ip} on network {network}, VNI {}",
                    event.vni
                ))),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.writer.write_block(&block.into_block())?;
        let number = u32::try_from(self.interfaces.len())?;
        self.interfaces.insert(key, (number, 1));
        Ok(number)
    }

    /// Counts packets that were lost.
    pub(super) fn lose(&mut self, count: u64) {
        self.lost += count;
    }

    /// Flushes the buffer.
    ///
    /// # Errors
    /// The writer's error.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.writer.get_mut().flush()?)
    }

    /// Writes the statistics and flushes the buffer. The endpoints of lost packets are unknown, so
    /// the loss is reported once, with the first interface.
    ///
    /// # Errors
    /// The writer's error.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let mut interfaces: Vec<_> = self.interfaces.values().copied().collect();
        interfaces.sort_unstable();
        for (interface_id, packets) in interfaces {
            let mut options = vec![InterfaceStatisticsOption::IsbUsrDeliv(packets)];
            if interface_id == 0 {
                options.insert(0, InterfaceStatisticsOption::Comment("lost of all".into()));
                options.insert(1, InterfaceStatisticsOption::IsbOsDrop(self.lost));
            }
            let timestamp = u64::try_from(self.last.as_nanos())?;
            let block = InterfaceStatisticsBlock { interface_id, timestamp, options };
            self.writer.write_block(&block.into_block())?;
        }
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;
    use crate::cli::events::tests::event;

    #[test]
    fn a_capture_has_an_interface_for_each_endpoint_and_says_what_was_lost() {
        let mut written = Vec::new();
        let mut file = CaptureFile::new(&mut written, 2_048).expect("begun");
        let reply = Event {
            traffic: Some("received".to_owned()),
            reason: "decapsulated".to_owned(),
            dropped: false,
            ..event()
        };
        let other = Event { endpoint: None, ip: Some("10.0.1.7".to_owned()), ..event() };
        for event in [&event(), &reply, &other] {
            file.write(event).expect("written");
        }
        file.lose(5);
        file.finish().expect("finished");

        let mut reader = PcapNgReader::new(&written[..]).expect("pcapng");
        let (mut names, mut packets, mut statistics) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.expect("a block") {
                Block::InterfaceDescription(block) => {
                    assert_eq!(block.linktype, DataLink::ETHERNET);
                    names.extend(block.options.iter().filter_map(|option| match option {
                        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                        _ => None,
                    }));
                }
                Block::EnhancedPacket(block) => {
                    assert_eq!(block.data, bytes(&event()));
                    assert_eq!(block.original_len, 98);
                    assert_eq!(block.timestamp, Duration::new(1_740_830_400, 250_000_000));
                    let words: Vec<_> = block.options.iter().map(|o| format!("{o:?}")).collect();
                    packets.push((block.interface_id, words.join(" ")));
                }
                Block::InterfaceStatistics(block) => statistics.push(block.into_owned()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(names, ["web.1@mynet", "10.0.1.7@mynet"]);
        let numbers: Vec<_> = packets.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [0, 0, 1]);
        assert_eq!(packets[0].1, "Comment(\"dropped: spoofed_source\") Flags(2)");
        assert_eq!(packets[1].1, "Comment(\"went on: decapsulated\") Flags(1)");
        assert_eq!(statistics.len(), 2);
        assert!(statistics[0].options.contains(&InterfaceStatisticsOption::IsbOsDrop(5)));
        assert!(statistics[0].options.contains(&InterfaceStatisticsOption::IsbUsrDeliv(2)));
        assert_eq!(statistics[1].options, [InterfaceStatisticsOption::IsbUsrDeliv(1)]);
    }
}
