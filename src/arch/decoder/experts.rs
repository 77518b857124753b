//! Experts of a decoder's block: an entry with norm, router and shared experts, and a network for
//! each expert.
//!
//! Published checkpoints hold each expert in its own tensors. Transformers 5 and GraniteMoE hold
//! all experts in one tensor. In either case an expert is a place in a file.

use super::{
    Decoder, Gated,
    config::{Architecture, Shape},
    scaled,
};
use crate::{
    arch::{
        block::Form,
        error::ArchError,
        ops::{extent, linear, with_hidden},
    },
    module::{Network, Precision, REST, Routed, Router, SCORES, TOKENS, Ways},
    onnx::{
        GraphBuilder,
        proto::{TensorProto, data_type},
    },
    pool::PoolError,
};

/// Layout of the experts' matrices in the checkpoint.
#[derive(Debug)]
enum Layout {
    /// Three tensors for each expert: the prefix before its number, and the suffixes for gate, up
    /// and down.
    Single(String, [&'static str; 3]),
    /// Two tensors for all experts: one with every gate and up matrix, one with every down matrix.
    Fused([String; 2]),
}

impl Decoder {
    /// Builds the experts of block `index` with their norm and residual.
    pub(super) fn routed(&self, index: usize, form: Form<'_>) -> Result<Routed, ArchError> {
        let own = &self.shape.experts.router;
        let router = Router { top_k: form.top_k(own.top_k), ..own.clone() };
        let block = format!("model.layers.{index}");
        let entry = self.entry(&block)?;
        let layout = self.layout(&block);
        let expert = |number| self.expert(&layout, number, form.precision());
        let experts = (0..router.num_ways).map(expert).collect::<Result<_, _>>()?;
        Ok(Routed { entry, router, ways: Ways::Experts(experts), exit: None })
    }

    /// Builds the network that every token passes before it is routed. It stays in f32, and so do
    /// the scores.
    fn entry(&self, block: &str) -> Result<Network, ArchError> {
        let width = self.shape.width;
        let num_ways = self.shape.experts.router.num_ways;
        let (mut graph, hidden) = with_hidden(width);
        let name = format!("{block}.post_attention_layernorm.weight");
        let normed = self.norm(&mut graph, &hidden, &name, width)?;
        let scores = linear(&mut graph, &normed, self.router(block)?);
        if let Some(shared) = self.shared(&mut graph, block, &normed)? {
            let rest = graph.node("Add", &[&hidden, &shared], &[]);
            graph.output(&rest, REST, &[None, None, extent(width)]);
        }
        graph.output(&normed, TOKENS, &[None, None, extent(width)]);
        let model = graph.finish(&scores, SCORES, &[None, None, extent(num_ways)]);
        Ok(Network::new(model, Precision::F32))
    }

    /// Returns the router's matrix, whose values are finite.
    fn router(&self, block: &str) -> Result<TensorProto, PoolError> {
        let published = match self.shape.architecture {
            Architecture::Mixtral => "block_sparse_moe.gate",
            Architecture::Granite => "block_sparse_moe.router.layer",
            _ => "mlp.gate",
        };
        let fused = match self.shape.architecture {
            Architecture::Granite => "block_sparse_moe.router",
            _ => "mlp.gate",
        };
        let [published, fused] = [published, fused].map(|name| format!("{block}.{name}.weight"));
        let name = if self.checkpoint.has(&fused) { fused } else { published };
        let shape = [self.shape.experts.router.num_ways, self.shape.width];
        self.checkpoint.finite_weight(&name, &shape)
    }

    /// Adds the output of the experts that all tokens share, or returns `None` if there are none.
    fn shared(
        &self,
        graph: &mut GraphBuilder,
        block: &str,
        normed: &str,
    ) -> Result<Option<String>, ArchError> {
        let Shape { architecture, width, residual_multiplier, ref experts, .. } = self.shape;
        let inner = experts.shared_inner;
        if inner == 0 {
            return Ok(None);
        }
        if architecture == Architecture::Granite {
            let (input, output) = ("shared_mlp.input_linear", "shared_mlp.output_linear");
            let name = format!("{block}.{input}.weight");
            let half = |rows| self.checkpoint.rows(&name, &[2 * inner, width], rows);
            let part = Gated {
                gate: half(0..inner)?,
                up: half(inner..2 * inner)?,
                down: self.weight(&format!("{block}.{output}.weight"), &[width, inner])?,
            };
            let made = part.add_to(graph, normed);
            return Ok(Some(scaled(graph, &made, residual_multiplier)));
        }
        let name = format!("{block}.mlp.shared_expert");
        let made = self.gated(&name, inner)?.add_to(graph, normed);
        let gate = self.weight(&format!("{name}_gate.weight"), &[1, width])?;
        let gate = linear(graph, normed, gate);
        let gate = graph.node("Sigmoid", &[&gate], &[]);
        Ok(Some(graph.node("Mul", &[&gate, &made], &[])))
    }

    /// Returns the layout of the experts of `block` in the checkpoint.
    fn layout(&self, block: &str) -> Layout {
        let is_granite = self.shape.architecture == Architecture::Granite;
        let parts = ["mlp", "block_sparse_moe"];
        let in_memory = parts.map(|part| {
            ["gate_up_proj", "down_proj"].map(|name| format!("{block}.{part}.experts.{name}"))
        });
        if let Some(names) = in_memory.into_iter().find(|[input, _]| self.checkpoint.has(input)) {
            return Layout::Fused(names);
        }
        match self.shape.architecture {
            Architecture::Mixtral => Layout::Single(
                format!("{block}.block_sparse_moe.experts."),
                ["w1.weight", "w3.weight", "w2.weight"],
            ),
            _ if is_granite => Layout::Fused(
                ["input_linear", "output_linear"]
                    .map(|name| format!("{block}.block_sparse_moe.{name}.weight")),
            ),
            _ => Layout::Single(
                format!("{block}.mlp.experts."),
                ["gate_proj.weight", "up_proj.weight", "down_proj.weight"],
            ),
        }
    }

    /// Builds expert `number` of a block.
    ///
    /// # Shapes
    ///
    /// - hidden, output: \[rows, width\]
    fn expert(
        &self,
        layout: &Layout,
        number: usize,
        precision: Precision,
    ) -> Result<Network, ArchError> {
        let Shape { width, ref experts, .. } = self.shape;
        let (inner, count) = (experts.inner, experts.router.num_ways);
        let part = match layout {
            Layout::Single(prefix, names) => {
                let [gate, up, down] = names.map(|name| format!("{prefix}{number}.{name}"));
                Gated {
                    gate: self.weight(&gate, &[inner, width])?,
                    up: self.weight(&up, &[inner, width])?,
                    down: self.weight(&down, &[width, inner])?,
                }
            }
            Layout::Fused([input, output]) => {
                let shape = [count, 2 * inner, width];
                let half = |rows| self.checkpoint.matrix(input, shape, number, rows);
                Gated {
                    gate: half(0..inner)?,
                    up: half(inner..2 * inner)?,
                    down: self.checkpoint.matrix(
                        output,
                        [count, width, inner],
                        number,
                        0..width,
                    )?,
                }
            }
        };
        let mut graph = GraphBuilder::default();
        let rows = graph.input("hidden", data_type::FLOAT, &[None, extent(width)]);
        let made = part.add_to(&mut graph, &rows);
        let model = graph.finish(&made, "output", &[None, extent(width)]);
        Ok(Network::new(model, precision))
    }
}
