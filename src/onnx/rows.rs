//! The nodes of integer products whose left side is quantized row by row.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_type, data_type};

/// ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Largest level of a quantized row, and the level of zero: levels are 1 to 255.
const MAX_LEVEL: f32 = 127.0;
const ZERO_LEVEL: u8 = 128;

/// Lower bound of every form of GELU, so the smallest value need not be looked for.
const GELU_BOUND: f32 = 0.170_1;

/// The operators that compute GELU.
const GELUS: [&str; 3] = ["BiasGelu", "FastGelu", "Gelu"];

/// Names of the constants that the nodes read.
const AXIS: &str = "quantize.axis";
const ZERO: &str = "quantize.zero";
const STEP: &str = "quantize.step";
const ONE: &str = "quantize.one";
const BOUND: &str = "quantize.bound";

/// Collects the nodes of a graph whose products are being quantized.
///
/// A left side `x` becomes `x.uint8` and a factor a row, so that `x` is about `x.uint8 - 128` times
/// the factor; where blocks cannot be quantized, times the factor over 127.
#[derive(Debug)]
pub(super) struct Rows {
    /// The nodes so far, in order.
    pub(super) nodes: Vec<NodeProto>,
    /// Whether the graph's version of the standard quantizes by block.
    is_blocked: bool,
    /// Whether reductions read their axes as an input.
    axes_are_inputs: bool,
    /// What GELU gives.
    gelus: HashSet<String>,
    /// The factors of what is quantized already.
    factors: HashMap<String, String>,
}

impl Rows {
    /// Starts with no nodes, for a graph that is taken apart.
    pub(super) fn new(graph: &GraphProto, is_blocked: bool, axes_are_inputs: bool) -> Self {
        let is_gelu = |node: &&NodeProto| GELUS.contains(&node.op_type.as_str());
        let gelus = graph.node.iter().filter(is_gelu).flat_map(|node| node.output.iter().cloned());
        Self {
            nodes: Vec::with_capacity(2 * graph.node.len()),
            is_blocked,
            axes_are_inputs,
            gelus: gelus.collect(),
            factors: HashMap::new(),
        }
    }

    /// Adds the nodes that quantize the rows of `x`, `width` wide, unless they are there.
    pub(super) fn quantize(&mut self, x: &str, width: usize) {
        if self.factors.contains_key(x) {
            return;
        }
        let largest = self.largest(x);
        let named = |part: &str| format!("{x}.{part}");
        let uint8 = named("uint8");
        if !self.is_blocked {
            let level = named("level");
            self.add("Div", &[x, &largest], &level);
            self.add("QuantizeLinear", &[&level, STEP, ZERO], &uint8);
            self.factors.insert(x.into(), largest);
            return;
        }
        let [factor, shape, zeros] = ["factor", "shape", "zeros"].map(named);
        self.add("Mul", &[&largest, STEP], &factor);
        self.add("Shape", &[&factor], &shape);
        self.add("Expand", &[ZERO, &shape], &zeros);
        let node = self.add("QuantizeLinear", &[x, &factor, &zeros], &uint8);
        let width = i64::try_from(width).unwrap_or(i64::MAX);
        node.attribute = vec![int("axis", -1), int("block_size", width)];
        self.factors.insert(x.into(), factor);
    }

    /// Adds the integer product that stands for `node`, whose weight is called `weight`.
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

    /// Adds the nodes that find the largest absolute value of each row, or a bound of it.
    fn largest(&mut self, x: &str) -> String {
        let is_gelu = self.gelus.contains(x);
        let [absolute, largest, bound] =
            ["absolute", "largest", "bound"].map(|part| format!("{x}.{part}"));
        let reduced = if is_gelu { x } else { &absolute };
        if !is_gelu {
            self.add("Abs", &[x], &absolute);
        }
        let axes_are_inputs = self.axes_are_inputs;
        let axis = axes_are_inputs.then_some(AXIS);
        let inputs: Vec<&str> = [reduced].into_iter().chain(axis).collect();
        let node = self.add("ReduceMax", &inputs, &largest);
        if !axes_are_inputs {
            node.attribute = vec![AttributeProto {
                name: "axes".into(),
                ints: vec![-1],
                r#type: attribute_type::INTS,
                ..AttributeProto::default()
            }];
        }
        if !is_gelu {
            return largest;
        }
        self.add("Max", &[&largest, BOUND], &bound);
        bound
    }

    /// Adds a node of the standard's and returns it.
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
pub(super) fn constants() -> [TensorProto; 5] {
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
        float(BOUND, GELU_BOUND),
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
