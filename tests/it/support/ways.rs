//! Small networks, each with a way of its own to mix the rows of a batch, or to look as if.

use bytes::Bytes;
use tessera::onnx::{
    Attribute, GraphBuilder,
    proto::{AttributeProto, ModelProto, NodeProto, TensorProto, data_type},
};

/// Channels of every feature map, and the number of classes.
pub(crate) const WIDTH: i64 = 4;

/// Extent of an image.
pub(crate) const SIDE: i64 = 6;

/// Where a network is changed: maps are `[batch, 4, 6, 6]`, rows `[batch, 4]`.
pub(crate) type Change = fn(&mut GraphBuilder, &str) -> String;

/// A way to mix: the operator to be named, and where it stands.
pub(crate) enum Way {
    /// Between two blocks.
    Maps(&'static str, Change),
    /// Behind the pooling.
    Rows(&'static str, Change),
}

use Attribute::{Float, Int, Ints};
use Way::{Maps, Rows};

/// Returns the operator to be named.
pub(crate) fn operator(way: &Way) -> &'static str {
    let (Maps(operator, _) | Rows(operator, _)) = way;
    operator
}

/// Builds a residual network with `change` in it.
pub(crate) fn network(way: Option<&Way>) -> ModelProto {
    let mut graph = GraphBuilder::default();
    let images = graph.input("images", data_type::FLOAT, &[None, Some(3), Some(SIDE), Some(SIDE)]);
    let pads = [("pads", Ints(vec![1; 4]))];
    let weight = kernel(&mut graph, 3, 1);
    let mut value = graph.node("Conv", &[&images, &weight], &pads);
    for block in 0..2 {
        let weight = kernel(&mut graph, WIDTH, 7 * block + 2);
        let inner = graph.node("Conv", &[&value, &weight], &pads);
        let sum = graph.node("Add", &[&inner, &value], &[]);
        value = graph.node("LeakyRelu", &[&sum], &[]);
        if let (0, Some(Maps(_, change))) = (block, way) {
            value = change(&mut graph, &value);
        }
    }
    let pooled = graph.node("GlobalAveragePool", &[&value], &[]);
    let mut rows = graph.node("Flatten", &[&pooled], &[]);
    if let Some(Rows(_, change)) = way {
        rows = change(&mut graph, &rows);
    }
    let weight = matrix(&mut graph);
    let logits = graph.node("MatMul", &[&rows, &weight], &[]);
    let mut model = graph.finish(&logits, "logits", &[None, Some(WIDTH)]);
    let nodes = model.graph.iter_mut().flat_map(|graph| &mut graph.node);
    nodes.for_each(complete);
    model
}

/// Adds what the builder does not: further outputs, and attributes of text.
fn complete(node: &mut NodeProto) {
    let further = match node.op_type.as_str() {
        "BatchNormalization" | "DynamicQuantizeLinear" => 2,
        "TopK" => 1,
        _ => 0,
    };
    let first = node.output[0].clone();
    node.output.extend((1..=further).map(|index| format!("{first}.{index}")));
    let text = match node.op_type.as_str() {
        "Einsum" => ("equation", "bc,bd->cd"),
        "Resize" => ("mode", "linear"),
        _ => return,
    };
    node.attribute.push(AttributeProto {
        name: text.0.into(),
        s: Some(Bytes::from_static(text.1.as_bytes())),
        r#type: 3,
        ..AttributeProto::default()
    });
}

fn kernel(graph: &mut GraphBuilder, inputs: i64, seed: i64) -> String {
    let count = WIDTH * inputs * 9;
    let values: Vec<f32> =
        (0..count).map(|i| (((i + seed) * 37 % 101) as f32 - 50.0) / 150.0).collect();
    graph.floats(vec![WIDTH, inputs, 3, 3], &values)
}

fn matrix(graph: &mut GraphBuilder) -> String {
    let values: Vec<f32> = (0..16).map(|i| ((i * 29 % 17) as f32 - 8.0) / 8.0).collect();
    graph.floats(vec![WIDTH, WIDTH], &values)
}

/// Adds a node and takes `value` away from what it gives, which broadcasts.
fn minus(
    graph: &mut GraphBuilder,
    value: &str,
    op: &str,
    attributes: &[(&str, Attribute)],
) -> String {
    let all = graph.node(op, &[value], attributes);
    graph.node("Sub", &[value, &all], &[])
}

/// Reduces along the batch by a constant input of axes.
fn reduced(graph: &mut GraphBuilder, value: &str, op: &str) -> String {
    let axes = graph.ints(&[0]);
    let all = graph.node(op, &[value, &axes], &[]);
    graph.node("Sub", &[value, &all], &[])
}

/// Turns `[batch, 4, 6, 6]` so that the batch comes last, and back.
fn turned(
    graph: &mut GraphBuilder,
    maps: &str,
    op: &str,
    attributes: &[(&str, Attribute)],
) -> String {
    // [6, 4, 6, batch]
    let turn = [("perm", Ints(vec![2, 1, 3, 0]))];
    let turned = graph.node("Transpose", &[maps], &turn);
    let made = graph.node(op, &[&turned], attributes);
    let back = [("perm", Ints(vec![3, 1, 0, 2]))];
    graph.node("Transpose", &[&made], &back)
}

/// Returns the number of rows, `[1]`, in f32.
fn count(graph: &mut GraphBuilder, rows: &str) -> String {
    let shape = graph.node("Shape", &[rows], &[("end", Int(1))]);
    graph.node("Cast", &[&shape], &[("to", Int(i64::from(data_type::FLOAT)))])
}

/// Returns 0, 1 and so on for each row, `[batch, 1]`, in f32.
fn positions(graph: &mut GraphBuilder, rows: &str) -> String {
    let shape = graph.node("Shape", &[rows], &[("end", Int(1))]);
    let end = graph.node("Squeeze", &[&shape], &[]);
    let (start, step) = (graph.int(0), graph.int(1));
    let range = graph.node("Range", &[&start, &end, &step], &[]);
    let range = graph.node("Cast", &[&range], &[("to", Int(i64::from(data_type::FLOAT)))]);
    let axes = graph.ints(&[1]);
    graph.node("Unsqueeze", &[&range, &axes], &[])
}

pub(crate) fn constant(
    graph: &mut GraphBuilder,
    data_type: i32,
    dims: Vec<i64>,
    raw: &'static [u8],
) -> String {
    let name = format!("constant.{data_type}");
    let raw_data = Some(Bytes::from_static(raw));
    graph.weight(TensorProto { name, data_type, dims, raw_data, ..TensorProto::default() })
}

/// Slices along the batch.
fn sliced(graph: &mut GraphBuilder, rows: &str, [start, end, step]: [i64; 3]) -> String {
    let [start, end, axes, step] = [start, end, 0, step].map(|value| graph.ints(&[value]));
    graph.node("Slice", &[rows, &start, &end, &axes, &step], &[])
}

/// Returns the attributes of a window of three by three.
fn window() -> [(&'static str, Attribute); 2] {
    [("kernel_shape", Ints(vec![3, 3])), ("pads", Ints(vec![1; 4]))]
}

/// Networks that mix rows.
pub(crate) const WAYS: &[(&str, Way)] = &[
    ("mean of the batch", Rows("ReduceMean", |g, x| reduced(g, x, "ReduceMean"))),
    ("largest of the batch", Maps("ReduceMax", |g, x| reduced(g, x, "ReduceMax"))),
    ("length over the batch", Rows("ReduceL2", |g, x| reduced(g, x, "ReduceL2"))),
    ("sum of everything", Maps("ReduceSum", |g, x| minus(g, x, "ReduceSum", &[]))),
    (
        "first of the batch by ArgMax",
        Rows("ArgMax", |g, x| {
            let best = g.node("ArgMax", &[x], &[("axis", Int(0))]);
            let best = g.node("Cast", &[&best], &[("to", Int(1))]);
            g.node("Add", &[x, &best], &[])
        }),
    ),
    (
        "softmax over the batch",
        Rows("Softmax", |g, x| g.node("Softmax", &[x], &[("axis", Int(0))])),
    ),
    (
        "log-softmax over the batch",
        Rows("LogSoftmax", |g, x| g.node("LogSoftmax", &[x], &[("axis", Int(-2))])),
    ),
    ("hardmax over the batch", Maps("Hardmax", |g, x| minus(g, x, "Hardmax", &[("axis", Int(0))]))),
    (
        "lengths over the batch",
        Rows("LpNormalization", |g, x| g.node("LpNormalization", &[x], &[("axis", Int(0))])),
    ),
    (
        "statistics of the batch",
        Maps("BatchNormalization", |g, x| {
            let [scale, offset, mean, variance] =
                [1.25, 0.5, 0.25, 0.75].map(|value| g.floats(vec![WIDTH], &[value; 4]));
            let inputs = [x, &scale, &offset, &mean, &variance];
            g.node("BatchNormalization", &inputs, &[("training_mode", Int(1))])
        }),
    ),
    (
        "mean and variance with the batch",
        Maps("MeanVarianceNormalization", |g, x| g.node("MeanVarianceNormalization", &[x], &[])),
    ),
    (
        "layer norm from the first axis",
        Rows("LayerNormalization", |g, x| {
            let turned = g.node("Transpose", &[x], &[("perm", Ints(vec![1, 0]))]);
            let one = g.float(1.0);
            let shape = g.node("Shape", &[&turned], &[("start", Int(1))]);
            let scale = g.node("Expand", &[&one, &shape], &[]);
            let normed = g.node("LayerNormalization", &[&turned, &scale], &[("axis", Int(1))]);
            g.node("Transpose", &[&normed], &[("perm", Ints(vec![1, 0]))])
        }),
    ),
    (
        "instance norm along the batch",
        Maps("InstanceNormalization", |g, x| {
            let [one, zero] = [1.0, 0.0].map(|value| g.floats(vec![WIDTH], &[value; 4]));
            let turn = [("perm", Ints(vec![2, 1, 3, 0]))];
            let turned = g.node("Transpose", &[x], &turn);
            let normed = g.node("InstanceNormalization", &[&turned, &one, &zero], &[]);
            g.node("Transpose", &[&normed], &[("perm", Ints(vec![3, 1, 0, 2]))])
        }),
    ),
    (
        "channels across the batch",
        Maps("LRN", |g, x| {
            let turned = g.node("Transpose", &[x], &[("perm", Ints(vec![1, 0, 2, 3]))]);
            let normed = g.node("LRN", &[&turned], &[("size", Int(3)), ("alpha", Float(1.0))]);
            g.node("Transpose", &[&normed], &[("perm", Ints(vec![1, 0, 2, 3]))])
        }),
    ),
    (
        "one scale for all",
        Maps("DynamicQuantizeLinear", |g, x| {
            let levels = g.node("DynamicQuantizeLinear", &[x], &[]);
            let [scale, zero] = [1, 2].map(|index| format!("{levels}.{index}"));
            g.node("DequantizeLinear", &[&levels, &scale, &zero], &[])
        }),
    ),
    (
        "one scale for all in a product",
        Rows("DynamicQuantizeMatMul", |g, x| {
            let values = g.floats(vec![WIDTH, WIDTH], &[0.5, -0.25, 1.0, 0.75].repeat(4));
            let scale = g.float(1.0 / 127.0);
            let to = [("to", Int(i64::from(data_type::INT8)))];
            let scaled = g.node("Div", &[&values, &scale], &[]);
            let levels = g.node("Cast", &[&scaled], &to);
            g.fused("DynamicQuantizeMatMul", &[x, &levels, &scale], &[])
        }),
    ),
    (
        "correlation over the batch",
        Rows("MatMul", |g, x| {
            let turned = g.node("Transpose", &[x], &[("perm", Ints(vec![1, 0]))]);
            let between = g.node("MatMul", &[&turned, x], &[]);
            g.node("MatMul", &[x, &between], &[])
        }),
    ),
    (
        "attention among rows",
        Rows("MatMul", |g, x| {
            let turned = g.node("Transpose", &[x], &[("perm", Ints(vec![1, 0]))]);
            let scores = g.node("MatMul", &[x, &turned], &[]);
            let weights = g.node("Softmax", &[&scores], &[("axis", Int(-1))]);
            g.node("MatMul", &[&weights, x], &[])
        }),
    ),
    (
        "product of transposed rows",
        Rows("Gemm", |g, x| {
            let between = g.node("Gemm", &[x, x], &[("transA", Int(1))]);
            g.node("Gemm", &[x, &between], &[])
        }),
    ),
    (
        "einsum over the batch",
        Rows("Einsum", |g, x| {
            let between = g.node("Einsum", &[x, x], &[]);
            g.node("MatMul", &[x, &between], &[])
        }),
    ),
    (
        "every row less every other",
        Rows("Sub", |g, x| {
            let axes = [0, 1].map(|axis| g.ints(&[axis]));
            let [over, beside] = axes.each_ref().map(|axis| g.node("Unsqueeze", &[x, axis], &[]));
            let all = g.node("Sub", &[&over, &beside], &[]);
            let large = g.node("ReduceMax", &[&all, &axes[1]], &[("keepdims", Int(0))]);
            g.node("Add", &[x, &large], &[])
        }),
    ),
    (
        "running sum",
        Rows("CumSum", |g, x| {
            let axis = g.int(0);
            g.node("CumSum", &[x, &axis], &[])
        }),
    ),
    (
        "the first row for all",
        Rows("Gather", |g, x| {
            let first = g.ints(&[0]);
            let first = g.node("Gather", &[x, &first], &[("axis", Int(0))]);
            g.node("Sub", &[x, &first], &[])
        }),
    ),
    (
        "rows rolled by one",
        Maps("Slice", |g, x| {
            let last = sliced(g, x, [-1, i64::MAX, 1]);
            let others = sliced(g, x, [0, -1, 1]);
            g.node("Concat", &[&last, &others], &[("axis", Int(0))])
        }),
    ),
    ("rows in reverse", Rows("Slice", |g, x| sliced(g, x, [-1, i64::MIN, -1]))),
    (
        "rows moved by padding",
        Rows("Pad", |g, x| {
            let pads = g.ints(&[1, 0, -1, 0]);
            let moved = g.node("Pad", &[x, &pads], &[]);
            g.node("Add", &[x, &moved], &[])
        }),
    ),
    (
        "rows sorted",
        Rows("TopK", |g, x| {
            let number = g.node("Shape", &[x], &[("end", Int(1))]);
            g.node("TopK", &[x, &number], &[("axis", Int(0))])
        }),
    ),
    (
        "sequence reversed",
        Rows("ReverseSequence", |g, x| {
            let shape = g.node("Shape", &[x], &[("end", Int(1))]);
            let width = g.ints(&[WIDTH]);
            let lengths = g.node("Expand", &[&shape, &width], &[]);
            let axes = [("time_axis", Int(0)), ("batch_axis", Int(1))];
            g.node("ReverseSequence", &[x, &lengths], &axes)
        }),
    ),
    (
        "convolution over rows",
        Maps("Conv", |g, x| {
            let weight = kernel(g, WIDTH, 5);
            let turned = g.node("Transpose", &[x], &[("perm", Ints(vec![2, 1, 3, 0]))]);
            let pads = [("pads", Ints(vec![1; 4]))];
            let made = g.node("Conv", &[&turned, &weight], &pads);
            g.node("Transpose", &[&made], &[("perm", Ints(vec![3, 1, 0, 2]))])
        }),
    ),
    ("pooling over rows", Maps("MaxPool", |g, x| turned(g, x, "MaxPool", &window()))),
    ("average over rows", Maps("AveragePool", |g, x| turned(g, x, "AveragePool", &window()))),
    (
        "pooling of all rows",
        Maps("GlobalMaxPool", |g, x| {
            let turn = [("perm", Ints(vec![2, 1, 3, 0]))];
            let turned = g.node("Transpose", &[x], &turn);
            let most = g.node("GlobalMaxPool", &[&turned], &[]);
            let back = g.node("Transpose", &[&most], &[("perm", Ints(vec![3, 1, 0, 2]))]);
            g.node("Sub", &[x, &back], &[])
        }),
    ),
    (
        "rows as time",
        Rows("RNN", |g, x| {
            let axis = g.ints(&[1]);
            let steps = g.node("Unsqueeze", &[x, &axis], &[]);
            let weights = [0.5, 0.25].map(|value| g.floats(vec![1, WIDTH, WIDTH], &[value; 16]));
            let attributes = [("hidden_size", Int(WIDTH))];
            let made = g.node("RNN", &[&steps, &weights[0], &weights[1]], &attributes);
            let shape = g.ints(&[-1, WIDTH]);
            g.node("Reshape", &[&made, &shape], &[])
        }),
    ),
    (
        "the first row written over",
        Rows("ScatterElements", |g, x| {
            let first = constant(g, data_type::INT64, vec![1, WIDTH], &[0; 32]);
            let blank = g.floats(vec![1, WIDTH], &[0.0; 4]);
            g.node("ScatterElements", &[x, &first, &blank], &[("axis", Int(0))])
        }),
    ),
    (
        "rows read as columns",
        Rows("Reshape", |g, x| {
            let turned = g.node("Transpose", &[x], &[("perm", Ints(vec![1, 0]))]);
            let shape = g.ints(&[-1, WIDTH]);
            g.node("Reshape", &[&turned, &shape], &[])
        }),
    ),
    (
        "divided by the number of rows",
        Rows("Div", |g, x| {
            let number = count(g, x);
            g.node("Div", &[x, &number], &[])
        }),
    ),
    (
        "added the row's place",
        Rows("Add", |g, x| {
            let places = positions(g, x);
            g.node("Add", &[x, &places], &[])
        }),
    ),
    (
        "stretched over rows",
        Rows("Resize", |g, x| {
            let axes = g.ints(&[0, 1]);
            let maps = g.node("Unsqueeze", &[x, &axes], &[]);
            let scales = g.floats(vec![4], &[1.0, 1.0, 2.0, 1.0]);
            let large = g.node("Resize", &[&maps, "", &scales], &[]);
            let [start, end, step, axis] = [0, i64::MAX, 2, 2].map(|value| g.ints(&[value]));
            let small = g.node("Slice", &[&large, &start, &end, &axis, &step], &[]);
            g.node("Squeeze", &[&small, &axes], &[])
        }),
    ),
    (
        "noise added",
        Maps("RandomNormalLike", |g, x| {
            let noise = g.node("RandomNormalLike", &[x], &[]);
            g.node("Add", &[x, &noise], &[])
        }),
    ),
    (
        "noise times",
        Rows("RandomUniform", |g, x| {
            let noise = g.node("RandomUniform", &[], &[("shape", Ints(vec![1, WIDTH]))]);
            g.node("Mul", &[x, &noise], &[])
        }),
    ),
    (
        "coins",
        Rows("Bernoulli", |g, x| {
            let chance = g.node("Sigmoid", &[x], &[]);
            g.node("Bernoulli", &[&chance], &[])
        }),
    ),
    (
        "dropout as in training",
        Rows("Dropout", |g, x| {
            let ratio = g.float(0.5);
            let trained = constant(g, 9, Vec::new(), &[1]);
            g.node("Dropout", &[x, &ratio, &trained], &[])
        }),
    ),
];
