//! Nodes and constants that the expansion adds.

use bytes::Bytes;

use crate::{
    onnx::proto::{AttributeProto, NodeProto, TensorProto, attribute_type, data_type},
    tensor::signed,
};

/// Domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Creates a node of a standard operator.
pub(in crate::onnx) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&input| input.into()).collect(),
        output: outputs.iter().map(|&output| output.into()).collect(),
        name: outputs.first().map(|&output| output.into()).unwrap_or_default(),
        op_type: op.into(),
        ..NodeProto::default()
    }
}

/// Creates a node of one of ONNX Runtime's own operators, with integer attributes.
pub(in crate::onnx) fn fused(
    op: &str,
    inputs: &[&str],
    output: &str,
    attributes: &[(&str, usize)],
) -> NodeProto {
    let attribute = attributes.iter().map(|(name, value)| int(name, signed(*value))).collect();
    NodeProto { domain: MICROSOFT.into(), attribute, ..node(op, inputs, &[output]) }
}

/// Creates an integer attribute.
pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        i: Some(value),
        r#type: attribute_type::INT,
        ..AttributeProto::default()
    }
}

/// Creates a constant list of integers.
pub(in crate::onnx) fn ints(name: &str, values: &[i64]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, data_type::INT64, &[values.len()], Bytes::from(raw))
}

/// Creates a constant float tensor.
pub(super) fn floats(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
    tensor(name, data_type::FLOAT, dims, float_bytes(values))
}

/// Creates a constant tensor of bytes.
pub(super) fn levels(name: &str, dims: &[usize], values: Vec<u8>) -> TensorProto {
    tensor(name, data_type::UINT8, dims, Bytes::from(values))
}

/// Returns the bytes of f32 values.
pub(super) fn float_bytes(values: &[f32]) -> Bytes {
    let mut raw = Vec::with_capacity(size_of_val(values));
    values.iter().for_each(|value| raw.extend_from_slice(&value.to_le_bytes()));
    Bytes::from(raw)
}

fn tensor(name: &str, data_type: i32, dims: &[usize], raw: Bytes) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type,
        dims: dims.iter().map(|extent| signed(*extent)).collect(),
        raw_data: Some(raw),
        ..TensorProto::default()
    }
}
