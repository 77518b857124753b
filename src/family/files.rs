//! Names of the files of a family's folder.

/// Name of the manifest in a family's folder.
pub const MANIFEST_FILE: &str = "family.toml";

/// Folder of fitted files in a family's folder.
pub const FITS_FOLDER: &str = "fits";

/// End of the names of fitted files.
pub(super) const EXTENSION: &str = ".safetensors";

/// Number of a digest's hexadecimal digits that a file's name carries.
const NUM_DIGITS: usize = 16;

/// Returns where a file with the plain name `name` and this SHA-256 is written.
pub fn name_with_digest(name: &str, sha256: &str) -> String {
    let stem = name.strip_suffix(EXTENSION).unwrap_or(name);
    let digits = sha256.get(..NUM_DIGITS).unwrap_or(sha256);
    format!("{stem}.{digits}{EXTENSION}")
}

/// Returns the plain name of a fitted file whose name carries a digest, or None if it has none.
pub fn name_without_digest(location: &str) -> Option<String> {
    let stem = location.strip_prefix(FITS_FOLDER)?.strip_prefix('/')?.strip_suffix(EXTENSION)?;
    let (plain, digits) = stem.rsplit_once('.')?;
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let is_digest = digits.len() == NUM_DIGITS && digits.chars().all(is_digit);
    is_digest.then(|| format!("{FITS_FOLDER}/{plain}{EXTENSION}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_put_into_a_name_and_taken_out_again() {
        let sha256 = "0123456789abcdef0123";
        let name = "fits/l6.6-out.fused4.safetensors";
        let with = name_with_digest(name, sha256);
        assert_eq!(with, "fits/l6.6-out.fused4.0123456789abcdef.safetensors");
        assert_eq!(name_without_digest(&with).as_deref(), Some(name));
        for plain in [name, "fits/a.0123456789ABCDEF.safetensors", "a.0123456789abcdef.safetensors"]
        {
            assert_eq!(name_without_digest(plain), None, "{plain}");
        }
    }
}
