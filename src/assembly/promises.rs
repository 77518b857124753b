//! Comparison of a family's manifest with the layout of an anchor.

use std::path::Path;

use crate::{
    arch::{Layout, Reads, Widest},
    family::{FamilyError, Fault, Manifest, MergeSpec, WidthSpec},
};

/// Checks that the anchor `name` of `layout` keeps what the manifest of the family in `folder`
/// promises.
pub(super) fn check(
    folder: &Path,
    manifest: &Manifest,
    name: &str,
    layout: &Layout,
) -> Result<(), FamilyError> {
    let broken = [input, output, rows, widths, merges, experts]
        .into_iter()
        .find_map(|compare| compare(manifest, name, layout));
    match broken {
        Some(fault) => Err(FamilyError::value(folder, fault)),
        None => Ok(()),
    }
}

/// Compares the input: positions, the tokenizer, and the shape of images.
fn input(manifest: &Manifest, name: &str, layout: &Layout) -> Option<Fault> {
    let Manifest { limits, image, anchors, .. } = manifest;
    let given = image.as_ref().map(|image| [image.channels, image.height, image.width]);
    match (layout.reads, given) {
        (Reads::Images(read), given) if given != Some(read) => {
            let expected = format!("`{name}` reads images of {read:?} (channels, height, width)");
            Some(Fault::new("image", format!("{given:?}"), expected))
        }
        (_, Some(_)) => None,
        (_, None) => {
            let positions = layout.max_tokens().filter(|most| limits.max_tokens > *most);
            if let Some(most) = positions {
                let expected = format!("`{name}` has positions for {most}");
                return Some(Fault::new("limits.max_tokens", limits.max_tokens, expected));
            }
            let needs_tokenizer = anchors[name].tokenizer.is_none() && !layout.gives.has_tokens();
            let expected = "an anchor that reads texts needs one";
            needs_tokenizer.then(|| Fault::new(key(name, "tokenizer"), "", expected))
        }
    }
}

/// Compares the width of the output.
fn output(manifest: &Manifest, name: &str, layout: &Layout) -> Option<Fault> {
    let (promised, given) = (manifest.output.width, layout.gives.width().unwrap_or_default());
    let expected = format!("`{name}` ends {given} wide");
    (manifest.has_head(name) && promised != given)
        .then(|| Fault::new("output.width", promised, expected))
}

/// Compares the rows of the output, and its last hidden states.
fn rows(manifest: &Manifest, name: &str, layout: &Layout) -> Option<Fault> {
    let output = &manifest.output;
    let has_tokens = layout.gives.has_tokens();
    let is_mine = name == manifest.reference;
    if is_mine && output.per_token != has_tokens {
        let rows = if has_tokens { "each token" } else { "each text or image" };
        let expected = format!("`{name}` gives a row for {rows}");
        return Some(Fault::new("output.per_token", output.per_token, expected));
    }
    let states = output.states.as_ref()?;
    let refuse = |expected: String| Some(Fault::new("output.states", states, expected));
    if is_mine && layout.gives.tensors.len() < 2 {
        return refuse(format!("`{name}` gives no last hidden states"));
    }
    match *states == output.name {
        true => refuse("it must be another name than output.name".into()),
        false => None,
    }
}

/// Compares the widths with the heads and hidden units of the blocks.
fn widths(manifest: &Manifest, name: &str, layout: &Layout) -> Option<Fault> {
    let widest = layout.widest();
    let fits = |width: &WidthSpec| {
        widest.is_some_and(|w| width.heads <= w.heads && width.hidden <= w.hidden)
    };
    let WidthSpec { heads, hidden, .. } =
        manifest.anchors[name].widths.iter().find(|width| !fits(width))?;
    let expected = match widest {
        Some(Widest { heads, hidden }) => format!("it has {heads} heads, {hidden} hidden units"),
        None => "only vision transformers run narrower".into(),
    };
    Some(Fault::new(key(name, "widths"), format!("{heads}, {hidden}"), expected))
}

/// Compares the mergings of tokens with what the blocks can read.
fn merges(manifest: &Manifest, name: &str, layout: &Layout) -> Option<Fault> {
    let refuse =
        |value: String, expected: String| Some(Fault::new(key(name, "merges"), value, expected));
    let blocks = layout.num_blocks();
    let MergeSpec { every, before } = manifest.anchors[name]
        .merges
        .iter()
        .find(|merge| !layout.can_merge || merge.before.iter().any(|block| *block >= blocks))?;
    match layout.can_merge {
        true => refuse(
            format!("{before:?}"),
            format!("`{name}` has {blocks} blocks, the first being 0"),
        ),
        false => refuse(
            format!("every = {every}"),
            "tokens are merged in encoders of texts without relative positions, whose vectors are \
             the mean over tokens or the first one"
                .into(),
        ),
    }
}

/// Compares the blocks that are split among experts with those that there are.
fn experts(manifest: &Manifest, name: &str, layout: &Layout) -> Option<Fault> {
    let blocks = layout.num_blocks();
    let own = manifest.experts.iter().filter(|experts| experts.anchor == name);
    own.into_iter().find_map(|experts| {
        let block = experts.blocks.iter().flatten().find(|block| **block >= blocks)?;
        let expected = format!("`{name}` has {blocks} blocks, the first being 0");
        Some(Fault::new(experts.key("blocks"), block, expected))
    })
}

/// Returns the name of a key of the anchor `name`.
fn key(name: &str, key: &str) -> String {
    format!("anchors.{name}.{key}")
}
