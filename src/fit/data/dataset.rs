//! Data for offline work: texts or labelled images.

use std::path::{Path, PathBuf};

use super::{
    corpus::{Corpus, Text},
    images::ImageSet,
};
use crate::{
    assembly::Family,
    family::Manifest,
    fit::error::FitError,
    input::ModelInput,
    pool::{FitRecords, SeenTexts},
};

/// Data for offline work: texts or labelled images.
#[derive(Debug, Clone)]
pub enum Dataset {
    /// Texts of a corpus.
    Texts(Corpus),
    /// Images, with their classes if these are known.
    Images(ImageSet),
}

impl Dataset {
    /// Reads texts or images from `path`, as the family in `manifest` needs.
    ///
    /// `labels` is the file of labels for images in an array file.
    ///
    /// # Errors
    ///
    /// Fails like [`Corpus::read`] and [`ImageSet::read`], and on labels that would not be read.
    pub fn read(
        path: &Path,
        labels: Option<&Path>,
        manifest: &Manifest,
        limit: Option<usize>,
    ) -> Result<Self, FitError> {
        let is_file_of_images = manifest.image.is_some() && !path.is_dir();
        if let Some(labels) = labels.filter(|_| !is_file_of_images) {
            let found = if manifest.image.is_some() { "a folder of images" } else { "texts" };
            let message = format!(
                "labels go with a file of images, but {} is read as {found}",
                path.display()
            );
            return Err(FitError::Malformed { path: labels.to_owned(), message });
        }
        match manifest.image {
            None => Corpus::read(path, limit).map(Self::Texts),
            Some(_) => ImageSet::read(path, labels, manifest, limit).map(Self::Images),
        }
    }

    /// Joins texts of several files, or returns the only data.
    ///
    /// # Errors
    ///
    /// Fails on several sets of images.
    pub fn joined(all: Vec<Self>) -> Result<Self, FitError> {
        let mut joined: Option<Self> = None;
        for data in all {
            joined = Some(match (joined, data) {
                (None, data) => data,
                (Some(Self::Texts(one)), Self::Texts(other)) => Self::Texts(one.with(other)),
                (Some(_), data) => {
                    let message = format!("{}: images are read from one place", data.name());
                    return Err(FitError::Family(message));
                }
            });
        }
        joined.ok_or_else(|| FitError::Family("there is no data".to_owned()))
    }

    /// Returns the name of the file or folder.
    pub fn name(&self) -> String {
        match self {
            Self::Texts(corpus) => corpus.name(),
            Self::Images(images) => images.name(),
        }
    }

    /// Returns the SHA-256 of the texts or images, in hexadecimal.
    pub fn sha256(&self) -> String {
        match self {
            Self::Texts(corpus) => corpus.sha256(),
            Self::Images(images) => images.sha256(),
        }
    }

    /// Returns the number of texts or images.
    pub fn len(&self) -> usize {
        match self {
            Self::Texts(corpus) => corpus.texts().len(),
            Self::Images(images) => images.len(),
        }
    }

    /// Returns whether there are no texts or images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the word for the examples: `texts` or `images`.
    pub fn examples(&self) -> &'static str {
        match self {
            Self::Texts(_) => "texts",
            Self::Images(_) => "images",
        }
    }

    /// Returns the entries of a folder that are not images and were left out.
    pub fn left_out(&self) -> &[PathBuf] {
        match self {
            Self::Texts(_) => &[],
            Self::Images(images) => images.left_out(),
        }
    }

    /// Returns the digests of the texts, and none for images.
    pub(in crate::fit) fn digests(&self) -> SeenTexts {
        match self {
            Self::Texts(corpus) => corpus.texts().iter().map(Text::digest).collect(),
            Self::Images(_) => SeenTexts::default(),
        }
    }

    /// Checks that no text is among those that fits have seen.
    ///
    /// # Errors
    ///
    /// Fails on such a text, and names it.
    pub(in crate::fit) fn require_unseen(&self, records: &FitRecords) -> Result<(), FitError> {
        let Self::Texts(corpus) = self else { return Ok(()) };
        for (name, seen) in &records.texts {
            let known = corpus.texts().iter().filter(|text| seen.contains(text.digest()));
            let known: Vec<&Text> = known.collect();
            if let [first, ..] = &known[..] {
                let (count, all, id) = (known.len(), self.len(), &first.id);
                return Err(FitError::Family(format!(
                    "{}: {count} of {all} texts, such as `{id}`, are among those of {name}, on \
                     which maps or experts were fitted; qualities hold on other texts only",
                    self.name()
                )));
            }
        }
        Ok(())
    }

    /// Checks that there are at least `needed` texts or images for `what`.
    ///
    /// # Errors
    ///
    /// Fails when there are fewer.
    pub(in crate::fit) fn require(&self, what: &str, needed: usize) -> Result<(), FitError> {
        let (found, examples) = (self.len(), self.examples());
        if found < needed {
            return Err(FitError::TooFew { what: what.to_owned(), needed, found, examples });
        }
        Ok(())
    }

    /// Returns the classes of the images, or `None` for texts and if they are not known.
    pub fn labels(&self) -> Option<&[usize]> {
        match self {
            Self::Texts(_) => None,
            Self::Images(images) => images.labels(),
        }
    }

    /// Returns the positions of all texts or images, split into batches of `batch`.
    ///
    /// Texts of similar length, in tokens of `anchor`, share a batch. Images keep their order.
    ///
    /// # Errors
    ///
    /// Fails when the tokenizer fails.
    pub fn batches(
        &self,
        family: &Family,
        anchor: &str,
        batch: usize,
        max_tokens: usize,
    ) -> Result<Vec<Vec<usize>>, FitError> {
        let mut positions: Vec<usize> = (0..self.len()).collect();
        if let Self::Texts(corpus) = self {
            let lengths = corpus.lengths(tokenizer(family, anchor)?, max_tokens)?;
            positions.sort_by_key(|position| (lengths[*position], *position));
        }
        Ok(positions.chunks(batch.max(1)).map(<[usize]>::to_vec).collect())
    }

    /// Returns the texts or images at `positions` in the form that `anchor` reads.
    ///
    /// # Errors
    ///
    /// Fails when the tokenizer fails, or an image cannot be read.
    pub fn input(
        &self,
        family: &Family,
        anchor: &str,
        positions: &[usize],
        max_tokens: usize,
    ) -> Result<ModelInput, FitError> {
        match self {
            Self::Texts(corpus) => {
                let texts = positions.iter().map(|p| corpus.texts()[*p].text.as_str());
                let texts: Vec<&str> = texts.collect();
                let encoding = tokenizer(family, anchor)?.encode_up_to(&texts, max_tokens);
                encoding
                    .map(ModelInput::Tokens)
                    .map_err(|error| FitError::Tokenize(error.to_string()))
            }
            Self::Images(images) => {
                images.pixels(positions, &family.manifest).map(ModelInput::Pixels)
            }
        }
    }
}

fn tokenizer<'f>(
    family: &'f Family,
    anchor: &str,
) -> Result<&'f crate::input::Tokenizer, FitError> {
    let found = family.tokenizer(anchor).map(|tokenizer| &**tokenizer);
    found.ok_or_else(|| FitError::Family(format!("anchor `{anchor}` has no tokenizer")))
}
