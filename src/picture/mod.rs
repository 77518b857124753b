//! Drawings of fronts and graphs, as text.
//!
//! Writes and loads no file. Start at `front_svg`.

mod front;
mod graph;
mod kind;

pub(crate) use front::{FrontPoint, front_svg};
pub(crate) use graph::{dot, mermaid};
pub(crate) use kind::PointKind;
