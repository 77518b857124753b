//! A family's graph, with activation spaces as vertices and modules as edges.

use std::collections::HashSet;

use super::{
    FamilyError,
    space::{Passed, Space, SpaceKind},
};
use crate::plan::{Ends, ModuleId, Offers, topological_order};

/// Names of the variants that every architecture has.
pub(crate) const INT8: &str = "int8";
/// Variant of a part whose quantized blocks run as their values in f32.
pub(crate) const F32: &str = "f32";
pub(crate) const SKIP: &str = "skip";

/// Index of a [`Space`] in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceId(pub usize);

/// A module: an edge from one space to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The unique name, such as `l6.block.3.mlp.int8`.
    pub name: String,
    /// The space that the module reads.
    pub from: SpaceId,
    /// The space that the module writes.
    pub to: SpaceId,
    /// The role of the module.
    pub kind: ModuleKind,
    /// Name of the variant among parallel modules, such as `int8` or `skip`; `None` for the plain
    /// module.
    pub variant: Option<String>,
}

/// The role of a [`Module`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModuleKind {
    /// A map from the input to an anchor's first hidden space.
    Stem,
    /// A whole block.
    Block,
    /// A block's attention sub-layer.
    Attention,
    /// A block's feed-forward sub-layer.
    Mlp,
    /// A fitted map between two hidden spaces of different anchors.
    Stitch,
    /// A fitted map between two hidden spaces of one anchor.
    Bridge,
    /// The merging of tokens with the most similar ones of the others.
    Merge,
    /// A fitted map to the output.
    Exit,
    /// An anchor's own head.
    Head,
    /// Another part of a block, by its name.
    Other(&'static str),
}

impl Module {
    /// Returns whether the module has int8 weights, whatever else sets it apart.
    pub fn is_int8(&self) -> bool {
        let is_int8 = |part: &str| part.rsplit('-').next() == Some(INT8);
        self.variant.as_deref().is_some_and(|variant| variant.split('+').any(is_int8))
    }

    /// Returns whether the module is the identity in place of a part of a block.
    pub fn is_skip(&self) -> bool {
        self.variant.as_deref() == Some(SKIP)
    }
}

impl ModuleKind {
    /// Returns whether a module of this kind is a block or a part of one.
    pub fn is_of_block(self) -> bool {
        matches!(self, Self::Block | Self::Attention | Self::Mlp | Self::Other(_))
    }

    /// Returns the name of this part of a block; it is empty for a whole block.
    pub fn part_name(self) -> &'static str {
        match self {
            Self::Attention => "attn",
            Self::Mlp => "mlp",
            Self::Other(name) => name,
            _ => "",
        }
    }
}

/// The modules of a family and the spaces that they connect.
#[derive(Debug, Clone)]
pub struct FamilyGraph {
    anchors: Vec<String>,
    spaces: Vec<Space>,
    modules: Vec<Module>,
    outgoing: Vec<Vec<ModuleId>>,
    input: SpaceId,
    output: SpaceId,
    offers: Offers,
    /// Index of the anchor that defines the outputs, or `None` if none is stated.
    reference: Option<usize>,
}

impl FamilyGraph {
    /// Creates a graph of `spaces` and `modules`.
    ///
    /// # Errors
    ///
    /// Fails on a module whose space does not exist. Fails on two modules with one name, or with
    /// the same ends and variant. Fails on a cycle, and when no path leads from the input to the
    /// output.
    pub fn new(
        anchors: Vec<String>,
        spaces: Vec<Space>,
        modules: Vec<Module>,
    ) -> Result<Self, FamilyError> {
        let end =
            |kind| spaces.iter().position(|space| space.kind == kind).ok_or(FamilyError::NoPath);
        let input = SpaceId(end(SpaceKind::Input)?);
        let output = SpaceId(end(SpaceKind::Output)?);
        check_names(&spaces, &modules)?;
        let mut outgoing = vec![Vec::new(); spaces.len()];
        for (index, module) in modules.iter().enumerate() {
            outgoing[module.from.0].push(ModuleId(index));
        }
        let offers = Offers::default();
        let graph =
            Self { anchors, spaces, modules, outgoing, input, output, offers, reference: None };
        graph.check_acyclic()?;
        if !graph.reaches_output() {
            return Err(FamilyError::NoPath);
        }
        Ok(graph)
    }

    /// Returns the graph with `anchor` as the one that defines the outputs.
    #[must_use]
    pub fn with_reference(self, anchor: &str) -> Self {
        let reference = self.anchors.iter().position(|name| name == anchor);
        Self { reference, ..self }
    }

    /// Returns the index of the anchor that defines the outputs, or `None` if none is stated.
    pub fn reference(&self) -> Option<usize> {
        self.reference
    }

    /// Returns the graph with bricks and extents from which plans may choose.
    #[must_use]
    pub fn with_offers(self, offers: Offers) -> Self {
        Self { offers, ..self }
    }

    /// Returns the bricks and extents from which plans may choose.
    pub fn offers(&self) -> &Offers {
        &self.offers
    }

    /// Returns the names of the anchors.
    pub fn anchors(&self) -> &[String] {
        &self.anchors
    }

    /// Returns the spaces in the order of their ids.
    pub fn spaces(&self) -> &[Space] {
        &self.spaces
    }

    /// Returns the modules in the order of their ids.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Returns the module with `id`.
    ///
    /// # Panics
    ///
    /// Panics when `id` is out of range, as an id of another graph may be.
    pub fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id.0]
    }

    /// Returns the modules that start in `space`.
    ///
    /// # Panics
    ///
    /// Panics when `space` is out of range, as an id of another graph may be.
    pub fn outgoing(&self, space: SpaceId) -> &[ModuleId] {
        &self.outgoing[space.0]
    }

    /// Returns the input space.
    pub fn input(&self) -> SpaceId {
        self.input
    }

    /// Returns the output space.
    pub fn output(&self) -> SpaceId {
        self.output
    }

    /// Returns the module from `space` to the hidden states of `anchor` before block `start`. The
    /// module is of `variant`. Returns `None` if it does not exist.
    pub fn entry(
        &self,
        space: SpaceId,
        anchor: usize,
        start: usize,
        variant: Option<&str>,
    ) -> Option<ModuleId> {
        let leads_there = |id: &&ModuleId| {
            let module = self.module(**id);
            let kind = self.spaces[module.to.0].kind;
            let to = matches!(kind, SpaceKind::Hidden { anchor: a, depth, position: 0, .. }
                if (a, depth) == (anchor, start));
            to && module.variant.as_deref() == variant
        };
        self.outgoing(space).iter().find(leads_there).copied()
    }

    /// Returns the head after the last block of `anchor`, or `None` if it has none.
    pub fn reference_head(&self, anchor: &str) -> Option<ModuleId> {
        let is_its = |module: &Module| {
            let kind = self.spaces[module.from.0].kind;
            let own = matches!(kind, SpaceKind::Hidden { anchor: index, passed: Passed::Own, .. }
                if self.anchors[index] == anchor);
            module.kind == ModuleKind::Head && own
        };
        self.modules.iter().position(is_its).map(ModuleId)
    }

    /// Returns the space called `name`, or `None` if no space has that name.
    pub fn space_named(&self, name: &str) -> Option<SpaceId> {
        self.spaces.iter().position(|space| space.name == name).map(SpaceId)
    }

    /// Returns the anchor whose stem starts `path`, or `None` if `path` does not start with a stem.
    pub fn stem_anchor(&self, path: &[ModuleId]) -> Option<&str> {
        let first = self.modules.get(path.first()?.0)?;
        match self.spaces[first.to.0].kind {
            SpaceKind::Hidden { anchor, .. } => Some(&self.anchors[anchor]),
            SpaceKind::Input | SpaceKind::Output => None,
        }
    }

    /// Returns whether `path` leads from the input to the output without a gap.
    pub fn is_path(&self, path: &[ModuleId]) -> bool {
        let mut space = self.input;
        for id in path {
            match self.modules.get(id.0) {
                Some(module) if module.from == space => space = module.to,
                _ => return false,
            }
        }
        space == self.output
    }

    fn check_acyclic(&self) -> Result<(), FamilyError> {
        let ends = |module: &Module| Ends { from: module.from.0, to: module.to.0 };
        let ends: Vec<Ends> = self.modules.iter().map(ends).collect();
        topological_order(&ends, self.spaces.len()).map(drop).map_err(|edge| {
            let space = self.spaces[ends[edge].from].name.clone();
            FamilyError::Cycle { space }
        })
    }

    fn reaches_output(&self) -> bool {
        let mut seen = HashSet::from([self.input]);
        let mut open = vec![self.input];
        while let Some(space) = open.pop() {
            for id in self.outgoing(space) {
                let to = self.modules[id.0].to;
                if seen.insert(to) {
                    open.push(to);
                }
            }
        }
        seen.contains(&self.output)
    }
}

/// Checks that every module's spaces exist and that plan ids can tell modules apart.
fn check_names(spaces: &[Space], modules: &[Module]) -> Result<(), FamilyError> {
    let mut names = HashSet::new();
    let mut roles = HashSet::new();
    for module in modules {
        for end in [module.from, module.to] {
            if end.0 >= spaces.len() {
                return Err(FamilyError::DanglingModule {
                    module: module.name.clone(),
                    space: format!("#{}", end.0),
                    known: spaces.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", "),
                });
            }
        }
        let role = (module.from, module.to, &module.variant);
        if !names.insert(&module.name) || !roles.insert(role) {
            return Err(FamilyError::DuplicateModule { module: module.name.clone() });
        }
    }
    Ok(())
}
