//! Running a whole model once, inner tensors included: for taking exports apart, not for serving.

use std::path::Path;

use ort::{
    session::SessionInputValue,
    value::{DynValue, Tensor as OrtTensor},
};
use prost::Message;

use super::{Runtime, RuntimeError, session};
use crate::{
    onnx::{
        follow_links,
        proto::{ModelProto, ValueInfoProto},
    },
    tensor::{Tensor, TensorData},
};

/// A session over a whole model.
#[derive(Debug)]
pub struct WholeModel {
    session: ort::session::Session,
    name: String,
}

impl WholeModel {
    /// Loads `model`, whose weights lie in files of `folder`, so that the tensors `wanted` can be
    /// asked for besides its outputs.
    ///
    /// # Errors
    ///
    /// Fails when ONNX Runtime refuses the model.
    pub fn load(
        runtime: &Runtime,
        folder: &Path,
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
        let name = folder.display().to_string();
        let wrap = |source| RuntimeError::Session { module: name.clone(), source };
        let broken = |source| RuntimeError::Network { module: name.clone(), source };
        let folder = follow_links(&mut model, folder).map_err(broken)?;
        let mut builder = session::builder(runtime, &folder, &name).map_err(wrap)?;
        let session = builder.commit_from_memory(&model.encode_to_vec()).map_err(wrap)?;
        Ok(Self { session, name })
    }

    /// Runs the model on one f32 input and returns the tensors `wanted`.
    ///
    /// # Errors
    ///
    /// Fails when the model does, or a tensor is not f32.
    pub fn run(
        &mut self,
        (input, values): (&str, &Tensor),
        wanted: &[String],
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let module = self.name.clone();
        let wrap = |source| RuntimeError::Run { module: module.clone(), source };
        let read = |value: &DynValue| {
            let (shape, values) = value.try_extract_tensor::<f32>().map_err(wrap)?;
            let shape = shape.iter().map(|extent| usize::try_from(*extent).unwrap_or(0)).collect();
            let tensor = Tensor::new(shape, TensorData::F32(values.to_vec()));
            tensor.map_err(|e| wrap(ort::Error::new(e.to_string())))
        };
        self.each((input, values), wanted, read)
    }

    /// Runs the model on one f32 input and returns the extents of the tensors `wanted`, of whatever
    /// type.
    ///
    /// # Errors
    ///
    /// Fails when the model does.
    pub fn shapes(
        &mut self,
        (input, values): (&str, &Tensor),
        wanted: &[String],
    ) -> Result<Vec<Vec<usize>>, RuntimeError> {
        let read = |value: &DynValue| {
            let shape = value.dtype().tensor_shape();
            let extents = shape.into_iter().flat_map(|shape| shape.iter());
            Ok(extents.map(|extent| usize::try_from(*extent).unwrap_or(0)).collect())
        };
        self.each((input, values), wanted, read)
    }

    fn each<T>(
        &mut self,
        (input, values): (&str, &Tensor),
        wanted: &[String],
        read: impl Fn(&DynValue) -> Result<T, RuntimeError>,
    ) -> Result<Vec<T>, RuntimeError> {
        let wrap = |source| RuntimeError::Run { module: self.name.clone(), source };
        let floats = values.as_f32().unwrap_or_default().to_vec();
        let value = OrtTensor::from_array((values.shape().to_vec(), floats)).map_err(wrap)?;
        let inputs: Vec<(&str, SessionInputValue<'_>)> = vec![(input, value.into())];
        let outputs = self.session.run(inputs).map_err(wrap)?;
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
