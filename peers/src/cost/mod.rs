//! Tables of cost: what a thing costs against how much of it there is. They have no figure and no peer.
//!
//! - [`port`]: what one port pays, which the tables have in common.
//! - [`walk`]: what a page table alone costs.
//! - [`nested`]: what a guest's own page table costs.
//! - [`requests`] and [`areas`]: what requests cost, in the library and of a program under `ioasid run`;
//!   [`shared_areas`], what areas of shared memory cost the runner.

mod areas;
mod eviction;
mod mappings;
mod nested;
mod page_size;
mod port;
mod requests;
mod shared_areas;
mod threads;
mod walk;

use anyhow::Result;

use crate::run::Bench;
use crate::table::Costs;

/// One table.
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Measures it.
    pub measure: fn(&Bench) -> Result<Costs>,
}

/// In the order in which they are printed.
pub const TABLES: &[Table] = &[
    requests::TABLE,
    areas::TABLE,
    shared_areas::TABLE,
    mappings::PORT,
    mappings::TABLE,
    threads::PORT,
    page_size::PORT,
    page_size::TABLE,
    nested::TABLE,
];

/// Samples for each number.
const SAMPLES: usize = 11;

/// A count in a short form: 16 k, 1 M.
fn short(count: u32) -> String {
    match count {
        _ if count >= 1 << 20 => format!("{} M", count >> 20),
        _ if count >= 1 << 10 => format!("{} k", count >> 10),
        _ => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short() {
        assert_eq!([1, 1 << 10, 1 << 18, 1 << 24].map(short), ["1", "1 k", "256 k", "16 M"]);
    }
}
