//! Costs of edges, and their combination along a path.
//!
//! The module deliberately has no units beyond seconds and bytes, and no validation.
//! [`CostedGraph`] refuses edges whose costs cannot be added here.
//!
//! [`CostedGraph`]: super::CostedGraph

/// The cost of running one module at one shape, and its effect on quality.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EdgeCost {
    /// Time to run the module, in seconds; finite and not negative.
    pub latency_seconds: f64,
    /// Bytes of the module's resident weights.
    pub weight_bytes: u64,
    /// Bytes of memory that the module needs while it runs and frees afterwards.
    pub activation_bytes: u64,
    /// −ln of the factor by which the module changes quality; finite, of either sign.
    pub loss: f64,
}

/// The cost of a path: the combined costs of its edges, in path order.
///
/// Latency, weights and loss add up. Weights do, because the modules of a path are distinct.
/// Activations peak instead, because only one module runs at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PathCost {
    /// Sum of the edges' latencies, in seconds.
    pub latency_seconds: f64,
    /// Sum of the edges' bytes of weights.
    pub weight_bytes: u64,
    /// Largest bytes of activations of an edge.
    pub activation_bytes: u64,
    /// Sum of the edges' losses.
    pub loss: f64,
}

impl PathCost {
    /// Cost of the path without edges.
    pub const EMPTY: Self =
        Self { latency_seconds: 0.0, weight_bytes: 0, activation_bytes: 0, loss: 0.0 };

    /// Returns the cost of this path with one more edge at its end.
    #[must_use]
    pub fn then(self, edge: &EdgeCost) -> Self {
        Self {
            latency_seconds: self.latency_seconds + edge.latency_seconds,
            weight_bytes: self.weight_bytes.saturating_add(edge.weight_bytes),
            activation_bytes: self.activation_bytes.max(edge.activation_bytes),
            loss: self.loss + edge.loss,
        }
    }

    /// Returns the bytes of memory that the path needs: all its weights and its peak activations.
    pub fn memory_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.activation_bytes)
    }

    /// Returns the predicted quality, in [0, 1].
    pub fn quality(&self) -> f64 {
        (-self.loss).exp().clamp(0.0, 1.0)
    }
}

impl<'a> FromIterator<&'a EdgeCost> for PathCost {
    fn from_iter<I: IntoIterator<Item = &'a EdgeCost>>(edges: I) -> Self {
        edges.into_iter().fold(Self::EMPTY, Self::then)
    }
}

#[cfg(test)]
mod tests {
    use super::{EdgeCost, PathCost};

    #[test]
    fn latency_weights_and_loss_add_and_activations_peak() {
        let edges = [
            EdgeCost { latency_seconds: 0.5, weight_bytes: 10, activation_bytes: 7, loss: 0.25 },
            EdgeCost { latency_seconds: 1.5, weight_bytes: 20, activation_bytes: 3, loss: -0.125 },
        ];
        let cost: PathCost = edges.iter().collect();
        let expected =
            PathCost { latency_seconds: 2.0, weight_bytes: 30, activation_bytes: 7, loss: 0.125 };
        assert_eq!(cost, expected);
        assert_eq!(cost.memory_bytes(), 37);
    }

    #[test]
    fn quality_stays_between_zero_and_one() {
        for (loss, quality) in [(0.0, 1.0), (-3.0, 1.0), (1e4, 0.0), (0.5, (-0.5_f64).exp())] {
            let cost = PathCost { loss, ..PathCost::EMPTY };
            assert!((cost.quality() - quality).abs() < 1e-15, "loss {loss}");
        }
    }
}
