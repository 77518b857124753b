//! Record of a family's fitted files, `fits.json`, which serving reads as a whole.
//!
//! A fitted file has its digest in its name, so a new file never replaces one in use. Writing
//! `fits.json` puts the new file in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    checkpoint::open_verified,
    error::{PoolError, parse_json},
    seen::SeenTexts,
};
use crate::{
    family::FITS_FOLDER,
    tensor::{FileKind, read_text},
};

/// Name of the record in a family's folder.
const RECORDS: &str = "fits.json";

/// Every fitted file of a family by its plain name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitRecords {
    /// Records of maps by plain name.
    pub maps: BTreeMap<String, FitRecord>,
    /// Records of experts by plain name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub experts: BTreeMap<String, SplitRecord>,
    /// Texts of the data on which maps and experts were fitted, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub texts: BTreeMap<String, SeenTexts>,
    /// Files that were in use before the last fit, which servers may still read.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub superseded: BTreeSet<String>,
}

/// Record of splitting an anchor's feed-forward parts among experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitRecord {
    /// Path of the file in the family's folder; `None` if it is the plain name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Number of tokens on which the router was fitted.
    pub samples: u64,
    /// Fraction of the groups' variance that a learned router explains on held-out texts or images,
    /// averaged over blocks. It is 0 if the router is not learned.
    pub held_out_r2: f64,
    /// Name of the texts or images.
    pub data: String,
    /// Date of the fit.
    pub date: String,
}

/// Record of fitting a map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitRecord {
    /// Path of the file in the family's folder; `None` if it is the plain name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Number of rows on which the map was fitted: tokens, or sequences for a pooled map.
    pub samples: u64,
    /// Ridge regularisation, relative to the mean of the Gram matrix's diagonal.
    pub regularization: f64,
    /// Fraction of the variance that the map explains on held-out texts.
    pub held_out_r2: f64,
    /// Name of the texts.
    pub data: String,
    /// Date of the fit.
    pub date: String,
}

/// Path and digest of a recorded fitted file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FittedFile<'r> {
    /// Path of the file in the family's folder.
    pub location: &'r str,
    /// SHA-256 of the file.
    pub sha256: &'r str,
}

impl FitRecord {
    /// Returns the file of the map with the plain name `name`.
    pub fn file<'r>(&'r self, name: &'r str) -> FittedFile<'r> {
        let location = self.file.as_deref().unwrap_or(name);
        FittedFile { location, sha256: &self.sha256 }
    }
}

impl SplitRecord {
    /// Returns the file of the experts with the plain name `name`.
    pub fn file<'r>(&'r self, name: &'r str) -> FittedFile<'r> {
        let location = self.file.as_deref().unwrap_or(name);
        FittedFile { location, sha256: &self.sha256 }
    }
}

impl FittedFile<'_> {
    /// Returns why the file is not the one that was written, or None if it is.
    pub fn fault(&self, folder: &Path) -> Option<PoolError> {
        open_verified(folder, Path::new(self.location), self.sha256).err()
    }
}

impl FitRecords {
    /// Reads the records of the family in `folder`, or returns empty records if the file is
    /// missing.
    ///
    /// # Errors
    ///
    /// Fails when the file is there but does not parse, or names a file outside of `fits/`.
    pub fn read(folder: &Path) -> Result<Self, PoolError> {
        let path = folder.join(RECORDS);
        let text = match read_text(&path, FileKind::Records) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(PoolError::Unreadable { path, source }),
        };
        let malformed = |message: String| PoolError::Malformed { path: path.clone(), message };
        let records: Self = parse_json(&path, &text)?;
        if let Some(odd) = records.files().find(|file| !is_in_fits(file.location)) {
            return Err(malformed(format!("`{}` is not a file of fits/", odd.location)));
        }
        Ok(records)
    }

    /// Returns the name of the records' file and its content.
    pub fn to_file(&self) -> (&'static str, String) {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        (RECORDS, text + "\n")
    }

    /// Notes the texts of the data called `name`, by their digests. Those of data of which no fit
    /// is left are forgotten.
    pub fn note_texts(&mut self, name: &str, texts: SeenTexts) {
        if texts != SeenTexts::default() {
            self.texts.insert(name.to_owned(), texts);
        }
        let maps = self.maps.values().map(|record| &record.data);
        let used: BTreeSet<&String> =
            maps.chain(self.experts.values().map(|record| &record.data)).collect();
        self.texts.retain(|name, _| used.contains(name));
    }

    /// Returns every file that is in use.
    pub fn files(&self) -> impl Iterator<Item = FittedFile<'_>> {
        let maps = self.maps.iter().map(|(name, record)| record.file(name));
        maps.chain(self.experts.iter().map(|(name, record)| record.file(name)))
    }

    /// Removes the records that `is_wanted` refuses, by plain name and file.
    pub fn retain(&mut self, is_wanted: impl Fn(&str, FittedFile<'_>) -> bool) {
        self.maps.retain(|name, record| is_wanted(name, record.file(name)));
        self.experts.retain(|name, record| is_wanted(name, record.file(name)));
    }
}

/// Returns whether a path names a file of the folder of fitted files.
fn is_in_fits(location: &str) -> bool {
    let name = location.strip_prefix(FITS_FOLDER).and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(|name| !name.is_empty() && !name.starts_with('.') && !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_outside_of_fits_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let record = |file: &str| {
            format!(
                r#"{{"maps": {{"fits/a-b.safetensors": {{"file": "{file}", "sha256": "0",
                "samples": 1, "regularization": 1, "held_out_r2": 1, "data": "", "date": ""}}}}}}"#
            )
        };
        let read = |file: &str| {
            std::fs::write(folder.path().join(RECORDS), record(file)).expect("written");
            FitRecords::read(folder.path()).map(|records| records.maps.len())
        };
        assert_eq!(read("fits/a-b.0123456789abcdef.safetensors").expect("read"), 1);
        for odd in ["../a.safetensors", "fits/../a", "/etc/passwd", "fits/", "fits/.a", "a"] {
            let error = read(odd).expect_err(odd).to_string();
            assert!(error.contains(&format!("`{odd}` is not a file of fits/")), "{error}");
        }
    }
}
