//! Nodes of integer products whose left side is quantized row by row.

use std::collections::HashMap;

use bytes::Bytes;

use crate::{
    onnx::proto::{AttributeProto, NodeProto, TensorProto, attribute_type, data_type},
    tensor::signed,
};

/// Domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Largest distance of a level from the level of zero; levels are 1 to 255.
const MAX_LEVEL: f32 = 127.0;
const ZERO_LEVEL: u8 = 128;

/// Names of the constants that the nodes read.
const AXIS: &str = "quantize.axis";
const ZERO: &str = "quantize.zero";
const STEP: &str = "quantize.step";
const ONE: &str = "quantize.one";

/// Nodes of a graph whose products are being quantized.
///
/// A left side `x` becomes `x.uint8` and one factor per row. `x` is about `x.uint8 - 128` times the
/// factor. The factor must be divided by 127 if the opset cannot quantize by block.
#[derive(Debug)]
pub(super) struct Rows {
    /// Nodes so far, in order.
    pub(super) nodes: Vec<NodeProto>,
    /// Whether the graph's opset can quantize by block.
    is_blocked: bool,
    /// Whether reductions read their axes as an input.
    axes_are_inputs: bool,
    /// Name of the factor of each tensor that is already quantized.
    factors: HashMap<String, String>,
}

impl Rows {
    /// Creates an empty list of nodes.
    pub(super) fn new(is_blocked: bool, axes_are_inputs: bool) -> Self {
        Self { nodes: Vec::new(), is_blocked, axes_are_inputs, factors: HashMap::new() }
    }

    /// Adds the nodes that quantize the rows of `x`, which have `width` elements, unless they
    /// exist.
    pub(super) fn quantize(&mut self, x: &str, width: usize) {
        if self.factors.contains_key(x) {
            return;
        }
        let named = |part: &str| format!("{x}.{part}");
        let [largest, sum] = self.reduce(x);
        let [uint8, factor] = ["uint8", "factor"].map(named);
        // The largest value of a row may leave out a NaN. The sum is never less and does not leave
        // it out.
        if self.is_blocked {
            let [scaled, shape, zeros] = ["scaled", "shape", "zeros"].map(named);
            self.add("Mul", &[&largest, STEP], &scaled);
            self.add("Min", &[&scaled, &sum], &factor);
            self.add("Shape", &[&factor], &shape);
            self.add("Expand", &[ZERO, &shape], &zeros);
            let node = self.add("QuantizeLinear", &[x, &factor, &zeros], &uint8);
            let width = signed(width);
            node.attribute = vec![int("axis", -1), int("block_size", width)];
        } else {
            let level = named("level");
            self.add("Min", &[&largest, &sum], &factor);
            self.add("Div", &[x, &factor], &level);
            self.add("QuantizeLinear", &[&level, STEP, ZERO], &uint8);
        }
        self.factors.insert(x.into(), factor);
    }

    /// Adds the integer product that replaces `node`, whose weight is named `weight`.
    pub(super) fn multiply(&mut self, node: &NodeProto, weight: &str) {
        let (Some(left), Some(output)) = (node.input.first(), node.output.first()) else { return };
        let Some(factor) = self.factors.get(left).cloned() else { return };
        let product = format!("{output}.product");
        let step = if self.is_blocked { ONE } else { STEP };
        let [uint8, int8, scale] =
            [format!("{left}.uint8"), format!("{weight}.int8"), format!("{weight}.scale")];
        let inputs = [&uint8, &int8, step, &scale, ZERO];
        self.add("MatMulIntegerToFloat", &inputs, &product).domain = MICROSOFT.into();
        self.add("Mul", &[&product, &factor], output);
    }

    /// Adds the nodes that compute the largest and the sum of the absolute values of each row.
    fn reduce(&mut self, x: &str) -> [String; 2] {
        let [absolute, largest, sum] =
            ["absolute", "largest", "sum"].map(|part| format!("{x}.{part}"));
        self.add("Abs", &[x], &absolute);
        if self.axes_are_inputs {
            self.add("ReduceMax", &[&absolute, AXIS], &largest);
            self.add("ReduceSum", &[&absolute, AXIS], &sum);
            return [largest, sum];
        }
        for (op, output) in [("ReduceMax", &largest), ("ReduceL1", &sum)] {
            self.add(op, &[&absolute], output).attribute = vec![AttributeProto {
                name: "axes".into(),
                ints: vec![-1],
                r#type: attribute_type::INTS,
                ..AttributeProto::default()
            }];
        }
        [largest, sum]
    }

    /// Adds a node of a standard operator and returns it.
    fn add(&mut self, op: &str, inputs: &[&str], output: &str) -> &mut NodeProto {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&input| input.into()).collect(),
            output: vec![output.into()],
            name: output.into(),
            op_type: op.into(),
            ..NodeProto::default()
        });
        let last = self.nodes.len() - 1;
        &mut self.nodes[last]
    }
}

/// Returns the constants that the nodes read.
pub(super) fn constants() -> [TensorProto; 4] {
    let constant = |name: &str, data_type, dims: &[i64], raw: &[u8]| TensorProto {
        name: name.into(),
        data_type,
        dims: dims.to_vec(),
        raw_data: Some(Bytes::copy_from_slice(raw)),
        ..TensorProto::default()
    };
    let float = |name, value: f32| constant(name, data_type::FLOAT, &[], &value.to_le_bytes());
    [
        constant(AXIS, data_type::INT64, &[1], &(-1i64).to_le_bytes()),
        constant(ZERO, data_type::UINT8, &[], &[ZERO_LEVEL]),
        float(STEP, 1.0 / MAX_LEVEL),
        float(ONE, 1.0),
    ]
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        i: Some(value),
        r#type: attribute_type::INT,
        ..AttributeProto::default()
    }
}
