//! Nonlinearities of feed-forward parts.

use crate::onnx::{Attribute, GraphBuilder};

/// Nonlinearity between the two matrices of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nonlinearity {
    /// GELU by the error function.
    Gelu,
    /// GELU by its approximation with a hyperbolic tangent.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `x · sigmoid(x)`.
    Silu,
    /// The positive part.
    Relu,
}

/// Factor in the sigmoid of [`Nonlinearity::QuickGelu`].
const QUICK: f32 = 1.702;

impl Nonlinearity {
    /// Names that [`named`](Self::named) knows, for errors.
    pub(super) const SUPPORTED: &str = "gelu, gelu_new, gelu_pytorch_tanh, gelu_tanh, quick_gelu, \
                                        silu, swish and relu are supported";

    /// Returns the nonlinearity that transformers and timm call `name`, or `None` if it is not
    /// supported.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_tanh" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "silu" | "swish" => Self::Silu,
            "relu" => Self::Relu,
            _ => return None,
        })
    }

    /// Adds the nonlinearity of `value`, to which `bias` is added before.
    pub(super) fn add(self, graph: &mut GraphBuilder, value: &str, bias: Option<&str>) -> String {
        let alpha = |alpha| [("alpha", Attribute::Float(alpha))];
        match (self, bias) {
            (Self::Gelu, Some(bias)) => graph.fused("BiasGelu", &[value, bias], &[]),
            (Self::GeluTanh, Some(bias)) => graph.fused("FastGelu", &[value, bias], &[]),
            (_, Some(bias)) => {
                let sum = graph.node("Add", &[value, bias], &[]);
                self.add(graph, &sum, None)
            }
            (Self::Gelu, None) => graph.fused("Gelu", &[value], &[]),
            (Self::GeluTanh, None) => graph.fused("FastGelu", &[value], &[]),
            (Self::QuickGelu, None) => graph.fused("QuickGelu", &[value], &alpha(QUICK)),
            (Self::Silu, None) => graph.fused("QuickGelu", &[value], &alpha(1.0)),
            (Self::Relu, None) => graph.node("Relu", &[value], &[]),
        }
    }
}
