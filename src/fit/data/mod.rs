//! Data sets that fitting and evaluating read.

mod arrays;
mod corpus;
pub(super) mod dataset;
mod images;

pub use corpus::{Corpus, Text};
pub use dataset::Dataset;
pub use images::ImageSet;
