//! Finds room in the maps: rows, and places for pick tables in the flat array of blocks.

use std::collections::VecDeque;
use std::ops::Range;

/// Removed rows that are kept back from reuse: the longest free goes first once there are more.
const KEPT_BACK: usize = 1024;

/// The free parts of the array, in order, none touching another.
#[derive(Debug)]
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

    /// How many blocks are free, in one place or several.
    pub fn left(&self) -> u32 {
        self.free.iter().map(|r| r.end - r.start).sum()
    }
}

/// Rows that nothing uses.
#[derive(Debug)]
pub struct FreeRows {
    /// Never written, the lowest first.
    fresh: std::vec::IntoIter<u32>,
    /// Used before, the longest free first.
    released: VecDeque<u32>,
}

impl FreeRows {
    /// `rows`: every row that was ever written, in order, with its serial and whether it is in use.
    pub fn new(capacity: u32, rows: impl Iterator<Item = (u32, u32, bool)>) -> Self {
        let (mut released, mut fresh, mut next) = (Vec::new(), Vec::new(), 0);
        for (row, serial, used) in rows {
            fresh.extend(next..row.min(capacity));
            next = row + 1;
            if !used && row < capacity {
                released.push((serial, row));
            }
        }
        fresh.extend(next..capacity);
        released.sort_unstable();
        Self { fresh: fresh.into_iter(), released: released.into_iter().map(|(_, row)| row).collect() }
    }

    /// Takes one.
    pub fn take(&mut self) -> Option<u32> {
        if self.released.len() > KEPT_BACK {
            return self.released.pop_front();
        }
        self.fresh.next().or_else(|| self.released.pop_front())
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
    }

    #[test]
    fn removed_rows_are_kept_back_and_the_longest_free_goes_first() {
        let take = |rows: &[(u32, u32, bool)], n: usize| {
            let mut free = FreeRows::new(8000, rows.iter().copied());
            (0..n).map_while(|_| free.take()).collect::<Vec<_>>()
        };
        assert_eq!(take(&[(0, 5, true), (1, 9, false), (3, 4, false)], 3), [2, 4, 5]);
        let mut free = FreeRows::new(4, [(0, 5, true), (1, 9, false), (3, 4, false)].into_iter());
        assert_eq!([free.take(), free.take(), free.take(), free.take()], [Some(2), Some(3), Some(1), None]);
        let many: Vec<_> = (0..1026).map(|row| (row, 5000 - row, false)).collect();
        assert_eq!(take(&many, 3), [1025, 1024, 1026]);
    }
}
