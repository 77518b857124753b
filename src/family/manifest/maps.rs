//! The manifest's maps, which are fitted in closed form between spaces.

use serde::Deserialize;

use crate::family::files::{EXTENSION, FITS_FOLDER};

/// A map fitted in closed form from one space to another.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSpec {
    /// Name of the space that the map reads, such as `l3.1`.
    pub from: String,
    /// Name of the space that the map writes, such as `l6.2` or `out`.
    pub to: String,
    /// Label that distinguishes several maps between the same spaces.
    pub label: Option<String>,
    /// Form of the map's computation.
    pub form: MapForm,
    /// Inputs of the map. A map of the form `mlp` has no others than the block's hidden units and
    /// its token.
    #[serde(default)]
    pub features: Vec<Feature>,
    /// Plan whose hidden states in `from` the map is fitted on; `None` for the anchor's own path.
    pub fitted_on: Option<String>,
    /// Variants to offer: `int8`.
    #[serde(default)]
    pub variants: Vec<String>,
}

/// Form of a fitted map's computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapForm {
    /// `W · features + b` for every token, then the layer norm before the target, if it has one.
    Tokens,
    /// The feed-forward part of the block at `from`, with its last matrix fitted again to lead to
    /// `to`: `W · [gelu(expand · token), token] + b`.
    Mlp,
    /// `normalize(W · features + b)` once per sequence.
    Pooled,
    /// `W · features + b` for every place of a feature map `[channels, height, width]`. This is a
    /// convolution over one place, or over three by three.
    Conv,
}

/// Input of a fitted map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// The token itself, or the place of a feature map.
    Token,
    /// The three by three places around the place; zero beyond the border.
    Neighbourhood,
    /// The previous token; zero before the first.
    Previous,
    /// The next token; zero after the last.
    Next,
    /// The first token of the sequence, `[CLS]`.
    First,
    /// The mean over the sequence's tokens.
    Mean,
    /// The largest value over the sequence's tokens.
    Max,
    /// The standard deviation over the sequence's tokens.
    Deviation,
}

impl Feature {
    /// Returns the name that manifests and weight files use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Neighbourhood => "neighbourhood",
            Self::Previous => "previous",
            Self::Next => "next",
            Self::First => "first",
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Deviation => "deviation",
        }
    }
}

/// Returns the plain name of the weights of `map`: where they lie in the family's folder, but for
/// the digest.
pub fn fit_file_name(map: &MapSpec) -> String {
    let label = map.label.as_ref().map_or(String::new(), |label| format!(".{label}"));
    format!("{FITS_FOLDER}/{}-{}{label}{EXTENSION}", map.from, map.to)
}
