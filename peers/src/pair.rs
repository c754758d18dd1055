//! Two processors: how long a word takes from one to the other and back, and how much the two do in the time of one.
//!
//! What has to go from thread to thread, a page request and its answer, costs some of these round trips; and two
//! threads of one core, or cores whose clocks fall when both work, do little more than one.

use std::hint;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::statistics::Spread;
use crate::threads::together;

const SAMPLES: usize = 21;
/// Of a sample.
const ROUND_TRIPS: u32 = 1000;
const STEPS: u64 = 200_000;

/// The first two processors that this process may use.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Pair {
    /// Nanoseconds until a word that one of two threads writes has been seen, answered and seen again.
    pub round_trip_ns: f64,
    /// What two threads do in the time of one, in a loop that touches no memory: 2 at the best.
    pub throughput: f64,
}

impl Pair {
    /// `None` if there are no two, or they cannot be had.
    pub fn measure() -> Option<Self> {
        let round_trip_ns = median(|| round_trip().ok())?;
        let throughput = median(|| throughput().ok())?;
        Some(Self { round_trip_ns, throughput })
    }
}

fn median(mut sample: impl FnMut() -> Option<f64>) -> Option<f64> {
    Some(Spread::of((0..SAMPLES).map(|_| sample()).collect::<Option<Vec<_>>>()?)?.median)
}

fn round_trip() -> Result<f64> {
    let word = AtomicU32::new(0);
    let wait = |wanted| {
        while word.load(Ordering::Acquire) != wanted {
            hint::spin_loop();
        }
    };
    let times = together(&mut [0, 1], |side, meeting| {
        meeting.meet()?;
        let start = Instant::now();
        for trip in 0..ROUND_TRIPS {
            if *side == 0 {
                word.store(2 * trip + 1, Ordering::Release);
                wait(2 * trip + 2);
            } else {
                wait(2 * trip + 1);
                word.store(2 * trip + 2, Ordering::Release);
            }
        }
        Ok(start.elapsed())
    })?;
    Ok(longest(times)? * 1e9 / f64::from(ROUND_TRIPS))
}

fn throughput() -> Result<f64> {
    let run = |threads: &mut [u64]| -> Result<f64> {
        longest(together(threads, |seed, meeting| {
            meeting.meet()?;
            let start = Instant::now();
            *seed =
                (0..STEPS).fold(*seed, |word, step| hint::black_box(word.wrapping_mul(0x9e37_79b9).wrapping_add(step)));
            Ok(start.elapsed())
        })?)
    };
    Ok(2.0 * run(&mut [1])? / run(&mut [1, 2])?)
}

fn longest(times: Vec<Duration>) -> Result<f64> {
    Ok(times.into_iter().max().context("no thread ran")?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    #[test]
    fn it_is_measured_where_there_are_two() {
        let has_two = process::processors().unwrap().len() >= 2;
        let pair = Pair::measure();
        assert_eq!(pair.is_some(), has_two);
        assert!(pair.is_none_or(|pair| pair.round_trip_ns > 0.0 && pair.throughput > 0.0), "{pair:?}");
    }
}
