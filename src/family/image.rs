//! The manifest's images: how a picture becomes the tensor that stems read.

use serde::Deserialize;

/// How images become `[channels, height, width]`: resized, cropped, scaled to \[0, 1\] and
/// normalized, as `preprocessor_config.json` of Hugging Face models says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// 1 for grey, 3 for red, green and blue.
    pub channels: usize,
    /// The height that stems read, in pixels.
    pub height: usize,
    /// The width that stems read, in pixels.
    pub width: usize,
    /// What is subtracted from each channel after scaling to \[0, 1\].
    pub mean: Vec<f32>,
    /// What each channel is divided by then.
    pub std: Vec<f32>,
    /// How images are brought to size.
    #[serde(default)]
    pub resize: Resize,
    /// How pixels between pixels are computed.
    #[serde(default)]
    pub filter: Filter,
}

/// How images are brought to the size that stems read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Both sides are stretched to what they must be.
    #[default]
    Stretch,
    /// The shorter side is brought to this many pixels, then the middle is cut out.
    Shorter(usize),
}

/// How pixels between pixels are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// Linear in both directions.
    #[default]
    Bilinear,
    /// Cubic in both directions (Catmull and Rom).
    Bicubic,
    /// A windowed sinc over three pixels.
    Lanczos,
}

impl ImageSpec {
    /// Returns the key, the value and what would be valid, where something is wrong.
    pub(super) fn fault(&self) -> Option<(&'static str, String, String)> {
        let extents = [("height", self.height), ("width", self.width)];
        if let Some((key, value)) = extents.into_iter().find(|e| !(1..=4_096).contains(&e.1)) {
            return Some((key, value.to_string(), "it must lie in 1..=4096".into()));
        }
        if !matches!(self.channels, 1 | 3) {
            return Some(("channels", self.channels.to_string(), "1 and 3 are supported".into()));
        }
        let lists = [("mean", &self.mean), ("std", &self.std)];
        if let Some((key, list)) = lists.iter().find(|list| list.1.len() != self.channels) {
            let expected = format!("there must be one for each of the {} channels", self.channels);
            return Some((key, format!("{list:?}"), expected));
        }
        if self.std.iter().any(|value| !value.is_normal()) {
            return Some(("std", format!("{:?}", self.std), "it must be finite and not 0".into()));
        }
        match self.resize {
            Resize::Shorter(side) if side < self.height.max(self.width) || side > 8_192 => {
                let expected = "the shorter side must cover what is cut out, and be at most 8192";
                Some(("resize.shorter", side.to_string(), expected.into()))
            }
            _ => None,
        }
    }
}
