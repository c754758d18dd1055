//! What is pinned of some pages: ranges that do not overlap, each counted (see [`super::pages`]).

use std::collections::BTreeMap;

/// Bytes of some pages, from `start` to before `end`, both multiples of the page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    pub(super) fn length(self) -> u64 {
        self.end - self.start
    }
}

/// A physical space, and where in the pages.
type Key = (usize, u64);

struct Fragment<W> {
    end: u64,
    /// Pins that need it.
    count: usize,
    /// Where it is; `None` while it is being brought in.
    what: Option<W>,
}

/// Most pages have one fragment, for which a tree would be ten times as large.
enum Map<W> {
    Few(Option<(Key, Fragment<W>)>),
    Many(BTreeMap<Key, Fragment<W>>),
}

/// The fragments of some pages, in all physical spaces.
pub(super) struct Fragments<W>(Map<W>);

impl<W> Default for Fragments<W> {
    fn default() -> Self {
        Self(Map::Few(None))
    }
}

impl<W> Map<W> {
    fn insert(&mut self, key: Key, fragment: Fragment<W>) {
        match self {
            Self::Few(none @ None) => *none = Some((key, fragment)),
            Self::Few(one) => *self = Self::Many(one.take().into_iter().chain([(key, fragment)]).collect()),
            Self::Many(many) => drop(many.insert(key, fragment)),
        }
    }

    fn remove(&mut self, key: Key) -> Option<Fragment<W>> {
        match self {
            Self::Few(one) => one.take_if(|(other, _)| *other == key).map(|(_, fragment)| fragment),
            Self::Many(many) => many.remove(&key),
        }
    }

    /// The fragment of the space that `at` lies in, or the first behind it.
    fn at_or_after(&mut self, space: usize, at: u64) -> Option<(u64, &mut Fragment<W>)> {
        match self {
            Self::Few(one) => one
                .as_mut()
                .filter(|((other, _), fragment)| *other == space && fragment.end > at)
                .map(|((_, start), fragment)| (*start, fragment)),
            Self::Many(many) => {
                let before = many.range(..=(space, at)).next_back().filter(|((other, _), _)| *other == space);
                if before.is_some_and(|(_, fragment)| fragment.end > at) {
                    return many.range_mut(..=(space, at)).next_back().map(|((_, start), fragment)| (*start, fragment));
                }
                let behind = many.range_mut((space, at)..).next().filter(|((other, _), _)| *other == space);
                behind.map(|((_, start), fragment)| (*start, fragment))
            }
        }
    }
}

impl<W: Clone> Fragments<W> {
    /// Calls `each` for the fragments in `range`, in order, until it returns something.
    fn find<T>(
        &mut self,
        space: usize,
        range: Range,
        mut each: impl FnMut(Range, &mut Fragment<W>) -> Option<T>,
    ) -> Option<T> {
        let mut at = range.start;
        while at < range.end {
            let (start, fragment) = self.0.at_or_after(space, at)?;
            if start >= range.end {
                return None;
            }
            at = fragment.end;
            if let Some(found) = each(Range { start, end: at }, fragment) {
                return Some(found);
            }
        }
        None
    }

    /// Whether some of `range` is being brought in.
    pub(super) fn is_coming(&mut self, space: usize, range: Range) -> bool {
        self.find(space, range, |_, fragment| fragment.what.is_none().then_some(())).is_some()
    }

    /// Lets no fragment go through `at`.
    pub(super) fn split(&mut self, space: usize, at: u64) {
        let found = self.0.at_or_after(space, at).filter(|(start, _)| *start < at);
        let Some((_, fragment)) = found else { return };
        let upper = Fragment { end: fragment.end, count: fragment.count, what: fragment.what.clone() };
        fragment.end = at;
        self.0.insert((space, at), upper);
    }

    /// Counts one pin more of `range`, of which nothing is being brought in, and returns what of it is to be brought in
    /// now.
    pub(super) fn hold(&mut self, space: usize, range: Range) -> Vec<Range> {
        let (mut gaps, mut at) = (Vec::new(), range.start);
        while at < range.end {
            let end = match self.0.at_or_after(space, at) {
                // What is held by itself nearly always is held, and let go, as a whole.
                Some((start, fragment)) if start == at && fragment.end <= range.end => {
                    fragment.count += 1;
                    at = fragment.end;
                    continue;
                }
                Some((start, _)) if start <= at => {
                    self.split(space, at);
                    self.split(space, range.end);
                    continue;
                }
                Some((start, _)) => start.min(range.end),
                None => range.end,
            };
            self.0.insert((space, at), Fragment { end, count: 1, what: None });
            gaps.push(Range { start: at, end });
            at = end;
        }
        gaps
    }

    /// Counts one pin more of `range`, which is pinned.
    pub(super) fn hold_again(&mut self, space: usize, range: Range) {
        self.find(space, range, |_, fragment| {
            fragment.count += 1;
            None::<()>
        });
    }

    /// One of the gaps that [`Fragments::hold`] returned is `what`.
    pub(super) fn fill(&mut self, space: usize, gap: Range, what: W) {
        if let Some((_, fragment)) = self.0.at_or_after(space, gap.start) {
            fragment.what = Some(what);
        }
    }

    /// Counts one pin of `range` less. What no pin needs stays until it is taken out. Allocates nothing.
    pub(super) fn release(&mut self, space: usize, range: Range) {
        self.find(space, range, |_, fragment| {
            fragment.count -= 1;
            None::<()>
        });
    }

    /// Takes something out of `range` that no pin needs: where it was, unless it never came. Allocates nothing.
    pub(super) fn take_unused(&mut self, space: usize, range: Range) -> Option<(Range, Option<W>)> {
        let unused = self.find(space, range, |at, fragment| (fragment.count == 0).then_some(at))?;
        let fragment = self.0.remove((space, unused.start))?;
        Some((unused, fragment.what))
    }

    /// Calls `each` for what is pinned in `range`, in order, until it returns something.
    pub(super) fn find_pinned<T>(
        &mut self,
        space: usize,
        range: Range,
        mut each: impl FnMut(Range, &W) -> Option<T>,
    ) -> Option<T> {
        self.find(space, range, |at, fragment| {
            let at = Range { start: at.start.max(range.start), end: at.end.min(range.end) };
            each(at, fragment.what.as_ref()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn what_is_pinned_twice_is_brought_in_once() {
        let mut fragments = Fragments::default();
        assert_eq!(fragments.hold(1, range(2, 4)), [range(2, 4)]);
        assert!(fragments.is_coming(1, range(0, 3)) && !fragments.is_coming(1, range(4, 9)));
        fragments.fill(1, range(2, 4), 'a');
        assert_eq!(fragments.hold(1, range(0, 6)), [range(0, 2), range(4, 6)]);
        assert_eq!(fragments.hold(2, range(2, 4)), [range(2, 4)], "another machine");
        fragments.release(1, range(0, 6));
        assert_eq!(fragments.take_unused(1, range(0, 6)), Some((range(0, 2), None)));
        assert_eq!(fragments.take_unused(1, range(0, 6)), Some((range(4, 6), None)));
        assert_eq!(fragments.take_unused(1, range(0, 6)), None);
        fragments.release(1, range(2, 4));
        assert_eq!(fragments.take_unused(1, range(2, 4)), Some((range(2, 4), Some('a'))));
    }

    proptest! {
        /// Against a count for each page.
        #[test]
        fn each_page_is_there_as_long_as_a_pin_needs_it(
            steps in prop::collection::vec((0..2usize, 0..12u64, 1..6u64, any::<bool>()), 1..60),
        ) {
            let mut fragments = Fragments::default();
            let mut counts = [[0usize; 20]; 2];
            let mut pins: Vec<(usize, Range)> = Vec::new();
            for (space, start, length, release) in steps {
                if release && !pins.is_empty() {
                    let (space, pin) = pins.swap_remove(start as usize % pins.len());
                    fragments.release(space, pin);
                    for page in pin.start..pin.end {
                        counts[space][page as usize] -= 1;
                    }
                    let mut taken = Vec::new();
                    while let Some((unused, what)) = fragments.take_unused(space, pin) {
                        prop_assert_eq!(what, Some(space));
                        taken.extend(unused.start..unused.end);
                    }
                    let gone: Vec<u64> = (pin.start..pin.end).filter(|&page| counts[space][page as usize] == 0).collect();
                    prop_assert_eq!(taken, gone);
                } else {
                    let pin = range(start, start + length);
                    let gaps = fragments.hold(space, pin);
                    let pages: Vec<u64> = gaps.iter().flat_map(|gap| gap.start..gap.end).collect();
                    let absent: Vec<u64> = (pin.start..pin.end).filter(|&page| counts[space][page as usize] == 0).collect();
                    prop_assert_eq!(pages, absent);
                    for gap in gaps {
                        fragments.fill(space, gap, space);
                    }
                    for page in pin.start..pin.end {
                        counts[space][page as usize] += 1;
                    }
                    pins.push((space, pin));
                }
                for (space, pin) in &pins {
                    let mut at = pin.start;
                    let hole = fragments.find_pinned(*space, *pin, |part, what| {
                        let follows = part.start == at && what == space;
                        at = part.end;
                        (!follows).then_some(())
                    });
                    prop_assert!(hole.is_none() && at == pin.end);
                }
            }
        }
    }
}
