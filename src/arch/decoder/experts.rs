//! Experts of a decoder's block: an entry with norm, router and shared experts, and a network for
//! each expert.
//!
//! Published checkpoints hold each expert in its own tensors. Transformers 5 and GraniteMoE hold
//! all experts in one tensor, and so do GGUF files. In either case an expert is a place in a file.

use super::{
    Decoder, Gated,
    config::Experts,
    dialects::{ExpertNames, Shared},
    scaled,
};
use crate::{
    arch::{
        backbone::Form,
        error::ArchError,
        ops::{extent, linear, with_hidden},
    },
    module::{Network, Precision, REST, Routed, SCORES, TOKENS, Ways},
    onnx::{
        GraphBuilder,
        proto::{ModelProto, TensorProto, data_type},
    },
    pool::PoolError,
    tensor::signed,
};

/// Matrices of a block's experts in the checkpoint.
#[derive(Debug)]
enum Matrices {
    /// Three tensors for each expert: the prefix before its number, and the suffixes for gate, up
    /// and down.
    Single(String, [&'static str; 3]),
    /// Two tensors for all experts: one with every gate and up matrix, one with every down matrix.
    Fused([String; 2]),
    /// Three tensors for all experts, as in GGUF files: every gate, up and down matrix.
    Stacked([String; 3]),
}

impl Decoder {
    /// Builds the `experts` of block `index` with their norm and residual.
    pub(super) fn routed(
        &self,
        index: usize,
        experts: &Experts,
        form: &Form<'_>,
    ) -> Result<Routed, ArchError> {
        let mut router = experts.router.clone();
        form.route(&mut router);
        let block = format!("model.layers.{index}");
        // Routers stay in f32, and blocks of shared experts become floats where those of others do.
        let precision = match form.precision {
            Precision::Dequantized => Precision::Dequantized,
            Precision::F32 | Precision::Int8 => Precision::F32,
        };
        let entry = Network::new(self.entry(&block, experts)?, precision);
        let matrices = self.matrices(&block, experts.dialect.names);
        let expert = |number| {
            let part = self.expert(&matrices, experts, number)?;
            Ok(self.rows_network(part, form.precision))
        };
        let networks = (0..router.num_ways).map(expert).collect::<Result<_, ArchError>>()?;
        Ok(Routed { entry, router, ways: Ways::Experts(networks), exit: None })
    }

    /// Builds what every token passes before it is routed.
    fn entry(&self, block: &str, experts: &Experts) -> Result<ModelProto, ArchError> {
        let width = self.shape.width;
        let num_ways = experts.router.num_ways;
        let (mut graph, hidden) = with_hidden(width);
        let name = format!("{block}.post_attention_layernorm.weight");
        let normed = self.norm(&mut graph, &hidden, &name, width)?;
        let scores = linear(&mut graph, &normed, self.router(block, experts)?);
        if let Some(shared) = self.shared(&mut graph, block, &normed, experts)? {
            let rest = graph.node("Add", &[&hidden, &shared], &[]);
            graph.output(&rest, REST, &[None, None, extent(width)]);
        }
        graph.output(&normed, TOKENS, &[None, None, extent(width)]);
        Ok(graph.finish(&scores, SCORES, &[None, None, extent(num_ways)]))
    }

    /// Returns the router's matrix, whose values are finite.
    fn router(&self, block: &str, experts: &Experts) -> Result<TensorProto, PoolError> {
        let names = experts.dialect.router.map(|name| format!("{block}.{name}.weight"));
        let [published, fused] = names;
        let name = if self.checkpoint.has(&fused) { fused } else { published };
        self.checkpoint.finite_weight(&name, &[experts.router.num_ways, self.shape.width])
    }

    /// Adds the output of the experts that all tokens share, or returns `None` if there are none.
    fn shared(
        &self,
        graph: &mut GraphBuilder,
        block: &str,
        normed: &str,
        experts: &Experts,
    ) -> Result<Option<String>, ArchError> {
        let (width, inner) = (self.shape.width, experts.shared_inner);
        match experts.dialect.shared {
            Shared::Fused([input, output]) if inner > 0 => {
                let name = format!("{block}.{input}.weight");
                let half = |rows| self.checkpoint.rows(&name, &[2 * inner, width], rows);
                let part = Gated {
                    gate: half(0..inner)?,
                    up: half(inner..2 * inner)?,
                    down: self.weight(&format!("{block}.{output}.weight"), &[width, inner])?,
                    nonlinearity: self.shape.nonlinearity,
                };
                let made = part.add_to(graph, normed);
                Ok(Some(scaled(graph, &made, self.shape.residual_multiplier)))
            }
            Shared::Gated(name) if inner > 0 => {
                let name = format!("{block}.{name}");
                let made = self.gated(&name, inner)?.add_to(graph, normed);
                let gate = self.row(&format!("{name}_gate.weight"))?;
                let gate = linear(graph, normed, gate);
                let gate = graph.node("Sigmoid", &[&gate], &[]);
                Ok(Some(graph.node("Mul", &[&gate, &made], &[])))
            }
            _ => Ok(None),
        }
    }

    /// Returns the matrix `name` of one row, which GGUF files have as a vector.
    fn row(&self, name: &str) -> Result<TensorProto, PoolError> {
        let width = self.shape.width;
        let is_vector = self.checkpoint.tensor(name)?.shape.len() == 1;
        let mut row = match is_vector {
            true => self.weight(name, &[width])?,
            false => self.weight(name, &[1, width])?,
        };
        row.dims = vec![1, signed(width)];
        Ok(row)
    }

    /// Returns the names of the matrices of the experts of `block`, published under `names`.
    fn matrices(&self, block: &str, names: ExpertNames) -> Matrices {
        let parts = ["mlp", "block_sparse_moe"];
        let in_memory = parts.map(|part| {
            ["gate_up_proj", "down_proj"].map(|name| format!("{block}.{part}.experts.{name}"))
        });
        if let Some(names) = in_memory.into_iter().find(|[input, _]| self.checkpoint.has(input)) {
            return Matrices::Fused(names);
        }
        let stacked = ["gate", "up", "down"].map(|name| format!("{block}.mlp.experts.{name}_proj"));
        if self.checkpoint.has(&stacked[0]) {
            return Matrices::Stacked(stacked);
        }
        match names {
            ExpertNames::Single(prefix, parts) => {
                Matrices::Single(format!("{block}.{prefix}"), parts)
            }
            ExpertNames::Fused(names) => Matrices::Fused(names.map(|n| format!("{block}.{n}"))),
        }
    }

    /// Returns the matrices of expert `number` of a block.
    fn expert(
        &self,
        matrices: &Matrices,
        experts: &Experts,
        number: usize,
    ) -> Result<Gated, ArchError> {
        let width = self.shape.width;
        let (inner, count) = (experts.inner, experts.router.num_ways);
        match matrices {
            Matrices::Single(prefix, names) => {
                let [gate, up, down] = names.map(|name| format!("{prefix}{number}.{name}"));
                Ok(Gated {
                    gate: self.weight(&gate, &[inner, width])?,
                    up: self.weight(&up, &[inner, width])?,
                    down: self.weight(&down, &[width, inner])?,
                    nonlinearity: self.shape.nonlinearity,
                })
            }
            Matrices::Stacked([gate, up, down]) => {
                let inward = [count, inner, width];
                let input = |name| self.checkpoint.matrix(name, inward, number, 0..inner);
                let outward = [count, width, inner];
                Ok(Gated {
                    gate: input(gate)?,
                    up: input(up)?,
                    down: self.checkpoint.matrix(down, outward, number, 0..width)?,
                    nonlinearity: self.shape.nonlinearity,
                })
            }
            Matrices::Fused([input, output]) => {
                let shape = [count, 2 * inner, width];
                let half = |rows| self.checkpoint.matrix(input, shape, number, rows);
                let shape = [count, width, inner];
                Ok(Gated {
                    gate: half(0..inner)?,
                    up: half(inner..2 * inner)?,
                    down: self.checkpoint.matrix(output, shape, number, 0..width)?,
                    nonlinearity: self.shape.nonlinearity,
                })
            }
        }
    }

    /// Builds a feed-forward part as a network of its own.
    ///
    /// # Shapes
    ///
    /// - hidden, output: \[rows, width\]
    fn rows_network(&self, part: Gated, precision: Precision) -> Network {
        let width = extent(self.shape.width);
        let mut graph = GraphBuilder::default();
        let rows = graph.input("hidden", data_type::FLOAT, &[None, width]);
        let made = part.add_to(&mut graph, &rows);
        let model = graph.finish(&made, "output", &[None, width]);
        Network::new(model, precision)
    }
}
