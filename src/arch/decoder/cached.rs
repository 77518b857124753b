//! Attention of decoders with a cache of keys and values.
//!
//! The tokens of all sequences of a step lie packed in one row, `[1, tokens, width]`, so that no
//! product is done for padding. Around ONNX Runtime's `GroupQueryAttention` they are spread over
//! the slots of the cache, `[slots, longest, width]`, and packed again. The operator writes the
//! cache in place. A slot without tokens costs nothing.

use super::{Decoder, attention::reshaped, config::Attention};
use crate::{
    arch::{
        error::ArchError,
        ops::{extent, with_hidden},
    },
    module::{
        COSINES, CacheSpec, Cached, LENGTHS, Network, PAST_KEYS, PAST_VALUES, PLACES, PRESENT_KEYS,
        PRESENT_VALUES, Precision, QUERY_LENGTHS, ROWS, SINES, TOTAL_LENGTH,
    },
    onnx::{Attribute, GraphBuilder, proto::data_type},
    tensor::signed,
};

/// Divisor of the widths of heads that the operator takes.
const HEAD_UNIT: usize = 8;

/// Number of inputs of the operator before the lengths of queries; those that are not used are
/// empty.
const QUERY_LENGTHS_AT: usize = 16;

impl Attention {
    /// Returns the cache that the attention can keep, or `None` if the operator does not take its
    /// heads.
    pub(super) fn cache(&self) -> Option<CacheSpec> {
        let spec = CacheSpec { num_heads: self.num_shared_heads, head_width: self.head_width };
        self.head_width.is_multiple_of(HEAD_UNIT).then_some(spec)
    }
}

impl Decoder {
    /// Builds the attention sub-layer of block `index` with its norm and residual, for the tokens
    /// of a step.
    ///
    /// # Shapes
    ///
    /// - hidden, output: \[1, tokens, width\]
    /// - past and present keys and values: \[slots, shared heads, capacity, head width\]
    pub(super) fn cached_attention(
        &self,
        index: usize,
        cache: CacheSpec,
        precision: Precision,
    ) -> Result<Network, ArchError> {
        let shape = self.shape.attention;
        let (mut graph, hidden) = with_hidden(self.shape.width);
        let [queries, keys, values] = self.projected(&mut graph, &hidden, index)?;
        let turned = turned(&mut graph, [&queries, &keys], shape);
        let rows = graph.input(ROWS, data_type::INT64, &[None, None]);
        let values =
            [&turned[0], &turned[1], &values].map(|value| spread(&mut graph, value, &rows));
        let mixed = attend(&mut graph, &values, shape);
        let flat = reshaped(&mut graph, &mixed, &[-1, signed(shape.num_heads * shape.head_width)]);
        let places = graph.input(PLACES, data_type::INT64, &[None]);
        let packed = graph.node("Gather", &[&flat, &places], &[("axis", Attribute::Int(0))]);
        let zero = graph.ints(&[0]);
        let packed = graph.node("Unsqueeze", &[&packed, &zero], &[]);
        let sum = self.end_attention(&mut graph, &hidden, &packed, index)?;
        let cached = Cached { cache, frequencies: shape.frequencies() };
        Ok(self.network(graph, &sum, precision).with_cache(cached))
    }
}

/// Adds the rotation of queries and keys by the cosines and sines of their positions.
fn turned(graph: &mut GraphBuilder, values: [&str; 2], shape: Attention) -> [String; 2] {
    let half = extent(shape.head_width / 2);
    let turns = [COSINES, SINES].map(|name| graph.input(name, data_type::FLOAT, &[None, half]));
    values.map(|value| super::attention::turn(graph, value, &turns))
}

/// Spreads packed tokens over the slots of the cache, `[slots, longest, width]`.
fn spread(graph: &mut GraphBuilder, value: &str, rows: &str) -> String {
    let axis = graph.ints(&[0]);
    let flat = graph.node("Squeeze", &[value, &axis], &[]);
    graph.node("Gather", &[&flat, rows], &[("axis", Attribute::Int(0))])
}

/// Adds attention over the cache, whose new state is an output of the graph.
fn attend(graph: &mut GraphBuilder, values: &[String; 3], shape: Attention) -> String {
    let cache = [None, extent(shape.num_shared_heads), None, extent(shape.head_width)];
    let past = [PAST_KEYS, PAST_VALUES].map(|name| graph.input(name, data_type::FLOAT, &cache));
    let lengths = graph.input(LENGTHS, data_type::INT32, &[None]);
    let total = graph.input(TOTAL_LENGTH, data_type::INT32, &[]);
    let queries = graph.input(QUERY_LENGTHS, data_type::INT32, &[None]);
    let mut inputs: Vec<&str> = values.iter().chain(&past).map(String::as_str).collect();
    inputs.extend([&*lengths, &total]);
    inputs.resize(QUERY_LENGTHS_AT, "");
    inputs.push(&queries);
    let mut attributes = vec![
        ("num_heads", Attribute::Int(signed(shape.num_heads))),
        ("kv_num_heads", Attribute::Int(signed(shape.num_shared_heads))),
        ("scale", Attribute::Float(shape.scale)),
    ];
    if let Some(window) = shape.window {
        attributes.push(("local_window_size", Attribute::Int(signed(window))));
    }
    let outputs = ["attended", PRESENT_KEYS, PRESENT_VALUES];
    graph.fused_outputs("GroupQueryAttention", &inputs, &outputs, &attributes);
    for name in [PRESENT_KEYS, PRESENT_VALUES] {
        graph.declare_output(name, data_type::FLOAT, &cache);
    }
    outputs[0].to_owned()
}
