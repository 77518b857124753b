//! Variants of an anchor's parts, as the manifest asks for them.

use super::{
    anchor::{AnchorSpec, WidthSpec},
    experts::ExpertSet,
};
use crate::family::{F32, INT8, ModuleKind, SKIP};

/// Variant of a block's part, beside the form in which it was trained.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VariantSpec<'a> {
    /// The name, such as `int8` or `w33+int8`.
    pub name: String,
    /// Whether the variant is the identity.
    pub is_identity: bool,
    /// Whether matrix products run in 8-bit integers.
    pub is_int8: bool,
    /// Whether weights of quantized blocks run as their values in f32.
    pub is_f32: bool,
    /// Prefix of heads and hidden units, or `None` for all of them.
    pub width: Option<&'a WidthSpec>,
    /// Number of experts of each token, or `None` for the trained number.
    pub top_k: Option<usize>,
    /// Experts among which tokens choose, or `None` for all of them.
    pub experts: Option<&'a ExpertSet>,
}

/// Mark between the names of which a variant's name is made.
const AND: char = '+';

impl VariantSpec<'_> {
    /// Returns whether the variant is offered for the part `kind` of block `block`, in which tokens
    /// are routed or not.
    pub fn is_of(&self, block: usize, kind: ModuleKind, is_routed: bool) -> bool {
        let needs_router = self.top_k.is_some() || self.experts.is_some();
        (is_routed || !needs_router) && self.experts.is_none_or(|set| set.is_of(block, kind))
    }
}

impl AnchorSpec {
    /// Returns the variants that are offered for the anchor's parts.
    ///
    /// # Errors
    ///
    /// Fails with the first name in `variants` that has no meaning.
    pub fn variant_specs(&self) -> Result<Vec<VariantSpec<'_>>, &str> {
        let combined: Vec<VariantSpec<'_>> = self
            .variants
            .iter()
            .map(|name| self.variant(name).ok_or(name.as_str()))
            .collect::<Result<_, _>>()?;
        let widths = self.widths.iter().map(|width| width.name.clone());
        let top_k = self.top_k.iter().map(|k| format!("k{k}"));
        let sets = self.expert_sets.iter().map(|set| set.name.clone());
        let single = widths.chain(top_k).chain(sets).filter_map(|name| self.variant(&name));
        Ok(combined.into_iter().chain(single).collect())
    }

    /// Returns whether the variant called `name` is offered.
    pub fn has_variant(&self, name: &str) -> bool {
        self.variants.iter().any(|variant| variant == name)
    }

    /// Returns the variant called `name`, or `None` if one of its parts has no meaning or chooses
    /// what another part chose.
    fn variant(&self, name: &str) -> Option<VariantSpec<'_>> {
        let mut variant = VariantSpec { name: name.to_owned(), ..VariantSpec::default() };
        if name == SKIP {
            return Some(VariantSpec { is_identity: true, ..variant });
        }
        for part in name.split(AND) {
            let width = self.widths.iter().find(|width| width.name == part);
            let set = self.expert_sets.iter().find(|set| set.name == part);
            let top_k = self.top_k.iter().find(|k| format!("k{k}") == part);
            let was_chosen = match (width, set, top_k) {
                (Some(width), ..) => variant.width.replace(width).is_some(),
                (_, Some(set), _) => variant.experts.replace(set).is_some(),
                (.., Some(k)) => variant.top_k.replace(*k).is_some(),
                _ if part == INT8 => std::mem::replace(&mut variant.is_int8, true),
                _ if part == F32 => std::mem::replace(&mut variant.is_f32, true),
                _ => return None,
            };
            if was_chosen {
                return None;
            }
        }
        (!(variant.is_int8 && variant.is_f32)).then_some(variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(text: &str) -> AnchorSpec {
        let text = format!("folder = 'a'\nsha256 = {{}}\n{text}");
        toml::from_str(&text).expect("an anchor")
    }

    #[test]
    fn choices_of_different_kinds_go_together() {
        let spec = anchor(
            "variants = ['int8', 'skip', 'w33+int8', 'k1+few']\n\
             widths = [{ name = 'w33', heads = 1, hidden = 8 }]\n\
             top_k = [1]\n\
             expert_sets = [{ name = 'few', experts = [0, 2] }]",
        );
        let variants = spec.variant_specs().expect("known");
        let names: Vec<&str> = variants.iter().map(|variant| &*variant.name).collect();
        assert_eq!(names, ["int8", "skip", "w33+int8", "k1+few", "w33", "k1", "few"]);
        assert!(variants[2].is_int8 && variants[2].width.is_some());
        assert!(variants[1].is_identity && !variants[1].is_int8);
        assert!(variants[3].is_of(0, ModuleKind::Mlp, true));
        assert!(!variants[3].is_of(0, ModuleKind::Mlp, false), "no tokens are routed");
        assert!(!variants[3].is_of(0, ModuleKind::Attention, true), "another part's experts");
    }

    #[test]
    fn names_without_a_meaning_are_refused() {
        for name in ["int4", "w33", "int8+int8", "int8+f32", "skip+int8", "", "int8+"] {
            let spec = anchor(&format!("variants = ['{name}']"));
            assert_eq!(spec.variant_specs(), Err(name));
        }
    }
}
