//! Anchors that come as an ONNX export, cut where the manifest says.

use std::path::Path;

use super::{ArchError, Network, checkpoint::open_verified, network::Precision};
use crate::{
    family::OnnxSource,
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

    /// Returns the number of blocks.
    pub(super) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Returns the extent of a hidden state.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Returns the stem's network.
    pub(super) fn stem(&self) -> Network {
        Network::new(self.stem.clone(), Precision::F32)
    }

    /// Returns the network of block `index`: its attention part (0) or its feed-forward part (1).
    pub(super) fn sub_layer(&self, index: usize, part: usize, precision: Precision) -> Network {
        Network::new(self.blocks[index][part].clone(), precision)
    }
}
