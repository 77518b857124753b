//! Inputs of plans: texts as token ids, or images as pixels.

use std::ops::Range;

use super::tokens::Encoding;
use crate::plan::Shape;

/// Input of a path.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelInput {
    /// Token ids with their mask.
    Tokens(Encoding),
    /// Normalized images.
    Pixels(Pixels),
}

/// Images in the form that stems read.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// Channels, height and width of each image.
    pub shape: [usize; 3],
    /// Values, `[batch, channels, height, width]`.
    pub values: Vec<f32>,
}

impl Pixels {
    /// Returns the number of values of one image.
    pub fn image_len(&self) -> usize {
        self.shape.iter().product::<usize>().max(1)
    }

    /// Returns the number of images.
    pub fn batch(&self) -> usize {
        self.values.len() / self.image_len()
    }
}

impl ModelInput {
    /// Returns the number of texts or images.
    pub fn batch(&self) -> usize {
        match self {
            Self::Tokens(encoding) => encoding.batch,
            Self::Pixels(pixels) => pixels.batch(),
        }
    }

    /// Returns the number of tokens of the longest text, or 1 for images.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Tokens(encoding) => encoding.tokens,
            Self::Pixels(_) => 1,
        }
    }

    /// Returns the number of texts or images, and of tokens of the longest text.
    pub fn shape(&self) -> Shape {
        Shape::new(self.batch(), self.tokens())
    }

    /// Returns the number of tokens of all texts without padding, or the number of images.
    pub fn total_tokens(&self) -> usize {
        match self {
            Self::Tokens(encoding) => {
                encoding.attention_mask.iter().filter(|mask| **mask == 1).count()
            }
            Self::Pixels(pixels) => pixels.batch(),
        }
    }

    /// Joins texts or images into one batch, with texts padded to the longest.
    ///
    /// Returns `None` if `inputs` is empty, mixes texts and images, or has images of different
    /// shapes.
    #[must_use]
    pub fn concatenate(inputs: &[&Self]) -> Option<Self> {
        match inputs.first()? {
            Self::Tokens(_) => {
                let encodings = inputs.iter().map(|input| match input {
                    Self::Tokens(encoding) => Some(encoding),
                    Self::Pixels(_) => None,
                });
                let encodings: Vec<&Encoding> = encodings.collect::<Option<_>>()?;
                Some(Self::Tokens(Encoding::concatenate(&encodings)))
            }
            Self::Pixels(Pixels { shape, .. }) => {
                let values = inputs.iter().map(|input| match input {
                    Self::Pixels(pixels) if pixels.shape == *shape => {
                        Some(pixels.values.as_slice())
                    }
                    _ => None,
                });
                let values = values.collect::<Option<Vec<_>>>()?.concat();
                Some(Self::Pixels(Pixels { shape: *shape, values }))
            }
        }
    }

    /// Returns the texts `rows`, cut to the longest of them, or the images `rows`.
    ///
    /// # Panics
    ///
    /// Panics when `rows` is out of range.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Tokens(encoding) => Self::Tokens(encoding.rows(rows)),
            Self::Pixels(pixels) => {
                let len = pixels.image_len();
                let values = pixels.values[rows.start * len..rows.end * len].to_vec();
                Self::Pixels(Pixels { shape: pixels.shape, values })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_taken_whole() {
        let values: Vec<f32> =
            (0..12).map(|value| f32::from(i8::try_from(value).expect("small"))).collect();
        let input = ModelInput::Pixels(Pixels { shape: [1, 2, 2], values });
        assert_eq!((input.batch(), input.tokens()), (3, 1));
        let ModelInput::Pixels(rows) = input.rows(1..3) else { panic!("images stay images") };
        assert_eq!((rows.batch(), rows.values[0]), (2, 4.0));
    }

    #[test]
    fn inputs_are_put_below_one_another() {
        let pixels = |shape: [usize; 3], value: f32| {
            ModelInput::Pixels(Pixels { shape, values: vec![value; shape.iter().product()] })
        };
        let (one, two) = (pixels([1, 2, 2], 1.0), pixels([1, 2, 2], 2.0));
        let both = ModelInput::concatenate(&[&one, &two]).expect("of one shape");
        assert_eq!((both.batch(), both.rows(1..2)), (2, two));
        assert_eq!(ModelInput::concatenate(&[&one, &pixels([1, 2, 3], 1.0)]), None);
        assert_eq!(ModelInput::concatenate(&[]), None);

        let tokens = |rows: &[&[i64]]| {
            let (batch, tokens) = (rows.len(), rows[0].len());
            let input_ids: Vec<i64> = rows.concat();
            let attention_mask = input_ids.iter().map(|id| i64::from(*id > 0)).collect();
            ModelInput::Tokens(Encoding { batch, tokens, input_ids, attention_mask })
        };
        let (short, long) = (tokens(&[&[5, 6]]), tokens(&[&[7, 8, 9], &[3, 0, 0]]));
        let both = ModelInput::concatenate(&[&short, &long]);
        assert_eq!(both, Some(tokens(&[&[5, 6, 0], &[7, 8, 9], &[3, 0, 0]])));
        assert_eq!(ModelInput::concatenate(&[&short, &one]), None);
    }
}
