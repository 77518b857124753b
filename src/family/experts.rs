//! The manifest's experts: dense feed-forward parts of which a token takes some hidden units only.

use serde::Deserialize;

use super::ModuleKind;

/// The feed-forward parts of an anchor as experts (EMoE, section 3; MoEfication, section 3): groups
/// of their hidden units, of which every token takes some. Each number of groups that it may take
/// makes parallel modules, called `e16k4` for 4 of 16.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertsSpec {
    /// The anchor.
    pub anchor: String,
    /// The number of groups; it divides the number of hidden units.
    pub num_experts: usize,
    /// The numbers of groups that a token may take; all of them are the dense part again.
    pub top_k: Vec<usize>,
    /// How groups are chosen.
    pub router: RouterForm,
    /// The blocks; all where none are named.
    pub blocks: Option<Vec<usize>>,
}

/// How a token chooses among groups of hidden units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterForm {
    /// By the product with the mean of the groups' rows (EMoE's average keys).
    Average,
    /// By an affine map to what the groups' units add up to, fitted on texts or images.
    Learned,
    /// By what the units do add up to, which costs the first half of the dense part: what a router
    /// could reach, for comparison.
    Oracle,
}

impl ExpertsSpec {
    /// Names the modules of which a token takes `top_k` groups.
    pub fn variant(&self, top_k: usize) -> String {
        format!("e{}k{top_k}", self.num_experts)
    }

    /// Returns how errors call a key of this entry.
    pub fn key(&self, key: &str) -> String {
        format!("experts ({}, {}).{key}", self.anchor, self.num_experts)
    }

    /// Tells whether the feed-forward part of `block` is split.
    pub fn has_block(&self, block: usize) -> bool {
        self.blocks.as_ref().is_none_or(|blocks| blocks.contains(&block))
    }

    /// Returns what contradicts itself: the key, its value and what would be valid.
    pub(super) fn fault(&self) -> Option<(&'static str, String, String)> {
        let num_experts = self.num_experts;
        if num_experts < 2 {
            let expected = "there must be 2 experts at least".to_owned();
            return Some(("num_experts", num_experts.to_string(), expected));
        }
        if self.top_k.is_empty() {
            let expected = "there must be one number of experts at least".to_owned();
            return Some(("top_k", "[]".into(), expected));
        }
        let outside = self.top_k.iter().find(|k| **k == 0 || **k > num_experts)?;
        let expected = format!("a token takes 1 to {num_experts} experts");
        Some(("top_k", outside.to_string(), expected))
    }
}

/// Some of a routed part's experts: the others count as if they were not there (ModuleFormer prunes
/// those that are seldom used, section 3.3). Each set makes parallel modules of its name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSet {
    /// The variant's name.
    pub name: String,
    /// The experts that stay, in ascending order.
    pub experts: Vec<usize>,
    /// The part of a block whose experts they are.
    #[serde(default)]
    pub part: RoutedPart,
    /// The blocks; all where none are named.
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
    /// Tells whether this is about the part `kind` of `block`.
    pub fn is_of(&self, block: usize, kind: ModuleKind) -> bool {
        let part = match self.part {
            RoutedPart::Attention => ModuleKind::Attention,
            RoutedPart::Mlp => ModuleKind::Mlp,
        };
        part == kind && self.blocks.as_ref().is_none_or(|blocks| blocks.contains(&block))
    }

    /// Tells whether experts are named, each once and in order.
    pub(super) fn is_ordered(&self) -> bool {
        !self.experts.is_empty() && self.experts.windows(2).all(|pair| pair[0] < pair[1])
    }
}
