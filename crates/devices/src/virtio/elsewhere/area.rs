//! Who has which part of a range: what is taken lies together, and is given back as a whole.

/// A range of bytes, of which parts are taken.
#[derive(Debug)]
pub(super) struct Area {
    /// What is not taken, in order and not beside one another: first byte, and how many.
    free: Vec<(u64, u64)>,
}

impl Area {
    pub(super) fn new(start: u64, length: u64) -> Self {
        Self { free: vec![(start, length)] }
    }

    /// Takes so many bytes, if there are so many together.
    pub(super) fn take(&mut self, length: u64) -> Option<u64> {
        if length == 0 {
            return Some(0);
        }
        let place = self.free.iter().position(|(_, free)| *free >= length)?;
        let (start, free) = self.free[place];
        if free == length {
            self.free.remove(place);
        } else {
            self.free[place] = (start + length, free - length);
        }
        Some(start)
    }

    /// Gives back what was taken.
    pub(super) fn give(&mut self, start: u64, length: u64) {
        if length == 0 {
            return;
        }
        let place = self.free.partition_point(|(free, _)| *free < start);
        self.free.insert(place, (start, length));
        for place in [place, place.wrapping_sub(1)] {
            if let Some([(first, before), (second, after)]) = self.free.get(place..place.saturating_add(2))
                && first + before == *second
            {
                self.free[place] = (*first, before + after);
                self.free.remove(place + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_does_not_overlap_and_comes_back() {
        let (mut area, mut taken) = (Area::new(4096, 1000), Vec::<(u64, u64)>::new());
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..10_000 {
            let length = random.u64(1..200);
            match area.take(length) {
                Some(start) => {
                    assert!(start >= 4096 && start + length <= 5096);
                    assert!(taken.iter().all(|(other, bytes)| start + length <= *other || other + bytes <= start));
                    taken.push((start, length));
                }
                None => {
                    assert!(!taken.is_empty());
                    let (start, length) = taken.swap_remove(random.usize(..taken.len()));
                    area.give(start, length);
                }
            }
        }
        taken.into_iter().for_each(|(start, length)| area.give(start, length));
        assert_eq!(area.free, [(4096, 1000)]);
    }
}
