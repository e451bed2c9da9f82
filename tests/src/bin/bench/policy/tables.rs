//! Policies of a size, written straight into the maps: sets in which each rule has peers of its own.

use crate::packets::{Family, Kernel, PEERS, clients, members, peer, vip};
use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use vnet_common::endpoint::{EndpointRow, flags as endpoint_flags};
use vnet_common::map::Config;
use vnet_common::parse::protocol;
use vnet_common::policy::{
    ADDRESS_BITS, AddressKey, MAX_PORT_ROWS, PeerKey, PortRow, RuleRow, SetRow, Side, action, identity, port_key, rule_flags,
};

/// Identities that peers have.
pub const IDENTITIES: u32 = 1000;
/// Peers are looked up by networks of so many addresses, where they are by networks.
const NETWORK: u32 = 16;

/// A set of the first kind: 10 rules. Its row.
pub const SMALL: u32 = 1;
/// 40 sets of 250 rules: 10,000. The row of the first.
pub const USUAL: u32 = 2;
const USUAL_SETS: u32 = 40;
const USUAL_RULES: u32 = 250;
/// One set of 4,000 rules: nearly as many as one may have.
pub const LARGE: u32 = 100;
const LARGE_RULES: u32 = 4000;

/// Which tables there are, besides the one of [`SMALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// No other.
    Ten,
    /// [`USUAL`] and [`LARGE`].
    TenThousand,
}

/// Where the next rows go.
#[derive(Default)]
struct Rows {
    rules: u32,
    ports: u32,
    bits: u32,
}

/// How the addresses of peers are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Each by itself.
    Exactly,
    /// By its network.
    ByNetwork,
}

/// Writes everything: sets, identities of peers, VIPs and members, addresses of the client.
pub fn write(kernel: &mut Kernel, size: Size, known: Known, flows: u32) -> Result<()> {
    let mut rows = Rows::default();
    rows.set(kernel, SMALL, 10)?;
    if size == Size::TenThousand {
        for n in 0..USUAL_SETS {
            rows.set(kernel, USUAL + n, USUAL_RULES)?;
        }
        rows.set(kernel, LARGE, LARGE_RULES)?;
    }
    for family in [Family::V4, Family::V6] {
        for addr in clients(family, flows) {
            kernel.put_local(family, addr)?;
        }
        for (n, addr) in members(family).into_iter().chain([vip(family)]).enumerate() {
            kernel.insert("IPCACHE", key(family, addr), identity::FIRST + n as u32)?;
        }
        match known {
            Known::Exactly => {
                for n in 0..PEERS {
                    kernel.insert("IPCACHE", key(family, peer(family, n)), identity_of(n))?;
                }
            }
            Known::ByNetwork => networks(kernel, family)?,
        }
    }
    Ok(())
}

/// Makes the client a policed endpoint with this set, as every VM is; `None`: not policed.
pub fn police(kernel: &mut Kernel, set: Option<u32>) -> Result<()> {
    use endpoint_flags::{CHECK_IP, CHECK_MAC, DHCP, NEIGHBORS, POLICED};
    let flags = if set.is_some() { POLICED | CHECK_MAC | CHECK_IP | NEIGHBORS | DHCP } else { 0 };
    // The source MAC of all frames.
    let mac = [2, 0, 0, 0, 0, 1];
    kernel.put_endpoint(EndpointRow { flags, mac, set: set.unwrap_or(0), ..EndpointRow::default() })
}

/// Sets which events are wanted, and how many in a window.
pub fn want_events(kernel: &mut Kernel, events: u8, event_rate: u32) -> Result<()> {
    // Geneve and VXLAN, as the agent has it.
    let mut config = Config { generation: 1, flow_quota: u32::MAX >> 1, events: events.into(), event_rate, ..Config::default() };
    (config.tunnel_ports[0], config.tunnel_ports[1]) = (4789u16.to_be_bytes(), 6081u16.to_be_bytes());
    kernel.put("CONFIG", 0, config)
}

fn key(family: Family, addr: [u8; 16]) -> AddressKey {
    AddressKey { network: 0, version: if family == Family::V4 { 4 } else { 6 }, addr }
}

fn identity_of(peer: u32) -> u32 {
    identity::FIRST + peer % IDENTITIES
}

fn networks(kernel: &mut Kernel, family: Family) -> Result<()> {
    let mut trie: LpmTrie<&mut MapData, AddressKey, u32> = LpmTrie::try_from(kernel.map("CIDRS")?)?;
    let width = if family == Family::V4 { 32 } else { 128 };
    let mut put = |addr, bits, number: u32| trie.insert(&Key::new(ADDRESS_BITS + bits, key(family, addr)), number, 0);
    for n in (0..PEERS).step_by(NETWORK as usize) {
        put(peer(family, n), width - NETWORK.ilog2(), identity_of(n / NETWORK)).context("writing a network")?;
    }
    put([0; 16], 0, identity::WORLD).context("writing the default route")
}

impl Rows {
    /// A set: egress rules that allow, each for its share of the identities, then a default that denies; ingress is denied.
    fn set(&mut self, kernel: &mut Kernel, row: u32, rules: u32) -> Result<()> {
        let egress = self.side(kernel, row << 1, rules)?;
        let ingress = self.side(kernel, row << 1 | 1, 1)?;
        kernel.put("SETS", row, SetRow { sides: [egress, ingress], flags: 0, serial: row, pad: [0; 2] })
    }

    fn side(&mut self, kernel: &mut Kernel, side: u32, rules: u32) -> Result<Side> {
        let (first, words, last) = (self.rules, rules.div_ceil(64), rules - 1);
        for n in 0..rules {
            let (action, flags) = if n == last { (action::DENY, rule_flags::DEFAULT) } else { (action::ALLOW, 0) };
            kernel.put("RULES", first + n, RuleRow { id: 1 + n, action, flags, ..RuleRow::default() })?;
        }
        self.rules += rules;
        let none = self.bits(kernel, words, |_| false)?;
        let all = self.bits(kernel, words, |n| n < rules)?;
        let any_peer = self.bits(kernel, words, |n| n == last)?;
        // Each rule has a port of its own, but all have those that are used.
        let port_rows = (rules + 1).min(MAX_PORT_ROWS);
        for n in 0..port_rows {
            let start = if n == 0 { 0 } else { port_key(protocol::UDP, (20_000 + 4 * (n as u16)).to_be_bytes()) };
            kernel.put("PORTS", self.ports + n, PortRow { start, bits: if n == 0 { all } else { none } })?;
        }
        for n in 0..if last == 0 { 0 } else { IDENTITIES } {
            // All over the list.
            let own = n * last.div_ceil(IDENTITIES) % last;
            let bits = self.bits(kernel, words, |rule| rule == own || rule == last)?;
            kernel.insert("PEERS", PeerKey { side, identity: identity::FIRST + n }, bits)?;
        }
        let ports = self.ports;
        self.ports += port_rows;
        Ok(Side { rules: first, words, ports, port_rows, any_peer, enforced: all })
    }

    /// A row of bits; gives its first word.
    fn bits(&mut self, kernel: &mut Kernel, words: u32, is_set: impl Fn(u32) -> bool) -> Result<u32> {
        let first = self.bits;
        for word in 0..words {
            let bits = (0..64).filter(|bit| is_set(word * 64 + bit)).fold(0u64, |bits, bit| bits | 1 << bit);
            kernel.put("BITS", first + word, bits)?;
        }
        self.bits += words;
        ensure!(self.bits <= 1 << 20, "more bits than the default map has");
        Ok(first)
    }
}
