//! The NVMe controller, driven as drivers drive it.

mod basics;
mod behavior;
mod bench;
mod registers;
mod rows;
