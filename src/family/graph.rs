//! The graph: activation spaces are vertices, modules are edges.

use std::collections::HashSet;

use super::FamilyError;

/// The index of a [`Space`] in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceId(pub usize);

/// The index of a [`Module`] in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(pub usize);

/// An activation space: what a tensor between two modules means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// The name: `in`, `out`, `l6.3` after three blocks of `l6`, `l6.3+` inside the fourth.
    pub name: String,
    /// What the space is.
    pub kind: SpaceKind,
    /// The extents of a tensor's axes after the batch; `None` where one may vary.
    pub shape: Vec<Option<usize>>,
}

impl Space {
    /// Returns the extent of the last axis, where it is known.
    pub fn width(&self) -> Option<usize> {
        self.shape.last().copied().flatten()
    }
}

/// What a [`Space`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpaceKind {
    /// The family's inputs.
    Input,
    /// Hidden states of an anchor.
    Hidden {
        /// The anchor's index in [`FamilyGraph::anchors`].
        anchor: usize,
        /// The number of blocks passed.
        depth: usize,
        /// Whether the next block's attention has been passed as well.
        inner: bool,
        /// Whether the path came over a stitch and the family tells such paths apart, because they
        /// end differently (SN-Net v1 leaves the final norm out).
        stitched: bool,
    },
    /// The family's output.
    Output,
}

/// A module: an edge that carries one space to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The unique name, such as `l6.block.3.mlp.int8`.
    pub name: String,
    /// Where it starts.
    pub from: SpaceId,
    /// Where it ends.
    pub to: SpaceId,
    /// What it is.
    pub kind: ModuleKind,
    /// Which of several parallel modules it is, such as `int8` or `skip`; `None` for the plain one.
    pub variant: Option<String>,
}

/// What a [`Module`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModuleKind {
    /// Input to an anchor's first hidden space.
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
    /// A fitted map to the output.
    Exit,
    /// An anchor's own head.
    Head,
}

/// The modules of a family and how they join.
#[derive(Debug, Clone)]
pub struct FamilyGraph {
    anchors: Vec<String>,
    spaces: Vec<Space>,
    modules: Vec<Module>,
    outgoing: Vec<Vec<ModuleId>>,
    input: SpaceId,
    output: SpaceId,
}

impl FamilyGraph {
    /// Joins `modules` into a graph.
    ///
    /// # Errors
    ///
    /// Fails on a module that names no space, two modules of one name or with the same ends, kind
    /// and variant, a cycle, and where no path leads from the input to the output.
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
        let graph = Self { anchors, spaces, modules, outgoing, input, output };
        graph.check_acyclic()?;
        if !graph.reaches_output() {
            return Err(FamilyError::NoPath);
        }
        Ok(graph)
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
    /// Panics when `id` is of another graph and out of range.
    pub fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id.0]
    }

    /// Returns the modules that start in `space`.
    ///
    /// # Panics
    ///
    /// Panics when `space` is of another graph and out of range.
    pub fn outgoing(&self, space: SpaceId) -> &[ModuleId] {
        &self.outgoing[space.0]
    }

    /// Returns the input's space.
    pub fn input(&self) -> SpaceId {
        self.input
    }

    /// Returns the output's space.
    pub fn output(&self) -> SpaceId {
        self.output
    }

    /// Finds the module from `space` to hidden states of `anchor` between its blocks.
    pub fn entry(
        &self,
        space: SpaceId,
        (anchor, start): (usize, usize),
        variant: Option<&str>,
    ) -> Option<ModuleId> {
        let leads_there = |id: &&ModuleId| {
            let module = self.module(**id);
            let kind = self.spaces[module.to.0].kind;
            let to = matches!(kind, SpaceKind::Hidden { anchor: a, depth, inner: false, .. }
                if (a, depth) == (anchor, start));
            to && module.variant.as_deref() == variant
        };
        self.outgoing(space).iter().find(leads_there).copied()
    }

    /// Returns the head of `anchor` after its last block.
    pub fn reference_head(&self, anchor: &str) -> Option<ModuleId> {
        let is_its = |module: &Module| {
            let kind = self.spaces[module.from.0].kind;
            let own = matches!(kind, SpaceKind::Hidden { anchor: index, stitched: false, .. }
                if self.anchors[index] == anchor);
            module.kind == ModuleKind::Head && own
        };
        self.modules.iter().position(is_its).map(ModuleId)
    }

    /// Finds a space by its name.
    pub fn space_named(&self, name: &str) -> Option<SpaceId> {
        self.spaces.iter().position(|space| space.name == name).map(SpaceId)
    }

    /// Returns the anchor whose stem starts `path`.
    pub fn stem_anchor(&self, path: &[ModuleId]) -> Option<&str> {
        let first = self.modules.get(path.first()?.0)?;
        match self.spaces[first.to.0].kind {
            SpaceKind::Hidden { anchor, .. } => Some(&self.anchors[anchor]),
            SpaceKind::Input | SpaceKind::Output => None,
        }
    }

    /// Tells whether `path` leads from the input to the output without a gap.
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

    /// Kahn's algorithm: what cannot be ordered is on a cycle.
    fn check_acyclic(&self) -> Result<(), FamilyError> {
        let mut incoming = vec![0_usize; self.spaces.len()];
        for module in &self.modules {
            incoming[module.to.0] += 1;
        }
        let mut ready: Vec<usize> =
            (0..self.spaces.len()).filter(|space| incoming[*space] == 0).collect();
        while let Some(space) = ready.pop() {
            for id in &self.outgoing[space] {
                let to = self.modules[id.0].to.0;
                incoming[to] -= 1;
                if incoming[to] == 0 {
                    ready.push(to);
                }
            }
        }
        let Some(mut space) = incoming.iter().position(|count| *count > 0) else {
            return Ok(());
        };
        // What is left is on a cycle or behind one: going back often enough ends on the cycle.
        for _ in 0..self.spaces.len() {
            let before = self.modules.iter().find(|m| m.to.0 == space && incoming[m.from.0] > 0);
            space = before.map_or(space, |module| module.from.0);
        }
        Err(FamilyError::Cycle { space: self.spaces[space].name.clone() })
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

/// Checks that every module's ends exist and that plan ids can tell modules apart.
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
