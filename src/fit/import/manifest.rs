//! Writing the manifest of an imported family, with the stitches that it proposes.

use std::path::PathBuf;

use super::{options::ImportOptions, preprocessor::preprocessing};
use crate::{family::FORMAT, fit::error::FitError};

/// Export with the results of taking it apart.
#[derive(Debug, Clone)]
pub(super) struct Imported {
    /// Name of the anchor.
    pub(super) name: String,
    /// Path of the imported file.
    pub(super) original: PathBuf,
    /// Path of the anchor in the family's folder.
    pub(super) location: PathBuf,
    /// SHA-256 of the anchor's file.
    pub(super) sha256: String,
    /// Name of the graph's input.
    pub(super) input: String,
    /// Name of the graph's output.
    pub(super) output: String,
    /// Names of the graph's other outputs.
    pub(super) left_out: Vec<String>,
    /// Channels, height and width of an image.
    pub(super) image: [usize; 3],
    /// Number of classes.
    pub(super) width: usize,
    /// Names of the tensors at which the graph is cut.
    pub(super) cuts: Vec<String>,
    /// Extents of the cut tensors after the batch.
    pub(super) shapes: Vec<Vec<usize>>,
    /// Number of nodes.
    pub(super) num_nodes: usize,
    /// Whether images run one at a time.
    pub(super) one_by_one: bool,
}

/// Returns the text of the manifest.
pub(super) fn manifest(options: &ImportOptions, anchors: &[Imported]) -> Result<String, FitError> {
    let reference = anchors.last().ok_or_else(|| FitError::Family("no export is given".into()))?;
    let [channels, height, width] = reference.image;
    let names: Vec<&str> = anchors.iter().map(|anchor| anchor.name.as_str()).collect();
    let images = preprocessing(options.preprocessor.as_deref(), reference.image)?;
    let labels = match options.labels.len() {
        0 => String::new(),
        _ => format!("labels = {}\n", quoted(&options.labels)),
    };
    let mut text = format!(
        "format = {FORMAT}\nname = {}\ntask = \"image-classification\"\ndescription = {}\n\
         license = {}\n\
         reference = \"{}\"\n\n[image]\nchannels = {channels}\nheight = {height}\nwidth = {width}\n\
         mean = {:?}\nstd = {:?}\nresize = {}\nfilter = \"{}\"\n\n\
         [output]\nname = \"logits\"\nwidth = {}\n{labels}\n\
         [quality]\nmetric = \"agreement\"\nfile = \"quality.json\"\n",
        toml_text(&options.family),
        toml_text(&format!("Imported from {}", names.join(", "))),
        toml_text(&options.license),
        reference.name,
        images.mean,
        images.std,
        images.resize,
        images.filter,
        reference.width,
    );
    anchors.iter().for_each(|anchor| text.push_str(&anchor_text(anchor)));
    for (small, large) in anchors.iter().zip(anchors.iter().skip(1)) {
        text.push_str(&stitches(small, large));
    }
    Ok(text)
}

fn anchor_text(anchor: &Imported) -> String {
    let Imported { name, location, input, output, cuts, shapes, sha256, .. } = anchor;
    let location = toml_text(&location.to_string_lossy());
    let stem = cuts.first().map(|stem| toml_text(stem)).unwrap_or_default();
    let blocks: Vec<String> =
        cuts.iter().skip(1).map(|cut| format!("  {},\n", toml_text(cut))).collect();
    let blocks = blocks.concat();
    let one_by_one = if anchor.one_by_one { "one_by_one = true\n" } else { "" };
    format!(
        "\n[anchors.{name}]\nvariants = [\"skip\"]\n\n\
         [anchors.{name}.onnx]\nfile = {location}\n{one_by_one}stem = {stem}\n\
         blocks = [\n{blocks}]\n\n\
         [anchors.{name}.onnx.image]\ninput = {}\noutput = {}\nshapes = {shapes:?}\n\n\
         [anchors.{name}.sha256]\n{location} = \"{sha256}\"\n",
        toml_text(input),
        toml_text(output),
    )
}

/// Proposes stitches between spaces of two anchors whose vectors have equal positions.
///
/// A stitch starts at the smaller anchor's last space of each shape. It leads to the larger
/// anchor's first and last space of the same shape.
fn stitches(small: &Imported, large: &Imported) -> String {
    let mut text = String::new();
    let mut done: Vec<(usize, usize)> = Vec::new();
    for (depth, shape) in small.shapes.iter().enumerate() {
        let is_last = small.shapes.get(depth + 1).is_none_or(|next| place(next) != place(shape));
        if !is_last || depth == 0 {
            continue;
        }
        let places = large.shapes.iter().enumerate().skip(1);
        let places: Vec<usize> = places
            .filter(|(_, other)| place(other) == place(shape))
            .map(|(index, _)| index)
            .collect();
        // If some of these spaces also have the same width, only those are joined.
        let same: Vec<usize> =
            places.iter().copied().filter(|index| large.shapes[*index] == *shape).collect();
        let alike = if same.is_empty() { places } else { same };
        for target in alike.first().into_iter().chain(alike.last()) {
            if done.contains(&(depth, *target)) {
                continue;
            }
            done.push((depth, *target));
            let (form, feature) = match place(shape) {
                Place::Map(..) => ("conv", "neighbourhood"),
                Place::Tokens(..) => ("tokens", "token"),
            };
            text.push_str(&format!(
                "\n[[maps]]\nfrom = \"{}.{depth}\"\nto = \"{}.{target}\"\nform = \"{form}\"\n\
                 features = [\"{feature}\"]\n",
                small.name, large.name
            ));
        }
    }
    text
}

/// Positions of the vectors of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Height and width of a tensor with its channels first.
    Map(usize, usize),
    /// Extents before the channels of a tensor with its channels last.
    Tokens(Vec<usize>),
}

/// Returns the positions of a tensor's vectors.
///
/// A tensor of three axes has its channels first if its last two extents are equal. Any other
/// tensor has them last.
fn place(shape: &[usize]) -> Place {
    match *shape {
        [_, height, width] if height == width => Place::Map(height, width),
        [ref places @ .., _] => Place::Tokens(places.to_vec()),
        [] => Place::Tokens(Vec::new()),
    }
}

fn quoted(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| toml_text(text)).collect();
    format!("[{}]", texts.join(", "))
}

/// Returns `text` as a TOML string.
fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imported(name: &str, shapes: &[&[usize]]) -> Imported {
        Imported {
            name: name.into(),
            original: format!("{name}.onnx").into(),
            location: format!("anchors/{name}/model.onnx").into(),
            sha256: "00".into(),
            input: "x".into(),
            output: "y".into(),
            left_out: Vec::new(),
            image: [3, 8, 8],
            width: 2,
            cuts: (0..shapes.len()).map(|depth| format!("\"{depth}\"")).collect(),
            shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
            num_nodes: 1,
            one_by_one: false,
        }
    }

    #[test]
    fn stitches_join_the_ends_of_equal_resolutions() {
        let small = imported("a", &[&[4, 8, 8], &[4, 8, 8], &[8, 4, 4]]);
        let large = imported("b", &[&[6, 8, 8], &[6, 8, 8], &[6, 8, 8], &[9, 4, 4]]);
        let text = stitches(&small, &large);
        let ends =
            |from: &str, to: &str| format!("from = \"{from}\"\nto = \"{to}\"\nform = \"conv\"");
        for (from, to) in [("a.1", "b.1"), ("a.1", "b.2"), ("a.2", "b.3")] {
            assert!(text.contains(&ends(from, to)), "{from} to {to}: {text}");
        }
        assert_eq!(text.matches("[[maps]]").count(), 3);
    }

    #[test]
    fn stitches_prefer_equal_widths() {
        let small = imported("a", &[&[4, 8, 8], &[4, 8, 8]]);
        let large = imported("b", &[&[6, 8, 8], &[6, 8, 8], &[4, 8, 8]]);
        let text = stitches(&small, &large);
        assert_eq!(text.matches("[[maps]]").count(), 1);
        assert!(text.contains("to = \"b.2\""), "{text}");
    }

    #[test]
    fn tokens_are_told_from_maps() {
        assert_eq!(place(&[50, 192]), Place::Tokens(vec![50]));
        assert_eq!(place(&[7, 7, 96]), Place::Tokens(vec![7, 7]));
        assert_eq!(place(&[96, 7, 7]), Place::Map(7, 7));
    }
}
