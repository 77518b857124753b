//! Dense feed-forward parts split into experts: groups of hidden units, of which every token uses
//! some (EMoE, section 3; MoEfication, section 3).
//!
//! Weights stay in their files. An expert takes its rows and columns of the anchor's own matrices
//! by index when its session is created. All experts together compute the dense part. This also
//! holds if a file defines the output of experts that a token does not use.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::{
    arch::{
        backbone::{Dense, Expansion},
        error::ArchError,
        ops::{extent, float_weight, layer_norm, linear, taken_weight, transposed, with_hidden},
    },
    family::{ExpertsSpec, FamilyError, Fault, RouterForm},
    module::{
        Network, Order, Precision, REST, Routed, Router, SCORES, SUM, TOKENS, Ways, Weighting,
    },
    onnx::{
        Attribute, GraphBuilder,
        proto::{ModelProto, TensorProto, data_type},
    },
    pool::{Checkpoint, FitRecords, PoolError, open_verified},
    tensor::signed,
};

/// Networks from which the experts of one block are fitted.
#[derive(Debug)]
pub struct SplitPart {
    /// Position of the entry in the manifest.
    pub entry: usize,
    /// Number of the block.
    pub block: usize,
    /// Name of the space at the start of the feed-forward part.
    pub space: String,
    /// Width of a token.
    pub width: usize,
    /// Network without inputs that returns the first matrix, `[units, width]`.
    pub keys: Network,
    /// Network without inputs that returns the second matrix, `[width, units]`.
    pub values: Network,
    /// Network from hidden states to the part's input tokens joined with the hidden units,
    /// `[batch, tokens, width + units]`.
    pub units: Network,
}

/// Returns the path of the file with an entry's assignment and router, relative to the family's
/// folder.
pub fn split_file_name(spec: &ExpertsSpec) -> String {
    format!("fits/{}.experts{}.safetensors", spec.anchor, spec.num_experts)
}

/// File of an entry's fitted experts.
#[derive(Debug)]
pub(crate) struct SplitFile<'a> {
    spec: &'a ExpertsSpec,
    path: PathBuf,
    weights: Checkpoint,
    /// Bytes of the file, from which the assignments are read.
    content: Vec<u8>,
}

/// Split of one block's hidden units among experts.
#[derive(Debug)]
struct Split<'a> {
    spec: &'a ExpertsSpec,
    dense: &'a Dense,
    /// Hidden units, ordered by expert.
    order: Vec<i64>,
    /// Weight of the router, `[experts, width]`.
    gate: TensorProto,
    /// Bias of the router, `[experts]`.
    gate_bias: Option<TensorProto>,
    /// Output for a token from each expert that it does not use, `[experts, width]`.
    dropped: Option<TensorProto>,
}

impl<'a> SplitFile<'a> {
    /// Opens the file of an entry, or returns `None` if the entry is not fitted.
    pub(crate) fn open(
        folder: &Path,
        records: &FitRecords,
        spec: &'a ExpertsSpec,
    ) -> Result<Option<Self>, ArchError> {
        let name = split_file_name(spec);
        let Some(record) = records.experts.get(&name) else {
            tracing::warn!(
                anchor = spec.anchor,
                num_experts = spec.num_experts,
                "experts are not fitted; run `tessera fit --experts`"
            );
            return Ok(None);
        };
        let file = record.file(&name);
        let location = Path::new(file.location);
        let content = open_verified(folder, location, file.sha256)?.bytes().to_vec();
        let weights = Checkpoint::open(folder, location, file.sha256)?;
        Ok(Some(Self { spec, path: folder.join(location), weights, content }))
    }

    /// Builds the modules of `block`, one for each supported number of experts per token.
    pub(crate) fn modules(
        &self,
        block: usize,
        dense: &Dense,
    ) -> Result<Vec<(String, Routed)>, ArchError> {
        let split = self.split(block, dense)?;
        let build = |k: &usize| Ok((self.spec.variant(*k), split.routed(*k)?));
        self.spec.top_k.iter().map(build).collect()
    }

    fn split<'d>(&self, block: usize, dense: &'d Dense) -> Result<Split<'d>, ArchError>
    where
        'a: 'd,
    {
        let Self { spec, weights, .. } = self;
        let shape = [spec.num_experts, dense.width];
        let name = |part: &str| format!("block.{block}.{part}");
        let optional = |part: &str, shape: &[usize]| {
            let name = name(part);
            weights.has(&name).then(|| weights.weight(&name, shape)).transpose()
        };
        Ok(Split {
            spec,
            dense,
            order: self.order(&name("units"), dense.num_units)?,
            gate: weights.weight(&name("gate.weight"), &shape)?,
            gate_bias: optional("gate.bias", &shape[..1])?,
            dropped: optional("dropped", &shape)?,
        })
    }

    /// Reads which units belong to which expert, each once.
    fn order(&self, name: &str, num_units: usize) -> Result<Vec<i64>, PoolError> {
        let malformed = |message: String| PoolError::Malformed { path: self.path.clone(), message };
        let file = SafeTensors::deserialize(&self.content).map_err(|e| malformed(e.to_string()))?;
        let tensor = file
            .tensor(name)
            .map_err(|_| PoolError::NoTensor { path: self.path.clone(), name: name.into() })?;
        let expected = vec![self.spec.num_experts, num_units / self.spec.num_experts];
        if tensor.shape() != expected {
            let (path, name, found) = (self.path.clone(), name.into(), tensor.shape().to_vec());
            return Err(PoolError::TensorShape { path, name, found, expected });
        }
        if tensor.dtype() != Dtype::I32 {
            return Err(malformed(format!("tensor `{name}` is {:?}, not I32", tensor.dtype())));
        }
        let units = tensor
            .data()
            .chunks_exact(4)
            .map(|bytes| i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])));
        let mut seen = vec![false; num_units];
        let mut order = Vec::with_capacity(num_units);
        for unit in units {
            let place = usize::try_from(unit).ok().and_then(|unit| seen.get_mut(unit));
            if place.is_none_or(|seen| std::mem::replace(seen, true)) {
                let reason = "is outside the block's units or there twice";
                return Err(malformed(format!("tensor `{name}`: unit {unit} {reason}")));
            }
            order.push(unit);
        }
        Ok(order)
    }
}

/// Checks an entry of the manifest against a block's feed-forward part. `folder` is the family's.
pub(crate) fn check(folder: &Path, spec: &ExpertsSpec, dense: &Dense) -> Result<(), ArchError> {
    if dense.num_units.is_multiple_of(spec.num_experts) {
        return Ok(());
    }
    let expected = format!("must divide the {} hidden units of a block", dense.num_units);
    let fault = Fault::new(spec.key("num_experts"), spec.num_experts, expected);
    Err(FamilyError::value(folder, fault).into())
}

impl Dense {
    /// Returns the networks for fitting: the two matrices, and the hidden units.
    pub(crate) fn fitting(&self, entry: usize, block: usize, space: String) -> SplitPart {
        let (mut graph, hidden) = with_hidden(self.width);
        let tokens = self.tokens(&mut graph, &hidden);
        let units = self.expand(&mut graph, &tokens, None);
        let joined = graph.node("Concat", &[&tokens, &units], &[("axis", Attribute::Int(-1))]);
        let shape = [None, None, extent(self.width + self.num_units)];
        SplitPart {
            entry,
            block,
            space,
            width: self.width,
            keys: matrix(&self.expansion.weight),
            values: matrix(&self.contraction),
            units: Network::new(graph.finish(&joined, "output", &shape), Precision::F32),
        }
    }

    /// Adds the norm if it comes first, and returns the tokens.
    fn tokens(&self, graph: &mut GraphBuilder, hidden: &str) -> String {
        if !self.is_pre_norm {
            return hidden.to_owned();
        }
        layer_norm(graph, hidden, self.norm.clone(), self.epsilon)
    }

    /// Adds the first half for `tokens`; `units` names a list of hidden units, or `None` for all.
    fn expand(&self, graph: &mut GraphBuilder, tokens: &str, units: Option<&str>) -> String {
        let Expansion { weight, bias, nonlinearity } = &self.expansion;
        let take = |graph: &mut GraphBuilder, whole: &TensorProto| match units {
            Some(units) => taken_weight(graph, whole.clone(), units, 0),
            None => float_weight(graph, whole.clone()),
        };
        let weight = take(graph, weight);
        let weight = transposed(graph, &weight);
        let bias = take(graph, bias);
        let product = graph.node("MatMul", &[tokens, &weight], &[]);
        nonlinearity.add(graph, &product, Some(&bias))
    }

    /// Adds the output of the hidden units `units` for `rows`.
    fn expert(&self, graph: &mut GraphBuilder, rows: &str, units: &[i64]) -> String {
        let units = graph.ints(units);
        let Expansion { weight, bias, nonlinearity } = &self.expansion;
        let weight = taken_weight(graph, weight.clone(), &units, 0);
        let bias = taken_weight(graph, bias.clone(), &units, 0);
        // Rows are a matrix, so that the bias is part of the product.
        let transposed = [("transB", Attribute::Int(1))];
        let product = graph.node("Gemm", &[rows, &weight, &bias], &transposed);
        let expanded = nonlinearity.add(graph, &product, None);
        let weight = taken_weight(graph, self.contraction.clone(), &units, 1);
        graph.node("Gemm", &[&expanded, &weight], &transposed)
    }
}

impl Split<'_> {
    fn num_experts(&self) -> usize {
        self.spec.num_experts
    }

    /// Builds the module in which a token uses `top_k` experts.
    fn routed(&self, top_k: usize) -> Result<Routed, ArchError> {
        let experts = (0..self.num_experts()).map(|expert| self.expert(expert)).collect();
        let router = Router {
            weighting: Weighting::One,
            ..Router::new(self.num_experts(), top_k, Order::TopKThenSoftmax)
        };
        let (entry, exit) = (self.entry(), Some(self.exit()));
        Ok(Routed { entry, router, ways: Ways::Experts(experts), exit })
    }

    /// Builds the network that every token passes first: the norm if it comes first, and the
    /// scores.
    fn entry(&self) -> Network {
        let width = self.dense.width;
        let (mut graph, hidden) = with_hidden(width);
        let tokens = self.dense.tokens(&mut graph, &hidden);
        let scores = match self.spec.router {
            RouterForm::Oracle => self.mass(&mut graph, &tokens),
            RouterForm::Average | RouterForm::Learned => {
                let scores = linear(&mut graph, &tokens, self.gate.clone());
                match &self.gate_bias {
                    Some(bias) => {
                        let bias = float_weight(&mut graph, bias.clone());
                        graph.node("Add", &[&scores, &bias], &[])
                    }
                    None => scores,
                }
            }
        };
        if self.dense.is_pre_norm {
            graph.output(&tokens, TOKENS, &[None, None, extent(width)]);
        }
        let shape = [None, None, extent(self.num_experts())];
        network(graph.finish(&scores, SCORES, &shape))
    }

    /// Adds the sum of each expert's positive hidden units.
    fn mass(&self, graph: &mut GraphBuilder, tokens: &str) -> String {
        let order = graph.ints(&self.order);
        let units = self.dense.expand(graph, tokens, Some(&order));
        let positive = graph.node("Relu", &[&units], &[]);
        let shape = graph.ints(&[0, 0, signed(self.num_experts()), -1]);
        let grouped = graph.node("Reshape", &[&positive, &shape], &[]);
        let axis = graph.ints(&[3]);
        graph.node("ReduceSum", &[&grouped, &axis], &[("keepdims", Attribute::Int(0))])
    }

    /// Builds one expert as a network of its own, \[rows, width\] to \[rows, width\].
    fn expert(&self, expert: usize) -> Network {
        let (width, num_units) = (self.dense.width, self.order.len() / self.num_experts());
        let mut graph = GraphBuilder::default();
        let rows = graph.input("rows", data_type::FLOAT, &[None, extent(width)]);
        let units = &self.order[expert * num_units..][..num_units];
        let made = self.dense.expert(&mut graph, &rows, units);
        let made = self.less_dropped(&mut graph, made, expert);
        let held = num_units * (2 * width + 1) + width;
        network(graph.finish(&made, "output", &[None, extent(width)])).holding(4 * held as u64)
    }

    /// Subtracts the output that a token would get from the expert without using it.
    fn less_dropped(&self, graph: &mut GraphBuilder, made: String, expert: usize) -> String {
        let Some(dropped) = &self.dropped else { return made };
        let dropped = float_weight(graph, dropped.clone());
        let index = graph.int(signed(expert));
        let own = graph.node("Gather", &[&dropped, &index], &[("axis", Attribute::Int(0))]);
        let own = graph.node("Neg", &[&own], &[]);
        graph.node("Add", &[&made, &own], &[])
    }

    /// Builds the network after the sum of the experts: bias, scale and norm. The sum includes the
    /// residual unless there is a scale.
    fn exit(&self) -> Network {
        let dense = self.dense;
        let width = extent(dense.width);
        let mut graph = GraphBuilder::default();
        let sum = graph.input(SUM, data_type::FLOAT, &[None, None, width]);
        let mut bias = float_weight(&mut graph, dense.bias.clone());
        if let Some(dropped) = &self.dropped {
            let dropped = float_weight(&mut graph, dropped.clone());
            let axis = graph.ints(&[0]);
            let keep = [("keepdims", Attribute::Int(0))];
            let all = graph.node("ReduceSum", &[&dropped, &axis], &keep);
            bias = graph.node("Add", &[&bias, &all], &[]);
        }
        let mut output = graph.node("Add", &[&sum, &bias], &[]);
        if let Some(scale) = &dense.scale {
            let scale = float_weight(&mut graph, scale.clone());
            let rest = graph.input(REST, data_type::FLOAT, &[None, None, width]);
            let scaled = graph.node("Mul", &[&output, &scale], &[]);
            output = graph.node("Add", &[&scaled, &rest], &[]);
        }
        if !dense.is_pre_norm {
            output = layer_norm(&mut graph, &output, dense.norm.clone(), dense.epsilon);
        }
        network(graph.finish(&output, "output", &[None, None, width]))
    }
}

/// Builds a network that returns a matrix unchanged.
fn matrix(weight: &TensorProto) -> Network {
    let mut graph = GraphBuilder::default();
    let shape: Vec<Option<i64>> = weight.dims.iter().map(|extent| Some(*extent)).collect();
    let value = float_weight(&mut graph, weight.clone());
    network(graph.finish(&value, "output", &shape))
}

fn network(model: ModelProto) -> Network {
    Network::new(model, Precision::F32)
}
