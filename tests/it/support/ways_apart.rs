//! Small networks that mix no rows, though they look as if, and one that keeps what it saw.

use tessera::onnx::{
    Attribute::{Int, Ints},
    proto::data_type,
};

use super::ways::{
    SIDE, WIDTH,
    Way::{self, Maps, Rows},
    constant,
};

/// Network that keeps something between two runs: its own running variance is its scale.
pub(crate) const KEEPS: Way = Maps("BatchNormalization", |g, x| {
    let [one, zero] = [1.0, 0.0].map(|value| g.floats(vec![WIDTH], &[value; 4]));
    let inputs = [x, &one, &zero, &zero, &one];
    g.node("BatchNormalization", &inputs, &[("training_mode", Int(1))])
});

/// What looks like mixing and is none.
pub(crate) const APART: &[(&str, Way)] = &[
    ("softmax over classes", Rows("", |g, x| g.node("Softmax", &[x], &[("axis", Int(1))]))),
    (
        "mean of the channels",
        Maps("", |g, x| {
            let axes = g.ints(&[1]);
            let mean = g.node("ReduceMean", &[x, &axes], &[]);
            g.node("Sub", &[x, &mean], &[])
        }),
    ),
    (
        "batch in the middle and back",
        Maps("", |g, x| {
            let turned = g.node("Transpose", &[x], &[("perm", Ints(vec![1, 0, 2, 3]))]);
            let soft = g.node("Softmax", &[&turned], &[("axis", Int(0))]);
            g.node("Transpose", &[&soft], &[("perm", Ints(vec![1, 0, 2, 3]))])
        }),
    ),
    (
        "windows in the batch",
        Maps("", |g, x| {
            let windows = g.ints(&[-1, WIDTH, SIDE / 2, SIDE]);
            let windows = g.node("Reshape", &[x, &windows], &[]);
            let soft = g.node("Softmax", &[&windows], &[("axis", Int(-1))]);
            let back = g.ints(&[-1, WIDTH, SIDE, SIDE]);
            g.node("Reshape", &[&soft, &back], &[])
        }),
    ),
    (
        "a row and its mirror image, one after the other",
        Maps("", |g, x| {
            let [start, end, axes, step] = [-1, i64::MIN, 3, -1].map(|value| g.ints(&[value]));
            let mirrored = g.node("Slice", &[x, &start, &end, &axes, &step], &[]);
            let both = g.node("Concat", &[x, &mirrored], &[("axis", Int(0))]);
            let soft = g.node("Sigmoid", &[&both], &[]);
            let shape = g.ints(&[2, -1, WIDTH, SIDE, SIDE]);
            let pairs = g.node("Reshape", &[&soft, &shape], &[]);
            let first = g.ints(&[0]);
            g.node("ReduceMean", &[&pairs, &first], &[("keepdims", Int(0))])
        }),
    ),
    (
        "a product of rows and channels",
        Rows("", |g, x| {
            let axes = [1, 2].map(|axis| g.ints(&[axis]));
            let [row, column] = axes.each_ref().map(|axis| g.node("Unsqueeze", &[x, axis], &[]));
            let all = g.node("MatMul", &[&column, &row], &[]);
            g.node("ReduceMax", &[&all, &axes[1]], &[("keepdims", Int(0))])
        }),
    ),
    (
        "levels of a fixed scale",
        Maps("", |g, x| {
            let scale = g.float(0.05);
            let zero = constant(g, data_type::INT8, Vec::new(), &[0]);
            let levels = g.node("QuantizeLinear", &[x, &scale, &zero], &[]);
            g.node("DequantizeLinear", &[&levels, &scale, &zero], &[])
        }),
    ),
    ("dropout that is off", Rows("", |g, x| g.node("Dropout", &[x], &[]))),
];
