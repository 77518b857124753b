//! Preparation of images from `preprocessor_config.json`, as transformers' image processors do it.

use std::path::Path;

use serde::{Deserialize, de::IgnoredAny};

use crate::{
    family::Fault,
    fit::error::FitError,
    tensor::{FileKind, json, read_text},
};

/// Divisor that brings bytes to \[0, 1\]; a manifest's mean and deviation are of such values.
const BYTE: f64 = 255.0;

/// Side from which ConvNeXt's processor stretches an image and crops nothing.
const CONVNEXT_STRETCHES_FROM: usize = 384;

/// Keys of the file. Those that do not change pixels are ignored, and unknown ones refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Processor {
    crop_pct: Option<f64>,
    crop_size: Option<Size>,
    do_center_crop: Option<bool>,
    do_normalize: Option<bool>,
    do_rescale: Option<bool>,
    do_resize: Option<bool>,
    image_mean: Option<Vec<f64>>,
    image_std: Option<Vec<f64>>,
    resample: Option<u8>,
    rescale_factor: Option<f64>,
    size: Option<Size>,
    default_to_square: Option<bool>,
    do_pad: Option<bool>,
    // Ignored: pictures are red, green and blue already, and the rest names classes and outputs.
    #[serde(rename = "_valid_processor_keys")]
    _valid_processor_keys: IgnoredAny,
    #[serde(rename = "data_format")]
    _data_format: IgnoredAny,
    #[serde(rename = "device")]
    _device: IgnoredAny,
    #[serde(rename = "disable_grouping")]
    _disable_grouping: IgnoredAny,
    #[serde(rename = "do_convert_rgb")]
    _do_convert_rgb: IgnoredAny,
    #[serde(rename = "feature_extractor_type")]
    _feature_extractor_type: IgnoredAny,
    #[serde(rename = "image_processor_type")]
    _image_processor_type: IgnoredAny,
    #[serde(rename = "input_data_format")]
    _input_data_format: IgnoredAny,
    #[serde(rename = "processor_class")]
    _processor_class: IgnoredAny,
    #[serde(rename = "return_tensors")]
    _return_tensors: IgnoredAny,
}

/// Size of an image, in the forms that transformers has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(usize),
    Extents(Extents),
    Edge(Edge),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extents {
    height: usize,
    width: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edge {
    shortest_edge: usize,
}

/// Preparation of images, in a manifest's words.
#[derive(Debug, PartialEq)]
pub(super) struct Preprocessing {
    pub(super) mean: Vec<f64>,
    pub(super) std: Vec<f64>,
    /// Value of `image.resize`, in TOML.
    pub(super) resize: String,
    pub(super) filter: &'static str,
}

/// Returns the preparation of images `[channels, height, width]` that the file at `path` says, or
/// the usual one for ImageNet without a file.
///
/// # Errors
///
/// Fails on unknown keys, and on values that the server cannot follow.
pub(super) fn preprocessing(
    path: Option<&Path>,
    image: [usize; 3],
) -> Result<Preprocessing, FitError> {
    let Some(path) = path else { return Ok(usual(image)) };
    let text = read_text(path, FileKind::Config)
        .map_err(|reason| FitError::File { path: path.to_owned(), reason })?;
    let malformed = |message: String| FitError::Malformed { path: path.to_owned(), message };
    let read: Processor = json::parse(&text).map_err(|e| malformed(e.to_string()))?;
    read.follow(image).map_err(|fault| malformed(fault.to_string()))
}

/// Most networks for ImageNet are evaluated this way: an eighth of the image is cut off.
fn usual([channels, height, width]: [usize; 3]) -> Preprocessing {
    let (mean, std) = match channels {
        1 => (vec![0.5], vec![0.5]),
        _ => (vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]),
    };
    let side = height.max(width);
    Preprocessing { mean, std, resize: shorter(side + side / 7), filter: "bilinear" }
}

fn shorter(side: usize) -> String {
    format!("{{ shorter = {side} }}")
}

impl Processor {
    fn follow(&self, image: [usize; 3]) -> Result<Preprocessing, Fault> {
        for (key, value) in [("do_resize", self.do_resize), ("do_pad", self.do_pad.map(|is| !is))] {
            if value == Some(false) {
                let given = key == "do_pad";
                return Err(Fault::new(key, given, format!("{} is supported", !given)));
            }
        }
        let filter = match self.resample.unwrap_or(2) {
            0 => "nearest",
            1 => "lanczos",
            2 => "bilinear",
            3 => "bicubic",
            other => return Err(Fault::new("resample", other, "0 to 3 are supported")),
        };
        let (mean, std) = self.normalization(image[0])?;
        Ok(Preprocessing { mean, std, resize: self.resize(image)?, filter })
    }

    /// Returns the mean and the deviation of values in \[0, 1\].
    fn normalization(&self, channels: usize) -> Result<(Vec<f64>, Vec<f64>), Fault> {
        let (mean, std) = match self.do_normalize {
            Some(false) => (vec![0.0; channels], vec![1.0; channels]),
            _ => {
                let needed = |key, list: &Option<Vec<f64>>| {
                    let missing = || Fault::new(key, "missing", "it is needed to normalize");
                    list.clone().ok_or_else(missing)
                };
                (needed("image_mean", &self.image_mean)?, needed("image_std", &self.image_std)?)
            }
        };
        // Bytes are multiplied by the factor before; here they are divided by 255.
        let factor = match self.do_rescale {
            Some(false) => 1.0,
            _ => self.rescale_factor.unwrap_or(1.0 / BYTE),
        };
        if !(factor.is_finite() && factor > 0.0) {
            return Err(Fault::new("rescale_factor", factor, "it must be over 0"));
        }
        let scale = BYTE * factor;
        let scaled = |list: Vec<f64>| list.into_iter().map(|value| value / scale).collect();
        Ok((scaled(mean), scaled(std)))
    }

    /// Returns the value of `image.resize`. What is cropped is the size of `image`.
    fn resize(&self, [_, height, width]: [usize; 3]) -> Result<String, Fault> {
        let Some(size) = self.size else {
            return Err(Fault::new("size", "missing", "a size is needed"));
        };
        if self.default_to_square == Some(false) && matches!(size, Size::Side(_)) {
            return Err(Fault::new("default_to_square", false, "true is supported"));
        }
        if let Some(percent) = self.crop_pct {
            return self.convnext(size, percent, [height, width]);
        }
        let crop = match (self.do_center_crop, self.crop_size) {
            (Some(true), None) => {
                return Err(Fault::new("crop_size", "missing", "it is needed to crop"));
            }
            (Some(false), _) | (None, None) => None,
            (_, Some(crop)) => Some(crop.square()),
        };
        if let Some(crop) = crop.filter(|crop| *crop != Some([height, width])) {
            let expected = format!("the network reads {height} by {width} pixels");
            return Err(Fault::new("crop_size", format!("{crop:?}"), expected));
        }
        match (size, size.square()) {
            (Size::Edge(_), _) if self.do_center_crop == Some(false) => {
                Err(Fault::new("do_center_crop", false, "true is supported with `shortest_edge`"))
            }
            (Size::Edge(Edge { shortest_edge }), _) => Ok(shorter(shortest_edge)),
            (_, Some(extents)) if extents == [height, width] => Ok("\"stretch\"".into()),
            (_, Some([tall, wide])) if crop.is_some() && tall >= height && wide >= width => {
                Ok(format!("{{ exact = [{tall}, {wide}] }}"))
            }
            _ => {
                let expected = format!("the network reads {height} by {width} pixels");
                Err(Fault::new("size", format!("{size:?}"), expected))
            }
        }
    }

    /// Resizes as ConvNeXt's processor does: the shorter side to more than the size, of which the
    /// centre is cropped; large images are stretched.
    fn convnext(&self, size: Size, percent: f64, target: [usize; 2]) -> Result<String, Fault> {
        let side = match size {
            Size::Edge(Edge { shortest_edge }) => shortest_edge,
            Size::Side(side) => side,
            Size::Extents(_) => {
                let expected = "`shortest_edge` is needed beside crop_pct";
                return Err(Fault::new("size", format!("{size:?}"), expected));
            }
        };
        if [side, side] != target {
            let expected = format!("the network reads {} by {} pixels", target[0], target[1]);
            return Err(Fault::new("size", side, expected));
        }
        if !(percent > 0.0 && percent <= 1.0) {
            return Err(Fault::new("crop_pct", percent, "it must lie in (0, 1]"));
        }
        if side >= CONVNEXT_STRETCHES_FROM {
            return Ok("\"stretch\"".into());
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "sides are small, and the processor truncates"
        )]
        let resized = (side as f64 / percent) as usize;
        Ok(shorter(resized))
    }
}

impl Size {
    /// Returns the height and the width, or `None` if they depend on the image.
    fn square(self) -> Option<[usize; 2]> {
        match self {
            Self::Side(side) => Some([side; 2]),
            Self::Extents(Extents { height, width }) => Some([height, width]),
            Self::Edge(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::tensor::mutate::feed_file;

    fn followed(config: &Value) -> Result<Preprocessing, String> {
        let read: Processor =
            serde_json::from_value(config.clone()).map_err(|error| error.to_string())?;
        read.follow([3, 16, 16]).map_err(|fault| fault.to_string())
    }

    fn with(other: &Value) -> Value {
        let mut config = json!({
            "image_mean": [0, 0, 0], "image_std": [1, 1, 1],
            "size": {"height": 16, "width": 16}, "do_convert_rgb": true,
        });
        for (key, value) in other.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    #[test]
    fn sizes_and_crops_are_those_of_the_processors() {
        for (config, resize) in [
            (json!({}), "\"stretch\""),
            (json!({"size": 16}), "\"stretch\""),
            (json!({"size": {"shortest_edge": 18}, "crop_size": 16}), "{ shorter = 18 }"),
            (json!({"size": 18, "crop_size": 16, "do_center_crop": true}), "{ exact = [18, 18] }"),
            (json!({"size": {"shortest_edge": 16}, "crop_pct": 0.875}), "{ shorter = 18 }"),
        ] {
            let found = followed(&with(&config)).map(|found| found.resize);
            assert_eq!(found.as_deref(), Ok(resize), "{config}");
        }
    }

    #[test]
    fn factors_and_means_become_those_of_values_up_to_one() {
        let found = followed(&with(&json!({"do_normalize": false}))).expect("followed");
        assert_eq!((found.mean, found.std), (vec![0.0; 3], vec![1.0; 3]));
        let bytes =
            json!({"do_rescale": false, "image_mean": [51, 0, 0], "image_std": [255, 1, 1]});
        let found = followed(&with(&bytes)).expect("followed");
        assert!((found.mean[0] - 0.2).abs() < 1e-12 && (found.std[0] - 1.0).abs() < 1e-12);
        let found = followed(&with(&json!({"rescale_factor": 2.0 / 255.0}))).expect("followed");
        assert!((found.std[0] - 0.5).abs() < 1e-12, "values up to two");
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_key() {
        for (config, reason) in [
            (json!({"do_resize": false}), "`do_resize` is `false`, but true is supported"),
            (json!({"do_pad": true}), "`do_pad` is `true`, but false is supported"),
            (json!({"size": {"longest_edge": 16}}), "did not match"),
            (json!({"size": 18}), "`size`"),
            (json!({"size": 18, "crop_size": 12}), "`crop_size`"),
            (json!({"size": {"shortest_edge": 18}, "do_center_crop": false}), "do_center_crop"),
            (json!({"resample": 7}), "0 to 3"),
            (json!({"size": {"shortest_edge": 20}, "crop_pct": 0.9}), "16 by 16"),
            (json!({"patch_pixels": 2}), "unknown field `patch_pixels`"),
            (json!({"image_mean": null}), "`image_mean` is `missing`"),
        ] {
            let error = followed(&with(&config)).expect_err(reason);
            assert!(error.contains(reason), "{config}: {error}");
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("preprocessor_config.json");
        std::fs::write(&path, r#"{"do_pad": false, "do_pad": false}"#).expect("written");
        let error = preprocessing(Some(&path), [3, 16, 16]).expect_err("two values").to_string();
        assert!(error.contains("`do_pad`"), "{error}");
    }

    #[test]
    fn fuzz_preprocessors() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("preprocessor_config.json");
        let seeds = [
            json!({
                "do_resize": true, "size": {"shortest_edge": 256}, "resample": 3,
                "do_center_crop": true, "crop_size": {"height": 224, "width": 224},
                "crop_pct": 0.875, "do_rescale": true, "rescale_factor": 1.0 / 255.0,
                "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            }),
            json!({"size": 224, "do_normalize": false, "image_processor_type": "ViT"}),
            json!({
                "size": {"height": 224, "width": 224}, "do_pad": false, "input_size": [3, 224, 224],
                "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
            }),
        ]
        .map(|seed| seed.to_string().into_bytes());
        feed_file(&seeds, &path, || {
            drop(preprocessing(Some(&path), [3, 224, 224]));
            drop(preprocessing(Some(&path), [1, 28, 28]));
        });
    }
}
