//! Finds room in the maps: rows, and places for pick tables in the flat array of blocks.

use std::collections::BTreeSet;
use std::ops::Range;

/// Removed rows that are kept back from reuse: the longest free goes first once there are more.
const KEPT_BACK: usize = 1024;

/// The free parts of the array, in order, none touching another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FreeBlocks {
    free: Vec<Range<u32>>,
}

impl FreeBlocks {
    /// All of `capacity` blocks but those in use.
    pub fn new(capacity: u32, used: impl IntoIterator<Item = Range<u32>>) -> Self {
        let mut used: Vec<Range<u32>> = used.into_iter().filter(|r| !r.is_empty()).collect();
        used.sort_unstable_by_key(|r| r.start);
        let (mut free, mut at) = (Vec::new(), 0);
        for r in used {
            if r.start > at {
                free.push(at..r.start.min(capacity));
            }
            at = at.max(r.end);
        }
        if at < capacity {
            free.push(at..capacity);
        }
        Self { free }
    }

    /// Takes the first place that has `n` blocks in a row.
    pub fn take(&mut self, n: u32) -> Option<u32> {
        let i = self.free.iter().position(|r| r.end - r.start >= n)?;
        let place = &mut self.free[i];
        let first = place.start;
        place.start += n;
        if place.start == place.end {
            self.free.remove(i);
        }
        Some(first)
    }

    /// Gives blocks back that were taken.
    pub fn give(&mut self, blocks: Range<u32>) {
        if blocks.is_empty() {
            return;
        }
        let i = self.free.partition_point(|r| r.end < blocks.start);
        let touching = self.free[i..].iter().take_while(|r| r.start <= blocks.end).count();
        let (first, last) = (self.free.get(i), self.free[i..i + touching].last());
        let start = first.filter(|_| touching > 0).map_or(blocks.start, |r| r.start.min(blocks.start));
        let end = last.map_or(blocks.end, |r| r.end.max(blocks.end));
        self.free.splice(i..i + touching, std::iter::once(start..end));
    }

    /// How many blocks are free, in one place or several.
    pub fn left(&self) -> u32 {
        self.free.iter().map(|r| r.end - r.start).sum()
    }
}

/// What became of a row so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowUse {
    /// It was never written.
    Never,
    /// It is in use.
    Used,
    /// It was in use until it was given this serial.
    Released(u32),
}

impl RowUse {
    /// Of a row that was written with `serial`.
    pub fn since(serial: u32, used: bool) -> Self {
        if used { Self::Used } else { Self::Released(serial) }
    }
}

/// Rows that nothing uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FreeRows {
    /// Every row from here on was never written.
    end: u32,
    /// Nor were these before it.
    gaps: BTreeSet<u32>,
    /// Used before, the longest free first: serials and rows.
    released: BTreeSet<(u32, u32)>,
}

impl FreeRows {
    /// The use of a row changes.
    pub fn change(&mut self, row: u32, before: RowUse, after: RowUse) {
        match before {
            RowUse::Never if row >= self.end => {
                self.gaps.extend(self.end..row);
                self.end = row + 1;
            }
            RowUse::Never => drop(self.gaps.remove(&row)),
            RowUse::Used => {}
            RowUse::Released(serial) => drop(self.released.remove(&(serial, row))),
        }
        if let RowUse::Released(serial) = after {
            self.released.insert((serial, row));
        }
    }

    /// Gives the free ones of `capacity` rows, in the order in which they are to be used.
    pub fn take(&self, capacity: u32) -> impl Iterator<Item = u32> {
        let fresh = self.gaps.iter().copied().chain(self.end..capacity).filter(move |row| *row < capacity);
        let released = self.released.iter().map(|(_, row)| *row).filter(move |row| *row < capacity);
        let too_many = self.released.len().saturating_sub(KEPT_BACK);
        released.clone().take(too_many).chain(fresh).chain(released.skip(too_many))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_place_that_fits_and_joins_what_was_freed() {
        let mut b = FreeBlocks::new(100, [10..20, 20..30, 50..60]);
        assert_eq!(b.left(), 70);
        assert_eq!((b.take(11), b.take(10), b.take(20), b.take(1)), (Some(30), Some(0), Some(60), Some(41)));
        let mut b = FreeBlocks::new(100, [10..20, 50..60, 15..25]);
        assert_eq!(b.take(26), Some(60), "overlapping uses count once");
        let mut b = FreeBlocks::new(100, std::iter::once(50..60));
        assert_eq!(b.take(50), Some(0), "what 10..30 had is free in one piece again");
        assert_eq!((b.take(41), b.take(40), b.take(1)), (None, Some(60), None));
        for (given, first) in [(70..80, 70), (90..100, 70), (80..85, 70), (85..90, 70), (60..61, 70), (61..70, 60), (0..1, 60)] {
            b.give(given);
            let mut after = b.clone();
            assert_eq!(after.take(b.free.iter().map(|r| r.end - r.start).max().unwrap()), Some(first), "{b:?}");
        }
        assert_eq!(b.free, [0..1, 60..100]);
    }

    #[test]
    fn removed_rows_are_kept_back_and_the_longest_free_goes_first() {
        let free = |rows: &[(u32, u32, bool)]| {
            let mut free = FreeRows::default();
            rows.iter().for_each(|(row, serial, used)| free.change(*row, RowUse::Never, RowUse::since(*serial, *used)));
            free
        };
        let take = |free: &FreeRows, n: usize| free.take(8000).take(n).collect::<Vec<_>>();
        assert_eq!(take(&free(&[(0, 5, true), (1, 9, false), (3, 4, false)]), 3), [2, 4, 5]);
        let mut few = free(&[(0, 5, true), (1, 9, false), (3, 4, false)]);
        assert_eq!(few.take(4).collect::<Vec<_>>(), [2, 3, 1]);
        few.change(3, RowUse::Released(4), RowUse::Used);
        few.change(0, RowUse::Used, RowUse::Released(10));
        few.change(2, RowUse::Never, RowUse::Used);
        assert_eq!(few.take(4).collect::<Vec<_>>(), [1, 0]);
        let many: Vec<_> = (0..1026).map(|row| (row, 5000 - row, false)).collect();
        assert_eq!(take(&free(&many), 3), [1025, 1024, 1026]);
    }
}
