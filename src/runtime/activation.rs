//! Activations between modules, and the inputs that modules read besides them.

use std::sync::Arc;

use ort::value::{DynValue, Tensor as OrtTensor};

use super::RuntimeError;
use crate::{
    input::{Encoding, ModelInput},
    module::{ATTENTION_MASK, INPUT_IDS, PIXEL_VALUES, TOKEN_SIZES},
    plan::Shape,
    tensor::{Tensor, TensorData},
};

/// Inputs that every module of a path may read besides the hidden states.
#[derive(Debug, Default)]
pub struct SideInputs {
    pub(super) values: Vec<(&'static str, DynValue)>,
}

/// Hidden states between two modules, or a path's outputs.
#[derive(Debug)]
pub struct Activation {
    pub(super) value: DynValue,
    /// Further outputs of a module, such as the last hidden states beside the logits.
    pub(super) others: Vec<DynValue>,
    /// Ways that the rows took in the module that made this; `None` if that module does not route.
    pub(super) routing: Option<Routing>,
    /// Number of tokens for which each row stands, `[batch, rows]`; `None` if none were merged.
    pub(super) sizes: Option<Arc<DynValue>>,
}

/// Ways that rows took in a module. A way is an expert or an attention branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// Number of ways in the module.
    pub num_ways: usize,
    /// Most ways per row.
    pub top_k: usize,
    /// Number of rows that took each way, by sequence of the batch: `[batch, ways]`.
    pub taken: Vec<u32>,
    /// Number of rows that were routed, by sequence of the batch.
    pub rows: Vec<u32>,
}

impl SideInputs {
    /// Creates the side inputs of a plan's input.
    ///
    /// # Errors
    ///
    /// Fails when the shapes contradict each other.
    pub fn of_input(input: ModelInput) -> Result<Self, RuntimeError> {
        match input {
            ModelInput::Tokens(encoding) => Self::of_encoding(encoding),
            ModelInput::Pixels(pixels) => {
                let [channels, height, width] = pixels.shape;
                let shape = [pixels.batch(), channels, height, width];
                let value = OrtTensor::from_array((shape, pixels.values))
                    .map_err(|source| RuntimeError::Tensor { source })?;
                Ok(Self { values: vec![(PIXEL_VALUES, value.into_dyn())] })
            }
        }
    }

    /// Creates side inputs of the token ids and the mask of `encoding`.
    ///
    /// # Errors
    ///
    /// Fails when the shapes contradict each other.
    pub fn of_encoding(encoding: Encoding) -> Result<Self, RuntimeError> {
        let shape = [encoding.batch, encoding.tokens];
        let value = |values: Vec<i64>| {
            OrtTensor::from_array((shape, values))
                .map(OrtTensor::into_dyn)
                .map_err(|source| RuntimeError::Tensor { source })
        };
        let values = vec![
            (INPUT_IDS, value(encoding.input_ids)?),
            (ATTENTION_MASK, value(encoding.attention_mask)?),
        ];
        Ok(Self { values })
    }

    /// Returns the number of sequences and the tokens of the longest one.
    pub(super) fn shape(&self) -> Shape {
        let shape = self.values.first().map(|(name, value)| (name, value.dtype().tensor_shape()));
        let Some((name, Some(shape))) = shape else {
            return Shape::new(1, 1);
        };
        let extent = |axis: usize| shape.get(axis).map_or(1, |extent| *extent);
        let extent = |axis| usize::try_from(extent(axis)).unwrap_or(1);
        Shape::new(extent(0), if *name == INPUT_IDS { extent(1) } else { 1 })
    }

    /// Returns the attention mask, or `None` if there is none. It is 1 for a token and 0 for
    /// padding.
    pub(super) fn mask(&self) -> Option<&[i64]> {
        let mask = self.value(ATTENTION_MASK)?.try_extract_tensor::<i64>();
        mask.ok().map(|(_, values)| values)
    }

    /// Returns the input called `name`, or `None` if it does not exist.
    pub(super) fn value(&self, name: &str) -> Option<&DynValue> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

impl Activation {
    /// Creates an activation of one value.
    pub(super) fn new(value: DynValue) -> Self {
        Self { value, others: Vec::new(), routing: None, sizes: None }
    }

    /// Returns the hidden states with rows that stand for one token each, `[batch, rows]` of them.
    ///
    /// # Errors
    ///
    /// Fails when the sizes cannot be made.
    pub fn with_sizes(self, shape: [usize; 2]) -> Result<Self, RuntimeError> {
        let sizes = handed_over(shape.to_vec(), vec![1.0; shape.iter().product()])?;
        Ok(Self { sizes: Some(Arc::new(sizes)), ..self })
    }

    /// Returns what modules read by its name, beside the hidden states.
    pub(super) fn given(&self) -> Vec<(&'static str, &DynValue)> {
        self.sizes.iter().map(|sizes| (TOKEN_SIZES, &**sizes)).collect()
    }

    /// Returns the ways that the rows took in the module that made this, or `None` if it does not
    /// route.
    pub fn routing(&self) -> Option<&Routing> {
        self.routing.as_ref()
    }

    /// Returns the value in ONNX Runtime's form.
    pub(super) fn value(&self) -> &DynValue {
        &self.value
    }

    /// Returns the shape and the elements of the first output, without copying them.
    ///
    /// # Errors
    ///
    /// Fails when the output is not f32.
    pub fn view(&self) -> Result<(Vec<usize>, &[f32]), RuntimeError> {
        view(&self.value)
    }

    /// Returns the bytes of the first output as f32.
    #[expect(clippy::cast_precision_loss, reason = "sizes stay far below 2^53 bytes")]
    pub(super) fn num_bytes(&self) -> f64 {
        let extents = self.value.dtype().tensor_shape();
        extents
            .map_or(0.0, |shape| shape.iter().map(|extent| *extent as f64).product::<f64>() * 4.0)
    }

    /// Copies the first output into a tensor.
    ///
    /// # Errors
    ///
    /// Fails when the output is not f32.
    pub fn to_tensor(&self) -> Result<Tensor, RuntimeError> {
        copied(&self.value)
    }

    /// Copies all outputs into tensors, the first output first.
    ///
    /// # Errors
    ///
    /// Fails when an output is not f32.
    pub fn to_tensors(&self) -> Result<Vec<Tensor>, RuntimeError> {
        std::iter::once(&self.value).chain(&self.others).map(copied).collect()
    }

    /// Creates hidden states of `tensor`.
    ///
    /// # Errors
    ///
    /// Fails when `tensor` is not f32.
    pub fn of_tensor(tensor: Tensor) -> Result<Self, RuntimeError> {
        let (shape, data) = tensor.into_parts();
        let TensorData::F32(values) = data else {
            let source = ort::Error::new("hidden states are f32");
            return Err(RuntimeError::Tensor { source });
        };
        Ok(Self::new(handed_over(shape, values)?))
    }
}

fn copied(value: &DynValue) -> Result<Tensor, RuntimeError> {
    let (shape, values) = view(value)?;
    Tensor::new(shape, TensorData::F32(values.to_vec()))
        .map_err(|e| RuntimeError::Tensor { source: ort::Error::new(e.to_string()) })
}

/// Returns the shape and the elements of an f32 value, without copying them.
pub(super) fn view(value: &DynValue) -> Result<(Vec<usize>, &[f32]), RuntimeError> {
    let (shape, values) =
        value.try_extract_tensor::<f32>().map_err(|source| RuntimeError::Tensor { source })?;
    let shape = shape.iter().map(|extent| usize::try_from(*extent).unwrap_or(0)).collect();
    Ok((shape, values))
}

/// Creates a value of `values` without copying them.
pub(super) fn handed_over(shape: Vec<usize>, values: Vec<f32>) -> Result<DynValue, RuntimeError> {
    let value = OrtTensor::from_array((shape, values));
    value.map(OrtTensor::into_dyn).map_err(|source| RuntimeError::Tensor { source })
}
