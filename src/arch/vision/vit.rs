//! Vision transformers: pre-norm blocks over patches (Dosovitskiy et al. 2021; DeiT, Touvron et al.
//! 2021), from timm's and Hugging Face's checkpoints.
//!
//! A block computes `x + attention(norm1(x))`, then `x + mlp(norm2(x))`. It may run with a prefix
//! of its heads and hidden units (MatFormer, DynaBERT). Rows of a matrix are then a shorter place
//! in the same file. Columns are sliced when the session is created. The tokens keep their width.

use super::names::{BlockPart, Part, Pooling, VitNames, VitShape};
use crate::{
    arch::{
        backbone::{Backbone, Dense, Expansion, Form},
        error::ArchError,
        joint::pooling::mean_of_all,
        layout::{Axes, Layout, PartId, PartSpec, Reads, Widest},
        ops::{extent, float_weight, linear, linear_of_first, with_hidden},
    },
    family::{ModuleKind, SpaceSpec},
    module::{Body, Network, PIXEL_VALUES, Precision},
    onnx::{
        Attribute, GraphBuilder,
        proto::{TensorProto, data_type},
    },
    pool::{Checkpoint, PoolError},
    tensor::signed,
};

/// Vision transformer whose weights lie in a checkpoint.
#[derive(Debug)]
pub(crate) struct VisionTransformer {
    /// Sizes of the network.
    shape: VitShape,
    /// Naming scheme of the tensors.
    names: VitNames,
    /// Checkpoint that holds the weights.
    checkpoint: Checkpoint,
    /// Number of tokens that are not patches.
    num_extra: usize,
    layout: Layout,
}

impl Backbone for VisionTransformer {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn build(&self, part: PartId, form: &Form<'_>) -> Result<Body, ArchError> {
        let PartSpec { kind, block, .. } = self.layout.part(part);
        let block = block.unwrap_or_default();
        let network = match kind {
            ModuleKind::Stem => self.stem(),
            ModuleKind::Head => self.head(form.has_norm),
            ModuleKind::Attention => self.attention(block, form),
            _ => self.mlp(block, form),
        };
        network.map(Body::from)
    }

    fn dense(&self, index: usize) -> Result<Option<Dense>, ArchError> {
        let VitShape { width, hidden: units, epsilon, .. } = self.shape;
        let name = |part| self.names.block(index, part);
        let (first, second) = (name(BlockPart::Expand), name(BlockPart::Contract));
        let norm = name(BlockPart::NormAfter);
        let scale = format!("blocks.{index}.ls2.gamma");
        let has_scale = self.checkpoint.has(&scale);
        Ok(Some(Dense {
            width,
            num_units: units,
            expansion: Expansion {
                weight: self.weight(&format!("{first}.weight"), &[units, width])?,
                bias: self.weight(&format!("{first}.bias"), &[units])?,
                nonlinearity: self.shape.nonlinearity,
            },
            contraction: self.weight(&format!("{second}.weight"), &[width, units])?,
            bias: self.weight(&format!("{second}.bias"), &[width])?,
            norm: [
                self.weight(&format!("{norm}.weight"), &[width])?,
                self.weight(&format!("{norm}.bias"), &[width])?,
            ],
            is_pre_norm: true,
            epsilon,
            scale: has_scale.then(|| self.weight(&scale, &[width])).transpose()?,
        }))
    }
}

/// The last matrix of a sub-layer.
struct Last {
    /// Block.
    index: usize,
    /// Part of the block.
    part: BlockPart,
    /// Number of columns in the file.
    columns: usize,
    /// Number of leading columns that are used.
    inner: usize,
}

impl VisionTransformer {
    /// Creates a vision transformer of `shape`, whose tensors in `checkpoint` are named by `names`.
    pub(crate) fn new(shape: VitShape, names: VitNames, checkpoint: Checkpoint) -> Self {
        let num_extra = 1 + usize::from(checkpoint.has(&names.part(Part::DistillationToken)));
        let extents = [Some(shape.num_patches() + num_extra), Some(shape.width)];
        let width = Some(Widest { heads: shape.num_heads, hidden: shape.hidden });
        let part = |kind| (kind, Axes { width, ..Axes::default() });
        let blocks = (0..shape.num_blocks)
            .map(|_| [ModuleKind::Attention, ModuleKind::Mlp].map(part).to_vec());
        let hidden = SpaceSpec::of_extents(&extents);
        let gives = SpaceSpec::of_extents(&[Some(shape.num_classes)]);
        let layout = Layout::uniform(Reads::Images(shape.image), &hidden, gives, blocks);
        Self { shape, names, checkpoint, num_extra, layout }
    }

    /// Builds patches, class token and positions.
    ///
    /// # Shapes
    ///
    /// - pixel_values: \[batch, channels, height, width\]
    /// - output: \[batch, tokens, width\]
    fn stem(&self) -> Result<Network, ArchError> {
        let VitShape { image, patch, width, .. } = self.shape;
        let mut graph = GraphBuilder::default();
        let shape = [None, extent(image[0]), extent(image[1]), extent(image[2])];
        let pixels = graph.input(PIXEL_VALUES, data_type::FLOAT, &shape);
        let name = self.names.part(Part::Patches);
        let weight = self.weight(&format!("{name}.weight"), &[width, image[0], patch, patch])?;
        let weight = float_weight(&mut graph, weight);
        let bias = float_weight(&mut graph, self.weight(&format!("{name}.bias"), &[width])?);
        let side = signed(patch);
        let strides = [("strides", Attribute::Ints(vec![side, side]))];
        let map = graph.node("Conv", &[&pixels, &weight, &bias], &strides);
        let rows = graph.ints(&[0, signed(width), -1]);
        let patches = graph.node("Reshape", &[&map, &rows], &[]);
        let patches = graph.node("Transpose", &[&patches], &[("perm", ints(&[0, 2, 1]))]);
        let tokens = self.add_tokens(&mut graph, &pixels, &patches)?;
        Ok(self.network(graph, &tokens, Precision::F32))
    }

    /// Builds the classifier: the class token or the mean of the patches, the final norm if
    /// `has_norm`, and the head.
    ///
    /// # Shapes
    ///
    /// - hidden: \[batch, tokens, width\]
    /// - output: \[batch, classes\]
    fn head(&self, has_norm: bool) -> Result<Network, ArchError> {
        let (mut graph, hidden) = with_hidden(self.shape.width);
        let pooled = self.pooled(&mut graph, &hidden, has_norm)?;
        let mut logits = self.scores(&mut graph, &pooled, Part::Head)?;
        let teacher = self.names.part(Part::DistillationHead);
        if self.num_extra == 2 && self.checkpoint.has(&format!("{teacher}.weight")) {
            let token = self.token(&mut graph, &hidden, 1, has_norm)?;
            let taught = self.scores(&mut graph, &token, Part::DistillationHead)?;
            let sum = graph.node("Add", &[&logits, &taught], &[]);
            let two = graph.float(2.0);
            logits = graph.node("Div", &[&sum, &two], &[]);
        }
        let shape = [None, extent(self.shape.num_classes)];
        Ok(Network::new(graph.finish(&logits, "output", &shape), Precision::F32))
    }

    /// Adds what the head reads of `hidden`, `[batch, width]`.
    fn pooled(
        &self,
        graph: &mut GraphBuilder,
        hidden: &str,
        has_norm: bool,
    ) -> Result<String, ArchError> {
        if self.shape.pooling == Pooling::ClassToken {
            return self.token(graph, hidden, 0, has_norm);
        }
        let (start, end, axis) =
            (signed(self.num_extra), signed(self.num_extra + self.shape.num_patches()), 1);
        let [start, end, axis] = [start, end, axis].map(|value| graph.ints(&[value]));
        let mut patches = graph.node("Slice", &[hidden, &start, &end, &axis], &[]);
        if has_norm && self.shape.pooling == Pooling::MeanOfNormed {
            patches = self.layer_norm(graph, &patches, &self.names.part(Part::Norm))?;
        }
        let mean = mean_of_all(graph, &patches);
        match has_norm && self.shape.pooling == Pooling::NormOfMean {
            true => self.layer_norm(graph, &mean, &self.names.part(Part::NormOfMean)),
            false => Ok(mean),
        }
    }

    /// Puts the extra tokens before `patches` and adds the positions. Some position tables cover
    /// only patches.
    fn add_tokens(
        &self,
        graph: &mut GraphBuilder,
        pixels: &str,
        patches: &str,
    ) -> Result<String, ArchError> {
        let VitShape { width, .. } = self.shape;
        let (patch_count, extra) = (self.shape.num_patches(), self.num_extra);
        let table = self.names.part(Part::Positions);
        let rows = self.checkpoint.tensor(&table)?.shape.get(1).copied();
        let covers_all = rows == Some(patch_count + extra);
        let rows = if covers_all { patch_count + extra } else { patch_count };
        let positions = float_weight(graph, self.weight(&table, &[1, rows, width])?);
        let mut patches = patches.to_owned();
        if !covers_all {
            patches = graph.node("Add", &[&patches, &positions], &[]);
        }
        let batch = [("start", Attribute::Int(0)), ("end", Attribute::Int(1))];
        let batch = graph.node("Shape", &[pixels], &batch);
        let rest = graph.ints(&[1, signed(width)]);
        let shape = graph.node("Concat", &[&batch, &rest], &[("axis", Attribute::Int(0))]);
        let mut parts = Vec::new();
        for part in [Part::ClassToken, Part::DistillationToken].into_iter().take(extra) {
            let token = self.weight(&self.names.part(part), &[1, 1, width])?;
            let token = float_weight(graph, token);
            parts.push(graph.node("Expand", &[&token, &shape], &[]));
        }
        parts.push(patches);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let tokens = graph.node("Concat", &parts, &[("axis", Attribute::Int(1))]);
        if !covers_all {
            return Ok(tokens);
        }
        Ok(graph.node("Add", &[&tokens, &positions], &[]))
    }

    fn attention(&self, index: usize, form: &Form<'_>) -> Result<Network, ArchError> {
        let VitShape { width, num_heads, .. } = self.shape;
        let heads = form.width.map_or(num_heads, |narrow| narrow.heads);
        let inner = width / num_heads * heads;
        let (mut graph, hidden) = with_hidden(width);
        let normed = self.norm(&mut graph, &hidden, index, BlockPart::NormBefore)?;
        let mut inputs = Vec::new();
        let mut biases = Vec::new();
        for which in 0..3 {
            let (name, is_fused) = self.names.query_key_value(index, which);
            let (rows, start) = if is_fused { (3 * width, which * width) } else { (width, 0) };
            let range = start..start + inner;
            let weight =
                self.checkpoint.rows(&format!("{name}.weight"), &[rows, width], range.clone())?;
            inputs.push(linear(&mut graph, &normed, weight));
            let bias = format!("{name}.bias");
            if self.checkpoint.has(&bias) {
                let bias = self.checkpoint.rows(&bias, &[rows], range)?;
                biases.push(float_weight(&mut graph, bias));
            }
        }
        if !biases.is_empty() {
            let biases: Vec<&str> = biases.iter().map(String::as_str).collect();
            inputs.push(graph.node("Concat", &biases, &[("axis", Attribute::Int(0))]));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let heads = signed(heads);
        let mixed =
            graph.fused("MultiHeadAttention", &inputs, &[("num_heads", Attribute::Int(heads))]);
        let last = Last { index, part: BlockPart::Projection, columns: width, inner };
        self.end_part(graph, [&mixed, &hidden], last, form)
    }

    fn mlp(&self, index: usize, form: &Form<'_>) -> Result<Network, ArchError> {
        let VitShape { width, hidden: units, .. } = self.shape;
        let inner = form.width.map_or(units, |narrow| narrow.hidden);
        let (mut graph, hidden) = with_hidden(width);
        let normed = self.norm(&mut graph, &hidden, index, BlockPart::NormAfter)?;
        let name = self.names.block(index, BlockPart::Expand);
        let weight = self.checkpoint.rows(&format!("{name}.weight"), &[units, width], 0..inner)?;
        let expanded = linear(&mut graph, &normed, weight);
        let bias = self.checkpoint.rows(&format!("{name}.bias"), &[units], 0..inner)?;
        let bias = float_weight(&mut graph, bias);
        let expanded = self.shape.nonlinearity.add(&mut graph, &expanded, Some(&bias));
        let last = Last { index, part: BlockPart::Contract, columns: units, inner };
        self.end_part(graph, [&expanded, &hidden], last, form)
    }

    /// Adds the end of a sub-layer: its last matrix, the bias, the layer scale if there is one, and
    /// the residual. Only the first `inner` columns of the matrix are used.
    fn end_part(
        &self,
        mut graph: GraphBuilder,
        [value, hidden]: [&str; 2],
        Last { index, part, columns, inner }: Last,
        form: &Form<'_>,
    ) -> Result<Network, ArchError> {
        let width = self.shape.width;
        let name = self.names.block(index, part);
        let weight = self.weight(&format!("{name}.weight"), &[width, columns])?;
        let product = linear_of_first(&mut graph, value, weight, inner);
        let bias = float_weight(&mut graph, self.weight(&format!("{name}.bias"), &[width])?);
        let mut output = graph.node("Add", &[&product, &bias], &[]);
        let scale = match part {
            BlockPart::Projection => format!("blocks.{index}.ls1.gamma"),
            _ => format!("blocks.{index}.ls2.gamma"),
        };
        if self.checkpoint.has(&scale) {
            let scale = float_weight(&mut graph, self.weight(&scale, &[width])?);
            output = graph.node("Mul", &[&output, &scale], &[]);
        }
        let sum = graph.node("Add", &[&output, hidden], &[]);
        Ok(self.network(graph, &sum, form.precision))
    }

    fn norm(
        &self,
        graph: &mut GraphBuilder,
        value: &str,
        index: usize,
        part: BlockPart,
    ) -> Result<String, ArchError> {
        self.layer_norm(graph, value, &self.names.block(index, part))
    }

    fn layer_norm(
        &self,
        graph: &mut GraphBuilder,
        value: &str,
        name: &str,
    ) -> Result<String, ArchError> {
        let mut vector = |part: &str| -> Result<String, ArchError> {
            let weight = self.weight(&format!("{name}.{part}"), &[self.shape.width])?;
            Ok(float_weight(graph, weight))
        };
        let (gamma, beta) = (vector("weight")?, vector("bias")?);
        let epsilon = Attribute::Float(self.shape.epsilon);
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", epsilon)];
        Ok(graph.node("LayerNormalization", &[value, &gamma, &beta], &attributes))
    }

    /// Adds the token at `position`, after the final norm if `has_norm`.
    fn token(
        &self,
        graph: &mut GraphBuilder,
        hidden: &str,
        position: i64,
        has_norm: bool,
    ) -> Result<String, ArchError> {
        let index = graph.int(position);
        let token = graph.node("Gather", &[hidden, &index], &[("axis", Attribute::Int(1))]);
        match has_norm {
            true => self.layer_norm(graph, &token, &self.names.part(Part::Norm)),
            false => Ok(token),
        }
    }

    /// Adds the scores of the classes that `head` gives for `pooled`, `[batch, width]`.
    fn scores(
        &self,
        graph: &mut GraphBuilder,
        pooled: &str,
        head: Part,
    ) -> Result<String, ArchError> {
        let name = self.names.part(head);
        let shape = [self.shape.num_classes, self.shape.width];
        let scores = linear(graph, pooled, self.weight(&format!("{name}.weight"), &shape)?);
        let bias = self.weight(&format!("{name}.bias"), &[self.shape.num_classes])?;
        let bias = float_weight(graph, bias);
        Ok(graph.node("Add", &[&scores, &bias], &[]))
    }

    fn network(&self, graph: GraphBuilder, value: &str, precision: Precision) -> Network {
        let shape = [None, None, extent(self.shape.width)];
        Network::new(graph.finish(value, "output", &shape), precision)
    }

    fn weight(&self, name: &str, shape: &[usize]) -> Result<TensorProto, PoolError> {
        self.checkpoint.weight(name, shape)
    }
}

fn ints(values: &[i64]) -> Attribute {
    Attribute::Ints(values.to_vec())
}
