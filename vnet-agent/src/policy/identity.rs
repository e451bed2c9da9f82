//! Identities: numbers for what rules can tell apart.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use vnet_common::policy::identity;

use super::live::Tables;
use super::peers::{AtomId, entity};
use crate::resource::Entity;

/// Numbers of sets of atoms. A number means the same for as long as anyone has it; it is not given out again.
#[derive(Clone, Debug)]
pub struct Identities {
    by_atoms: HashMap<Arc<[AtomId]>, u32>,
    /// What a number stands for, and how many addresses and networks have it.
    meanings: HashMap<u32, (Arc<[AtomId]>, u32)>,
    /// The next to be given out, of this and of all that came from it: what was planned and not done has numbers of its own.
    next: Arc<AtomicU32>,
}

impl Default for Identities {
    fn default() -> Self {
        Self::after(0)
    }
}

/// Reserved numbers, and what stands for them in rules.
pub const RESERVED: [(u32, Entity); 5] = [
    (identity::UNKNOWN, Entity::Unknown),
    (identity::HOST, Entity::Host),
    (identity::REMOTE_HOST, Entity::RemoteHost),
    (identity::WORLD, Entity::World),
    (identity::HEALTH, Entity::Health),
];

/// The reserved number of these atoms, if that is all there is.
fn reserved(atoms: &[AtomId]) -> Option<u32> {
    let [only] = atoms else { return None };
    RESERVED.iter().find(|(_, e)| entity(*e) == *only).map(|(number, _)| *number)
}

impl Identities {
    /// None so far; numbers start after `last`.
    fn after(last: u32) -> Self {
        let next = Arc::new(AtomicU32::new(last.saturating_add(1).max(identity::FIRST)));
        Self { by_atoms: HashMap::new(), meanings: HashMap::new(), next }
    }

    /// The number of what has exactly these atoms, in order; one more has it now.
    pub fn take(&mut self, atoms: &[AtomId]) -> u32 {
        if let Some(number) = reserved(atoms) {
            return number;
        }
        let number = match self.by_atoms.get(atoms) {
            Some(number) => *number,
            None => {
                let number = self.next.fetch_add(1, Relaxed);
                self.insert(number, atoms.into());
                number
            }
        };
        if let Some((_, users)) = self.meanings.get_mut(&number) {
            *users += 1;
        }
        number
    }

    /// One fewer has this number.
    pub fn give_back(&mut self, number: u32) {
        let Some((atoms, users)) = self.meanings.get_mut(&number) else { return };
        *users -= 1;
        if *users == 0 {
            self.by_atoms.remove(atoms);
            self.meanings.remove(&number);
        }
    }

    /// Lets these classes have numbers that were theirs. Each class comes with the numbers that its holders had.
    ///
    /// A number may stay if what it stood for, of what there still is (`stays`), is what the class has of it: rules that are in force then
    /// find the same as before. Classes of which nothing is new come first, so that who did not change keeps its number.
    pub fn inherit(
        previous: &Self,
        classes: &BTreeMap<Arc<[AtomId]>, Vec<u32>>,
        stays: &HashSet<AtomId>,
        first_new: AtomId,
    ) -> Self {
        let mut all = Self { by_atoms: HashMap::new(), meanings: HashMap::new(), next: Arc::clone(&previous.next) };
        let is_new = |atoms: &[AtomId]| atoms.iter().any(|a| *a >= first_new);
        for new in [false, true] {
            for (atoms, held) in classes.iter().filter(|(atoms, _)| is_new(atoms) == new) {
                let old_part = atoms.iter().filter(|a| **a < first_new);
                let fits = |number: &&u32| {
                    let meaning = previous.meanings.get(number).map(|(meaning, _)| meaning.iter().filter(|a| stays.contains(a)));
                    !all.meanings.contains_key(number) && meaning.is_some_and(|meaning| meaning.eq(old_part.clone()))
                };
                if let Some(number) = held.iter().find(fits) {
                    all.insert(*number, Arc::clone(atoms));
                }
            }
        }
        all
    }

    /// Lets these classes have the numbers that their holders have in the maps, where the number is of no others.
    pub fn adopt(tables: &Tables, classes: &BTreeMap<Arc<[AtomId]>, Vec<u32>>) -> Self {
        let live = || tables.addresses.values().chain(tables.cidrs.values());
        let mut holders: HashMap<u32, usize> = HashMap::new();
        live().for_each(|number| *holders.entry(*number).or_default() += 1);
        let last = live().chain(tables.peers.keys().map(|key| &key.identity)).max();
        let mut all = Self::after(last.copied().unwrap_or_default());
        for (atoms, numbers) in classes {
            let mut held: BTreeMap<u32, usize> = BTreeMap::new();
            numbers.iter().for_each(|number| *held.entry(*number).or_default() += 1);
            if let Some((number, _)) = held.iter().find(|(number, count)| holders.get(*number) == Some(*count)) {
                all.insert(*number, Arc::clone(atoms));
            }
        }
        all
    }

    fn insert(&mut self, number: u32, atoms: Arc<[AtomId]>) {
        self.by_atoms.insert(Arc::clone(&atoms), number);
        self.meanings.insert(number, (atoms, 0));
    }

    /// Forgets the numbers that nobody took.
    pub fn settle(&mut self) {
        self.meanings.retain(|_, (_, users)| *users > 0);
        let meanings = &self.meanings;
        self.by_atoms.retain(|_, number| meanings.contains_key(number));
    }

    /// Every number but the reserved ones, with what it stands for.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<[AtomId]>)> {
        self.meanings.iter().map(|(number, (atoms, _))| (*number, atoms))
    }

    /// How many there are, but for the reserved ones.
    pub fn len(&self) -> usize {
        self.meanings.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vnet_common::policy::{AddressKey, PeerKey};

    #[test]
    fn the_same_atoms_have_the_same_number_for_as_long_as_anyone_has_it() {
        let mut all = Identities::default();
        let (a, b) = (all.take(&[5, 9]), all.take(&[5]));
        assert!(a >= identity::FIRST && a != b);
        assert_eq!((all.take(&[5, 9]), all.take(&[entity(Entity::World)])), (a, identity::WORLD));
        assert_ne!(all.take(&[entity(Entity::World), 9]), identity::WORLD);
        all.give_back(a);
        assert_eq!(all.take(&[5, 9]), a);
        all.give_back(a);
        all.give_back(a);
        assert_ne!(all.take(&[5, 9]), a, "it is not given out again");
    }

    fn class(atoms: &[AtomId], held: &[u32]) -> (Arc<[AtomId]>, Vec<u32>) {
        (atoms.into(), held.to_vec())
    }

    #[test]
    fn who_did_not_change_keeps_its_number() {
        let mut before = Identities::default();
        let (a, b) = (before.take(&[5, 10]), before.take(&[5, 11]));
        // Atom 20 is new, 11 is gone. Who had [5, 11] has [5] now; of those who had [5, 10] some have 20 too.
        let classes =
            BTreeMap::from([class(&[5, 10], &[a]), class(&[5, 10, 20], &[a]), class(&[5], &[b]), class(&[5, 20], &[a, b])]);
        let mut after = Identities::inherit(&before, &classes, &HashSet::from([5, 10]), 20);
        assert_eq!((after.take(&[5, 10]), after.take(&[5])), (a, b));
        assert!(![a, b].contains(&after.take(&[5, 10, 20])) && ![a, b].contains(&after.take(&[5, 20])));
        // Who changed does not keep it.
        let classes = BTreeMap::from([class(&[5, 10, 11], &[a])]);
        let mut after = Identities::inherit(&before, &classes, &HashSet::from([5, 10, 11]), 20);
        assert_ne!(after.take(&[5, 10, 11]), a);
    }

    #[test]
    fn numbers_in_the_maps_are_kept_by_those_who_alone_have_them() {
        let key = |n: u8| AddressKey { network: 0, version: 4, addr: [n; 16] };
        let live = HashMap::from([(key(1), 40), (key(2), 40), (key(3), 41), (key(4), 41), (key(5), identity::HOST)]);
        let classes = BTreeMap::from([class(&[5, 10], &[40, 40]), class(&[5, 11], &[41]), class(&[5, 12], &[41])]);
        let peers = HashMap::from([(PeerKey { side: 2, identity: 50 }, 0)]);
        let mut all = Identities::adopt(&Tables { addresses: live, peers, ..Tables::default() }, &classes);
        assert_eq!(all.take(&[5, 10]), 40);
        assert_eq!((all.take(&[5, 11]), all.take(&[5, 12])), (51, 52));
    }
}
