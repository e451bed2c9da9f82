//! Flows of endpoints that move, as they lie in the store: in pieces, as one value may not be larger.
//!
//! A host that tells flows of an endpoint again appends pieces to those that are there: what a reader has taken it knows by the revision in
//! which each piece was written, and need not read again.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use vnet_common::api::moving::FlowExport;
use vnet_common::etcd::Entry;
use vnet_common::fleet::{Key, MovingPiece, STATE};

/// Bytes of a piece: the store takes 1.5 MiB at a time.
pub const PIECE: usize = 512 << 10;
/// Pieces of one endpoint at most: flows beyond stay behind.
pub const PIECES: usize = 64;

/// Below this a host tells flows of an endpoint.
#[must_use]
pub fn below(host: &str, endpoint: &str) -> String {
    format!("{STATE}moving/{}/{}/", Key::part(host), Key::part(endpoint))
}

/// Pieces of `size` bytes at most.
#[must_use]
pub fn cut(text: &str, serial: u64, size: usize) -> Vec<MovingPiece> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut at = size.min(rest.len());
        while !rest.is_char_boundary(at) {
            at -= 1;
        }
        let (part, more) = rest.split_at(at);
        parts.push(part.to_owned());
        rest = more;
    }
    let of = parts.len() as u32;
    parts.into_iter().map(|text| MovingPiece { serial, of, text }).collect()
}

/// Pieces that one host told of one endpoint and that were not read: by their numbers, with the revision in which each was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces(BTreeMap<u32, (i64, Vec<u8>)>);

/// Whole exports, and the pieces that they were made of.
#[derive(Debug, Default)]
pub struct Whole {
    /// In order.
    pub exports: Vec<FlowExport>,
    /// Numbers and revisions.
    pub pieces: Vec<(u32, i64)>,
}

impl Pieces {
    /// The exports all of whose pieces are there, as far as they are in order.
    #[must_use]
    pub fn join(&self) -> Whole {
        let mut whole = Whole::default();
        let mut rest = self.0.keys().next().copied();
        while let Some((length, export)) = rest.and_then(|first| self.export(first)) {
            let read = rest.map(|first| self.0.range(first..)).into_iter().flatten().take(length);
            whole.pieces.extend(read.map(|(n, (revision, _))| (*n, *revision)));
            match export {
                Ok(export) => whole.exports.push(export),
                Err(e) => log::error!("flows of an endpoint that came from another host cannot be read: {e:#}"),
            }
            rest = rest.and_then(|first| self.0.range(first..).nth(length)).map(|(n, _)| *n);
        }
        whole
    }

    /// The export that begins with this piece, and how many pieces it has; `None`: some are not there.
    fn export(&self, first: u32) -> Option<(usize, Result<FlowExport>)> {
        let piece = |n: u32| -> Option<Result<MovingPiece>> {
            let (_, value) = self.0.get(&n)?;
            Some(serde_json::from_slice(value).with_context(|| format!("piece {n}")))
        };
        let begin = match piece(first)? {
            Ok(begin) => begin,
            Err(e) => return Some((1, Err(e))),
        };
        let length = begin.of.max(1) as usize;
        // To count is cheaper than to read.
        if self.0.range(first..).zip(first..).take(length).filter(|((n, _), expected)| *n == expected).count() < length {
            return None;
        }
        let mut text = begin.text;
        for n in (first..).take(length).skip(1) {
            match piece(n)? {
                Ok(piece) if (piece.serial, piece.of) == (begin.serial, begin.of) => text += &piece.text,
                Ok(_) => return None,
                Err(e) => return Some((length, Err(e))),
            }
        }
        Some((length, serde_json::from_str(&text).context("what its pieces say")))
    }
}

/// Which pieces were read: by endpoint, host and number, the revision.
#[derive(Debug, Default)]
pub struct Taken(BTreeMap<(String, String, u32), i64>);

impl Taken {
    /// The pieces of `entries` that were not read, of endpoints and hosts that `takes` says yes to. Forgets those that are gone.
    pub fn unread<'a>(
        &mut self,
        entries: impl Iterator<Item = (&'a String, &'a Entry)>,
        takes: impl Fn(&str, &str) -> bool,
    ) -> BTreeMap<(String, String), Pieces> {
        let mut unread: BTreeMap<(String, String), Pieces> = BTreeMap::new();
        let mut there = BTreeSet::new();
        for (text, entry) in entries {
            let Some(Key::Moving(host, name, n)) = Key::parse(text) else { continue };
            let key = (name, host, n);
            if self.0.get(&key) != Some(&entry.modified) && takes(&key.0, &key.1) {
                let pieces = unread.entry((key.0.clone(), key.1.clone())).or_default();
                pieces.0.insert(n, (entry.modified, entry.value.clone()));
            }
            there.insert(key);
        }
        self.0.retain(|key, _| there.contains(key));
        unread
    }

    /// These were read.
    pub fn note(&mut self, name: &str, host: &str, pieces: &[(u32, i64)]) {
        let keyed = pieces.iter().map(|(n, revision)| ((name.to_owned(), host.to_owned(), *n), *revision));
        self.0.extend(keyed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(left: u64) -> FlowExport {
        FlowExport { version: 1, endpoint: "vm".into(), left, ..FlowExport::default() }
    }

    /// What the store has of one host and endpoint.
    #[derive(Default)]
    struct Store(BTreeMap<String, Entry>, i64);

    impl Store {
        fn put(&mut self, from: u32, pieces: Vec<MovingPiece>) {
            for (n, piece) in (from..).zip(pieces) {
                self.1 += 1;
                let value = serde_json::to_vec(&piece).unwrap();
                let entry = Entry { value, created: self.1, modified: self.1, lease: 0 };
                self.0.insert(Key::Moving("a".into(), "vm".into(), n).to_string(), entry);
            }
        }

        /// What is taken, and taken as read.
        fn take(&self, taken: &mut Taken) -> Vec<FlowExport> {
            let unread = taken.unread(self.0.iter(), |_, _| true);
            let each = unread.into_iter().flat_map(|((name, host), pieces)| {
                let whole = pieces.join();
                taken.note(&name, &host, &whole.pieces);
                whole.exports
            });
            each.collect()
        }
    }

    fn pieces(serial: u64, left: u64) -> Vec<MovingPiece> {
        let pieces = cut(&serde_json::to_string(&export(left)).unwrap(), serial, 10);
        assert!(pieces.len() > 3);
        pieces
    }

    #[test]
    fn an_export_is_taken_once_when_all_of_it_is_there() {
        let (mut store, mut taken) = (Store::default(), Taken::default());
        let mut first = pieces(1, 7);
        let (more, last) = (first.len() as u32, first.pop().unwrap());
        store.put(0, first);
        assert_eq!(store.take(&mut taken), []);
        store.put(more - 1, vec![MovingPiece { serial: 2, ..last.clone() }]);
        assert_eq!(store.take(&mut taken), [], "of another time");
        store.put(more - 1, vec![last]);
        assert_eq!(store.take(&mut taken), [export(7)]);
        assert_eq!(store.take(&mut taken), []);
        // What comes later is appended.
        store.put(more, pieces(2, 8));
        store.put(more + pieces(2, 8).len() as u32, pieces(3, 9));
        assert_eq!(store.take(&mut taken), [export(8), export(9)]);
        assert_eq!(store.take(&mut taken), []);
    }

    #[test]
    fn an_agent_that_counts_anew_is_heard_and_what_is_gone_is_forgotten() {
        let (mut store, mut taken) = (Store::default(), Taken::default());
        store.put(0, pieces(1, 7));
        assert_eq!(store.take(&mut taken), [export(7)]);
        store.put(0, pieces(1, 7));
        assert_eq!(store.take(&mut taken), [export(7)], "told again under the same number");
        store.0.clear();
        assert_eq!((store.take(&mut taken), taken.0.len()), (vec![], 0));
    }

    #[test]
    fn what_cannot_be_read_is_not_read_again() {
        let (mut store, mut taken) = (Store::default(), Taken::default());
        let bad = vec![MovingPiece { serial: 1, of: 1, text: "{".into() }];
        store.put(0, bad);
        store.put(1, pieces(2, 8));
        assert_eq!(store.take(&mut taken), [export(8)]);
        assert!(taken.unread(store.0.iter(), |_, _| true).is_empty());
        assert!(Taken::default().unread(store.0.iter(), |_, host| host != "a").is_empty(), "of a host that is not asked");
    }
}
