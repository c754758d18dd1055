//! The NVMe controller, driven as drivers drive it.

mod basics;
mod behavior;
mod bench;
mod hostile;
mod model;
mod registers;
mod rows;
