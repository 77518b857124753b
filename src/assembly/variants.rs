//! Variants of a block's parts, beside the form in which they were trained.

use crate::{
    arch::{Anchor, ArchError, Form},
    family::{AnchorSpec, ExpertSet, ModuleKind},
    module::Body,
};

/// Place of a module in an anchor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Block.
    pub(super) block: usize,
    /// Sub-layer of the block, or the whole block.
    pub(super) kind: ModuleKind,
}

/// Difference of a variant from the block part that it replaces.
#[derive(Debug, Clone, Copy)]
pub(super) enum Departure<'a> {
    /// The variant is the identity.
    Skip,
    /// The variant is another form of the part.
    Form(Form<'a>),
    /// Only these experts may be chosen.
    Among(&'a ExpertSet),
}

/// Returns the named departures of one block part that the anchor's manifest entry asks for.
pub(super) fn departures<'a>(
    spec: &'a AnchorSpec,
    anchor: &dyn Anchor,
    Place { block, kind }: Place,
) -> Vec<(String, Departure<'a>)> {
    let named = spec.variants.iter().map(|variant| match variant.as_str() {
        "int8" => (variant.clone(), Departure::Form(Form::Int8)),
        _ => (variant.clone(), Departure::Skip),
    });
    let widths = spec.widths.iter();
    let narrow = widths.map(|width| (width.name.clone(), Departure::Form(Form::Narrow(width))));
    let is_routed = anchor.num_ways(block, kind).is_some();
    let top_k = spec.top_k.iter().filter(|_| is_routed);
    let top_k = top_k.map(|k| (format!("k{k}"), Departure::Form(Form::TopK(*k))));
    let sets = spec.expert_sets.iter().filter(|set| is_routed && set.is_of(block, kind));
    let sets = sets.map(|set| (set.name.clone(), Departure::Among(set)));
    named.chain(narrow).chain(top_k).chain(sets).collect()
}

impl Departure<'_> {
    /// Builds the variant, or returns `None` for the identity.
    pub(super) fn body(
        self,
        anchor: &dyn Anchor,
        Place { block, kind }: Place,
    ) -> Result<Option<Body>, ArchError> {
        let body = match self {
            Self::Skip => return Ok(None),
            Self::Form(form) => anchor.part(block, kind, form)?,
            Self::Among(set) => {
                let mut body = anchor.part(block, kind, Form::Plain)?;
                if let Body::Routed(routed) = &mut body {
                    let router = &mut routed.router;
                    router.top_k = router.top_k.min(set.experts.len());
                    router.allowed = Some(set.experts.clone());
                }
                body
            }
        };
        Ok(Some(body))
    }
}
