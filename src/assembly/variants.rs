//! Variants of a block's parts, beside the form in which they were trained.

use crate::{
    arch::{ArchError, Backbone, Form, PartId, PartSpec},
    family::{AnchorSpec, VariantSpec},
    module::{Body, Precision},
};

/// Returns the variants of a part that the manifest entry of its anchor asks for.
pub(super) fn variants<'a>(spec: &'a AnchorSpec, part: &PartSpec) -> Vec<VariantSpec<'a>> {
    let PartSpec { kind, block, axes, .. } = part;
    let (block, is_routed) = (block.unwrap_or_default(), axes.num_experts.is_some());
    let variants = spec.variant_specs().unwrap_or_default().into_iter();
    variants.filter(|variant| variant.is_of(block, *kind, is_routed)).collect()
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
