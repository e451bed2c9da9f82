//! A frame out of a capture file.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};

use crate::human;

/// For a block at first.
const ROOM: usize = 1 << 16;
/// A block of a capture file at most: what comes bigger is no capture.
const BLOCK_LIMIT: usize = 16 << 20;

/// The frame of packet `number`, from 1, of the capture file at `path`.
///
/// # Errors
/// When the file is no capture, has fewer packets, or the packet is not a whole Ethernet frame.
pub fn frame(path: &Path, number: u64) -> Result<Vec<u8>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("opening the capture {shown}"))?;
    let mut reader = create_reader(ROOM, file).map_err(|error| match error {
        PcapError::HeaderNotRecognized | PcapError::Incomplete(_) => anyhow!("{shown} is neither a pcap nor a pcapng file"),
        PcapError::Eof => anyhow!("{shown} is empty"),
        error => anyhow!("reading the capture {shown}: {}", told(&error)),
    })?;
    let mut state = State::default();
    let mut room = ROOM;
    loop {
        // What `next` gives borrows the reader: nothing of it stays.
        let problem = match reader.next() {
            Ok((length, block)) => {
                if let Some(packet) = state.take(block, number) {
                    return packet.with_context(|| format!("packet {number} of {shown}"));
                }
                reader.consume(length);
                continue;
            }
            Err(error) => error.to_owned_vec(),
        };
        match problem {
            PcapError::Eof => break,
            PcapError::Incomplete(_) => {
                reader.refill().map_err(|error| anyhow!("reading the capture {shown}: {}", told(&error)))?;
            }
            PcapError::BufferTooSmall if room < BLOCK_LIMIT => {
                room *= 2;
                ensure!(reader.grow(room), "reading the capture {shown}: a packet of it does not fit into memory");
            }
            error => bail!("the capture {shown} is damaged after packet {}: {}", state.seen, told(&error)),
        }
    }
    bail!("the capture {shown} has {}; there is no packet {number}", human::count(state.seen, "packet"))
}

/// What the library says, without the bytes that it was at.
fn told<I>(error: &PcapError<I>) -> String {
    match error {
        PcapError::ReadError => "it cannot be read".to_owned(),
        PcapError::UnexpectedEof => "it ends too early".to_owned(),
        PcapError::BufferTooSmall => "a packet is too large".to_owned(),
        PcapError::NomError(_, kind) | PcapError::OwnedNomError(_, kind) => format!("no packet begins there ({kind:?})"),
        _ => "its format is wrong".to_owned(),
    }
}

/// Where in the file we are.
#[derive(Default)]
struct State {
    /// Packets so far.
    seen: u64,
    /// What each interface's packets are; of a pcap file there is one.
    links: Vec<Linktype>,
}

impl State {
    /// Takes note of a block; gives the packet if it is that of this number.
    fn take(&mut self, block: PcapBlockOwned<'_>, number: u64) -> Option<Result<Vec<u8>>> {
        let (interface, data, length) = match block {
            PcapBlockOwned::LegacyHeader(header) => {
                self.links = vec![header.network];
                return None;
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                self.links.clear();
                return None;
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                self.links.push(interface.linktype);
                return None;
            }
            PcapBlockOwned::Legacy(packet) => (0, packet.data, packet.origlen),
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                (packet.if_id as usize, packet.data.get(..packet.caplen as usize).unwrap_or(packet.data), packet.origlen)
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                (0, packet.data.get(..packet.origlen as usize).unwrap_or(packet.data), packet.origlen)
            }
            PcapBlockOwned::NG(_) => return None,
        };
        self.seen += 1;
        (self.seen == number).then(|| whole(self.links.get(interface).copied(), data, length))
    }
}

fn whole(link: Option<Linktype>, data: &[u8], length: u32) -> Result<Vec<u8>> {
    match link {
        Some(Linktype::ETHERNET) => {}
        Some(Linktype(other)) => bail!("it is not an Ethernet frame, but of link type {other}: capture at the VM's device"),
        None => bail!("its interface is not described in the file"),
    }
    // 14 bytes are an Ethernet header. Fewer bytes than there were change what is decided, and the checksums.
    ensure!(data.len() >= 14, "its {} bytes are no Ethernet frame", data.len());
    ensure!(data.len() >= length as usize, "only {} of its {length} bytes were captured: capture with tcpdump -s 0", data.len());
    Ok(data.to_vec())
}
