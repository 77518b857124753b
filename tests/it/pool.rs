//! A family whose feed-forward parts are split among experts, for tests and benches.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// A family with one or more anchors of another, in a pool of its own.
pub(crate) struct Pool {
    folder: TempDir,
    name: String,
}

impl Pool {
    /// Takes the files of the family in `source`, but for its maps, and adds `experts` to
    /// `manifest`. Files are linked, not copied: ONNX Runtime reads none outside the folder, so
    /// symbolic links will not do.
    pub(crate) fn new(source: &Path, manifest: &str, experts: &str) -> io::Result<Self> {
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        fs::create_dir_all(&build)?;
        let pool = Self { folder: tempfile::tempdir_in(build)?, name };
        link_all(source, &pool.path())?;
        fs::write(pool.path().join("family.toml"), format!("{manifest}\n{experts}"))?;
        Ok(pool)
    }

    /// Returns the family's folder.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }
}

fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path().canonicalize()?;
        let name = path.file_name().unwrap_or_default();
        if ["family.toml", "fits", "fits.json", "quality.json"].iter().any(|own| name == *own) {
            continue;
        }
        let to = to.join(name);
        if path.is_dir() {
            link_all(&path, &to)?;
        } else {
            fs::hard_link(&path, &to).or_else(|_| fs::copy(&path, &to).map(drop))?;
        }
    }
    Ok(())
}

/// Returns a manifest of the text family in `source` with `anchor` alone.
pub(crate) fn text_manifest(source: &Path, anchor: &str) -> io::Result<String> {
    let whole = fs::read_to_string(source.join("family.toml"))?;
    let missing = || io::Error::other(format!("the family has no anchor {anchor}"));
    let start = whole.find(&format!("[anchors.{anchor}]")).ok_or_else(missing)?;
    let digests = whole[start..].find("sha256]").ok_or_else(missing)? + start;
    let end = whole[digests..].find("\n\n").map_or(whole.len(), |end| digests + end);
    let (head, _) = whole.split_once("[anchors.").ok_or_else(missing)?;
    let width = if anchor == "mpnet" { "width = 768" } else { "width = 384" };
    let head = head.replace("reference = \"l6\"", &format!("reference = \"{anchor}\""));
    let own = whole[start..end].replace("optional = true", "");
    Ok(format!("{}\n{own}\n", head.replace("width = 384", width)))
}
