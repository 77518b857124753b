//! The manifest's image settings, by which a picture becomes the tensor that stems read.

use crate::family::Fault;
use serde::Deserialize;

/// Settings of image preprocessing. An image is resized, cropped, scaled to \[0, 1\] and normalized
/// to `[channels, height, width]`. Hugging Face models keep these settings in
/// `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Number of channels: 1 for grey; 3 for red, green and blue.
    pub channels: usize,
    /// Height of the stem's input, in pixels.
    pub height: usize,
    /// Width of the stem's input, in pixels.
    pub width: usize,
    /// Mean per channel, subtracted after scaling to \[0, 1\].
    pub mean: Vec<f32>,
    /// Standard deviation per channel, the divisor after the mean is subtracted.
    pub std: Vec<f32>,
    /// Method of resizing.
    #[serde(default)]
    pub resize: Resize,
    /// Interpolation filter for resizing.
    #[serde(default)]
    pub filter: Filter,
}

/// Method of resizing an image to the size of the stem's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Both sides are stretched to the size of the stem's input.
    #[default]
    Stretch,
    /// The shorter side is resized to the given number of pixels, and the centre is cropped.
    Shorter(usize),
    /// Both sides are stretched to the given height and width, and the centre is cropped.
    Exact([usize; 2]),
}

/// Interpolation filter for resizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// Linear interpolation in both directions.
    #[default]
    Bilinear,
    /// Cubic interpolation in both directions (Catmull and Rom).
    Bicubic,
    /// A windowed sinc of three pixels on either side.
    Lanczos,
}

impl ImageSpec {
    /// Returns the first fault, or `None` if there is none.
    pub(super) fn fault(&self) -> Option<Fault> {
        let extents = [("height", self.height), ("width", self.width)];
        if let Some((key, value)) = extents.into_iter().find(|e| !(1..=4_096).contains(&e.1)) {
            return Some(Fault::new(key, value, "it must lie in 1..=4096"));
        }
        if !matches!(self.channels, 1 | 3) {
            return Some(Fault::new("channels", self.channels, "1 and 3 are supported"));
        }
        let lists = [("mean", &self.mean), ("std", &self.std)];
        if let Some((key, list)) = lists.iter().find(|list| list.1.len() != self.channels) {
            let expected = format!("there must be one for each of the {} channels", self.channels);
            return Some(Fault::new(*key, format!("{list:?}"), expected));
        }
        if self.std.iter().any(|value| !value.is_normal()) {
            return Some(Fault::new(
                "std",
                format!("{:?}", self.std),
                "it must be finite and not 0",
            ));
        }
        match self.resize {
            Resize::Shorter(side) if side < self.height.max(self.width) || side > 8_192 => {
                let expected = "the shorter side must cover what is cut out, and be at most 8192";
                Some(Fault::new("resize.shorter", side, expected))
            }
            Resize::Exact([height, width])
                if height < self.height || width < self.width || height.max(width) > 8_192 =>
            {
                let expected = "it must cover what is cut out, and be at most 8192 by 8192";
                Some(Fault::new("resize.exact", format!("[{height}, {width}]"), expected))
            }
            _ => None,
        }
    }
}
