//! Runs of a whole model that also return inner tensors. They serve to take exports apart, not to
//! answer requests.

use std::path::Path;

use ort::{
    session::SessionInputValue,
    value::{DynValue, PrimitiveTensorElementType, Tensor as OrtTensor},
};
use prost::Message;

use crate::{
    onnx::{
        follow_links,
        proto::{ModelProto, ValueInfoProto},
    },
    runtime::{error::RuntimeError, process::Runtime, session},
    tensor::{Tensor, TensorData},
};

/// Elements of a tensor of any numeric type, as f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Elements {
    /// The extent of each axis.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub values: Vec<f64>,
}

/// A session over a whole model.
#[derive(Debug)]
pub struct WholeModel {
    session: ort::session::Session,
    name: String,
}

impl WholeModel {
    /// Loads `model`, which is called `name` in errors and whose weights lie in files of `folder`.
    /// The tensors `wanted` become outputs besides its own.
    ///
    /// # Errors
    ///
    /// Fails when ONNX Runtime refuses the model.
    pub fn load(
        runtime: &Runtime,
        folder: &Path,
        name: &str,
        model: &ModelProto,
        wanted: &[String],
    ) -> Result<Self, RuntimeError> {
        let mut model = model.clone();
        if let Some(graph) = &mut model.graph {
            for name in wanted {
                if !graph.output.iter().any(|output| output.name == *name) {
                    let output = ValueInfoProto { name: name.clone(), r#type: None };
                    graph.output.push(output);
                }
            }
        }
        let name = name.to_owned();
        let wrap = |reason| RuntimeError::Session { module: name.clone(), reason };
        let broken = |source| RuntimeError::Network { module: name.clone(), source };
        let folder = follow_links(&mut model, folder).map_err(broken)?;
        let mut builder = session::builder(runtime.environment(), &folder, &name).map_err(wrap)?;
        let session = builder.commit_from_memory(&model.encode_to_vec()).map_err(wrap)?;
        Ok(Self { session, name })
    }

    /// Runs the model and returns the tensors `wanted`.
    ///
    /// # Errors
    ///
    /// Fails when the model fails, or a tensor is not f32.
    pub fn run(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[String],
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let module = self.name.clone();
        let wrap = |reason| RuntimeError::Run { module: module.clone(), reason };
        let read = |value: &DynValue| {
            let (shape, values) = value.try_extract_tensor::<f32>().map_err(wrap)?;
            let tensor = Tensor::new(extents(shape), TensorData::F32(values.to_vec()));
            tensor.map_err(|e| wrap(ort::Error::new(e.to_string())))
        };
        self.each(inputs, wanted, read)
    }

    /// Runs the model and returns the elements of the tensors `wanted`. An entry is `None` if it
    /// does not hold numbers.
    ///
    /// # Errors
    ///
    /// Fails when the model fails.
    pub fn elements(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[String],
    ) -> Result<Vec<Option<Elements>>, RuntimeError> {
        self.each(inputs, wanted, |value| Ok(Elements::of(value)))
    }

    /// Runs the model and returns the extents of the tensors `wanted`, of any element type. An
    /// entry is `None` if it is not a tensor.
    ///
    /// # Errors
    ///
    /// Fails when the model fails.
    pub fn shapes(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[String],
    ) -> Result<Vec<Option<Vec<usize>>>, RuntimeError> {
        let read = |value: &DynValue| Ok(value.dtype().tensor_shape().map(|shape| extents(shape)));
        self.each(inputs, wanted, read)
    }

    fn each<T>(
        &mut self,
        inputs: &[(&str, &Tensor)],
        wanted: &[String],
        read: impl Fn(&DynValue) -> Result<T, RuntimeError>,
    ) -> Result<Vec<T>, RuntimeError> {
        let wrap = |reason| RuntimeError::Run { module: self.name.clone(), reason };
        let given = inputs.iter().map(|(name, tensor)| Ok((*name, value_of(tensor)?.into())));
        let given: ort::Result<Vec<(&str, SessionInputValue<'_>)>> = given.collect();
        let outputs = self.session.run(given.map_err(wrap)?).map_err(wrap)?;
        let missing = |name: &String| RuntimeError::NoInput {
            module: self.name.clone(),
            input: name.clone(),
        };
        wanted
            .iter()
            .map(|name| read(outputs.get(name.as_str()).ok_or_else(|| missing(name))?))
            .collect()
    }
}

fn value_of(tensor: &Tensor) -> ort::Result<DynValue> {
    let shape = tensor.shape().to_vec();
    match tensor.data() {
        TensorData::F32(values) => Ok(OrtTensor::from_array((shape, values.clone()))?.into_dyn()),
        TensorData::I64(values) => Ok(OrtTensor::from_array((shape, values.clone()))?.into_dyn()),
        TensorData::Bytes(_) => Err(ort::Error::new("texts are not given to models")),
    }
}

impl Elements {
    /// Returns the elements of `value`, or `None` if it does not hold numbers.
    fn of(value: &DynValue) -> Option<Self> {
        read::<f32>(value)
            .or_else(|| read::<i32>(value))
            .or_else(|| read::<u8>(value))
            .or_else(|| read::<i8>(value))
            .or_else(|| read::<f64>(value))
            .or_else(|| {
                let (shape, values) = value.try_extract_tensor::<bool>().ok()?;
                let values = values.iter().map(|value| f64::from(u8::from(*value)));
                Some(Self { shape: extents(shape), values: values.collect() })
            })
            .or_else(|| {
                let (shape, values) = value.try_extract_tensor::<i64>().ok()?;
                #[expect(clippy::cast_precision_loss, reason = "equality matters, not the value")]
                let values = values.iter().map(|value| *value as f64).collect();
                Some(Self { shape: extents(shape), values })
            })
    }
}

fn read<T: PrimitiveTensorElementType + Copy + Into<f64>>(value: &DynValue) -> Option<Elements> {
    let (shape, values) = value.try_extract_tensor::<T>().ok()?;
    let values = values.iter().map(|value| (*value).into()).collect();
    Some(Elements { shape: extents(shape), values })
}

fn extents(shape: &[i64]) -> Vec<usize> {
    shape.iter().map(|extent| usize::try_from(*extent).unwrap_or(0)).collect()
}
