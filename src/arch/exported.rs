//! Anchors that come as an ONNX export, cut where the manifest says.

use std::path::Path;

use super::{
    ArchError, Network,
    anchor::{Anchor, Form},
    checkpoint::open_verified,
    network::Precision,
    pooling::mean_head,
};
use crate::{
    family::{ModuleKind, OnnxSource},
    onnx::{OnnxError, cut, proto::ModelProto, read_model},
};

/// An ONNX export in pieces: the stem, then each block's attention and feed-forward part.
#[derive(Debug)]
pub(super) struct Exported {
    stem: ModelProto,
    blocks: Vec<[ModelProto; 2]>,
    width: usize,
}

impl Exported {
    /// Reads and cuts the file that `source` names.
    ///
    /// # Errors
    ///
    /// Fails on a file that is unreadable, has another digest or is no ordered ONNX graph, and on
    /// cuts that are none.
    pub(super) fn open(
        folder: &Path,
        anchor: &str,
        source: &OnnxSource,
        sha256: &str,
    ) -> Result<Self, ArchError> {
        drop(open_verified(folder, &source.file, sha256)?);
        let wrap = |source: OnnxError| ArchError::Onnx { anchor: anchor.into(), source };
        let model = read_model(folder, &source.file).map_err(wrap)?;
        let mut cuts = vec![source.stem.as_str()];
        cuts.extend(source.blocks.iter().flatten().map(String::as_str));
        let output = cuts.pop().unwrap_or_default();
        let width = i64::try_from(source.width).unwrap_or(i64::MAX);
        let mut pieces = cut(&model, &cuts, output, width).map_err(wrap)?.into_iter();
        let stem = pieces.next().ok_or(OnnxError::NoTensor { tensor: output.into() });
        let stem = stem.map_err(wrap)?;
        let mut blocks = Vec::new();
        while let (Some(attention), Some(mlp)) = (pieces.next(), pieces.next()) {
            blocks.push([attention, mlp]);
        }
        Ok(Self { stem, blocks, width: source.width })
    }
}

impl Anchor for Exported {
    fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn hidden_shape(&self, _depth: usize, _inner: bool) -> Vec<Option<usize>> {
        vec![None, Some(self.width)]
    }

    fn output_width(&self) -> usize {
        self.width
    }

    fn stem(&self) -> Result<Network, ArchError> {
        Ok(Network::new(self.stem.clone(), Precision::F32))
    }

    fn part(&self, index: usize, part: ModuleKind, form: Form<'_>) -> Result<Network, ArchError> {
        let piece = usize::from(part == ModuleKind::Mlp);
        Ok(Network::new(self.blocks[index][piece].clone(), form.precision()))
    }

    fn head(&self, _has_norm: bool) -> Result<Option<Network>, ArchError> {
        Ok(Some(mean_head(self.width)))
    }
}
