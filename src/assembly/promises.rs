//! Checks of a family's manifest against its anchors.

use std::path::Path;

use crate::{
    arch::Anchor,
    family::{FamilyError, Manifest, WidthSpec},
};

/// Checks the manifest of the family in `folder` against the abilities of anchor `name`.
pub(super) fn check(
    folder: &Path,
    manifest: &Manifest,
    name: &str,
    anchor: &dyn Anchor,
) -> Result<(), FamilyError> {
    let Manifest { limits, output, image, reference, anchors, .. } = manifest;
    let spec = &anchors[name];
    let refuse = |key: &str, value, expected| FamilyError::value(folder, key, value, expected);
    let key = |key: &str| format!("anchors.{name}.{key}");
    if image.is_none() && limits.max_tokens > anchor.max_tokens() {
        let expected = format!("`{name}` has positions for {}", anchor.max_tokens());
        return Err(refuse("limits.max_tokens", limits.max_tokens.to_string(), expected));
    }
    check_rows(manifest, name, anchor)
        .map_err(|(key, value, expected)| refuse(key, value, expected))?;
    if image.is_none() && spec.tokenizer.is_none() && !anchor.scores_tokens() {
        let expected = "an anchor that reads texts needs one".to_owned();
        return Err(refuse(&key("tokenizer"), String::new(), expected));
    }
    let has_head = name == reference || image.is_some();
    if has_head && output.width != anchor.output_width() {
        let expected = format!("`{name}` ends {} wide", anchor.output_width());
        return Err(refuse("output.width", output.width.to_string(), expected));
    }
    let given = image.as_ref().map(|image| [image.channels, image.height, image.width]);
    if let Some(read) = anchor.image().filter(|read| Some(*read) != given) {
        let expected = format!("`{name}` reads images of {read:?} (channels, height, width)");
        return Err(refuse("image", format!("{given:?}"), expected));
    }
    for width in &spec.widths {
        let fits = |(heads, hidden)| width.heads <= heads && width.hidden <= hidden;
        let widest = anchor.widest();
        if !widest.is_some_and(fits) {
            let expected = match widest {
                Some((heads, hidden)) => format!("it has {heads} heads, {hidden} hidden units"),
                None => "only vision transformers run narrower".into(),
            };
            let WidthSpec { heads, hidden, .. } = width;
            return Err(refuse(&key("widths"), format!("{heads}, {hidden}"), expected));
        }
    }
    let blocks = anchor.num_blocks();
    for experts in manifest.experts.iter().filter(|experts| experts.anchor == name) {
        if let Some(block) = experts.blocks.iter().flatten().find(|block| **block >= blocks) {
            let expected = format!("`{name}` has {blocks} blocks, the first being 0");
            return Err(refuse(&experts.key("blocks"), block.to_string(), expected));
        }
    }
    Ok(())
}

/// Checks that the output has the rows that the anchor's head returns. An error holds the key, its
/// value and the valid values.
fn check_rows(
    manifest: &Manifest,
    name: &str,
    anchor: &dyn Anchor,
) -> Result<(), (&'static str, String, String)> {
    let output = &manifest.output;
    let is_mine = name == manifest.reference;
    if is_mine && output.per_token != anchor.scores_tokens() {
        let rows = if anchor.scores_tokens() { "each token" } else { "each text or image" };
        let expected = format!("`{name}` gives a row for {rows}");
        return Err(("output.per_token", output.per_token.to_string(), expected));
    }
    match &output.states {
        Some(states) if is_mine && !anchor.scores_tokens() => {
            let expected = format!("`{name}` gives no last hidden states");
            Err(("output.states", states.clone(), expected))
        }
        Some(states) if *states == output.name => {
            let expected = "it must be another name than output.name".to_owned();
            Err(("output.states", states.clone(), expected))
        }
        _ => Ok(()),
    }
}
