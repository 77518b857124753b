//! Attention of decoders with a cache of keys and values.
//!
//! The tokens of all sequences of a step lie packed, `[tokens, width]`, so that no product is done
//! for padding. Around ONNX Runtime's `GroupQueryAttention` they are spread over
//! the slots of the cache, `[slots, longest, width]`, and packed again. The operator gets a token's
//! queries, keys and values as one row, turns them, and writes the cache in place. A slot without
//! tokens costs nothing.

use super::{
    Decoder,
    attention::{LETTERS, OF_STEP, clipped, reshaped, turn},
    config::Attention,
    dialects::Norms,
};
use crate::{
    arch::{
        error::ArchError,
        ops::{extent, with_rows},
    },
    family::CacheType,
    module::{
        COSINES, CacheSpec, Cached, KEY_SCALES, LENGTHS, Network, PAST_KEYS, PAST_VALUES, PLACES,
        POSITIONS, PRESENT_KEYS, PRESENT_VALUES, Pairs, Precision, QUERY_LENGTHS, ROWS, SINES,
        TOTAL_LENGTH, VALUE_SCALES,
    },
    onnx::{Attribute, GraphBuilder, proto::data_type},
    tensor::signed,
};

/// Divisor of the widths of heads that the operator takes, and of those that it turns.
const HEAD_UNIT: usize = 8;
const TURNED_UNIT: usize = 16;

/// Numbers of inputs of the operator before the scales of 8-bit caches, and before the lengths of
/// queries. Those that are not used are empty.
const SCALES_AT: usize = 12;
const QUERY_LENGTHS_AT: usize = 16;

/// The operator's word for a scale for each channel of each head.
const PER_CHANNEL: &str = "PER_CHANNEL";

impl Attention {
    /// Returns the cache that the attention can keep, or `None` if the operator does not take its
    /// heads.
    pub(super) fn cache(&self) -> Option<CacheSpec> {
        let spec = CacheSpec {
            num_heads: self.num_shared_heads,
            head_width: self.head_width,
            cache_type: CacheType::F32,
            pairs: if self.is_interleaved { Pairs::Neighbours } else { Pairs::Halves },
        };
        self.head_width.is_multiple_of(HEAD_UNIT).then_some(spec)
    }

    /// Returns whether the operator turns queries and keys.
    fn is_turned_inside(&self) -> bool {
        self.head_width.is_multiple_of(TURNED_UNIT)
    }
}

impl Decoder {
    /// Builds the attention sub-layer of block `index` with its norm and residual, for the tokens
    /// of a step.
    ///
    /// # Shapes
    ///
    /// - hidden, output: \[tokens, width\]
    /// - past and present keys and values: \[slots, shared heads, capacity, head width\]
    pub(super) fn cached_attention(
        &self,
        index: usize,
        cache: CacheSpec,
        precision: Precision,
    ) -> Result<Network, ArchError> {
        let shape = &self.shape.attention[index];
        let (mut graph, hidden) = with_rows(self.shape.width);
        let half = extent(shape.head_width / 2);
        let turns = [COSINES, SINES].map(|name| graph.input(name, data_type::FLOAT, &[None, half]));
        let joined = self.joined(&mut graph, &hidden, &turns, index)?;
        let rows = graph.input(ROWS, data_type::INT64, &[None, None]);
        let spread = graph.node("Gather", &[&joined, &rows], &[("axis", Attribute::Int(0))]);
        let mixed = attend(&mut graph, &spread, &turns, Attending { shape, cache });
        let places = graph.input(PLACES, data_type::INT64, &[None, Some(2)]);
        let packed = graph.node("GatherND", &[&mixed, &places], &[]);
        let sum = self.end_attention(&mut graph, &hidden, &packed, index)?;
        let cached = Cached { caches: vec![cache], frequencies: shape.frequencies() };
        Ok(self.step_network(graph, &sum, precision).with_cache(cached))
    }
}

impl Decoder {
    /// Adds the norm before the attention of block `index`, and each token's queries, keys and
    /// values in one row.
    fn joined(
        &self,
        graph: &mut GraphBuilder,
        hidden: &str,
        turns: &[String; 2],
        index: usize,
    ) -> Result<String, ArchError> {
        let axis = [("axis", Attribute::Int(-1))];
        let shape = &self.shape.attention[index];
        if shape.norms != Norms::None || !shape.is_turned_inside() {
            let parts = self.projected(graph, hidden, index, &OF_STEP)?;
            let [mut queries, mut keys, values] = parts;
            if !shape.is_turned_inside() {
                let positions = graph.input(POSITIONS, data_type::INT64, &[Some(1), None]);
                let mut turned = |value: &str, num_heads: usize| {
                    let width = signed(num_heads * shape.head_width);
                    let batch = reshaped(graph, value, &[1, -1, width]);
                    let turned = turn(graph, &batch, &positions, turns, shape);
                    reshaped(graph, &turned, &[-1, width])
                };
                queries = turned(&queries, shape.num_heads);
                keys = turned(&keys, shape.num_shared_heads);
            }
            return Ok(graph.node("Concat", &[&queries, &keys, &values], &axis));
        }
        // Nothing is done for one of the three alone, so products of one form need no splitting.
        let normed = self.normed(graph, hidden, index)?;
        let mut parts = Vec::new();
        for letter in LETTERS {
            parts.push(self.product(graph, &normed, index, letter)?);
        }
        let [queries, keys, values] = &parts[..] else { return Ok(normed) };
        let mut joined = graph.node("Concat", &[queries, keys, values], &axis);
        if shape.has_biases {
            let mut biases = Vec::new();
            for letter in LETTERS {
                biases.push(self.bias(graph, index, letter)?);
            }
            let biases: Vec<&str> = biases.iter().map(String::as_str).collect();
            let bias = graph.node("Concat", &biases, &axis);
            joined = graph.node("Add", &[&joined, &bias], &[]);
        }
        Ok(match shape.clip {
            Some(clip) => clipped(graph, &joined, clip),
            None => joined,
        })
    }
}

/// Attention over a cache.
#[derive(Clone, Copy)]
struct Attending<'a> {
    shape: &'a Attention,
    cache: CacheSpec,
}

/// Adds attention over the cache, whose new state is an output of the graph.
fn attend(
    graph: &mut GraphBuilder,
    joined: &str,
    turns: &[String; 2],
    Attending { shape, cache }: Attending<'_>,
) -> String {
    let element = match cache.cache_type {
        CacheType::F32 => data_type::FLOAT,
        CacheType::Int8 => data_type::INT8,
    };
    let cached = [None, extent(shape.num_shared_heads), None, extent(shape.head_width)];
    let past = [PAST_KEYS, PAST_VALUES].map(|name| graph.input(name, element, &cached));
    let lengths = graph.input(LENGTHS, data_type::INT32, &[None]);
    let total = graph.input(TOTAL_LENGTH, data_type::INT32, &[]);
    let queries = graph.input(QUERY_LENGTHS, data_type::INT32, &[None]);
    // Without keys and values of their own, they lie in the rows of the queries.
    let mut inputs = vec![joined, "", "", &past[0], &past[1], &lengths, &total];
    if shape.is_turned_inside() {
        inputs.extend(turns.iter().map(String::as_str));
    }
    let scales = match cache.cache_type {
        CacheType::F32 => Vec::new(),
        CacheType::Int8 => {
            let width = extent(cache.width());
            let scales = [KEY_SCALES, VALUE_SCALES];
            scales.map(|name| graph.input(name, data_type::FLOAT, &[width])).to_vec()
        }
    };
    inputs.resize(SCALES_AT, "");
    inputs.extend(scales.iter().map(String::as_str));
    inputs.resize(QUERY_LENGTHS_AT, "");
    inputs.push(&queries);
    let mut attributes = vec![
        ("num_heads", Attribute::Int(signed(shape.num_heads))),
        ("kv_num_heads", Attribute::Int(signed(shape.num_shared_heads))),
        ("scale", Attribute::Float(shape.scale)),
        ("do_rotary", Attribute::Int(i64::from(shape.is_turned_inside()))),
        ("rotary_interleaved", Attribute::Int(i64::from(shape.is_interleaved))),
    ];
    if let Some(window) = shape.window {
        attributes.push(("local_window_size", Attribute::Int(signed(window))));
    }
    if !scales.is_empty() {
        attributes.extend([
            ("k_quant_type", Attribute::Text(PER_CHANNEL)),
            ("v_quant_type", Attribute::Text(PER_CHANNEL)),
            ("kv_cache_bit_width", Attribute::Int(8)),
        ]);
    }
    let outputs = ["attended", PRESENT_KEYS, PRESENT_VALUES];
    graph.fused_outputs("GroupQueryAttention", &inputs, &outputs, &attributes);
    for name in [PRESENT_KEYS, PRESENT_VALUES] {
        graph.declare_output(name, element, &cached);
    }
    outputs[0].to_owned()
}
