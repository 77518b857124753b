//! Variants of a block's parts, beside the form in which they were trained.

use crate::{
    arch::{ArchError, Backbone, Form, PartId, PartSpec},
    family::{AnchorSpec, ModuleKind, VariantSpec},
    module::{Body, Precision},
};

/// Returns the variants of a part that the manifest entry of its anchor asks for.
pub(super) fn variants<'a>(spec: &'a AnchorSpec, part: &PartSpec) -> Vec<VariantSpec<'a>> {
    let PartSpec { kind, block, axes, .. } = part;
    let (block, is_routed) = (block.unwrap_or_default(), axes.num_experts.is_some());
    let variants = spec.variant_specs().unwrap_or_default().into_iter();
    let is_new = |variant: &VariantSpec<'_>| {
        variant.is_of(block, *kind, is_routed) && !is_twice(spec, part, variant)
    };
    variants.filter(is_new).collect()
}

/// Returns whether a narrow variant leaves the part as wide as it is, and is there without its
/// width as well.
fn is_twice(spec: &AnchorSpec, part: &PartSpec, variant: &VariantSpec<'_>) -> bool {
    let (Some(width), Some(widest)) = (variant.width, part.axes.width) else { return false };
    let is_whole = match part.kind {
        ModuleKind::Attention => width.heads == widest.heads,
        ModuleKind::Mlp => width.hidden == widest.hidden,
        _ => false,
    };
    let rest = variant.name.split('+').filter(|name| *name != width.name);
    let rest = rest.collect::<Vec<_>>().join("+");
    is_whole && (rest.is_empty() || spec.has_variant(&rest))
}

/// Returns the form of a variant, or `None` for the identity.
pub(super) fn form<'a>(variant: &VariantSpec<'a>) -> Option<Form<'a>> {
    let precision = match (variant.is_int8, variant.is_f32) {
        (true, _) => Precision::Int8,
        (_, true) => Precision::Dequantized,
        _ => Precision::F32,
    };
    let experts = variant.experts.map(|set| set.experts.as_slice());
    let (width, top_k) = (variant.width, variant.top_k);
    (!variant.is_identity).then_some(Form { precision, width, top_k, experts, ..Form::PLAIN })
}

/// Builds a form of `part` beside its `plain` form.
pub(super) fn body(
    form: &Form<'_>,
    anchor: &dyn Backbone,
    part: PartId,
    plain: &Body,
) -> Result<Body, ArchError> {
    if let (Body::Routed(routed), Precision::F32, None) = (plain, form.precision, form.width) {
        // Only the router differs, so the experts need not be built again.
        let mut routed = routed.clone();
        form.route(&mut routed.router);
        return Ok(Body::Routed(routed));
    }
    anchor.build(part, form)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        arch::{Axes, Widest},
        family::SpaceSpec,
    };

    #[test]
    fn a_width_is_offered_where_a_part_is_narrower_for_it() {
        let names = |kind, text: &str| -> Vec<String> {
            let widths = "widths = [{ name = 'w', heads = 2, hidden = 4 }]";
            let text = format!("folder = 'a'\nsha256 = {{}}\n{widths}\n{text}");
            let spec: AnchorSpec = toml::from_str(&text).expect("an anchor");
            let width = Some(Widest { heads: 2, hidden: 8 });
            let axes = Axes { width, ..Axes::default() };
            let part = PartSpec { kind, block: Some(0), to: SpaceSpec::default(), axes };
            variants(&spec, &part).into_iter().map(|variant| variant.name).collect()
        };
        let both = "variants = ['int8', 'w+int8']";
        assert_eq!(names(ModuleKind::Mlp, both), ["int8", "w+int8", "w"]);
        assert_eq!(names(ModuleKind::Attention, both), ["int8"]);
        assert_eq!(names(ModuleKind::Attention, "variants = ['w+int8']"), ["w+int8"]);
    }
}
