//! Resolving the symbolic links through which weight files are reached.

use std::path::{Path, PathBuf};

use super::{
    OnnxError,
    external::{Place, initializer, place_of},
    proto::ModelProto,
};

/// Replaces weight files that are links out of `folder` by the files that they lead to.
///
/// Files in Hugging Face's cache are such links. ONNX Runtime reads nothing outside of the folder
/// that it is given. Returns the folder that places are relative to: `folder` itself if no link
/// leads out.
///
/// # Errors
///
/// Fails when a file is missing.
pub fn follow_links(model: &mut ModelProto, folder: &Path) -> Result<PathBuf, OnnxError> {
    let real = |path: PathBuf| {
        path.canonicalize().map_err(|source| OnnxError::Unreadable { path, source })
    };
    let root = real(folder.to_owned())?;
    let tensors = || model.graph.iter().flat_map(|graph| &graph.initializer);
    let mut common = root.clone();
    for place in tensors().filter_map(place_of) {
        let file = real(folder.join(place.file))?;
        while !file.starts_with(&common) && common.pop() {}
    }
    if common == root {
        return Ok(folder.to_owned());
    }
    for tensor in model.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
        let Some(place) = place_of(tensor) else { continue };
        let file = real(folder.join(&place.file))?;
        let file = file.strip_prefix(&common).unwrap_or(&file).to_string_lossy().into_owned();
        let place = Place { file, ..place };
        *tensor = initializer(&tensor.name, tensor.data_type, tensor.dims.clone(), &place);
    }
    Ok(common)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{GraphProto, data_type};
    use std::{fs, os::unix::fs::symlink};

    fn reading(files: &[&str]) -> ModelProto {
        let tensor = |file: &&str| {
            let place = Place { file: (*file).to_owned(), offset: 8, length: 4 };
            initializer(file, data_type::FLOAT, vec![1], &place)
        };
        let initializer = files.iter().map(tensor).collect();
        let graph = Some(GraphProto { initializer, ..GraphProto::default() });
        ModelProto { graph, ..ModelProto::default() }
    }

    fn places(model: &ModelProto) -> Vec<Place> {
        model.graph.iter().flat_map(|graph| &graph.initializer).filter_map(place_of).collect()
    }

    #[test]
    fn files_are_named_by_where_links_lead_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().canonicalize().expect("a path");
        let family = real.join("pool/family");
        fs::create_dir_all(&family).expect("made");
        fs::create_dir(real.join("blobs")).expect("made");
        fs::write(real.join("blobs/b0"), "12345678abcd").expect("written");
        fs::write(family.join("own"), "12345678abcd").expect("written");
        symlink("own", family.join("inside")).expect("linked");
        symlink("../../blobs/b0", family.join("outside")).expect("linked");

        let mut model = reading(&["own", "inside"]);
        let before = places(&model);
        assert_eq!(follow_links(&mut model, &family).expect("followed"), family);
        assert_eq!(places(&model), before);

        let mut model = reading(&["own", "outside"]);
        assert_eq!(follow_links(&mut model, &family).expect("followed"), real);
        let found = places(&model);
        let files: Vec<&str> = found.iter().map(|place| place.file.as_str()).collect();
        assert_eq!(files, ["pool/family/own", "blobs/b0"]);
        assert!(found.iter().all(|place| (place.offset, place.length) == (8, 4)));
        assert!(follow_links(&mut reading(&["missing"]), &family).is_err());
    }
}
