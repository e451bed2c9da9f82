//! Networks that rules name, within each other: which of them an address is in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use vnet_common::policy::identity;

use super::peers::AtomId;
use crate::resource::Cidr;

/// What is known of the addresses of a prefix that are in no longer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// What they are where no endpoint or host has them: [`identity::WORLD`] or [`identity::UNKNOWN`].
    pub base: u32,
    /// The atoms of networks that have them, in order.
    pub atoms: Arc<[AtomId]>,
}

/// All prefixes that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks {
    regions: HashMap<Cidr, Region>,
    /// By IPv4 or not, the lengths of prefixes, the longest first.
    lengths: [Vec<u8>; 2],
}

impl Networks {
    /// Of the networks that rules name, each with those that it is without, and of those that endpoints are in.
    pub fn new<'a>(named: impl IntoIterator<Item = (AtomId, Cidr, &'a [Cidr])>, endpoints: &[Cidr]) -> Self {
        let named: Vec<(AtomId, Cidr, &[Cidr])> = named.into_iter().collect();
        let mut by_prefix: HashMap<Cidr, Vec<(AtomId, &[Cidr])>> = HashMap::new();
        let mut prefixes: BTreeSet<Cidr> = endpoints.iter().copied().chain([Cidr::ALL_V4, Cidr::ALL_V6]).collect();
        for (id, cidr, except) in named {
            by_prefix.entry(cidr).or_default().push((id, except));
            prefixes.insert(cidr);
            prefixes.extend(except);
        }
        let endpoints: BTreeSet<Cidr> = endpoints.iter().copied().collect();
        let mut lengths: [BTreeSet<u8>; 2] = Default::default();
        for prefix in &prefixes {
            lengths[usize::from(prefix.is_ipv4())].insert(prefix.prefix());
        }
        let mut regions = HashMap::new();
        for prefix in &prefixes {
            let around = lengths[usize::from(prefix.is_ipv4())].range(..=prefix.prefix()).map(|len| prefix.widen(*len));
            let (mut atoms, mut base) = (Vec::new(), identity::WORLD);
            for cidr in around {
                if endpoints.contains(&cidr) {
                    base = identity::UNKNOWN;
                }
                let here = by_prefix.get(&cidr).into_iter().flatten();
                atoms.extend(here.filter(|(_, except)| !except.iter().any(|e| e.contains(prefix))).map(|(id, _)| *id));
            }
            atoms.sort_unstable();
            regions.insert(*prefix, Region { base, atoms: atoms.into() });
        }
        Self { regions, lengths: lengths.map(|all| all.into_iter().rev().collect()) }
    }

    /// The region of an address; its prefix too.
    pub fn find(&self, address: IpAddr) -> Option<(Cidr, &Region)> {
        let all = Cidr::from(address);
        let lengths = self.lengths[usize::from(address.is_ipv4())].iter();
        lengths.map(|len| all.widen(*len)).find_map(|prefix| Some((prefix, self.regions.get(&prefix)?)))
    }

    /// Every prefix, in order.
    pub fn regions(&self) -> BTreeMap<Cidr, &Region> {
        self.regions.iter().map(|(prefix, region)| (*prefix, region)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_networks_around_it() {
        let cidr = |text: &str| Cidr::parse(text).unwrap();
        let (except, all) = ([cidr("10.1.2.0/24")], [Cidr::ALL_V4]);
        let named: [(AtomId, Cidr, &[Cidr]); 6] = [
            (10, cidr("10.0.0.0/8"), &[]),
            (11, cidr("10.1.0.0/16"), &except),
            (12, cidr("10.1.2.3"), &[]),
            (13, Cidr::ALL_V6, &[]),
            (14, cidr("192.168.0.0/16"), &all),
            (15, cidr("10.0.0.0/8"), &except),
        ];
        let networks = Networks::new(named, &[cidr("10.1.0.0/20"), cidr("fd00::/64")]);
        let at = |text: &str| {
            let (_, region) = networks.find(text.parse().unwrap()).unwrap();
            (region.base, region.atoms.to_vec())
        };
        assert_eq!(at("8.8.8.8"), (identity::WORLD, vec![]));
        assert_eq!(at("10.2.0.1"), (identity::WORLD, vec![10, 15]));
        assert_eq!(at("10.1.99.1"), (identity::WORLD, vec![10, 11, 15]));
        assert_eq!(at("10.1.0.1"), (identity::UNKNOWN, vec![10, 11, 15]));
        assert_eq!(at("10.1.2.1"), (identity::UNKNOWN, vec![10]));
        assert_eq!(at("10.1.2.3"), (identity::UNKNOWN, vec![10, 12]));
        assert_eq!(at("192.168.0.1"), (identity::WORLD, vec![]), "without everything");
        assert_eq!(at("fd00::1"), (identity::UNKNOWN, vec![13]));
        assert_eq!(at("fd01::1"), (identity::WORLD, vec![13]));
    }
}
