//! Plan ids: paths in a form that people can read and programs can parse.
//!
//! `l3[0..1]>l6[2..6]{int8:2..6}` runs the stem and the first block of `l3`, then a stitch to
//! before block 2 of `l6`. Blocks 2 to 5 of `l6` in int8 and the head follow. Options in braces are
//! `variant:blocks`. A variant may name the sub-layer (`skip.mlp:4`). `via:label` names one of
//! several stitches into the segment. `exit:label` names one of several exits out of the last
//! segment. A segment that ends inside a block, after its attention, has a `+`:
//! `l6[0..2+]>l6[4..6]`. Bricks and extents stand behind the path, as in
//! `l6[0..6]@lora=billing@dims=128`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{FamilyError, FamilyGraph, ModuleKind, SpaceId, SpaceKind};
use crate::plan::{MAX_PLAN_ID_BYTES, ModuleId, Plan};

/// The readable, stable name of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanId(String);

/// Number of characters of a wrong id that an error shows.
const MAX_SHOWN_CHARS: usize = 200;

/// Consecutive blocks of one anchor.
#[derive(Debug)]
struct Segment<'a> {
    anchor: &'a str,
    start: usize,
    end: usize,
    /// Number of parts of block `end` that the segment also includes.
    position: usize,
    options: Vec<(&'a str, &'a str)>,
}

impl PlanId {
    /// Creates the id of `plan`.
    pub fn of(graph: &FamilyGraph, plan: &Plan) -> Self {
        let mut text = String::new();
        let mut rest = plan.path.as_slice();
        while let Some(end) = segment_end(graph, rest) {
            if !text.is_empty() {
                text.push('>');
            }
            write_segment(graph, &rest[..end], &mut text);
            rest = &rest[end..];
        }
        for choice in plan.choices() {
            text.push('@');
            text.push_str(&choice);
        }
        Self(text)
    }

    /// Returns the plan of `graph` that `id` names.
    ///
    /// # Errors
    ///
    /// Fails when `id` does not parse, or names a module or a choice that `graph` does not have.
    pub fn parse(graph: &FamilyGraph, id: &str) -> Result<Plan, FamilyError> {
        let refuse = |reason: String| FamilyError::PlanSyntax {
            id: id.chars().take(MAX_SHOWN_CHARS).collect(),
            reason,
        };
        if id.len() > MAX_PLAN_ID_BYTES {
            return Err(refuse(format!("it is longer than {MAX_PLAN_ID_BYTES} bytes")));
        }
        let mut parts = id.split('@');
        let path = parts.next().unwrap_or_default();
        let segments = split_segments(path).map_err(refuse)?;
        let mut plan = Plan::from(walk(graph, &segments).map_err(refuse)?);
        for choice in parts {
            plan.choose(graph.offers(), choice).map_err(refuse)?;
        }
        Ok(plan)
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlanId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<PlanId> for String {
    fn from(id: PlanId) -> Self {
        id.0
    }
}

/// Returns the number of modules in the first segment of `path`, or `None` if no segment is left. A
/// segment is its entry, its blocks, and the exit if the path ends there.
fn segment_end(graph: &FamilyGraph, path: &[ModuleId]) -> Option<usize> {
    let entry = path.first()?;
    if graph.module(*entry).to == graph.output() {
        return None;
    }
    let blocks = path[1..].iter().take_while(|id| graph.module(**id).kind.is_of_block()).count();
    let exits = path.get(1 + blocks).is_some_and(|id| graph.module(*id).to == graph.output());
    Some(1 + blocks + usize::from(exits))
}

fn write_segment(graph: &FamilyGraph, segment: &[ModuleId], text: &mut String) {
    let entry = graph.module(segment[0]);
    let SpaceKind::Hidden { anchor, depth: start, .. } = graph.spaces()[entry.to.0].kind else {
        return;
    };
    let mut end = start.to_string();
    let mut options = Vec::new();
    if let Some(label) = &entry.variant {
        options.push(format!("via:{label}"));
    }
    // Parts of each block in a variant, by variant and block.
    let mut variants: BTreeMap<(&str, usize), BTreeSet<&str>> = BTreeMap::new();
    for id in &segment[1..] {
        let module = graph.module(*id);
        if module.to == graph.output() {
            options.extend(module.variant.as_ref().map(|label| format!("exit:{label}")));
            continue;
        }
        let kind = |space: SpaceId| graph.spaces()[space.0].kind;
        if let SpaceKind::Hidden { depth, position, .. } = kind(module.to) {
            end = format!("{depth}{}", SpaceKind::marks(position));
        }
        if let (Some(variant), SpaceKind::Hidden { depth, .. }) =
            (&module.variant, kind(module.from))
        {
            variants.entry((variant, depth)).or_default().insert(module.kind.part_name());
        }
    }
    let named = join_parts(&variants, &parts_of(graph, anchor));
    options.extend(named.iter().flat_map(|(variant, depths)| ranges(variant, depths)));
    text.push_str(&format!("{}[{start}..{end}]", graph.anchors()[anchor]));
    if !options.is_empty() {
        text.push_str(&format!("{{{}}}", options.join(",")));
    }
}

/// Returns the names of the parts of each block of `anchor`.
fn parts_of(graph: &FamilyGraph, anchor: usize) -> BTreeMap<usize, BTreeSet<&'static str>> {
    let mut parts: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for module in graph.modules().iter().filter(|module| module.kind.is_of_block()) {
        match graph.spaces()[module.from.0].kind {
            SpaceKind::Hidden { anchor: own, depth, .. } if own == anchor => {
                parts.entry(depth).or_default().insert(module.kind.part_name());
            }
            _ => {}
        }
    }
    parts
}

/// Returns the blocks of each option such as `int8` or `int8.attn`. A variant that all parts of a
/// block have is named without a part.
fn join_parts(
    variants: &BTreeMap<(&str, usize), BTreeSet<&str>>,
    parts_of: &BTreeMap<usize, BTreeSet<&str>>,
) -> BTreeMap<String, Vec<usize>> {
    let mut named: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for ((variant, depth), parts) in variants {
        if parts_of.get(depth) == Some(parts) {
            named.entry((*variant).to_owned()).or_default().push(*depth);
            continue;
        }
        for part in parts {
            named.entry(format!("{variant}.{part}")).or_default().push(*depth);
        }
    }
    named
}

/// Returns ascending `depths` as options such as `variant:3` and `variant:0..2`.
fn ranges(variant: &str, depths: &[usize]) -> Vec<String> {
    let mut written = Vec::new();
    let mut rest = depths;
    while let Some(first) = rest.first() {
        let length = rest.iter().enumerate().take_while(|(i, d)| **d == first + i).count();
        written.push(match length {
            1 => format!("{variant}:{first}"),
            _ => format!("{variant}:{first}..{}", first + length),
        });
        rest = &rest[length..];
    }
    written
}

fn split_segments(id: &str) -> Result<Vec<Segment<'_>>, String> {
    id.split('>').map(parse_segment).collect()
}

/// Parses `anchor[start..end]{options}`.
fn parse_segment(text: &str) -> Result<Segment<'_>, String> {
    let refuse = || {
        let text: String = text.chars().take(MAX_SHOWN_CHARS).collect();
        format!("`{text}` is not of the form anchor[start..end]{{options}}")
    };
    let (anchor, rest) = text.split_once('[').ok_or_else(refuse)?;
    let (range, rest) = rest.split_once(']').ok_or_else(refuse)?;
    let marked = range;
    let range = marked.trim_end_matches('+');
    let position = marked.len() - range.len();
    let (start, end) = parse_range(range).ok_or_else(refuse)?;
    let options = match rest {
        "" => Vec::new(),
        _ => rest
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .ok_or_else(refuse)?
            .split(',')
            .map(|option| option.split_once(':').ok_or_else(refuse))
            .collect::<Result<_, _>>()?,
    };
    Ok(Segment { anchor, start, end, position, options })
}

fn parse_range(text: &str) -> Option<(usize, usize)> {
    let (start, end) = text.split_once("..")?;
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end && end < 100_000).then_some((start, end))
}

/// Returns the path that `segments` name in `graph`.
fn walk(graph: &FamilyGraph, segments: &[Segment<'_>]) -> Result<Vec<ModuleId>, String> {
    let mut path = Vec::new();
    let mut space = graph.input();
    for segment in segments {
        check_options(segment)?;
        let anchor = graph.anchors().iter().position(|name| name == segment.anchor);
        let anchor = anchor.ok_or_else(|| {
            let known = graph.anchors().join(", ");
            format!("there is no anchor `{}`; anchors are {known}", segment.anchor)
        })?;
        let label = option(segment, "via");
        let target = format!("{}.{}", segment.anchor, segment.start);
        let entry = graph.entry(space, anchor, segment.start, label);
        space = take(graph, space, &target, Next { found: entry, label }, &mut path)?;
        while !is_end(graph.spaces()[space.0].kind, segment) {
            space = walk_part(graph, segment, space, &mut path)?;
        }
    }
    let label = segments.last().and_then(|segment| option(segment, "exit"));
    let exit = graph.outgoing(space).iter().copied().find(|id| {
        let module = graph.module(*id);
        module.to == graph.output() && module.variant.as_deref() == label
    });
    take(graph, space, "out", Next { found: exit, label }, &mut path)?;
    Ok(path)
}

/// Module that leads to the next space of a path.
#[derive(Clone, Copy)]
struct Next<'a> {
    /// The module, or `None` if it does not exist.
    found: Option<ModuleId>,
    /// Variant that the plan id names for it.
    label: Option<&'a str>,
}

/// Appends the module of `next` to `path` and returns the space to which it leads. Fails if there
/// is no such module.
fn take(
    graph: &FamilyGraph,
    from: SpaceId,
    to: &str,
    next: Next<'_>,
    path: &mut Vec<ModuleId>,
) -> Result<SpaceId, String> {
    let id = next.found.ok_or_else(|| {
        let labelled = next.label.map_or(String::new(), |label| format!(" called `{label}`"));
        let from = &graph.spaces()[from.0].name;
        format!("no module{labelled} leads from `{from}` to `{to}`")
    })?;
    path.push(id);
    Ok(graph.module(id).to)
}

/// Returns whether `segment` ends in a space of `kind`.
fn is_end(kind: SpaceKind, segment: &Segment<'_>) -> bool {
    matches!(kind, SpaceKind::Hidden { depth, position, .. }
        if (depth, position) == (segment.end, segment.position))
}

/// Appends a block's next module to `path`, in the variant that `segment` names for it. Returns the
/// space to which it leads.
fn walk_part(
    graph: &FamilyGraph,
    segment: &Segment<'_>,
    space: SpaceId,
    path: &mut Vec<ModuleId>,
) -> Result<SpaceId, String> {
    let SpaceKind::Hidden { depth, .. } = graph.spaces()[space.0].kind else {
        return Err(format!("anchor `{}` has no hidden states here", segment.anchor));
    };
    let parts: Vec<ModuleId> = graph.outgoing(space).to_vec();
    let parts = parts.into_iter().filter(|id| graph.module(*id).kind.is_of_block());
    let parts: Vec<ModuleId> = parts.collect();
    if parts.is_empty() {
        return Err(format!("anchor `{}` has no block {depth}", segment.anchor));
    }
    let next = parts.into_iter().find(|id| {
        let module = graph.module(*id);
        module.variant.as_deref() == wanted(segment, depth, module.kind)
    });
    let id =
        next.ok_or_else(|| format!("block {depth} of `{}` has no such variant", segment.anchor))?;
    path.push(id);
    Ok(graph.module(id).to)
}

/// Returns the variant that `segment` names for the part `kind` of block `depth`, or `None` for the
/// plain module.
fn wanted<'a>(segment: &Segment<'a>, depth: usize, kind: ModuleKind) -> Option<&'a str> {
    segment.options.iter().find_map(|(name, blocks)| {
        let (variant, part) = name.split_once('.').unwrap_or((name, ""));
        let in_part = part.is_empty() || kind.part_name() == part;
        (in_part && covers(blocks, depth) && !matches!(*name, "via" | "exit")).then_some(variant)
    })
}

fn covers(blocks: &str, depth: usize) -> bool {
    match blocks.parse::<usize>() {
        Ok(block) => block == depth,
        Err(_) => parse_range(blocks).is_some_and(|(start, end)| (start..end).contains(&depth)),
    }
}

fn option<'a>(segment: &Segment<'a>, name: &str) -> Option<&'a str> {
    segment.options.iter().find(|option| option.0 == name).map(|option| option.1)
}

/// Refuses an option for blocks outside of `segment`, which would have no effect.
fn check_options(segment: &Segment<'_>) -> Result<(), String> {
    let last = segment.end + usize::from(segment.position > 0);
    for (name, blocks) in segment.options.iter().filter(|o| !matches!(o.0, "via" | "exit")) {
        let range = blocks.parse().ok().map(|block: usize| (block, block.saturating_add(1)));
        let inside = range
            .or_else(|| parse_range(blocks))
            .is_some_and(|(start, end)| start >= segment.start && end <= last);
        if !inside {
            return Err(format!(
                "option `{name}:{blocks}` is not about blocks {}..{} of `{}`",
                segment.start, last, segment.anchor
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "plan_id_tests.rs"]
pub(super) mod tests;
