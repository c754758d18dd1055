//! Rows of results, for people and for machines.

use std::fmt::Write as _;

use serde::Serialize;

use crate::machine::Machine;
use crate::statistics::{Pairs, Spread};

/// What was measured under one name.
pub struct Row {
    /// Name of the benchmark.
    pub name: String,
    /// The samples.
    pub samples: Pairs,
    /// How a sample is shown.
    pub unit: Unit,
    /// What is to be reached.
    pub figure: Figure,
    /// In a line: what is ours, what is theirs.
    pub note: String,
}

/// How a time is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// As it is.
    Time,
    /// As the throughput, if so many bytes were moved in it.
    Throughput {
        /// How many.
        bytes: u64,
    },
}

/// What is to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Figure {
    /// Nothing: it is only reported.
    None,
    /// The median of their time ÷ our time.
    Ratio {
        /// At least this.
        at_least: f64,
    },
    /// The same, but later: `--check` does not look at it yet.
    Later {
        /// At least this.
        at_least: f64,
    },
    /// The median of our time − their time.
    Difference {
        /// Less than this, in nanoseconds.
        under_ns: f64,
    },
}

impl Row {
    /// Whether the figure is reached; `None` if nothing has to be.
    pub fn reached(&self) -> Option<bool> {
        match self.figure {
            Figure::None | Figure::Later { .. } => None,
            _ => self.meets_figure(),
        }
    }

    /// Whether the figure, of today or later, is met. A figure without samples is not.
    fn meets_figure(&self) -> Option<bool> {
        match self.figure {
            Figure::None => None,
            Figure::Ratio { at_least } | Figure::Later { at_least } => {
                Some(self.samples.ratio().is_some_and(|ratio| ratio.median >= at_least))
            }
            Figure::Difference { under_ns } => {
                Some(self.samples.difference().is_some_and(|difference| difference.median < under_ns))
            }
        }
    }

    fn cells(&self) -> [String; 6] {
        let side = |samples: &[f64]| Spread::of(samples.iter().copied()).map(|spread| self.unit.show(spread));
        let none = || String::from("–");
        let compared = match self.figure {
            Figure::Difference { .. } => self.samples.difference().map(|d| format!("+ {}", Unit::Time.show(d))),
            _ => self.samples.ratio().map(|ratio| show(ratio, "")),
        };
        let (figure, later) = match self.figure {
            Figure::None => (none(), false),
            Figure::Ratio { at_least } => (format!("≥ {at_least:.2}"), false),
            Figure::Later { at_least } => (format!("≥ {at_least:.2} later"), true),
            Figure::Difference { under_ns } => (format!("< + {:.0} ms", under_ns / 1e6), false),
        };
        let reached = match self.meets_figure() {
            None => none(),
            Some(met) => format!("{}{}", if met { "yes" } else { "no" }, if later { " already" } else { "" }),
        };
        let reached = if reached == "no already" { String::from("not yet") } else { reached };
        [
            self.name.clone(),
            side(&self.samples.ours).unwrap_or_else(none),
            side(&self.samples.theirs).unwrap_or_else(none),
            compared.unwrap_or_else(none),
            figure,
            reached,
        ]
    }
}

impl Unit {
    /// Median, then smallest and largest in brackets, in a unit that fits the median.
    fn show(self, nanoseconds: Spread) -> String {
        match self {
            Self::Throughput { bytes } => show(nanoseconds.map(|time| bytes as f64 / time), " GB/s"),
            Self::Time => {
                let scale = nanoseconds.median.abs();
                let (divisor, unit) = match scale {
                    _ if scale >= 1e6 => (1e6, " ms"),
                    _ if scale >= 1e3 => (1e3, " µs"),
                    _ => (1.0, " ns"),
                };
                show(nanoseconds.map(|time| time / divisor), unit)
            }
        }
    }
}

fn show(Spread { min, median, max }: Spread, unit: &str) -> String {
    format!("{}{unit} ({}…{})", digits(median), digits(min), digits(max))
}

/// Three significant digits, or all of the integer part.
fn digits(number: f64) -> String {
    let magnitude = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    format!("{number:.*}", (2 - magnitude).clamp(0, 6) as usize)
}

/// The rows as an aligned table, with what each means below it.
pub fn text(rows: &[Row]) -> String {
    let head = ["name", "ours", "theirs", "ratio or difference", "to reach", "reached"].map(String::from);
    let lines: Vec<_> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<_> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text.push_str(
        "\nMedian (smallest…largest). Ratio: their time ÷ our time, pair by pair; above 1, ours is faster.\n\n",
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<width$}  {} ({} samples)",
            row.name,
            row.note,
            row.samples.ours.len(),
            width = widths[0]
        );
    }
    text
}

/// Everything as JSON. Times are in nanoseconds.
///
/// # Errors
/// If a number is not one.
pub fn json(machine: &Machine, rows: &[Row]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Report<'a> {
        machine: &'a Machine,
        rows: Vec<JsonRow<'a>>,
    }
    #[derive(Serialize)]
    struct JsonRow<'a> {
        name: &'a str,
        note: &'a str,
        /// Bytes moved in the time of one sample, where that is the point.
        bytes: Option<u64>,
        ours_ns: Option<Spread>,
        theirs_ns: Option<Spread>,
        ratio: Option<Spread>,
        difference_ns: Option<Spread>,
        figure: Figure,
        reached: Option<bool>,
        samples_ns: &'a Pairs,
    }
    let rows = rows.iter().map(|row| JsonRow {
        name: &row.name,
        note: &row.note,
        bytes: if let Unit::Throughput { bytes } = row.unit { Some(bytes) } else { None },
        ours_ns: Spread::of(row.samples.ours.iter().copied()),
        theirs_ns: Spread::of(row.samples.theirs.iter().copied()),
        ratio: row.samples.ratio(),
        difference_ns: row.samples.difference(),
        figure: row.figure,
        reached: row.reached(),
        samples_ns: &row.samples,
    });
    serde_json::to_string_pretty(&Report { machine, rows: rows.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64, theirs: f64, figure: Figure) -> Row {
        let samples = Pairs { ours: vec![ours; 3], theirs: vec![theirs; 3] };
        Row { name: "name".into(), samples, unit: Unit::Time, figure, note: "note".into() }
    }

    #[test]
    fn a_figure_is_reached_at_its_bound_and_a_difference_only_below() {
        let ratio = Figure::Ratio { at_least: 0.5 };
        assert_eq!(row(2.0, 1.0, ratio).reached(), Some(true));
        assert_eq!(row(2.1, 1.0, ratio).reached(), Some(false));
        let difference = Figure::Difference { under_ns: 10.0 };
        assert_eq!(row(12.0, 2.1, difference).reached(), Some(true));
        assert_eq!(row(12.0, 2.0, difference).reached(), Some(false));
    }

    #[test]
    fn a_later_figure_is_shown_and_not_checked() {
        let row = row(2.0, 1.0, Figure::Later { at_least: 0.8 });
        assert_eq!(row.reached(), None);
        assert_eq!(row.cells()[4..], ["≥ 0.80 later", "not yet"]);
    }

    #[test]
    fn a_figure_without_samples_is_not_reached() {
        let mut row = row(1.0, 1.0, Figure::Ratio { at_least: 0.5 });
        row.samples.theirs.clear();
        assert_eq!(row.reached(), Some(false));
    }

    #[test]
    fn units_fit_the_median() {
        let time = Spread { min: 900.0, median: 1234.0, max: 1_000_000.0 };
        assert_eq!(Unit::Time.show(time), "1.23 µs (0.900…1000)");
        let time = Spread { min: 1e6, median: 2e6, max: 4e6 };
        assert_eq!(Unit::Throughput { bytes: 8_000_000 }.show(time), "4.00 GB/s (2.00…8.00)");
    }

    #[test]
    fn columns_are_aligned() {
        let text = text(&[row(1e3, 1e3, Figure::None), row(1e9, 1e9, Figure::Ratio { at_least: 0.5 })]);
        let column = |line: &str, what: &str| line.find(what).map(|at| line[..at].chars().count());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(column(lines[0], "to reach"), column(lines[2], "≥ 0.50"));
        assert_eq!(column(lines[0], "reached"), column(lines[2], "yes"));
    }
}
