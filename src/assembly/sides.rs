//! Adding an anchor's blocks and heads to a family's graph, once for each thing that a path may
//! have passed before them.

use super::{
    builder::FamilyBuilder,
    variants::{self, variants},
};
use crate::{
    arch::{
        ArchError, Backbone, Form, PartId, PartSpec, SplitFile,
        joint::{experts, merging},
    },
    family::{
        AnchorSpec, ExpertsSpec, F32, FamilyError, Fault, MergeSpec, ModuleKind, Passed, Space,
        SpaceKind,
    },
    module::{Body, Precision},
};

/// Anchor while its modules are added. It is the anchor itself, or its twin behind what a path
/// passed: stitches that leave the final norm out, or a merging of tokens.
#[derive(Debug, Clone, Copy)]
struct Side<'s> {
    name: &'s str,
    spec: &'s AnchorSpec,
    index: usize,
    passed: Passed,
}

impl Side<'_> {
    /// Returns the prefix of the names of the side's spaces and modules.
    fn prefix(self) -> String {
        format!("{}{}", self.name, self.passed.mark())
    }

    /// Returns the form in which the side's parts run, of the form `plain`.
    fn form(self, plain: Form<'_>) -> Form<'_> {
        Form { is_merged: self.passed.is_merging(), ..plain }
    }

    /// Returns the name of the space behind `position` parts of block `depth`.
    fn space(self, depth: usize, position: usize) -> String {
        format!("{}.{depth}{}", self.prefix(), SpaceKind::marks(position))
    }
}

impl FamilyBuilder<'_> {
    /// Adds the spaces, the blocks and the heads of an anchor.
    pub(super) fn add_sides(
        &mut self,
        name: &str,
        spec: &AnchorSpec,
        anchor: &dyn Backbone,
    ) -> Result<(), ArchError> {
        let side = Side { name, spec, index: self.anchors.len(), passed: Passed::Own };
        self.add_blocks(side, anchor, 0)?;
        if let Some(stem) = anchor.layout().stem() {
            let (name, first) = (format!("{name}.stem"), side.space(0, 0));
            let body = anchor.build(stem, &Form::PLAIN)?;
            self.add(name, ["in", &first], ModuleKind::Stem, Some(body))?;
        }
        if self.manifest.has_head(name) {
            self.add_heads(side, anchor, true)?;
        }
        for merge in &spec.merges {
            self.add_merging(side, anchor, merge)?;
        }
        if let Some(stitches) = self.manifest.stitches.as_ref().filter(|s| !s.final_norm)
            && stitches.pairs.iter().any(|[_, to]| to == name)
        {
            let side = Side { passed: Passed::Stitch, ..side };
            self.add_blocks(side, anchor, 0)?;
            self.add_heads(side, anchor, false)?;
        }
        Ok(())
    }

    /// Adds the modules that merge tokens of an anchor as `merge` says, and those behind them.
    fn add_merging(
        &mut self,
        side: Side<'_>,
        anchor: &dyn Backbone,
        merge: &MergeSpec,
    ) -> Result<(), ArchError> {
        let MergeSpec { every, before } = merge;
        let merged = Side { passed: Passed::Merging(*every), ..side };
        self.add_blocks(merged, anchor, before.first().copied().unwrap_or_default())?;
        if self.manifest.has_head(side.name) {
            self.add_heads(merged, anchor, true)?;
        }
        for depth in before {
            let ends = [side.space(*depth, 0), merged.space(*depth, 0)];
            let network = merging::network(self.width_of(&ends[0]), *every);
            let name = format!("merge.{}-{}", ends[0], ends[1]);
            self.add(name, [&ends[0], &ends[1]], ModuleKind::Merge, Some(network.into()))?;
            self.name_variant(Some(format!("merge{every}")));
        }
        Ok(())
    }

    /// Adds an anchor's hidden spaces and the modules of its blocks, from block `first` on.
    fn add_blocks(
        &mut self,
        side: Side<'_>,
        anchor: &dyn Backbone,
        first: usize,
    ) -> Result<(), ArchError> {
        let layout = anchor.layout();
        for depth in first..=layout.num_blocks() {
            for (position, spec) in layout.spaces_before(depth).into_iter().enumerate() {
                let (anchor, passed) = (side.index, side.passed);
                self.spaces.push(Space {
                    name: side.space(depth, position),
                    kind: SpaceKind::Hidden { anchor, depth, position, passed },
                    spec: spec.clone(),
                });
            }
        }
        for block in first..layout.num_blocks() {
            let parts: Vec<PartId> = layout.block(block).collect();
            for (position, part) in parts.iter().enumerate() {
                let is_last = position + 1 == parts.len();
                let to = if is_last { (block + 1, 0) } else { (block, position + 1) };
                let ends = [side.space(block, position), side.space(to.0, to.1)];
                self.add_part(side, anchor, *part, [&ends[0], &ends[1]])?;
            }
        }
        Ok(())
    }

    /// Adds a part of a block in all its forms.
    fn add_part(
        &mut self,
        side: Side<'_>,
        anchor: &dyn Backbone,
        part: PartId,
        ends: [&str; 2],
    ) -> Result<(), ArchError> {
        let PartSpec { kind, block, .. } = *anchor.layout().part(part);
        let block = block.unwrap_or_default();
        let name = kind.part_name();
        let dot = if name.is_empty() { "" } else { "." };
        let plain_name = format!("{}.block.{block}{dot}{name}", side.prefix());
        let form = side.form(Form::PLAIN);
        let plain = anchor.build(part, &form)?;
        self.add(plain_name.clone(), ends, kind, Some(plain.clone()))?;
        self.add_step(anchor, part, &form)?;
        let spec =
            |name: &str| self.spaces.iter().find(|space| space.name == name).map(|s| &s.spec);
        let keeps_shape = spec(ends[0]) == spec(ends[1]);
        for variant in variants(side.spec, anchor.layout().part(part)) {
            if variant.is_identity && !keeps_shape {
                continue;
            }
            let name = format!("{plain_name}.{}", variant.name);
            let form = variants::form(&variant).map(|form| side.form(form));
            let body = form.map(|form| variants::body(&form, anchor, part, &plain)).transpose()?;
            self.add(name, ends, kind, body)?;
            self.name_variant(Some(variant.name));
            if let Some(form) = form {
                self.add_step(anchor, part, &form)?;
            }
        }
        // Experts are chosen for tokens, and the mask does not say which rows are padding.
        if kind == ModuleKind::Mlp && !side.passed.is_merging() {
            self.add_experts(side, anchor, block, ends)?;
        }
        Ok(())
    }

    /// Adds the network for the tokens of a step to the module added last, if the block's attention
    /// can keep a cache.
    fn add_step(
        &mut self,
        anchor: &dyn Backbone,
        part: PartId,
        form: &Form<'_>,
    ) -> Result<(), ArchError> {
        if !anchor.layout().is_stepped(part) {
            return Ok(());
        }
        let cache_type = self.manifest.generation.cache;
        let form = Form { is_step: true, cache_type, ..*form };
        if let Body::Network(network) = anchor.build(part, &form)? {
            self.steps.insert(self.modules.len() - 1, *network);
        }
        Ok(())
    }

    /// Adds a feed-forward part split into experts, once for each supported number of experts per
    /// token.
    fn add_experts(
        &mut self,
        side: Side<'_>,
        anchor: &dyn Backbone,
        block: usize,
        ends: [&str; 2],
    ) -> Result<(), ArchError> {
        let manifest = self.manifest;
        let of_block = |spec: &ExpertsSpec| spec.anchor == side.name && spec.has_block(block);
        for (entry, spec) in manifest.experts.iter().enumerate().filter(|(_, s)| of_block(s)) {
            let Some(dense) = anchor.dense(block)? else {
                let expected = "an anchor of an ONNX file cannot be split";
                let fault = Fault::new(spec.key("anchor"), side.name, expected);
                return Err(FamilyError::value(self.folder, fault).into());
            };
            experts::check(self.folder, spec, &dense)?;
            if side.passed == Passed::Own {
                self.splits.push(dense.fitting(entry, block, ends[0].to_owned()));
            }
            let Some(file) = SplitFile::open(self.folder, &self.records, spec)? else { continue };
            for (variant, routed) in file.modules(block, &dense)? {
                let name = format!("{}.block.{block}.mlp.{variant}", side.prefix());
                self.add(name, ends, ModuleKind::Mlp, Some(Body::Routed(Box::new(routed))))?;
                self.name_variant(Some(variant));
            }
        }
        Ok(())
    }

    /// Adds the anchor's own head after its last block, and after the other blocks it was trained
    /// for.
    fn add_heads(
        &mut self,
        side: Side<'_>,
        anchor: &dyn Backbone,
        has_norm: bool,
    ) -> Result<(), ArchError> {
        let layout = anchor.layout();
        let Some(head) = layout.head() else {
            return Ok(());
        };
        let last = layout.num_blocks();
        let name = format!("{}.head", side.prefix());
        let from = side.space(last, 0);
        let form = Form { has_norm, ..side.form(Form::PLAIN) };
        let values = Form { precision: Precision::Dequantized, ..form };
        let values = side.spec.has_variant(F32).then(|| anchor.build(head, &values)).transpose()?;
        let head = anchor.build(head, &form)?;
        self.add(name.clone(), [&from, "out"], ModuleKind::Head, Some(head.clone()))?;
        if let Some(values) = values {
            self.add(format!("{name}.{F32}"), [&from, "out"], ModuleKind::Head, Some(values))?;
            self.name_variant(Some(F32.into()));
        }
        for depth in side.spec.depths.iter().filter(|depth| **depth < last) {
            let from = side.space(*depth, 0);
            if !self.spaces.iter().any(|space| space.name == from) {
                continue;
            }
            let name = format!("{name}.{depth}");
            self.add(name, [&from, "out"], ModuleKind::Exit, Some(head.clone()))?;
            self.name_variant(Some("head".into()));
        }
        Ok(())
    }
}
