//! The manifest's maps: what is fitted in closed form between spaces.

use serde::Deserialize;

use super::files::{EXTENSION, FITS_FOLDER};

/// A map fitted in closed form from one space to another.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSpec {
    /// The space it starts in, such as `l3.1`.
    pub from: String,
    /// The space it ends in, such as `l6.2`, or `out`.
    pub to: String,
    /// Tells several maps between the same spaces apart.
    pub label: Option<String>,
    /// How it computes.
    pub form: MapForm,
    /// What it sees; nothing more than the block's hidden units and its token for `mlp`.
    #[serde(default)]
    pub features: Vec<Feature>,
    /// A plan on whose hidden states in `from` it is fitted; the anchor's own where there is none.
    pub fitted_on: Option<String>,
    /// Parallel modules to offer: `int8`.
    #[serde(default)]
    pub variants: Vec<String>,
}

/// How a fitted map computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapForm {
    /// `W · features + b` for every token, then the layer norm before the target, if it has one.
    Tokens,
    /// The feed-forward part of the block that `from` lies in, with its last matrix fitted anew so
    /// that it leads to `to`: `W · [gelu(expand · token), token] + b`.
    Mlp,
    /// `normalize(W · features + b)` once for a sequence.
    Pooled,
    /// `W · features + b` for every place of a feature map `[channels, height, width]`: a
    /// convolution over one place, or over three by three.
    Conv,
}

/// What a fitted map sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// The token itself, or the place of a feature map.
    Token,
    /// The three by three places around one; zero beyond the border.
    Neighbourhood,
    /// The token before it; zero before the first.
    Previous,
    /// The token after it; zero after the last.
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
