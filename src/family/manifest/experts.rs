//! The manifest's experts: feed-forward parts split so that a token uses only some hidden units.

use serde::Deserialize;

use crate::family::{Fault, ModuleKind};

/// Split of an anchor's dense feed-forward parts into experts (EMoE, section 3; MoEfication,
/// section 3). An expert is a group of hidden units; every token uses some of the groups. Each
/// number in `top_k` makes parallel modules, called `e16k4` for 4 of 16 groups.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertsSpec {
    /// Name of the anchor.
    pub anchor: String,
    /// Number of groups; it divides the number of hidden units.
    pub num_experts: usize,
    /// Numbers of groups that a token may use. `num_experts` itself gives the dense part again.
    pub top_k: Vec<usize>,
    /// Form of the router that chooses a token's groups.
    pub router: RouterForm,
    /// The blocks; `None` for all.
    pub blocks: Option<Vec<usize>>,
}

/// Form of the router that chooses a token's groups of hidden units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterForm {
    /// Product of the token with the mean of each group's rows (EMoE's average keys).
    Average,
    /// Affine map that estimates the sum of each group's units, fitted on texts or images.
    Learned,
    /// True sum of each group's units, as an upper bound for comparison. Computing it costs the
    /// first half of the dense part.
    Oracle,
}

impl ExpertsSpec {
    /// Returns the variant's name of the modules in which a token uses `top_k` groups.
    pub fn variant(&self, top_k: usize) -> String {
        format!("e{}k{top_k}", self.num_experts)
    }

    /// Returns the name of `key` of this entry in error messages.
    pub fn key(&self, key: &str) -> String {
        format!("experts ({}, {}).{key}", self.anchor, self.num_experts)
    }

    /// Returns whether the feed-forward part of `block` is split.
    pub fn has_block(&self, block: usize) -> bool {
        self.blocks.as_ref().is_none_or(|blocks| blocks.contains(&block))
    }

    /// Returns the first fault, or `None` if there is none.
    pub(super) fn fault(&self) -> Option<Fault> {
        let num_experts = self.num_experts;
        if num_experts < 2 {
            let expected = "there must be 2 experts at least";
            return Some(Fault::new("num_experts", num_experts, expected));
        }
        if self.top_k.is_empty() {
            let expected = "there must be one number of experts at least";
            return Some(Fault::new("top_k", "[]", expected));
        }
        let outside = self.top_k.iter().find(|k| **k == 0 || **k > num_experts)?;
        let expected = format!("a token takes 1 to {num_experts} experts");
        Some(Fault::new("top_k", outside, expected))
    }
}

/// Subset of a routed part's experts. Only these experts may be chosen; ModuleFormer (section 3.3)
/// prunes seldom used experts this way. Each subset makes parallel modules with its name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSet {
    /// The variant's name.
    pub name: String,
    /// The experts that may be chosen, in ascending order.
    pub experts: Vec<usize>,
    /// The part of a block to which the experts belong.
    #[serde(default)]
    pub part: RoutedPart,
    /// The blocks; `None` for all.
    pub blocks: Option<Vec<usize>>,
}

/// A part of a block in which tokens may be routed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum RoutedPart {
    /// The attention.
    #[serde(rename = "attn")]
    Attention,
    /// The feed-forward part.
    #[default]
    #[serde(rename = "mlp")]
    Mlp,
}

impl ExpertSet {
    /// Returns whether the subset applies to the part `kind` of `block`.
    pub fn is_of(&self, block: usize, kind: ModuleKind) -> bool {
        let part = match self.part {
            RoutedPart::Attention => ModuleKind::Attention,
            RoutedPart::Mlp => ModuleKind::Mlp,
        };
        part == kind && self.blocks.as_ref().is_none_or(|blocks| blocks.contains(&block))
    }

    /// Returns whether `experts` is strictly ascending and not empty.
    pub(super) fn is_ordered(&self) -> bool {
        !self.experts.is_empty() && self.experts.windows(2).all(|pair| pair[0] < pair[1])
    }
}
