//! Fuzz tests of tokenizers, texts and images, which must be read or refused: `make fuzz`.

use std::io::Cursor;

use allocation_counter::measure;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

use super::{Tokenizer, decode_picture, decoding_bytes};
use crate::{
    family::{Filter, ImageSpec, Resize},
    tensor::mutate::feed,
};

const TOKENIZER: &[u8] = include_bytes!("../../tests/references/sentence/cls/tokenizer.json");

const MAX_PIXELS: u64 = 1 << 16;

#[test]
fn tokenizers() {
    feed(&[TOKENIZER.to_vec()], |json| {
        if let Ok(tokenizer) = Tokenizer::from_bytes(&json, 16) {
            drop(tokenizer.encode_up_to(&["the server answers a mail", "", "\u{1f600}"], 8));
        }
    });
}

#[test]
fn texts() {
    let tokenizer = Tokenizer::from_bytes(TOKENIZER, 16).expect("valid");
    let size = i64::try_from(tokenizer.vocabulary_size()).expect("small");
    let seeds = ["the server answers a mail", "[CLS] [PAD] ##s", "e\u{301}\u{1f468}\u{200d}\u{0}"];
    feed(&seeds.map(|seed| seed.as_bytes().to_vec()), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let whole = tokenizer.encode(&[&text]).expect("any text has tokens");
        let cut = tokenizer.encode_up_to(&[&text, "a"], 4).expect("any text has tokens");
        assert!(whole.tokens <= 16 && cut.tokens <= 4);
        assert_eq!(cut.input_ids.len(), 2 * cut.tokens);
        assert!(whole.input_ids.iter().all(|id| (0..size).contains(id)));
    });
}

fn pictures() -> Vec<Vec<u8>> {
    let picture = RgbImage::from_fn(9, 7, |x, y| {
        Rgb([x, y, x * y].map(|value| u8::try_from(value).unwrap_or(255)))
    });
    let colours = DynamicImage::ImageRgb8(picture);
    let grey = DynamicImage::ImageLuma16(colours.to_luma16());
    let mut written = Vec::new();
    for (picture, format) in [
        (&colours, ImageFormat::Png),
        (&grey, ImageFormat::Png),
        (&colours, ImageFormat::Jpeg),
        (&DynamicImage::ImageLuma8(colours.to_luma8()), ImageFormat::Jpeg),
    ] {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).expect("written");
        written.push(bytes.into_inner());
    }
    // A GIF of one pixel, which is refused whatever is changed in it.
    written.push(
        b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
            .to_vec(),
    );
    written
}

#[test]
fn images() {
    let spec = |channels, resize| ImageSpec {
        channels,
        height: 8,
        width: 6,
        mean: vec![0.5; channels],
        std: vec![0.25; channels],
        resize,
        filter: Filter::Bicubic,
    };
    let specs =
        [spec(3, Resize::Stretch), spec(1, Resize::Shorter(8)), spec(3, Resize::Exact([12, 10]))];
    feed(&pictures(), |bytes| {
        for spec in &specs {
            let estimate = decoding_bytes(&bytes, spec, MAX_PIXELS);
            let mut pixels = None;
            let used = measure(|| pixels = decode_picture(&bytes, spec, MAX_PIXELS).ok());
            let Some(pixels) = pixels else { continue };
            assert_eq!(pixels.values.len(), spec.channels * spec.height * spec.width);
            let estimate = estimate.expect("its header was read");
            let held = used.bytes_max;
            assert!(held <= estimate, "{held} bytes are held, {estimate} were expected");
        }
    });
}
