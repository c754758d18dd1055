//! The DSA model, driven as drivers drive it.

mod bench;
mod commands;
mod drivers;
mod faults;
mod hostile;
mod operations;
mod portals;
mod registers;
mod slices;
