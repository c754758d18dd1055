//! The NVMe controller, driven as drivers drive it.

mod basics;
mod behavior;
mod bench;
mod failures;
mod hostile;
mod interrupts;
mod model;
mod protection;
mod registers;
mod rows;
