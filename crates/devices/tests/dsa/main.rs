//! The DSA model, driven as drivers drive it.

mod bench;
mod commands;
mod faults;
mod operations;
mod registers;
mod slices;
