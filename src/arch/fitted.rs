//! Maps fitted in closed form: stitches, bridges and exits as networks.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    ArchError, Checkpoint, Network,
    network::{
        ATTENTION_MASK, Precision, extent, float_weight, linear, token_input, with_hidden,
    },
    pooling::{float_mask, mean, normalize, reduce},
};
use crate::{
    family::{Feature, MapForm, MapSpec},
    onnx::{Attribute, GraphBuilder},
};

/// Where a family's fitted maps are recorded, in its folder.
const RECORDS: &str = "fits.json";

/// Every fitted map of a family by its file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitRecords {
    /// The records by file name.
    pub maps: BTreeMap<String, FitRecord>,
}

/// How a map was fitted, and how well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitRecord {
    /// The SHA-256 of the file.
    pub sha256: String,
    /// The number of rows that the map was fitted on: tokens, or sequences for a pooled map.
    pub samples: u64,
    /// The ridge regularisation, relative to the mean of the Gram matrix's diagonal.
    pub regularization: f64,
    /// The explained variance on texts that the fit did not see.
    pub held_out_r2: f64,
    /// The texts.
    pub data: String,
    /// The day of the fit.
    pub date: String,
}

impl FitRecords {
    /// Reads the records of the family in `folder`; none where there is no file.
    ///
    /// # Errors
    ///
    /// Fails when the file is there but does not parse.
    pub fn read(folder: &Path) -> Result<Self, ArchError> {
        let path = folder.join(RECORDS);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ArchError::Unreadable { path, source }),
        };
        serde_json::from_str(&text)
            .map_err(|e| ArchError::Malformed { path, message: e.to_string() })
    }

    /// Returns the records as they are written, and the file's name.
    pub fn to_file(&self) -> (&'static str, String) {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        (RECORDS, text + "\n")
    }
}

/// Returns where the weights of `map` lie in the family's folder.
pub fn fit_file_name(map: &MapSpec) -> String {
    let label = map.label.as_ref().map_or(String::new(), |label| format!(".{label}"));
    format!("fits/{}-{}{label}.safetensors", map.from, map.to)
}

/// Builds the network of `map` from `width_in` to `width_out`.
pub(super) fn network(
    map: &MapSpec,
    weights: &Checkpoint,
    width_in: usize,
    width_out: usize,
) -> Result<Network, ArchError> {
    let map = FittedMap { map, weights, width_in, width_out };
    match map.map.form {
        MapForm::Tokens => map.tokens(),
        MapForm::Pooled => map.pooled(),
        MapForm::Kernel => map.kernel(),
    }
}

struct FittedMap<'a> {
    map: &'a MapSpec,
    weights: &'a Checkpoint,
    width_in: usize,
    width_out: usize,
}

impl FittedMap<'_> {
    /// `norm(sum over features of feature · weightᵀ + bias)` for every token. A neighbour beyond the
    /// sequence counts as zero, so padding changes nothing.
    fn tokens(&self) -> Result<Network, ArchError> {
        let (mut graph, hidden) = with_hidden(self.width_in);
        let mask = token_input(&mut graph, ATTENTION_MASK);
        let mask = float_mask(&mut graph, &mask);
        let kept = graph.node("Mul", &[&hidden, &mask], &[]);
        let mut sum = self.vector(&mut graph, "bias")?;
        for feature in &self.map.features {
            let weight = self.feature_weight(*feature)?;
            let part = match feature {
                Feature::Token => linear(&mut graph, &hidden, weight),
                Feature::Previous => {
                    let product = linear(&mut graph, &kept, weight);
                    pad_tokens(&mut graph, &product, [1, -1])
                }
                Feature::Next => {
                    let product = linear(&mut graph, &kept, weight);
                    pad_tokens(&mut graph, &product, [-1, 1])
                }
                Feature::First => {
                    let first = first_token(&mut graph, &hidden, true);
                    linear(&mut graph, &first, weight)
                }
                Feature::Mean => {
                    let mean = mean(&mut graph, &hidden, &mask);
                    let axis = graph.ints(&[1]);
                    let mean = graph.node("Unsqueeze", &[&mean, &axis], &[]);
                    linear(&mut graph, &mean, weight)
                }
                Feature::Max | Feature::Deviation => return Err(self.unsupported(*feature)),
            };
            sum = graph.node("Add", &[&part, &sum], &[]);
        }
        let mapped = self.norm(&mut graph, sum)?;
        let shape = [None, None, extent(self.width_out)];
        Ok(Network::new(graph.finish(&mapped, "output", &shape), Precision::F32))
    }

    /// `normalize(features · weightᵀ + bias)` once a sequence.
    fn pooled(&self) -> Result<Network, ArchError> {
        let (mut graph, features) = self.pooled_features()?;
        let inputs = self.map.features.len() * self.width_in;
        self.end_pooled(&mut graph, &features, inputs).map(|vector| self.finish(graph, &vector))
    }

    /// `normalize(k · weightᵀ + bias)` with `k = exp(−‖(features − center) · scale − landmark‖²)`, the
    /// Nyström form of kernel ridge regression.
    fn kernel(&self) -> Result<Network, ArchError> {
        let (mut graph, features) = self.pooled_features()?;
        let inputs = self.map.features.len() * self.width_in;
        let landmarks = self.weights.tensor("landmarks")?.shape.first().copied().unwrap_or(0);
        let weight = |name: &str, shape: &[usize]| self.weights.weight(name, shape);
        let center = float_weight(&mut graph, weight("center", &[inputs])?);
        let scale = float_weight(&mut graph, weight("scale", &[inputs])?);
        let centred = graph.node("Sub", &[&features, &center], &[]);
        let scaled = graph.node("Mul", &[&centred, &scale], &[]);
        let products = linear(&mut graph, &scaled, weight("landmarks", &[landmarks, inputs])?);
        let last = graph.ints(&[-1]);
        let norms = reduce(&mut graph, "ReduceSumSquare", &scaled, &last, true);
        let stored = float_weight(&mut graph, weight("landmark_norms", &[landmarks])?);
        let two = graph.float(2.0);
        let twice = graph.node("Mul", &[&products, &two], &[]);
        let exponent = graph.node("Sub", &[&twice, &norms], &[]);
        let exponent = graph.node("Sub", &[&exponent, &stored], &[]);
        let kernel = graph.node("Exp", &[&exponent], &[]);
        self.end_pooled(&mut graph, &kernel, landmarks).map(|vector| self.finish(graph, &vector))
    }

    /// Starts a graph with the features of a sequence, `[batch, features · width]`.
    fn pooled_features(&self) -> Result<(GraphBuilder, String), ArchError> {
        let (mut graph, hidden) = with_hidden(self.width_in);
        let mask = token_input(&mut graph, ATTENTION_MASK);
        let mask = float_mask(&mut graph, &mask);
        let mut parts = Vec::new();
        for feature in &self.map.features {
            parts.push(match feature {
                Feature::Mean => mean(&mut graph, &hidden, &mask),
                Feature::First => first_token(&mut graph, &hidden, false),
                Feature::Max => max(&mut graph, &hidden, &mask),
                Feature::Deviation => deviation(&mut graph, &hidden, &mask),
                Feature::Token | Feature::Previous | Feature::Next => {
                    return Err(self.unsupported(*feature));
                }
            });
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let features = graph.node("Concat", &parts, &[("axis", Attribute::Int(-1))]);
        Ok((graph, features))
    }

    fn end_pooled(
        &self,
        graph: &mut GraphBuilder,
        features: &str,
        inputs: usize,
    ) -> Result<String, ArchError> {
        let weight = self.weights.weight("weight", &[self.width_out, inputs])?;
        let product = linear(graph, features, weight);
        let bias = self.vector(graph, "bias")?;
        let sum = graph.node("Add", &[&product, &bias], &[]);
        Ok(normalize(graph, &sum))
    }

    fn finish(&self, graph: GraphBuilder, vector: &str) -> Network {
        let shape = [None, extent(self.width_out)];
        Network::new(graph.finish(vector, "output", &shape), Precision::F32)
    }

    /// Adds the layer norm, where the file has one.
    fn norm(&self, graph: &mut GraphBuilder, value: String) -> Result<String, ArchError> {
        if !self.weights.has("norm.weight") {
            return Ok(value);
        }
        let gamma = self.vector(graph, "norm.weight")?;
        let beta = self.vector(graph, "norm.bias")?;
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(1e-12))];
        Ok(graph.node("LayerNormalization", &[&value, &gamma, &beta], &attributes))
    }

    fn vector(&self, graph: &mut GraphBuilder, name: &str) -> Result<String, ArchError> {
        Ok(float_weight(graph, self.weights.weight(name, &[self.width_out])?))
    }

    fn feature_weight(
        &self,
        feature: Feature,
    ) -> Result<crate::onnx::proto::TensorProto, ArchError> {
        let name = format!("{}.weight", feature.name());
        self.weights.weight(&name, &[self.width_out, self.width_in])
    }

    fn unsupported(&self, feature: Feature) -> ArchError {
        ArchError::Map {
            from: self.map.from.clone(),
            to: self.map.to.clone(),
            reason: format!("the feature `{}` does not go with this form", feature.name()),
        }
    }
}

/// Shifts along the token axis by cropping and padding with zeros: `[before, after]`.
fn pad_tokens(graph: &mut GraphBuilder, value: &str, [before, after]: [i64; 2]) -> String {
    let pads = graph.ints(&[0, before, 0, 0, after, 0]);
    graph.node("Pad", &[value, &pads], &[])
}

fn first_token(graph: &mut GraphBuilder, hidden: &str, keep_axis: bool) -> String {
    let index = if keep_axis { graph.ints(&[0]) } else { graph.int(0) };
    graph.node("Gather", &[hidden, &index], &[("axis", Attribute::Int(1))])
}

/// The largest value over the tokens that `mask` keeps.
fn max(graph: &mut GraphBuilder, hidden: &str, mask: &str) -> String {
    let (one, far, axis) = (graph.float(1.0), graph.float(1e9), graph.ints(&[1]));
    let out = graph.node("Sub", &[mask, &one], &[]);
    let out = graph.node("Mul", &[&out, &far], &[]);
    let kept = graph.node("Add", &[hidden, &out], &[]);
    reduce(graph, "ReduceMax", &kept, &axis, false)
}

/// The standard deviation over the tokens that `mask` keeps.
fn deviation(graph: &mut GraphBuilder, hidden: &str, mask: &str) -> String {
    let axis = graph.ints(&[1]);
    let average = mean(graph, hidden, mask);
    let average = graph.node("Unsqueeze", &[&average, &axis], &[]);
    let centred = graph.node("Sub", &[hidden, &average], &[]);
    let squared = graph.node("Mul", &[&centred, &centred], &[]);
    let variance = mean(graph, &squared, mask);
    graph.node("Sqrt", &[&variance], &[])
}
