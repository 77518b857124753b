//! Maps between feature maps `[channels, height, width]`: convolutions fitted in closed form.
//!
//! A position reads itself, or the three by three positions around it. More context is worth more
//! than more samples here.

use super::map::{MapParts, unsupported};
use crate::{
    arch::{
        error::ArchError,
        ops::{extent, float_weight},
    },
    family::Feature,
    module::{Network, Precision},
    onnx::{Attribute, GraphBuilder, proto::data_type},
    pool::Checkpoint,
    tensor::signed,
};

/// Channels, height and width that a map reads, and its reach to each side in positions.
struct Field {
    channels: usize,
    height: usize,
    width: usize,
    reach: usize,
}

impl Field {
    fn of(parts: &MapParts<'_>) -> Result<Self, ArchError> {
        let refuse = |reason: &str| ArchError::Map {
            from: parts.map.from.clone(),
            to: parts.map.to.clone(),
            reason: reason.into(),
        };
        let ends = [parts.shape_in, parts.shape_out];
        let [&[Some(channels), Some(height), Some(width)], &[_, other_height, other_width]] = ends
        else {
            return Err(refuse("the form `conv` joins feature maps [channels, height, width]"));
        };
        if (Some(height), Some(width)) != (other_height, other_width) {
            return Err(refuse("feature maps of equal height and width are joined"));
        }
        let reach = match parts.map.features[..] {
            [Feature::Token] => 0,
            [Feature::Neighbourhood] => 1,
            [feature, ..] => return Err(unsupported(parts.map, feature)),
            [] => return Err(refuse("a map needs `token` or `neighbourhood` as its feature")),
        };
        Ok(Self { channels, height, width, reach })
    }

    /// Returns the number of positions that one position reads along an axis.
    fn side(&self) -> usize {
        1 + 2 * self.reach
    }

    fn num_inputs(&self) -> usize {
        self.side() * self.side() * self.channels
    }

    fn with_hidden(&self) -> (GraphBuilder, String) {
        let mut graph = GraphBuilder::default();
        let shape = [None, extent(self.channels), extent(self.height), extent(self.width)];
        let hidden = graph.input("hidden", data_type::FLOAT, &shape);
        (graph, hidden)
    }
}

/// Builds the network of a map with the weights in `weights`.
///
/// # Shapes
///
/// - hidden: \[batch, channels, height, width\]
/// - output: \[batch, channels of the target, height, width\]
pub(super) fn network(
    parts: &MapParts<'_>,
    weights: &Checkpoint,
    precision: Precision,
) -> Result<Network, ArchError> {
    let field = Field::of(parts)?;
    let outputs = parts.shape_out.first().copied().flatten().unwrap_or_default();
    let (mut graph, hidden) = field.with_hidden();
    let name = format!("{}.weight", parts.map.features[0].name());
    let weight = weights.weight(&name, &[outputs, field.num_inputs()])?;
    let weight = float_weight(&mut graph, weight);
    // The regression read the positions row by row, each with its channels.
    let side = signed(field.side());
    let shape = graph.ints(&[signed(outputs), side, side, signed(field.channels)]);
    let kernel = graph.node("Reshape", &[&weight, &shape], &[]);
    let order = [("perm", Attribute::Ints(vec![0, 3, 1, 2]))];
    let kernel = graph.node("Transpose", &[&kernel], &order);
    let bias = float_weight(&mut graph, weights.weight("bias", &[outputs])?);
    let pads = [("pads", Attribute::Ints(vec![signed(field.reach); 4]))];
    let output = graph.node("Conv", &[&hidden, &kernel, &bias], &pads);
    let shape = [None, extent(outputs), extent(field.height), extent(field.width)];
    Ok(Network::new(graph.finish(&output, "output", &shape), precision))
}

/// Builds the network that lists the values each position reads, `[batch, positions, features]`.
pub(super) fn feature_network(parts: &MapParts<'_>) -> Result<Network, ArchError> {
    let field = Field::of(parts)?;
    let (mut graph, hidden) = field.with_hidden();
    let reach = signed(field.reach);
    let pads = graph.ints(&[0, 0, reach, reach, 0, 0, reach, reach]);
    let padded = graph.node("Pad", &[&hidden, &pads], &[]);
    let axes = graph.ints(&[2, 3]);
    let mut seen = Vec::new();
    for row in 0..signed(field.side()) {
        for column in 0..signed(field.side()) {
            let start = graph.ints(&[row, column]);
            let end = graph.ints(&[row + signed(field.height), column + signed(field.width)]);
            seen.push(graph.node("Slice", &[&padded, &start, &end, &axes], &[]));
        }
    }
    let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
    let joined = graph.node("Concat", &seen, &[("axis", Attribute::Int(1))]);
    let rows = as_rows(&mut graph, &joined, field.num_inputs());
    Ok(Network::new(graph.finish(&rows, "output", &[None; 3]), Precision::F32))
}

/// Lists the positions of a feature map as `[batch, positions, channels]`.
fn as_rows(graph: &mut GraphBuilder, map: &str, channels: usize) -> String {
    let order = [("perm", Attribute::Ints(vec![0, 2, 3, 1]))];
    let last = graph.node("Transpose", &[map], &order);
    let shape = graph.ints(&[0, -1, signed(channels)]);
    graph.node("Reshape", &[&last, &shape], &[])
}
