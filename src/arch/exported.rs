//! Anchors from an ONNX export, cut at the tensors named in the manifest.

use std::path::Path;

use super::{
    ArchError,
    backbone::{Backbone, Form},
    joint::pooling::mean_head,
    layout::{Axes, Layout, PartId, Reads},
};
use crate::{
    family::{ModuleKind, OnnxSource, SpaceSpec},
    input::Prompts,
    module::{Batching, Body, Network, PIXEL_VALUES, Precision},
    onnx::{
        CutPoint, OnnxError, check_operators, check_repeatable, cut,
        proto::{GraphProto, ModelProto},
        read_model, rename_tensor,
    },
    pool::open_verified,
};

/// Pieces of an ONNX export: the stem, the blocks' modules, and the head if the export has one.
#[derive(Debug)]
pub(super) struct Exported {
    /// Graphs of the layout's parts in their order; an own head may be missing.
    pieces: Vec<ModelProto>,
    source: OnnxSource,
    layout: Layout,
}

impl Exported {
    /// Reads and cuts the file named in `source`.
    ///
    /// # Errors
    ///
    /// Fails on a file that is unreadable, has another digest or is not an ordered ONNX graph.
    /// Fails on operators that draw random numbers or are known to mix the rows of a batch. Fails
    /// on invalid cuts.
    pub(super) fn open(
        folder: &Path,
        anchor: &str,
        source: &OnnxSource,
        sha256: &str,
    ) -> Result<Self, ArchError> {
        drop(open_verified(folder, &source.file, sha256)?);
        let wrap = |source: OnnxError| ArchError::Onnx { anchor: anchor.into(), source };
        let mut model = read_model(folder, &source.file).map_err(wrap)?;
        check_repeatable(&model).map_err(wrap)?;
        if !source.one_by_one {
            let inputs = model.graph.iter().flat_map(|graph| &graph.input);
            let inputs: Vec<&str> = inputs.map(|input| input.name.as_str()).collect();
            check_operators(&model, &inputs).map_err(wrap)?;
        }
        let (mut image, mut output_width) = (None, source.width.unwrap_or_default());
        if let Some(spec) = &source.image {
            let graph = model.graph.as_ref();
            let extents = |name: &str, is_input| graph.and_then(|g| declared(g, name, is_input));
            let missing = |tensor: &str| wrap(OnnxError::NoTensor { tensor: tensor.into() });
            let read = extents(&spec.input, true).ok_or_else(|| missing(&spec.input))?;
            let [channels, height, width] = read[..] else {
                return Err(missing(&spec.input));
            };
            image = Some([channels, height, width]);
            let written = extents(&spec.output, false).ok_or_else(|| missing(&spec.output))?;
            output_width = written.last().copied().unwrap_or_default();
            rename_tensor(&mut model, &spec.input, PIXEL_VALUES);
        }
        let main = source.image.as_ref().map(|_| PIXEL_VALUES);
        let cuts = cut_points(source, output_width);
        let pieces = cut(&model, &cuts, main).map_err(wrap)?;
        let layout = layout_of(source, image, output_width);
        Ok(Self { pieces, source: source.clone(), layout })
    }

    fn network(&self, piece: &ModelProto, precision: Precision) -> Network {
        let batching = if self.source.one_by_one { Batching::OneByOne } else { Batching::Unproven };
        Network::new(piece.clone(), precision).with_batching(batching)
    }
}

/// Returns the cuts of the export in order, with shapes; for images, the last is the output.
fn cut_points(source: &OnnxSource, output_width: usize) -> Vec<CutPoint> {
    let extent = |extent: usize| i64::try_from(extent).ok();
    let hidden = |depth: usize| match (&source.image, source.width) {
        (Some(image), _) => {
            let extents = image.shapes.get(depth).into_iter().flatten();
            [None].into_iter().chain(extents.map(|e| extent(*e))).collect()
        }
        (None, width) => vec![None, None, width.and_then(extent)],
    };
    let stem = CutPoint { tensor: source.stem.clone(), shape: hidden(0) };
    let blocks = source.blocks.iter().enumerate().flat_map(|(index, block)| {
        let ends = block.tensors().iter();
        ends.map(move |tensor| (tensor.clone(), index + 1))
    });
    let blocks = blocks.map(|(tensor, depth)| CutPoint { tensor, shape: hidden(depth) });
    let output = source.image.as_ref().map(|image| CutPoint {
        tensor: image.output.clone(),
        shape: vec![None, extent(output_width)],
    });
    [stem].into_iter().chain(blocks).chain(output).collect()
}

/// Returns the extents after the batch that a graph declares for an input or output. Returns `None`
/// if one is missing.
fn declared(graph: &GraphProto, name: &str, is_input: bool) -> Option<Vec<usize>> {
    let values = if is_input { &graph.input } else { &graph.output };
    let value = values.iter().find(|value| value.name == name)?;
    let extents = value.extents()?;
    extents.into_iter().skip(1).collect()
}

impl Backbone for Exported {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn build(&self, part: PartId, form: &Form<'_>) -> Result<Body, ArchError> {
        let piece = match self.pieces.get(part.0) {
            Some(piece) => self.network(piece, form.precision),
            // An export that ends with its last block has hidden states of a known width.
            None => mean_head(self.source.width.unwrap_or_default()),
        };
        Ok(piece.into())
    }
}

/// Returns the layout of an export that reads an image or texts and ends `output_width` wide.
fn layout_of(source: &OnnxSource, image: Option<[usize; 3]>, output_width: usize) -> Layout {
    let reads = match image {
        Some(image) => Reads::Images(image),
        None => Reads::Tokens { num_words: None, max_tokens: None },
    };
    let hidden = |place: usize| match &source.image {
        Some(image) => {
            let extents = image.shapes.get(place).into_iter().flatten().copied().map(Some);
            SpaceSpec::of_extents(&extents.collect::<Vec<_>>())
        }
        None => SpaceSpec::of_extents(&[None, source.width]),
    };
    let gives = SpaceSpec::of_extents(&[Some(output_width)]);
    let (parts, prompts) = (Vec::new(), Prompts::default());
    let mut layout = Layout { reads, gives, parts, prompts, can_merge: false };
    layout.add(ModuleKind::Stem, None, &hidden(0), Axes::default());
    for (index, block) in source.blocks.iter().enumerate() {
        let kinds: &[ModuleKind] = match block.tensors().len() {
            2 => &[ModuleKind::Attention, ModuleKind::Mlp],
            _ => &[ModuleKind::Block],
        };
        // A manifest has one shape for each block.
        for kind in kinds {
            layout.add(*kind, Some(index), &hidden(index + 1), Axes::default());
        }
    }
    match source.image.is_some() || source.width.is_some() {
        true => layout.with_head(),
        false => layout,
    }
}
