//! Networks of modules, and the names of their inputs.

use std::{path::Path, sync::Arc};

use prost::Message;

use super::cache::{Cached, STEP_INPUTS};
use crate::{
    family::name_without_digest,
    onnx::{
        OnnxError,
        blocks::BlockType,
        dequantize_blocks, expand_blocks, external, finish_step,
        proto::{GraphProto, ModelProto, NodeProto, TensorProto, data_type},
        quantize_weights, take_rows,
    },
};

/// Name of the token ids, `[batch, tokens]` INT64.
pub const INPUT_IDS: &str = "input_ids";
/// Name of the mask with 1 for a token and 0 for padding, `[batch, tokens]` INT64.
pub const ATTENTION_MASK: &str = "attention_mask";
/// Name of the number of tokens for which each row stands, `[batch, rows]` FP32, 0 for padding.
pub const TOKEN_SIZES: &str = "token_sizes";
/// Name of the normalized images, `[batch, channels, height, width]` FP32.
pub const PIXEL_VALUES: &str = "pixel_values";

/// Computation of one module: a small ONNX graph whose weights lie in the family's files.
#[derive(Debug, Clone)]
pub struct Network {
    model: ModelProto,
    precision: Precision,
    batching: Batching,
    /// Size of the weights when loaded, in bytes, if less than all weights that the graph reads.
    held_bytes: Option<u64>,
    /// Names of the inputs that a routed module or a step hands to the network.
    given: &'static [&'static str],
    /// Caches that the network keeps, or `None`.
    cached: Option<Arc<Cached>>,
}

/// Precision of a network's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Precision of the weights in their file: 32-bit floating point, or the levels of quantized
    /// blocks, whose products quantize their left side block by block.
    #[default]
    F32,
    /// 32-bit floating point, also for weights of quantized blocks.
    Dequantized,
    /// 8-bit integers, with weights quantized per channel and inputs per row at run time.
    Int8,
}

/// Relation of the rows of a batch to one another in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batching {
    /// Rows are independent: the graph was built here.
    Independent,
    /// Rows must be independent, which is not yet proven: the graph comes from outside.
    Unproven,
    /// Rows change one another, so they run one at a time.
    OneByOne,
}

impl Network {
    /// Wraps `model`; with [`Precision::Int8`] it is quantized when it is loaded.
    pub fn new(model: ModelProto, precision: Precision) -> Self {
        Self {
            model,
            precision,
            batching: Batching::Independent,
            held_bytes: None,
            given: &[],
            cached: None,
        }
    }

    /// Sets the size of the loaded weights to `bytes`, for a graph that keeps only parts of them.
    #[must_use]
    pub(crate) fn holding(self, bytes: u64) -> Self {
        Self { held_bytes: Some(bytes), ..self }
    }

    /// Sets the relation of rows to one another.
    #[must_use]
    pub(crate) fn with_batching(self, batching: Batching) -> Self {
        Self { batching, ..self }
    }

    /// Returns the relation of the rows of a batch to one another.
    pub fn batching(&self) -> Batching {
        self.batching
    }

    /// Returns whether the network comes from outside and its independent rows must be proven. An
    /// 8-bit form is made here, and its rows are independent if those of the graph are.
    pub fn needs_proof(&self) -> bool {
        self.batching != Batching::Independent && self.precision == Precision::F32
    }

    /// Sets the names of the inputs that a routed module hands to the network.
    #[must_use]
    pub(crate) fn with_given(self, given: &'static [&'static str]) -> Self {
        Self { given, ..self }
    }

    /// Returns whether the network holds only parts of the weights that its graph reads.
    pub(super) fn is_part(&self) -> bool {
        self.held_bytes.is_some()
    }

    /// Makes the network one that keeps caches.
    #[must_use]
    pub(crate) fn with_cache(self, cached: Cached) -> Self {
        Self { given: &STEP_INPUTS, cached: Some(Arc::new(cached)), ..self }
    }

    /// Returns the caches that the network keeps, or `None`.
    pub fn cached(&self) -> Option<&Arc<Cached>> {
        self.cached.as_ref()
    }

    /// Returns the names of the inputs that a routed module or a step hands to the network.
    pub(crate) fn given(&self) -> &'static [&'static str] {
        self.given
    }

    /// Returns the graph as it was built.
    pub fn model(&self) -> &ModelProto {
        &self.model
    }

    /// Returns the precision of the matrix products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns the size of the weights when loaded, in bytes. An element takes four bytes, or one
    /// if quantized; weights of quantized blocks take what their packed form takes.
    pub fn weight_bytes(&self) -> u64 {
        if let Some(bytes) = self.held_bytes {
            return bytes;
        }
        let Some(graph) = &self.model.graph else {
            return 0;
        };
        graph.initializer.iter().map(|tensor| self.loaded_bytes(tensor)).sum()
    }

    /// Returns the resident size of the weights when loaded, in bytes.
    ///
    /// Tables from which inputs choose rows, such as word embeddings, are not counted. They stay in
    /// their file, which ONNX Runtime maps. Only the pages read are in memory, and they do not
    /// belong to the process alone.
    pub fn resident_bytes(&self) -> u64 {
        let (None, Some(graph)) = (self.held_bytes, &self.model.graph) else {
            return self.weight_bytes();
        };
        let is_mapped = |tensor: &&TensorProto| {
            let block_type = BlockType::of_data_type(tensor.data_type);
            let is_kept = |block: BlockType| block.has_bytes() && self.precision == Precision::F32;
            let is_external =
                external::place_of(tensor).is_some() && block_type.is_none_or(is_kept);
            is_external && is_looked_up(graph, &tensor.name)
        };
        let mapped = graph.initializer.iter().filter(is_mapped);
        let mapped: u64 = mapped.map(|tensor| self.loaded_bytes(tensor)).sum();
        self.weight_bytes().saturating_sub(mapped)
    }

    /// Returns the size of the tables that stay in their file, in bytes.
    pub fn table_bytes(&self) -> u64 {
        self.weight_bytes().saturating_sub(self.resident_bytes())
    }

    /// Returns the largest number of bytes in memory at once while the network is loaded.
    ///
    /// Matrices are reordered and packed one after another. Quantized weights are first read in
    /// f32, and passed on as a message; weights of quantized blocks are passed on as well.
    pub fn loading_bytes(&self) -> u64 {
        let copies = match self.precision {
            Precision::F32 | Precision::Dequantized if self.has_blocks() => 4,
            Precision::F32 | Precision::Dequantized => 2,
            Precision::Int8 => 5,
        };
        self.resident_bytes().saturating_mul(copies)
    }

    /// Returns the files that hold weights, relative to the family's folder.
    pub fn files(&self) -> impl Iterator<Item = String> {
        let graph = self.model.graph.iter();
        let tensors = graph.flat_map(|graph| &graph.initializer);
        tensors.filter_map(|tensor| external::place_of(tensor).map(|place| place.file))
    }

    /// Returns whether `name` is one of the graph's inputs.
    pub fn reads(&self, name: &str) -> bool {
        self.model.graph.iter().flat_map(|graph| &graph.input).any(|input| input.name == name)
    }

    /// Returns the model for ONNX Runtime.
    ///
    /// Its weights are places in files of `folder`. Weights that are taken in part or consist of
    /// quantized blocks are inside the model. With caches, its hidden states are `[1, tokens,
    /// width]`.
    ///
    /// # Errors
    ///
    /// Fails when weights that are taken in part or quantized cannot be read.
    pub fn to_onnx(&self, folder: &Path) -> Result<ModelProto, OnnxError> {
        let model = match self.held_bytes {
            Some(_) => take_rows(&self.model, folder)?,
            None => self.model.clone(),
        };
        let mut model = match self.precision {
            Precision::F32 => expand_blocks(&model, folder),
            Precision::Dequantized => dequantize_blocks(&model, folder),
            Precision::Int8 => {
                dequantize_blocks(&quantize_weights(&model, folder, max_level())?, folder)
            }
        }?;
        if self.cached.is_some() {
            finish_step(&mut model);
        }
        Ok(model)
    }

    /// Returns bytes that identify the network in caches. They depend on the graph, the places of
    /// its weights, the precision and the form of quantization.
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut bytes = self.model.encode_to_vec();
        match self.precision {
            Precision::F32 if self.has_blocks() => bytes.push(BLOCKS),
            Precision::F32 => bytes.push(0),
            Precision::Dequantized => bytes.push(DEQUANTIZED),
            Precision::Int8 => bytes.extend([BY_ROW, max_level().unsigned_abs()]),
        }
        if self.batching == Batching::OneByOne {
            bytes.push(1);
        }
        bytes
    }

    /// Returns bytes that identify the network's cost. They equal the fingerprint without the
    /// digests in the names of fitted files. Fitting a map again does not change them.
    pub fn cost_key(&self) -> Vec<u8> {
        let mut plain = self.clone();
        let graph = plain.model.graph.iter_mut();
        let tensors = graph.flat_map(|graph| &mut graph.initializer);
        for entry in tensors.flat_map(|tensor| &mut tensor.external_data) {
            if let Some(name) = name_without_digest(&entry.value) {
                entry.value = name;
            }
        }
        plain.fingerprint()
    }

    fn loaded_bytes(&self, tensor: &TensorProto) -> u64 {
        let extents = tensor.dims.iter().map(|extent| extent.unsigned_abs());
        let elements = extents.fold(1, u64::saturating_mul);
        let is_float =
            matches!(tensor.data_type, data_type::FLOAT | data_type::FLOAT16 | data_type::BFLOAT16);
        match (BlockType::of_data_type(tensor.data_type), self.precision) {
            (Some(block_type), Precision::F32) => block_type.packed_bytes(elements),
            (None, _) if !is_float => external::place_of(tensor).map_or(0, |place| place.length),
            (_, Precision::Int8) if tensor.dims.len() == 2 => elements,
            _ => elements.saturating_mul(4),
        }
    }

    /// Returns whether a weight consists of quantized blocks.
    fn has_blocks(&self) -> bool {
        let mut tensors = self.model.graph.iter().flat_map(|graph| &graph.initializer);
        tensors.any(|tensor| BlockType::of_data_type(tensor.data_type).is_some())
    }
}

/// Returns whether the graph reads from the initializer `name` only rows that its inputs choose.
fn is_looked_up(graph: &GraphProto, name: &str) -> bool {
    let is_constant = |input: &String| graph.initializer.iter().any(|tensor| tensor.name == *input);
    let readers = || graph.node.iter().filter(|node| node.input.iter().any(|input| input == name));
    let is_by_row = |node: &NodeProto| {
        let is_first = node.input.first().is_some_and(|input| input == name);
        let is_chosen = node.input.get(1).is_some_and(|rows| rows != name && !is_constant(rows));
        let on_rows =
            node.attribute.iter().all(|axis| axis.name != "axis" || axis.i.unwrap_or(0) == 0);
        node.op_type == "Gather" && is_first && is_chosen && on_rows
    };
    readers().next().is_some() && readers().all(is_by_row)
}

/// Form of quantization in the fingerprints of quantized networks: one scale per row. The value 1
/// meant one scale for a whole batch.
const BY_ROW: u8 = 2;

/// Form of weights of quantized blocks in fingerprints: their values, and packed levels.
const DEQUANTIZED: u8 = 3;
const BLOCKS: u8 = 4;

/// Returns the largest quantized weight. 8-bit products saturate on x86 without VNNI unless a bit
/// is left free.
fn max_level() -> i8 {
    #[cfg(target_arch = "x86_64")]
    if !std::is_x86_feature_detected!("avx512vnni") && !std::is_x86_feature_detected!("avxvnni") {
        return 63;
    }
    127
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_int8_and_its_levels_are_part_of_the_fingerprint() {
        let fingerprint = |precision| Network::new(ModelProto::default(), precision).fingerprint();
        assert_eq!(fingerprint(Precision::F32), [0]);
        assert_eq!(fingerprint(Precision::Int8), [BY_ROW, max_level().unsigned_abs()]);
    }
}
