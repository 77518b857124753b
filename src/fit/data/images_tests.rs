//! Tests of reading images.

use tempfile::TempDir;

use super::*;
use crate::fit::Dataset;

const MANIFEST: &str = r#"
    name = "tiny"
    task = "image-classification"
    description = "A test."
    license = "Apache-2.0"
    reference = "a"
    image = { channels = 3, height = 2, width = 2, mean = [0, 0, 0], std = [1, 1, 1] }
    output = { name = "logits", width = 1000 }
    quality = { metric = "accuracy", file = "quality.json" }
    [anchors.a]
    folder = "anchors/a"
    sha256 = {}
"#;

/// A family and a folder of data beside it.
struct Data {
    pool: TempDir,
    manifest: Manifest,
}

impl Data {
    fn new() -> Self {
        let pool = tempfile::tempdir().expect("a temporary folder");
        let family = pool.path().join("tiny");
        fs::create_dir(&family).expect("created");
        fs::write(family.join("family.toml"), MANIFEST).expect("written");
        let manifest = Manifest::read(&family).expect("valid");
        Self { pool, manifest }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.pool.path().join("data").join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        fs::write(path, content).expect("written");
    }

    fn folder(&self) -> Result<ImageSet, FitError> {
        ImageSet::read(&self.path(""), None, &self.manifest, None)
    }

    fn arrays(&self) -> Result<ImageSet, FitError> {
        let labels = self.path("labels");
        ImageSet::read(&self.path("images"), Some(&labels), &self.manifest, None)
    }
}

/// Two grey images of one pixel.
const IMAGES: [u8; 18] = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 7, 9];

/// Returns the labels of two images as IDX of 16 bits.
fn labels(values: [i16; 2]) -> Vec<u8> {
    let head = [0, 0, 11, 1, 0, 0, 0, 2];
    head.into_iter().chain(values.iter().flat_map(|value| value.to_be_bytes())).collect()
}

#[test]
fn labels_are_any_integers_below_the_number_of_classes() {
    let data = Data::new();
    data.write("images", &IMAGES);
    data.write("labels", &labels([999, 256]));
    assert_eq!(data.arrays().expect("read").labels(), Some(&[999, 256][..]));
    for (values, refused) in [([1000, 0], "label 1000"), ([0, -1], "label -1")] {
        data.write("labels", &labels(values));
        let error = data.arrays().expect_err(refused).to_string();
        assert!(error.contains("data/labels: has the"), "{error}");
        assert!(error.contains(&format!("{refused}, but there are 1000 classes")), "{error}");
    }
}

#[test]
fn arrays_that_are_not_images_are_refused_before_any_is_used() {
    let data = Data::new();
    data.write("labels", &labels([0, 0]));
    for (head, values, reason) in [
        (&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1][..], &[][..], "[2, 0, 1], but images"),
        (&[0, 0, 8, 4, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2], &[0; 4], "channels"),
        (&[0, 0, 11, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1], &[0, 1, 1, 0], "holds 256, but"),
    ] {
        data.write("images", &[head, values].concat());
        let error = data.arrays().expect_err(reason).to_string();
        assert!(error.contains("data/images: "), "{error}");
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn entries_of_a_folder_that_are_not_images_are_left_out_and_told() {
    let data = Data::new();
    for name in ["5/a.png", "5/b.JPG", "8/c.jfif", "8/.DS_Store", "8/more/d.png", "README"] {
        data.write(name, b"");
    }
    let set = data.folder().expect("read");
    assert_eq!(set.labels(), Some(&[5, 5, 8][..]));
    let left_out = [data.path("8/.DS_Store"), data.path("8/more"), data.path("README")];
    assert_eq!(set.left_out(), left_out);
}

#[test]
fn labels_beside_a_folder_are_refused() {
    let data = Data::new();
    data.write("5/a.png", b"");
    data.write("labels", &labels([0, 0]));
    let (folder, file) = (data.path("5"), data.path("labels"));
    let error = Dataset::read(&folder, Some(&file), &data.manifest, None).expect_err("refused");
    let error = error.to_string();
    assert!(error.starts_with(&file.display().to_string()), "{error}");
    assert!(error.contains("5 is read as a folder of images"), "{error}");
}

#[test]
fn images_that_cannot_be_read_are_refused_by_name() {
    for (name, reason) in [
        ("5/b.webp", "of a format that is not supported; PNG and JPEG are"),
        ("5/b.BMP", "of a format that is not supported"),
        ("5/b.tiff", "of a format that is not supported"),
        ("b.gif", "of a format that is not supported"),
        ("b.png", "is in no folder of a class"),
        ("1000/b.png", "is not a class; they are 0 to 999"),
    ] {
        let data = Data::new();
        data.write("5/a.png", b"");
        data.write(name, b"");
        let error = data.folder().expect_err(name).to_string();
        let of = if name.starts_with("1000") { "1000" } else { name };
        assert!(error.starts_with(&format!("{}: ", data.path(of).display())), "{error}");
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn images_without_labels_serve_families_that_compare_plans() {
    let mut data = Data::new();
    data.write("b.png", b"");
    data.write("a.jpg", b"");
    data.write("notes.txt", b"");
    let error = data.folder().expect_err("no classes").to_string();
    assert!(error.contains("is in no folder of a class"), "{error}");
    data.manifest.quality.metric = Metric::Agreement;
    let flat = data.folder().expect("read");
    assert_eq!((flat.len(), flat.labels(), flat.left_out().len()), (2, None, 1));
    data.write("7/c.png", b"");
    let error = data.folder().expect_err("some have classes").to_string();
    assert!(error.contains("a.jpg") && error.contains("in no folder of a class"), "{error}");
    data.write("images", &IMAGES);
    let read = |labels| ImageSet::read(&data.path("images"), labels, &data.manifest, None);
    let unlabelled = read(None).expect("read");
    assert_eq!((unlabelled.len(), unlabelled.labels()), (2, None));
    data.write("labels", &labels([3, 4]));
    let labelled = read(Some(&data.path("labels"))).expect("read");
    assert_eq!(labelled.labels(), Some(&[3, 4][..]));
    assert_ne!(labelled.sha256(), unlabelled.sha256());
}
