//! Finds room for pick tables in the flat array of blocks.

use std::ops::Range;

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
        let mut b = FreeBlocks::new(100, [50..60]);
        assert_eq!(b.take(50), Some(0), "what 10..30 had is free in one piece again");
        assert_eq!((b.take(41), b.take(40), b.take(1)), (None, Some(60), None));
    }
}
