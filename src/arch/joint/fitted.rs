//! Networks of maps fitted in closed form: stitches, bridges and exits.

use super::{
    convolved,
    map::{MapParts, unsupported},
    pooling::{float_mask, mean, normalize, reduce},
};
use crate::{
    arch::{
        error::ArchError,
        ops::{extent, float_weight, linear, token_input, with_hidden},
    },
    family::{Feature, MapForm, MapSpec},
    module::{ATTENTION_MASK, Network, Precision},
    onnx::{Attribute, GraphBuilder},
    pool::Checkpoint,
};

/// Builds the network of a map with the weights in `weights`.
pub(crate) fn network(
    parts: &MapParts<'_>,
    weights: &Checkpoint,
    precision: Precision,
) -> Result<Network, ArchError> {
    if parts.map.form == MapForm::Conv {
        return convolved::network(parts, weights, precision);
    }
    let map = FittedMap { parts, map: parts.map, weights };
    let (mut graph, hidden) = with_hidden(parts.width_in);
    let (mapped, rank) = match parts.map.form {
        MapForm::Tokens => (map.tokens(&mut graph, &hidden)?, 3),
        MapForm::Mlp => (map.mlp(&mut graph, &hidden)?, 3),
        MapForm::Pooled | MapForm::Conv => (map.pooled(&mut graph, &hidden)?, 2),
    };
    let shape = [None, None, extent(parts.width_out)];
    Ok(Network::new(graph.finish(&mapped, "output", &shape[3 - rank..]), precision))
}

/// Builds the network that computes a map's features for fitting it.
///
/// Its output is `[batch, tokens, features · width]`, or `[batch, features · width]` for pooled
/// features.
pub(crate) fn feature_network(parts: &MapParts<'_>) -> Result<Network, ArchError> {
    if parts.map.form == MapForm::Conv {
        return convolved::feature_network(parts);
    }
    let (mut graph, hidden) = with_hidden(parts.width_in);
    let (features, shape) = match parts.map.form {
        MapForm::Tokens => (token_features(&mut graph, &hidden, parts.map)?, [None; 3].as_slice()),
        MapForm::Mlp => {
            let expanded = expand(&mut graph, &hidden, parts)?;
            let inputs = [expanded.as_str(), &hidden];
            let joined = graph.node("Concat", &inputs, &[("axis", Attribute::Int(-1))]);
            (joined, [None; 3].as_slice())
        }
        MapForm::Pooled | MapForm::Conv => {
            (pooled_features(&mut graph, &hidden, parts.map)?, [None; 2].as_slice())
        }
    };
    Ok(Network::new(graph.finish(&features, "output", shape), Precision::F32))
}

struct FittedMap<'a> {
    parts: &'a MapParts<'a>,
    map: &'a MapSpec,
    weights: &'a Checkpoint,
}

impl FittedMap<'_> {
    /// Adds `norm(sum over features of feature · weightᵀ + bias)` for every token.
    ///
    /// A neighbour beyond the sequence counts as zero, so padding changes nothing. Shifting the
    /// product instead of the feature saves the copies.
    fn tokens(&self, graph: &mut GraphBuilder, hidden: &str) -> Result<String, ArchError> {
        let mut mask = TokenMask::default();
        let mut sum = self.vector(graph, "bias")?;
        for feature in &self.map.features {
            let name = format!("{}.weight", feature.name());
            let shape = [self.parts.width_out, self.parts.width_in];
            let weight = self.weights.weight(&name, &shape)?;
            let part = match feature {
                Feature::Token => linear(graph, hidden, weight),
                Feature::Previous | Feature::Next => {
                    let kept = mask.kept(graph, hidden);
                    let product = linear(graph, &kept, weight);
                    shift(graph, &product, *feature)
                }
                Feature::First | Feature::Mean => {
                    let pooled = pooled_feature(graph, hidden, &mut mask, *feature);
                    let axis = graph.ints(&[1]);
                    let pooled = graph.node("Unsqueeze", &[&pooled, &axis], &[]);
                    linear(graph, &pooled, weight)
                }
                Feature::Max | Feature::Deviation | Feature::Neighbourhood => {
                    return Err(unsupported(self.map, *feature));
                }
            };
            sum = graph.node("Add", &[&part, &sum], &[]);
        }
        self.norm(graph, sum)
    }

    /// Adds `norm(gelu(expansion) · weightᵀ + token · token.weightᵀ + bias)` for every token.
    fn mlp(&self, graph: &mut GraphBuilder, hidden: &str) -> Result<String, ArchError> {
        let expanded = expand(graph, hidden, self.parts)?;
        let units = self.parts.expansion.as_ref().and_then(|e| e.weight.dims.first());
        let units = units.and_then(|units| usize::try_from(*units).ok()).unwrap_or(0);
        let shape = [self.parts.width_out, units];
        let product = linear(graph, &expanded, self.weights.weight("weight", &shape)?);
        let shape = [self.parts.width_out, self.parts.width_in];
        let token = linear(graph, hidden, self.weights.weight("token.weight", &shape)?);
        let bias = self.vector(graph, "bias")?;
        let sum = graph.node("Add", &[&product, &token], &[]);
        let sum = graph.node("Add", &[&sum, &bias], &[]);
        self.norm(graph, sum)
    }

    /// Adds `normalize(features · weightᵀ + bias)`, once per sequence.
    fn pooled(&self, graph: &mut GraphBuilder, hidden: &str) -> Result<String, ArchError> {
        let features = pooled_features(graph, hidden, self.map)?;
        self.end_pooled(graph, &features, self.num_inputs())
    }

    fn num_inputs(&self) -> usize {
        self.map.features.len() * self.parts.width_in
    }

    fn end_pooled(
        &self,
        graph: &mut GraphBuilder,
        features: &str,
        inputs: usize,
    ) -> Result<String, ArchError> {
        let weight = self.weights.weight("weight", &[self.parts.width_out, inputs])?;
        let product = linear(graph, features, weight);
        let bias = self.vector(graph, "bias")?;
        let sum = graph.node("Add", &[&product, &bias], &[]);
        Ok(normalize(graph, &sum))
    }

    /// Adds the layer norm if the file has one.
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
        Ok(float_weight(graph, self.weights.weight(name, &[self.parts.width_out])?))
    }
}

/// Forms of the mask that features need, each computed once.
#[derive(Debug, Default)]
struct TokenMask {
    float: Option<String>,
    kept: Option<String>,
}

impl TokenMask {
    /// Returns the mask as `[batch, tokens, 1]` f32.
    fn float(&mut self, graph: &mut GraphBuilder) -> String {
        let build = || {
            let mask = token_input(graph, ATTENTION_MASK);
            float_mask(graph, &mask)
        };
        self.float.get_or_insert_with(build).clone()
    }

    /// Returns `hidden` with zeros in place of padding.
    fn kept(&mut self, graph: &mut GraphBuilder, hidden: &str) -> String {
        let mask = self.float(graph);
        self.kept.get_or_insert_with(|| graph.node("Mul", &[hidden, &mask], &[])).clone()
    }
}

/// Adds the concatenated features of every token.
fn token_features(
    graph: &mut GraphBuilder,
    hidden: &str,
    map: &MapSpec,
) -> Result<String, ArchError> {
    let mut mask = TokenMask::default();
    let mut parts = Vec::new();
    for feature in &map.features {
        parts.push(match feature {
            Feature::Token => hidden.to_owned(),
            Feature::Previous | Feature::Next => {
                let kept = mask.kept(graph, hidden);
                shift(graph, &kept, *feature)
            }
            Feature::First | Feature::Mean => {
                let pooled = pooled_feature(graph, hidden, &mut mask, *feature);
                let axis = graph.ints(&[1]);
                let pooled = graph.node("Unsqueeze", &[&pooled, &axis], &[]);
                let shape = graph.node("Shape", &[hidden], &[]);
                graph.node("Expand", &[&pooled, &shape], &[])
            }
            Feature::Max | Feature::Deviation | Feature::Neighbourhood => {
                return Err(unsupported(map, *feature));
            }
        });
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Ok(graph.node("Concat", &parts, &[("axis", Attribute::Int(-1))]))
}

/// Adds the concatenated features of a sequence.
fn pooled_features(
    graph: &mut GraphBuilder,
    hidden: &str,
    map: &MapSpec,
) -> Result<String, ArchError> {
    let mut mask = TokenMask::default();
    let mut parts = Vec::new();
    for feature in &map.features {
        use Feature::{Neighbourhood, Next, Previous, Token};
        if matches!(feature, Token | Previous | Next | Neighbourhood) {
            return Err(unsupported(map, *feature));
        }
        parts.push(pooled_feature(graph, hidden, &mut mask, *feature));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Ok(graph.node("Concat", &parts, &[("axis", Attribute::Int(-1))]))
}

/// Adds one feature of a sequence, `[batch, width]`.
fn pooled_feature(
    graph: &mut GraphBuilder,
    hidden: &str,
    mask: &mut TokenMask,
    feature: Feature,
) -> String {
    if feature == Feature::First {
        let index = graph.int(0);
        return graph.node("Gather", &[hidden, &index], &[("axis", Attribute::Int(1))]);
    }
    let mask = mask.float(graph);
    match feature {
        Feature::Max => max(graph, hidden, &mask),
        Feature::Deviation => deviation(graph, hidden, &mask),
        _ => mean(graph, hidden, &mask),
    }
}

/// Adds the expansion of the block that contains the map's start.
fn expand(
    graph: &mut GraphBuilder,
    hidden: &str,
    parts: &MapParts<'_>,
) -> Result<String, ArchError> {
    let expansion = parts.expansion.as_ref().ok_or_else(|| ArchError::Map {
        from: parts.map.from.clone(),
        to: parts.map.to.clone(),
        reason: "the form `mlp` starts inside a block of a safetensors anchor, such as `l6.2+`"
            .into(),
    })?;
    let product = linear(graph, hidden, expansion.weight.clone());
    let bias = float_weight(graph, expansion.bias.clone());
    Ok(expansion.nonlinearity.add(graph, &product, Some(&bias)))
}

/// Moves every token one place on, so that it stands at the token that sees it as its neighbour.
fn shift(graph: &mut GraphBuilder, value: &str, neighbour: Feature) -> String {
    let by = if neighbour == Feature::Previous { 1 } else { -1 };
    let pads = graph.ints(&[0, by, 0, 0, -by, 0]);
    graph.node("Pad", &[value, &pads], &[])
}

/// Adds the largest value over the tokens that `mask` keeps.
fn max(graph: &mut GraphBuilder, hidden: &str, mask: &str) -> String {
    let (one, far, axis) = (graph.float(1.0), graph.float(1e9), graph.ints(&[1]));
    let out = graph.node("Sub", &[mask, &one], &[]);
    let out = graph.node("Mul", &[&out, &far], &[]);
    let kept = graph.node("Add", &[hidden, &out], &[]);
    reduce(graph, "ReduceMax", &kept, &axis, false)
}

/// Adds the standard deviation over the tokens that `mask` keeps.
fn deviation(graph: &mut GraphBuilder, hidden: &str, mask: &str) -> String {
    let axis = graph.ints(&[1]);
    let average = mean(graph, hidden, mask);
    let average = graph.node("Unsqueeze", &[&average, &axis], &[]);
    let centred = graph.node("Sub", &[hidden, &average], &[]);
    let squared = graph.node("Mul", &[&centred, &centred], &[]);
    let variance = mean(graph, &squared, mask);
    graph.node("Sqrt", &[&variance], &[])
}
