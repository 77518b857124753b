//! Converting image files to pixels: decoding, resizing, normalizing.
//!
//! Sizes are read from the header and checked before anything is decoded.

use std::io::Cursor;

use image::{
    DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, Limits, Luma, RgbImage,
    imageops::{self, FilterType},
};

use super::batch::Pixels;
use crate::family::{Filter, ImageSpec, Resize};

/// Number of bytes per pixel that a decoder may take, besides a fixed sum.
const BYTES_PER_PIXEL: u64 = 16;

/// Number of bytes that a decoder takes besides the picture.
const DECODER_BYTES: u64 = 2 << 20;

/// Error for an image that is refused.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The bytes are neither PNG nor JPEG.
    #[error("it is neither PNG nor JPEG")]
    Format,
    /// The header cannot be read, or the rest is truncated or broken.
    #[error("it cannot be decoded: {0}")]
    Broken(#[source] image::ImageError),
    /// The image has no pixels.
    #[error("it has no pixels ({width} × {height})")]
    Empty {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The image has too many pixels.
    #[error("it has {width} × {height} pixels, over the limit of {limit}")]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Maximum number of pixels.
        limit: u64,
    },
}

/// Decodes one image file to the pixels that stems read.
///
/// # Errors
///
/// Fails on bytes that are not PNG or JPEG or cannot be decoded. Fails on images without pixels or
/// with more than `max_pixels`.
pub fn decode_picture(
    bytes: &[u8],
    spec: &ImageSpec,
    max_pixels: u64,
) -> Result<Pixels, PictureError> {
    let mut decoder = open(bytes, max_pixels)?;
    let orientation = decoder.orientation().ok();
    let mut picture = DynamicImage::from_decoder(decoder).map_err(PictureError::Broken)?;
    if let Some(orientation) = orientation {
        picture.apply_orientation(orientation);
    }
    let picture = bring_to_size(as_eight_bits(picture, spec.channels), spec);
    Ok(normalize(&picture, spec))
}

/// Returns the largest number of bytes that decoding and resizing an image file takes, from its
/// header.
///
/// It counts the picture in the decoder and in its reader, and the rows with which resizing begins.
///
/// # Errors
///
/// Fails like [`decode_picture`] does before it decodes.
pub fn decoding_bytes(
    bytes: &[u8],
    spec: &ImageSpec,
    max_pixels: u64,
) -> Result<u64, PictureError> {
    let decoder = open(bytes, max_pixels)?;
    let (width, height) = decoder.dimensions();
    let rows = match spec.resize {
        Resize::Stretch => spec.height as u64,
        Resize::Shorter(side) => u64::from(shorter([width, height], side)[1]),
        Resize::Exact([height, _]) => height as u64,
    };
    let resized = u64::from(width.max(height)).saturating_mul(rows).saturating_mul(16);
    let picture = decoder.total_bytes().saturating_mul(2);
    Ok(picture.saturating_add(resized).saturating_add(DECODER_BYTES))
}

/// Reads an image file's header.
fn open(bytes: &[u8], max_pixels: u64) -> Result<impl ImageDecoder, PictureError> {
    let mut reader = ImageReader::new(Cursor::new(bytes));
    match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => reader.set_format(format),
        _ => return Err(PictureError::Format),
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(max_pixels.saturating_mul(BYTES_PER_PIXEL).saturating_add(1 << 20));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(PictureError::Broken)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(PictureError::Empty { width, height });
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(PictureError::TooManyPixels { width, height, limit: max_pixels });
    }
    Ok(decoder)
}

/// Converts raw bytes, `[height, width, channels]` of 1 or 3 channels, to the pixels that stems
/// read. Returns `None` if there are too few bytes or other channels.
pub fn raw_picture(
    bytes: &[u8],
    [height, width, channels]: [u32; 3],
    spec: &ImageSpec,
) -> Option<Pixels> {
    let bytes = bytes.to_vec();
    let picture = match channels {
        1 => DynamicImage::ImageLuma8(GrayImage::from_raw(width, height, bytes)?),
        3 => DynamicImage::ImageRgb8(RgbImage::from_raw(width, height, bytes)?),
        _ => return None,
    };
    let picture = bring_to_size(as_eight_bits(picture, spec.channels), spec);
    Some(normalize(&picture, spec))
}

/// Scales bytes `[height, width, channels]` to \[0, 1\] and normalizes each channel.
fn normalize(picture: &DynamicImage, spec: &ImageSpec) -> Pixels {
    let bytes = picture.as_bytes();
    let mut values = Vec::with_capacity(bytes.len());
    for channel in 0..spec.channels {
        let (mean, std) = (spec.mean[channel], spec.std[channel]);
        let of_channel = bytes.iter().skip(channel).step_by(spec.channels);
        values.extend(of_channel.map(|byte| (f32::from(*byte) / 255.0 - mean) / std));
    }
    Pixels { shape: [spec.channels, spec.height, spec.width], values }
}

/// Returns the image in grey or in red, green and blue, with 8 bits per channel.
///
/// Like Pillow's `convert`, which transformers and timm call, it drops transparency, so a
/// transparent pixel keeps the colour that its file gives it.
fn as_eight_bits(picture: DynamicImage, channels: usize) -> DynamicImage {
    if channels == 3 {
        DynamicImage::ImageRgb8(picture.into_rgb8())
    } else if picture.color().has_color() {
        DynamicImage::ImageLuma8(grey(&picture.into_rgb8()))
    } else {
        DynamicImage::ImageLuma8(picture.into_luma8())
    }
}

/// Returns the luma of ITU-R BT.601 of each pixel, in Pillow's arithmetic.
fn grey(picture: &RgbImage) -> GrayImage {
    const WEIGHTS: [u32; 3] = [19_595, 38_470, 7_471];
    GrayImage::from_fn(picture.width(), picture.height(), |x, y| {
        let channels = picture.get_pixel(x, y).0.into_iter().map(u32::from);
        let sum: u32 = channels.zip(WEIGHTS).map(|(channel, weight)| channel * weight).sum();
        let [_, luma, ..] = (sum + (1 << 15)).to_be_bytes();
        Luma([luma])
    })
}

fn bring_to_size(mut picture: DynamicImage, spec: &ImageSpec) -> DynamicImage {
    let target = [spec.width, spec.height].map(|side| u32::try_from(side).unwrap_or(u32::MAX));
    let [width, height] = match spec.resize {
        Resize::Stretch => target,
        Resize::Shorter(side) => shorter([picture.width(), picture.height()], side),
        Resize::Exact([height, width]) => {
            [width, height].map(|side| u32::try_from(side).unwrap_or(u32::MAX))
        }
    };
    if [width, height] != [picture.width(), picture.height()] {
        picture = resize(&picture, [width, height], filter_type(spec.filter));
    }
    let [left, top] = [(width - target[0]) / 2, (height - target[1]) / 2];
    picture.crop_imm(left, top, target[0], target[1])
}

/// Returns the size with the same proportions whose shorter side is `side`.
fn shorter([width, height]: [u32; 2], side: usize) -> [u32; 2] {
    let side = u32::try_from(side).unwrap_or(u32::MAX);
    let scaled = |long: u32, short: u32| {
        let product = u64::from(side) * u64::from(long) / u64::from(short);
        u32::try_from(product).unwrap_or(u32::MAX)
    };
    if width <= height { [side, scaled(height, width)] } else { [scaled(width, height), side] }
}

fn resize(picture: &DynamicImage, [width, height]: [u32; 2], filter: FilterType) -> DynamicImage {
    match picture {
        DynamicImage::ImageLuma8(grey) => {
            DynamicImage::ImageLuma8(imageops::resize(grey, width, height, filter))
        }
        DynamicImage::ImageRgb8(colours) => {
            DynamicImage::ImageRgb8(imageops::resize(colours, width, height, filter))
        }
        other => DynamicImage::ImageRgb8(imageops::resize(&other.to_rgb8(), width, height, filter)),
    }
}

fn filter_type(filter: Filter) -> FilterType {
    match filter {
        Filter::Nearest => FilterType::Nearest,
        Filter::Bilinear => FilterType::Triangle,
        Filter::Bicubic => FilterType::CatmullRom,
        Filter::Lanczos => FilterType::Lanczos3,
    }
}

#[cfg(test)]
mod tests {
    use image::{GrayAlphaImage, LumaA, Rgb, Rgba, RgbaImage};

    use super::*;

    fn spec(resize: Resize, channels: usize) -> ImageSpec {
        ImageSpec {
            channels,
            height: 4,
            width: 4,
            mean: vec![0.5; channels],
            std: vec![0.25; channels],
            resize,
            filter: Filter::Bilinear,
        }
    }

    fn png(width: u32, height: u32) -> Vec<u8> {
        let byte = |value: u32| u8::try_from(value * 10).expect("a byte");
        let paint = |x: u32, y: u32| Rgb([byte(x), byte(y), 255]);
        let mut bytes = Cursor::new(Vec::new());
        let picture = RgbImage::from_fn(width, height, paint);
        picture.write_to(&mut bytes, ImageFormat::Png).expect("written");
        bytes.into_inner()
    }

    #[test]
    fn channels_are_scaled_and_normalized_apart() {
        let pixels = decode_picture(&png(4, 4), &spec(Resize::Stretch, 3), 100).expect("decoded");
        assert_eq!((pixels.shape, pixels.batch()), ([3, 4, 4], 1));
        let expected = |byte: f32| (byte / 255.0 - 0.5) / 0.25;
        let close = |index: usize, byte: f32| (pixels.values[index] - expected(byte)).abs() < 1e-6;
        assert!(close(1, 10.0) && close(16 + 4, 10.0) && close(32, 255.0));
    }

    /// Returns the bytes of a PNG of one pixel after decoding to `channels` channels.
    fn decoded(picture: impl Into<DynamicImage>, channels: usize) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, ImageFormat::Png).expect("written");
        let (mean, std) = (vec![0.0; channels], vec![1.0 / 255.0; channels]);
        let spec = ImageSpec { mean, std, ..spec(Resize::Stretch, channels) };
        let spec = ImageSpec { height: 1, width: 1, ..spec };
        let pixels = decode_picture(&bytes.into_inner(), &spec, 1).expect("decoded");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes")]
        pixels.values.iter().map(|value| value.round() as u8).collect()
    }

    // The values are those of Pillow 12: `image.convert("RGB")` and `image.convert("L")`.
    #[test]
    fn transparency_is_dropped_as_the_references_do() {
        let colours = RgbaImage::from_pixel(1, 1, Rgba([200, 100, 50, 0]));
        assert_eq!(decoded(colours.clone(), 3), [200, 100, 50]);
        assert_eq!(decoded(colours, 1), [124]);
        let grey = GrayAlphaImage::from_pixel(1, 1, LumaA([200, 10]));
        assert_eq!(decoded(grey.clone(), 3), [200, 200, 200]);
        assert_eq!(decoded(grey, 1), [200]);
    }

    #[test]
    fn colours_are_brought_to_grey_as_the_references_do() {
        for (colour, expected) in
            [([255, 0, 0], 76), ([0, 255, 0], 150), ([0, 0, 255], 29), ([255, 255, 255], 255)]
        {
            let picture = RgbImage::from_pixel(1, 1, Rgb(colour));
            assert_eq!(decoded(picture, 1), [expected], "{colour:?}");
        }
    }

    #[test]
    fn decoding_takes_what_the_header_says() {
        let bytes = |width, height| {
            decoding_bytes(&png(width, height), &spec(Resize::Stretch, 3), 1_000).expect("a header")
        };
        assert_eq!(bytes(4, 8), 2 * 4 * 8 * 3 + 8 * 4 * 16 + DECODER_BYTES);
        assert!(decoding_bytes(&png(25, 25), &spec(Resize::Stretch, 3), 624).is_err());
        assert!(decoding_bytes(b"GIF89a", &spec(Resize::Stretch, 3), 624).is_err());
    }

    #[test]
    fn the_middle_is_cut_out_where_proportions_differ() {
        let pixels =
            decode_picture(&png(12, 4), &spec(Resize::Shorter(4), 1), 100).expect("decoded");
        assert_eq!(pixels.shape, [1, 4, 4]);
        let stretched = decode_picture(&png(12, 4), &spec(Resize::Stretch, 1), 100);
        assert_ne!(pixels, stretched.expect("decoded"));
    }

    #[test]
    fn what_is_no_image_is_refused_by_reason() {
        let spec = spec(Resize::Stretch, 3);
        let whole = png(16, 16);
        for (bytes, limit, reason) in [
            (&whole[..whole.len() / 2], 1_000, "cannot be decoded"),
            (&whole[..20], 1_000, "cannot be decoded"),
            (&whole[..], 255, "16 × 16 pixels, over the limit of 255"),
            (b"GIF89a....".as_slice(), 1_000, "neither PNG nor JPEG"),
            (b"".as_slice(), 1_000, "neither PNG nor JPEG"),
        ] {
            let error = decode_picture(bytes, &spec, limit).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
