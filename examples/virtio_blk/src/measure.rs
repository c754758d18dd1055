//! Both paths, in turn, and what can be said of them.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::machine::{Guest, Path, SAMPLE};

/// Pairs of samples.
const PAIRS: usize = 101;

/// The smallest, the middle and the largest of some numbers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Middle.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Bytes of the disk.
    pub disk: usize,
    /// Requests that were measured and verified.
    pub requests: usize,
    /// Pairs of samples.
    pub pairs: usize,
    /// Requests in a second without translation.
    pub direct: Spread,
    /// Requests in a second through a port.
    pub translated: Spread,
    /// The second by the first, pair by pair.
    pub ratio: Spread,
}

impl Spread {
    fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        Self { min: numbers[0], median: numbers[numbers.len() / 2], max: numbers[numbers.len() - 1] }
    }
}

impl Report {
    /// Measures a machine with a disk of `disk` bytes. Each pair swaps who goes first, so that a processor that becomes
    /// slower or faster meanwhile does it to both.
    ///
    /// # Errors
    /// As [`Guest::sample`].
    pub fn of_disk(disk: usize) -> Result<Self> {
        let mut machine = Guest::new(disk)?;
        machine.check_requests(Path::Direct)?;
        machine.check_requests(Path::Translated)?;
        let mut rates = [Vec::with_capacity(PAIRS), Vec::with_capacity(PAIRS)];
        // The first pair warms up.
        for pair in 0..=PAIRS {
            let mut order = [(0, Path::Direct), (1, Path::Translated)];
            order.rotate_left(pair % 2);
            for (side, path) in order {
                let rate = SAMPLE as f64 / machine.sample(path)?.as_secs_f64();
                if pair > 0 {
                    rates[side].push(rate);
                }
            }
        }
        let ratios = rates[0].iter().zip(&rates[1]).map(|(direct, translated)| translated / direct).collect();
        let [direct, translated] = rates.map(Spread::of);
        Ok(Self { disk, requests: 2 * PAIRS * SAMPLE, pairs: PAIRS, direct, translated, ratio: Spread::of(ratios) })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, direct, translated, ratio, .. } = self;
        let Spread { min, median, max } = ratio;
        writeln!(
            f,
            "{:<22}  {:<22}  {:<12}  ratio",
            format!("disk of {} MiB", disk >> 20),
            "million requests/s",
            "ns a request"
        )?;
        let rows = [
            ("  without translation", direct, String::new()),
            ("  through a port", translated, format!("{median:.3} ({min:.3}…{max:.3})")),
        ];
        for (name, rate, ratio) in rows {
            let [min, median, max] = [rate.min, rate.median, rate.max].map(|rate| rate / 1e6);
            let rates = format!("{median:.2} ({min:.2}…{max:.2})");
            let line = format!("{name:<22}  {rates:<22}  {:<12.1}  {ratio}", 1e3 / median);
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
