//! Computations of modules, by the networks of their family.

use super::routed::Routed;

/// Computation of a module, by the positions of networks in its family.
#[derive(Debug)]
pub enum Compute {
    /// One network that every token passes.
    Network(usize),
    /// Router that chooses experts for each token.
    Routed(Box<Routed<usize>>),
}
