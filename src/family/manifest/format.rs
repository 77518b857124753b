//! Formats of the manifest, by number, and the steps from one to the next.

use std::{ops::Range, path::Path, thread};

use serde::{Deserialize, de::DeserializeOwned};
use toml::Spanned;

use crate::{
    family::{FamilyError, Fault},
    tensor::FileKind,
};

/// Number of the format that this version writes. Manifests without a number are of format 0.
pub const FORMAT: u32 = 1;

/// Size of the stack on which manifests are parsed. The parser recurses once for each line of some
/// malformed tables, which takes up to 34 bytes of stack for each byte of the manifest.
const STACK_BYTES: usize = 128 << 20;

/// Name of the key of the number.
const KEY: &str = "format";

/// Returns the manifest `text`, which lies at `path`, in the present format. Returns `None` if it
/// is in that format already. Comments and order are kept.
///
/// # Errors
///
/// Fails on text that is not TOML, and on a format that is newer than this version.
pub fn migrated(path: &Path, text: &str) -> Result<Option<String>, FamilyError> {
    let Numbered { format } = parse(path, text)?;
    let found = format.as_ref().map_or(Some(0), |own| own.get_ref().as_integer());
    let found = found.and_then(|number| u32::try_from(number).ok()).unwrap_or(u32::MAX);
    check(path, found)?;
    Ok((found < FORMAT).then(|| numbered(text, format.map(|own| own.span()))))
}

/// Number of a manifest's format, with its place in the text.
#[derive(Deserialize)]
struct Numbered {
    format: Option<Spanned<toml::Value>>,
}

/// Parses `text`, which lies at `path`, as TOML.
///
/// # Errors
///
/// Fails on text that is too long, and on text that is not TOML of this form.
pub(super) fn parse<T: DeserializeOwned + Send>(path: &Path, text: &str) -> Result<T, FamilyError> {
    let syntax = |message: String| FamilyError::Syntax { path: path.to_owned(), message };
    let (length, max) = (text.len(), FileKind::Manifest.max_bytes());
    if length as u64 > max {
        return Err(syntax(format!("it has {length} bytes, over the limit of {max}")));
    }
    let parsed = thread::scope(|scope| {
        let work = || toml::from_str(text).map_err(|error| error.to_string());
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let ended = thread.map_err(|error| error.to_string())?.join();
        ended.unwrap_or_else(|_| Err("parsing it panicked".to_owned()))
    });
    parsed.map_err(syntax)
}

/// Checks that this version reads the format `found`.
pub(super) fn check(path: &Path, found: u32) -> Result<(), FamilyError> {
    if found <= FORMAT {
        return Ok(());
    }
    let expected = format!("this version reads formats up to {FORMAT}; a newer tessera wrote it");
    Err(FamilyError::at(path, Fault::new(KEY, found, expected)))
}

/// Writes the number at `place`, that of the old one, or else before the first key: the only step
/// from format 0 to format 1.
fn numbered(text: &str, place: Option<Range<usize>>) -> String {
    if let Some(place) = place {
        let (before, behind) = (&text[..place.start], &text[place.end..]);
        return format!("{before}{FORMAT}{behind}");
    }
    let is_key = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let before: usize =
        text.split_inclusive('\n').take_while(|line| !is_key(line)).map(str::len).sum();
    let (head, keys) = text.split_at(before);
    format!("{head}{KEY} = {FORMAT}\n{keys}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_without_a_number_gets_one_and_keeps_its_comments() {
        let path = Path::new("family.toml");
        let old = "# A family.\n\nname = \"a\" # its name\n[limits]\nmax_tokens = 8\n";
        let new = migrated(path, old).expect("TOML").expect("older");
        let expected =
            "# A family.\n\nformat = 1\nname = \"a\" # its name\n[limits]\nmax_tokens = 8\n";
        assert_eq!(new, expected);
        assert_eq!(migrated(path, &new).expect("TOML"), None, "once is enough");
    }

    #[test]
    fn the_number_of_an_old_format_is_replaced() {
        let path = Path::new("family.toml");
        for (old, expected) in [
            ("name = \"a\"\nformat = 0 # old\n", "name = \"a\"\nformat = 1 # old\n"),
            ("'format' = 0x0", "'format' = 1"),
        ] {
            assert_eq!(migrated(path, old).expect("TOML").as_deref(), Some(expected));
            assert_eq!(migrated(path, expected).expect("TOML"), None, "once is enough");
        }
    }

    #[test]
    fn a_table_that_is_not_closed_takes_no_more_stack_than_there_is() {
        let path = Path::new("family.toml");
        let text = "part = { file = \"a\", config = \"b\"s, 6 blocks.\n".repeat(20_000);
        assert!(migrated(path, &text).is_err());
        let error = migrated(path, &text.repeat(2)).expect_err("long").to_string();
        assert!(error.contains("over the limit of 1048576"), "{error}");
    }

    #[test]
    fn what_is_newer_or_not_a_number_is_refused() {
        for wrong in ["format = 2", "format = \"1\"", "format = -1", "format = "] {
            let error = migrated(Path::new("family.toml"), wrong).expect_err(wrong).to_string();
            assert!(error.contains("family.toml"), "{wrong}: {error}");
        }
    }
}
