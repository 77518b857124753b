//! Tensor values that clients send and receive.

use super::DataType;

/// A dense tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: TensorData,
}

/// The elements of a [`Tensor`].
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "one variant an element type")]
pub enum TensorData {
    I64(Vec<i64>),
    F32(Vec<f32>),
    Bytes(Vec<Vec<u8>>),
}

/// Description of a valid tensor: its name, its element type and its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The tensor's name.
    pub name: String,
    /// The element type.
    pub data_type: DataType,
    /// The extent of each axis; `None` for an axis of any extent.
    pub shape: Vec<Option<usize>>,
}

/// Returns `extent` in the signed type of ONNX and the protocols. No memory holds as many elements
/// as its maximum, which stands for all that is larger.
pub fn signed(extent: usize) -> i64 {
    i64::try_from(extent).unwrap_or(i64::MAX)
}

/// Error for a tensor that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The shape does not hold the number of elements given.
    #[error("shape {shape:?} does not hold the {len} elements given")]
    Length {
        /// The requested shape.
        shape: Vec<usize>,
        /// The number of elements given.
        len: usize,
    },
}

impl Tensor {
    /// Builds a tensor of `shape` over `data`.
    ///
    /// # Errors
    ///
    /// Fails when the number of elements in `shape` differs from that of `data`.
    pub fn new(shape: Vec<usize>, data: TensorData) -> Result<Self, TensorError> {
        let elements = shape.iter().try_fold(1_usize, |count, extent| count.checked_mul(*extent));
        if elements != Some(data.len()) {
            return Err(TensorError::Length { shape, len: data.len() });
        }
        Ok(Self { shape, data })
    }

    /// Returns the extent of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// Returns the element type.
    pub fn data_type(&self) -> DataType {
        self.data.data_type()
    }

    /// Returns the shape and the elements.
    pub fn into_parts(self) -> (Vec<usize>, TensorData) {
        (self.shape, self.data)
    }

    /// Returns the elements of an output of a module. Those are f32: the runtime refuses others.
    ///
    /// # Panics
    ///
    /// Panics when the elements are not f32.
    pub fn floats(&self) -> &[f32] {
        self.as_f32().expect("outputs of modules are f32")
    }

    /// Returns the elements, or `None` if they are not `FP32`.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            TensorData::F32(values) => Some(values),
            TensorData::I64(_) | TensorData::Bytes(_) => None,
        }
    }

    /// Returns the elements, or `None` if they are not `INT64`.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.data {
            TensorData::I64(values) => Some(values),
            TensorData::F32(_) | TensorData::Bytes(_) => None,
        }
    }
}

impl TensorData {
    /// Returns the element type.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::I64(_) => DataType::I64,
            Self::F32(_) => DataType::F32,
            Self::Bytes(_) => DataType::Bytes,
        }
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::I64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl TensorSpec {
    /// Returns whether `shape` matches this description.
    pub fn admits(&self, shape: &[usize]) -> bool {
        shape.len() == self.shape.len()
            && shape.iter().zip(&self.shape).all(|(extent, want)| want.is_none_or(|w| w == *extent))
    }

    /// Returns the shape as the protocol writes it, with −1 for an axis of any extent.
    pub fn protocol_shape(&self) -> Vec<i64> {
        self.shape.iter().map(|extent| extent.map_or(-1, signed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_that_does_not_hold_the_data_is_refused() {
        assert!(Tensor::new(vec![2, 3], TensorData::F32(vec![0.0; 6])).is_ok());
        assert!(Tensor::new(vec![2, 3], TensorData::F32(vec![0.0; 5])).is_err());
        assert!(Tensor::new(vec![usize::MAX, 3], TensorData::F32(vec![])).is_err());
        assert!(Tensor::new(vec![0, 3], TensorData::I64(vec![])).is_ok());
    }

    #[test]
    fn a_spec_admits_any_extent_where_it_names_none() {
        let spec = TensorSpec {
            name: "hidden".into(),
            data_type: DataType::F32,
            shape: vec![None, None, Some(384)],
        };
        assert!(spec.admits(&[1, 7, 384]));
        assert!(!spec.admits(&[1, 7, 383]));
        assert!(!spec.admits(&[7, 384]));
        assert_eq!(spec.protocol_shape(), [-1, -1, 384]);
    }
}
