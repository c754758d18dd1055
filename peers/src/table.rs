//! Results, for people and for machines: rows, each with a figure to reach or none, and tables of cost.

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
    /// What a sample is, and how it is shown.
    pub unit: Unit,
    /// What is to be reached.
    pub figure: Figure,
    /// In a line: what is ours, what is theirs.
    pub note: String,
}

/// What samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds, shown as a time.
    Time,
    /// Nanoseconds, shown as the throughput, if so many bytes were moved in them.
    Throughput {
        /// How many.
        bytes: u64,
    },
    /// Bytes of memory.
    Memory,
    /// A number of things.
    Count,
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
    /// The median of our time − their time.
    Difference {
        /// Less than this, in nanoseconds.
        under_ns: f64,
    },
    /// The median of ours, whatever theirs is.
    Ours {
        /// At most this, in what the samples are.
        at_most: f64,
    },
}

/// What something costs, line by line; the lines differ in one thing. It is only reported.
pub struct Costs {
    /// Name of the table.
    pub name: &'static str,
    /// What the lines differ in.
    pub by: &'static str,
    /// What is measured in each line.
    pub columns: &'static [&'static str],
    /// One for each line.
    pub lines: Vec<Line>,
    /// In a line: how it was measured.
    pub note: String,
}

/// A line of a table of cost.
pub struct Line {
    /// What is its own.
    pub label: String,
    /// One for each column.
    pub cells: Vec<Cell>,
}

/// What was measured for one column of one line.
pub struct Cell {
    /// What the samples are.
    pub unit: Unit,
    /// The samples.
    pub samples: Vec<f64>,
}

impl Row {
    /// Whether the figure is reached; `None` if nothing has to be. A figure without samples is not reached.
    pub fn reached(&self) -> Option<bool> {
        let Pairs { ours, .. } = &self.samples;
        match self.figure {
            Figure::None => None,
            Figure::Ratio { at_least } => Some(self.samples.ratio().is_some_and(|ratio| ratio.median >= at_least)),
            Figure::Difference { under_ns } => Some(self.samples.difference().is_some_and(|d| d.median < under_ns)),
            Figure::Ours { at_most } => {
                Some(Spread::of(ours.iter().copied()).is_some_and(|ours| ours.median <= at_most))
            }
        }
    }

    fn cells(&self) -> Vec<String> {
        let side = |samples: &[f64]| Spread::of(samples.iter().copied()).map(|spread| self.unit.show(spread));
        let none = || String::from("–");
        let compared = match self.figure {
            Figure::Difference { .. } => self.samples.difference().map(|d| format!("+ {}", self.unit.show(d))),
            _ => self.samples.ratio().map(|ratio| show(ratio, "")),
        };
        let figure = match self.figure {
            Figure::None => none(),
            Figure::Ratio { at_least } => format!("≥ {at_least:.2}"),
            Figure::Difference { under_ns } => format!("< + {}", self.unit.show_one(under_ns)),
            Figure::Ours { at_most } => format!("≤ {}", self.unit.show_one(at_most)),
        };
        let reached = match self.reached() {
            None => none(),
            Some(reached) => String::from(if reached { "yes" } else { "no" }),
        };
        vec![
            self.name.clone(),
            side(&self.samples.ours).unwrap_or_else(none),
            side(&self.samples.theirs).unwrap_or_else(none),
            compared.unwrap_or_else(none),
            figure,
            reached,
        ]
    }
}

impl Cell {
    /// Times in nanoseconds.
    pub fn times(samples: Vec<f64>) -> Self {
        Self { unit: Unit::Time, samples }
    }

    /// So many bytes.
    pub fn memory(bytes: f64) -> Self {
        Self { unit: Unit::Memory, samples: vec![bytes] }
    }

    /// So many of something.
    pub fn count(number: f64) -> Self {
        Self { unit: Unit::Count, samples: vec![number] }
    }

    fn spread(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().copied())
    }
}

impl Unit {
    /// What samples are in.
    fn name(self) -> &'static str {
        match self {
            Self::Time | Self::Throughput { .. } => "ns",
            Self::Memory => "bytes",
            Self::Count => "count",
        }
    }

    /// What a sample is divided by to be shown, and in what unit it is then; what fits `sample`.
    fn scale(self, sample: f64) -> (f64, &'static str) {
        let scales: &[_] = match self {
            Self::Throughput { .. } => return (1.0, " GB/s"),
            Self::Count => return (1.0, ""),
            Self::Time => &[(1e9, " s"), (1e6, " ms"), (1e3, " µs"), (1.0, " ns")],
            Self::Memory => &[(1_073_741_824.0, " GiB"), (1_048_576.0, " MiB"), (1024.0, " KiB"), (1.0, " B")],
        };
        scales.iter().copied().find(|(divisor, _)| sample.abs() >= *divisor).unwrap_or(scales[scales.len() - 1])
    }

    /// Median, then smallest and largest in brackets, in a unit that fits the median.
    fn show(self, samples: Spread) -> String {
        let (divisor, unit) = self.scale(samples.median);
        let shown = match self {
            Self::Throughput { bytes } => samples.map(|time| bytes as f64 / time),
            _ => samples.map(|sample| sample / divisor),
        };
        show(shown, unit)
    }

    /// One number, in a unit that fits.
    fn show_one(self, sample: f64) -> String {
        let (divisor, unit) = self.scale(sample);
        match self {
            Self::Throughput { bytes } => format!("{}{unit}", digits(bytes as f64 / sample)),
            _ => format!("{}{unit}", digits(sample / divisor)),
        }
    }
}

/// Median, then smallest and largest in brackets if there is more than one number.
fn show(Spread { min, median, max }: Spread, unit: &str) -> String {
    let median = digits(median);
    if min == max { format!("{median}{unit}") } else { format!("{median}{unit} ({}…{})", digits(min), digits(max)) }
}

/// Three significant digits, or all of the integer part.
fn digits(number: f64) -> String {
    let magnitude = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    format!("{number:.*}", (2 - magnitude).clamp(0, 6) as usize)
}

/// Lines of cells, each column as wide as its widest cell; returns the width of the first one, too.
fn aligned(lines: &[Vec<String>]) -> (String, usize) {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let padded: Vec<_> = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    (text, widths.first().copied().unwrap_or(0))
}

/// The rows as an aligned table, with what each means below it, and then the tables of cost.
pub fn text(rows: &[Row], costs: &[Costs]) -> String {
    let mut text = String::new();
    if !rows.is_empty() {
        let head = ["name", "ours", "theirs", "ratio or difference", "to reach", "reached"].map(String::from);
        let lines: Vec<_> = std::iter::once(head.to_vec()).chain(rows.iter().map(Row::cells)).collect();
        let (table, width) = aligned(&lines);
        text.push_str(&table);
        text.push_str("\nMedian (smallest…largest). Ratio: theirs ÷ ours, pair by pair; above 1, ours is better.\n\n");
        for row in rows {
            let _ = writeln!(text, "{:<width$}  {} (samples: {})", row.name, row.note, row.samples.ours.len());
        }
    }
    for costs in costs {
        let head = std::iter::once(costs.by).chain(costs.columns.iter().copied()).map(String::from).collect();
        let lines = costs.lines.iter().map(|line| {
            let cells =
                line.cells.iter().map(|cell| cell.spread().map_or("–".into(), |spread| cell.unit.show(spread)));
            std::iter::once(line.label.clone()).chain(cells).collect()
        });
        let (table, _) = aligned(&std::iter::once(head).chain(lines).collect::<Vec<_>>());
        let _ = write!(text, "{}{}: {}\n\n{table}", if text.is_empty() { "" } else { "\n" }, costs.name, costs.note);
    }
    text
}

/// Everything as JSON. Each row and each cell says in what unit its numbers are; a ratio has none.
///
/// # Errors
/// If a number is not one.
pub fn json(machine: &Machine, rows: &[Row], costs: &[Costs]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Report<'a> {
        machine: &'a Machine,
        rows: Vec<JsonRow<'a>>,
        costs: Vec<JsonCosts<'a>>,
    }
    #[derive(Serialize)]
    struct JsonRow<'a> {
        name: &'a str,
        note: &'a str,
        unit: &'a str,
        /// Bytes moved in the time of one sample, where that is the point.
        bytes: Option<u64>,
        ours: Option<Spread>,
        theirs: Option<Spread>,
        ratio: Option<Spread>,
        difference: Option<Spread>,
        figure: Figure,
        reached: Option<bool>,
        samples: &'a Pairs,
    }
    #[derive(Serialize)]
    struct JsonCosts<'a> {
        name: &'a str,
        note: &'a str,
        by: &'a str,
        lines: Vec<JsonLine<'a>>,
    }
    #[derive(Serialize)]
    struct JsonLine<'a> {
        label: &'a str,
        cells: Vec<JsonCell<'a>>,
    }
    #[derive(Serialize)]
    struct JsonCell<'a> {
        column: &'a str,
        unit: &'a str,
        spread: Option<Spread>,
    }
    let rows = rows.iter().map(|row| JsonRow {
        name: &row.name,
        note: &row.note,
        unit: row.unit.name(),
        bytes: if let Unit::Throughput { bytes } = row.unit { Some(bytes) } else { None },
        ours: Spread::of(row.samples.ours.iter().copied()),
        theirs: Spread::of(row.samples.theirs.iter().copied()),
        ratio: row.samples.ratio(),
        difference: row.samples.difference(),
        figure: row.figure,
        reached: row.reached(),
        samples: &row.samples,
    });
    let costs = costs.iter().map(|costs| {
        let lines = costs.lines.iter().map(|line| {
            let cells = costs.columns.iter().zip(&line.cells).map(|(column, cell)| JsonCell {
                column,
                unit: cell.unit.name(),
                spread: cell.spread(),
            });
            JsonLine { label: &line.label, cells: cells.collect() }
        });
        JsonCosts { name: costs.name, note: &costs.note, by: costs.by, lines: lines.collect() }
    });
    serde_json::to_string_pretty(&Report { machine, rows: rows.collect(), costs: costs.collect() })
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
    fn a_figure_for_ours_needs_no_peer() {
        let mut row = row(8.1, 0.0, Figure::Ours { at_most: 8.1 });
        row.unit = Unit::Memory;
        row.samples.theirs.clear();
        assert_eq!(row.cells()[1..], ["8.10 B", "–", "–", "≤ 8.10 B", "yes"]);
        row.samples.ours = vec![8.2];
        assert_eq!(row.reached(), Some(false));
    }

    #[test]
    fn a_figure_without_samples_is_not_reached() {
        let mut ratio = row(1.0, 1.0, Figure::Ratio { at_least: 0.5 });
        ratio.samples.theirs.clear();
        assert_eq!(ratio.reached(), Some(false));
        let mut ours = row(1.0, 1.0, Figure::Ours { at_most: 2.0 });
        ours.samples.ours.clear();
        assert_eq!(ours.reached(), Some(false));
    }

    #[test]
    fn units_fit_the_median() {
        let time = Spread { min: 900.0, median: 1234.0, max: 1_000_000.0 };
        assert_eq!(Unit::Time.show(time), "1.23 µs (0.900…1000)");
        let time = Spread { min: 1e6, median: 2e6, max: 4e6 };
        assert_eq!(Unit::Throughput { bytes: 8_000_000 }.show(time), "4.00 GB/s (2.00…8.00)");
        assert_eq!(Unit::Memory.show_one(1.5 * 1024.0 * 1024.0), "1.50 MiB");
        assert_eq!(Unit::Time.show_one(5e7), "50.0 ms");
    }

    #[test]
    fn columns_are_aligned() {
        let text = text(&[row(1e3, 1e3, Figure::None), row(1e9, 1e9, Figure::Ratio { at_least: 0.5 })], &[]);
        let column = |line: &str, what: &str| line.find(what).map(|at| line[..at].chars().count());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(column(lines[0], "to reach"), column(lines[2], "≥ 0.50"));
        assert_eq!(column(lines[0], "reached"), column(lines[2], "yes"));
    }

    #[test]
    fn a_table_of_cost_has_a_line_for_each_label() {
        let line =
            |label: &str, ns| Line { label: label.into(), cells: vec![Cell::times(vec![ns]), Cell::memory(8.0)] };
        let costs = Costs {
            name: "cost-x",
            by: "mappings",
            columns: &["hit", "memory"],
            lines: vec![line("1 k", 2.0), line("16 k", 3000.0)],
            note: "how".into(),
        };
        let expected =
            "cost-x: how\n\nmappings  hit      memory\n1 k       2.00 ns  8.00 B\n16 k      3.00 µs  8.00 B\n";
        assert_eq!(text(&[], &[costs]), expected);
    }
}
