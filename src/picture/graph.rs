//! A family's graph as text for Graphviz and Mermaid: spaces with their axes, and modules between
//! them.

use crate::{
    assembly::Family,
    family::{ModuleId, ModuleKind, Space, SpaceKind},
};

/// Returns a Graphviz graph of `modules` and the spaces that they join.
pub(crate) fn dot(family: &Family, modules: &[ModuleId]) -> String {
    let mut text = String::from("digraph plan {\n  rankdir=LR;\n  node [shape=box];\n");
    for space in spaces(family, modules) {
        let label = format!("{}\\n{}", space.name, axes(family, space));
        text.push_str(&format!("  \"{}\" [label=\"{label}\"];\n", space.name));
    }
    for id in modules {
        let (from, to, label, is_joint) = edge(family, *id);
        let style = if is_joint { ", style=bold" } else { "" };
        text.push_str(&format!("  \"{from}\" -> \"{to}\" [label=\"{label}\"{style}];\n"));
    }
    text.push_str("}\n");
    text
}

/// Returns a Mermaid flowchart of `modules` and the spaces that they join.
pub(crate) fn mermaid(family: &Family, modules: &[ModuleId]) -> String {
    let mut text = String::from("flowchart LR\n");
    let id_of = |space: &str| {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        format!(
            "s_{}",
            space
                .replace('+', "_inner")
                .replace('~', "_stitched")
                .replace('%', "_merged")
                .replace(|c| plain(c) != c, "_")
        )
    };
    for space in spaces(family, modules) {
        let label = format!("{}<br/>{}", space.name, axes(family, space));
        text.push_str(&format!("  {}[\"{label}\"]\n", id_of(&space.name)));
    }
    for id in modules {
        let (from, to, label, is_joint) = edge(family, *id);
        let arrow = if is_joint { "==>" } else { "-->" };
        text.push_str(&format!("  {} {arrow}|\"{label}\"| {}\n", id_of(from), id_of(to)));
    }
    text
}

/// Returns the spaces that `modules` join, in the order of their first use.
fn spaces<'f>(family: &'f Family, modules: &[ModuleId]) -> Vec<&'f Space> {
    let mut found: Vec<&Space> = Vec::new();
    for id in modules {
        let module = family.graph.module(*id);
        for space in [module.from, module.to].map(|space| &family.graph.spaces()[space.0]) {
            if !found.iter().any(|known| known.name == space.name) {
                found.push(space);
            }
        }
    }
    found
}

/// Returns the names and extents of the axes of a space's tensors.
fn axes(family: &Family, space: &Space) -> String {
    let extents: Vec<String> = match (space.kind, &family.manifest.image) {
        (SpaceKind::Input, Some(image)) => {
            let extents = [image.channels, image.height, image.width];
            named(&["channels", "height", "width"], &extents.map(Some))
        }
        (SpaceKind::Input, None) => named(&["tokens"], &[None]),
        (SpaceKind::Output, _) => {
            let axis = if family.manifest.output.labels.is_empty() { "width" } else { "classes" };
            named(&[axis], &space.shape())
        }
        (SpaceKind::Hidden { .. }, _) => {
            let names: Vec<&str> = space.spec.axes().map(|axis| axis.name).collect();
            named(&names, &space.shape())
        }
    };
    format!("[batch, {}]", extents.join(", "))
}

fn named(names: &[&str], extents: &[Option<usize>]) -> Vec<String> {
    let axis = |(name, extent): (&&str, &Option<usize>)| match extent {
        Some(extent) => format!("{name} {extent}"),
        None => (*name).to_owned(),
    };
    names.iter().zip(extents).map(axis).collect()
}

/// Returns the names of a module's two spaces, its label, and whether it joins or leaves an anchor.
fn edge(family: &Family, id: ModuleId) -> (&str, &str, String, bool) {
    use ModuleKind::{Bridge, Exit, Merge, Stitch};
    let module = family.graph.module(id);
    let name = |space: crate::family::SpaceId| family.graph.spaces()[space.0].name.as_str();
    let kind = format!("{:?}", module.kind).to_lowercase();
    let label = module.variant.as_ref().map_or(kind.clone(), |variant| format!("{kind} {variant}"));
    let is_joint = matches!(module.kind, Stitch | Bridge | Exit | Merge);
    (name(module.from), name(module.to), label, is_joint)
}
