//! Pairs of measurements, and what can be said of them.
//!
//! A sample is a time in nanoseconds, or a number of bytes. Ours and theirs are taken in turn, and each pair swaps who
//! goes first, so that a machine that slows down or speeds up meanwhile does it to both. Ratios are formed pair by
//! pair, and their median is the figure: it is not the ratio of the medians, and one bad pair does not move it.

use serde::{Deserialize, Serialize};

/// The fewest pairs that a figure may rest on.
pub const FEWEST_PAIRS: usize = 11;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// ioasid.
    Ours,
    /// What it is measured against.
    Theirs,
}

/// Samples of both sides; the n-th of each were taken one right after the other. Without a peer that
/// could be measured in the same run, `theirs` is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pairs {
    /// Of ioasid.
    pub ours: Vec<f64>,
    /// Of the peer.
    pub theirs: Vec<f64>,
}

/// The smallest, the middle and the largest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Middle; of an even number, halfway between the two in the middle.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// `None` if there are no numbers.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { min, median, max })
    }

    /// The spread of what `function`, which rises or falls throughout, makes of the numbers.
    pub fn map(self, function: impl Fn(f64) -> f64) -> Self {
        let (a, median, b) = (function(self.min), function(self.median), function(self.max));
        Self { min: a.min(b), median, max: a.max(b) }
    }
}

impl Pairs {
    /// Their time ÷ our time, pair by pair: above 1, ours is the faster. For a fixed amount of work this is also our
    /// throughput ÷ theirs.
    pub fn ratio(&self) -> Option<Spread> {
        Spread::of(self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| theirs / ours))
    }

    /// Our time − their time, pair by pair, in nanoseconds.
    pub fn difference(&self) -> Option<Spread> {
        Spread::of(self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours - theirs))
    }
}

/// Takes `pairs` pairs of samples, after one pair to warm up that is thrown away. `sample` measures one side once and
/// returns nanoseconds.
///
/// # Errors
/// The first of `sample`.
pub fn interleave<E>(pairs: usize, mut sample: impl FnMut(Side) -> Result<f64, E>) -> Result<Pairs, E> {
    assert!(pairs >= FEWEST_PAIRS);
    let mut samples = Pairs::default();
    for pair in 0..=pairs {
        let (ours, theirs);
        if pair % 2 == 0 {
            ours = sample(Side::Ours)?;
            theirs = sample(Side::Theirs)?;
        } else {
            theirs = sample(Side::Theirs)?;
            ours = sample(Side::Ours)?;
        }
        if pair > 0 {
            samples.ours.push(ours);
            samples.theirs.push(theirs);
        }
    }
    Ok(samples)
}

/// Takes `count` samples of what has no peer in this run, after one to warm up that is thrown away.
///
/// # Errors
/// The first of `sample`.
pub fn alone<E>(count: usize, mut sample: impl FnMut() -> Result<f64, E>) -> Result<Pairs, E> {
    assert!(count >= FEWEST_PAIRS);
    sample()?;
    let ours = (0..count).map(|_| sample()).collect::<Result<_, _>>()?;
    Ok(Pairs { ours, theirs: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(min: f64, median: f64, max: f64) -> Spread {
        Spread { min, median, max }
    }

    #[test]
    fn the_median_is_the_middle_in_any_order() {
        assert_eq!(Spread::of([3.0, 100.0, 1.0]), Some(spread(1.0, 3.0, 100.0)));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 100.0]), Some(spread(1.0, 3.0, 100.0)));
        assert_eq!(Spread::of([7.0]), Some(spread(7.0, 7.0, 7.0)));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn the_ratio_is_the_median_of_ratios_of_pairs() {
        // The third pair met a disturbance that slowed both sides, the second one that slowed ours.
        let pairs = Pairs { ours: vec![10.0, 40.0, 100.0], theirs: vec![20.0, 20.0, 200.0] };
        assert_eq!(pairs.ratio(), Some(spread(0.5, 2.0, 2.0)));
        assert_eq!(pairs.difference(), Some(spread(-100.0, -10.0, 20.0)));
    }

    #[test]
    fn without_a_peer_there_is_no_ratio() {
        let pairs = Pairs { ours: vec![1.0, 2.0], theirs: Vec::new() };
        assert_eq!((pairs.ratio(), pairs.difference()), (None, None));
    }

    #[test]
    fn a_falling_function_swaps_the_ends() {
        assert_eq!(spread(1.0, 2.0, 4.0).map(|time| 8.0 / time), spread(2.0, 4.0, 8.0));
        assert_eq!(spread(1.0, 2.0, 4.0).map(|time| 8.0 * time), spread(8.0, 16.0, 32.0));
    }

    #[test]
    fn the_sides_alternate_and_the_first_pair_does_not_count() {
        let mut turns = Vec::new();
        let pairs = interleave(11, |side| {
            turns.push(side);
            Ok::<_, ()>(turns.len() as f64)
        });
        let pairs = pairs.unwrap();
        assert_eq!(turns[..6], [Side::Ours, Side::Theirs, Side::Theirs, Side::Ours, Side::Ours, Side::Theirs]);
        assert_eq!((pairs.ours.len(), pairs.theirs.len(), turns.len()), (11, 11, 24));
        assert_eq!((pairs.ours[0], pairs.theirs[0]), (4.0, 3.0));
    }

    #[test]
    fn without_a_peer_the_first_sample_does_not_count() {
        let mut turn = 0.0;
        let pairs = alone(11, || {
            turn += 1.0;
            Ok::<_, ()>(turn)
        });
        assert_eq!(pairs.unwrap(), Pairs { ours: (2..=12).map(f64::from).collect(), theirs: Vec::new() });
    }

    #[test]
    fn an_error_ends_it() {
        assert_eq!(interleave(11, |_| Err("no")), Err("no"));
        assert_eq!(alone(11, || Err("no")), Err("no"));
    }
}
