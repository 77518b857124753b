//! Building a family's spaces and modules from its manifest and its files.

use std::{
    collections::BTreeMap, num::NonZero, panic::resume_unwind, path::Path, sync::Arc, thread,
};

use super::{
    language, promises,
    variants::{self, variants},
};
use crate::{
    arch::{
        ArchError, Backbone, Form, Layout, PartId, PartSpec, SplitFile, SplitPart,
        joint::{experts, trained},
        open,
    },
    family::{
        AnchorSpec, ExitsSpec, ExpertsSpec, F32, FamilyError, Fault, Manifest, Module, ModuleKind,
        Space, SpaceId, SpaceKind, SpaceSpec, StitchesSpec,
    },
    input::{Language, Prompts, Tokenizer},
    module::{Body, Network, Precision},
    pool::{Checkpoint, FitRecords, PoolError, read_verified},
    tensor::FileKind,
};

/// Task of families that generate text.
const TEXT_GENERATION: &str = "text-generation";

/// Builder of a family's spaces, modules and networks.
#[derive(Debug)]
pub(super) struct FamilyBuilder<'a> {
    pub(super) folder: &'a Path,
    pub(super) manifest: &'a Manifest,
    pub(super) records: FitRecords,
    pub(super) opened: Vec<Box<dyn Backbone>>,
    pub(super) anchors: Vec<String>,
    pub(super) spaces: Vec<Space>,
    pub(super) modules: Vec<Module>,
    pub(super) bodies: Vec<Option<Body>>,
    /// Networks with a cache, by the position of their module.
    pub(super) steps: BTreeMap<usize, Network>,
    pub(super) features: Vec<Network>,
    pub(super) splits: Vec<SplitPart>,
    pub(super) tokenizers: BTreeMap<String, Arc<Tokenizer>>,
    /// Number of token ids in each anchor's vocabulary.
    pub(super) words: BTreeMap<String, usize>,
    /// Tokenizer and template of the reference, for a family that generates text.
    pub(super) language: Option<Arc<Language>>,
}

/// Anchor while its modules are added. It is the anchor itself, or its twin behind stitches that
/// leave the final norm out.
#[derive(Debug, Clone, Copy)]
struct Side<'s> {
    name: &'s str,
    spec: &'s AnchorSpec,
    index: usize,
    is_stitched: bool,
}

impl Side<'_> {
    /// Returns the prefix of the names of the side's spaces and modules.
    fn prefix(self) -> String {
        format!("{}{}", self.name, if self.is_stitched { "~" } else { "" })
    }

    /// Returns the name of the space behind `position` parts of block `depth`.
    fn space(self, depth: usize, position: usize) -> String {
        format!("{}.{depth}{}", self.prefix(), SpaceKind::marks(position))
    }
}

impl<'a> FamilyBuilder<'a> {
    /// Opens the anchors whose files exist, and adds the modules that join them.
    pub(super) fn build(
        folder: &'a Path,
        manifest: &'a Manifest,
        records: FitRecords,
    ) -> Result<Self, ArchError> {
        let mut builder = Self::new(folder, manifest, records);
        let is_there = |(name, spec): &(&String, &AnchorSpec)| {
            let is_left_out = spec.optional && is_missing(folder, spec);
            if is_left_out {
                let family = &manifest.name;
                tracing::info!(family, anchor = name, "optional anchor is not there");
            }
            !is_left_out
        };
        let anchors: Vec<_> = manifest.anchors.iter().filter(is_there).collect();
        let together = thread::available_parallelism().map_or(1, NonZero::get);
        for anchors in anchors.chunks(together) {
            for ((name, spec), anchor) in anchors.iter().zip(opened(folder, anchors)) {
                builder.add_anchor(name, spec, anchor?)?;
            }
        }
        if let Some(stitches) = &manifest.stitches {
            builder.add_stitches(stitches)?;
        }
        if let Some(exits) = &manifest.exits {
            builder.add_exits(exits)?;
        }
        builder.add_maps()?;
        Ok(builder)
    }

    fn new(folder: &'a Path, manifest: &'a Manifest, records: FitRecords) -> Self {
        let end = |name: &str, kind, spec| Space { name: name.into(), kind, spec };
        let output = SpaceSpec::of_extents(&[Some(manifest.output.width)]);
        Self {
            folder,
            manifest,
            records,
            opened: Vec::new(),
            anchors: Vec::new(),
            spaces: vec![
                end("in", SpaceKind::Input, SpaceSpec::default()),
                end("out", SpaceKind::Output, output),
            ],
            modules: Vec::new(),
            bodies: Vec::new(),
            steps: BTreeMap::new(),
            features: Vec::new(),
            splits: Vec::new(),
            tokenizers: BTreeMap::new(),
            words: BTreeMap::new(),
            language: None,
        }
    }

    fn add_anchor(
        &mut self,
        name: &str,
        spec: &AnchorSpec,
        anchor: Box<dyn Backbone>,
    ) -> Result<(), ArchError> {
        let layout = anchor.layout();
        promises::check(self.folder, self.manifest, name, layout)?;
        let num_words = layout.num_words().unwrap_or(usize::MAX);
        self.add_tokenizer(name, spec, layout)?;
        self.words.insert(name.into(), num_words);
        if self.manifest.task == TEXT_GENERATION && name == self.manifest.reference {
            let own = anchor.language()?;
            let language =
                own.map_or_else(|| language::read(self.folder, spec), |own| Ok(Some(own)));
            self.language = language?.map(Arc::new);
        }
        let side = Side { name, spec, index: self.anchors.len(), is_stitched: false };
        self.add_blocks(side, &*anchor)?;
        if let Some(stem) = layout.stem() {
            let (name, first) = (format!("{name}.stem"), side.space(0, 0));
            let body = anchor.build(stem, &Form::PLAIN)?;
            self.add(name, ["in", &first], ModuleKind::Stem, Some(body))?;
        }
        if self.manifest.has_head(name) {
            self.add_heads(side, &*anchor, true)?;
        }
        if let Some(stitches) = self.manifest.stitches.as_ref().filter(|s| !s.final_norm)
            && stitches.pairs.iter().any(|[_, to]| to == name)
        {
            let side = Side { is_stitched: true, ..side };
            self.add_blocks(side, &*anchor)?;
            self.add_heads(side, &*anchor, false)?;
        }
        self.anchors.push(name.into());
        self.opened.push(anchor);
        Ok(())
    }

    /// Adds an anchor's hidden spaces and the modules of its blocks.
    fn add_blocks(&mut self, side: Side<'_>, anchor: &dyn Backbone) -> Result<(), ArchError> {
        let layout = anchor.layout();
        for depth in 0..=layout.num_blocks() {
            for (position, spec) in layout.spaces_before(depth).into_iter().enumerate() {
                let (anchor, stitched) = (side.index, side.is_stitched);
                self.spaces.push(Space {
                    name: side.space(depth, position),
                    kind: SpaceKind::Hidden { anchor, depth, position, stitched },
                    spec: spec.clone(),
                });
            }
        }
        for block in 0..layout.num_blocks() {
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
        let plain = anchor.build(part, &Form::PLAIN)?;
        self.add(plain_name.clone(), ends, kind, Some(plain.clone()))?;
        self.add_step(anchor, part, &Form::PLAIN)?;
        let spec =
            |name: &str| self.spaces.iter().find(|space| space.name == name).map(|s| &s.spec);
        let keeps_shape = spec(ends[0]) == spec(ends[1]);
        for variant in variants(side.spec, anchor.layout().part(part)) {
            if variant.is_identity && !keeps_shape {
                continue;
            }
            let name = format!("{plain_name}.{}", variant.name);
            let form = variants::form(&variant);
            let body = form.map(|form| variants::body(&form, anchor, part, &plain)).transpose()?;
            self.add(name, ends, kind, body)?;
            self.name_variant(Some(variant.name));
            if let Some(form) = form {
                self.add_step(anchor, part, &form)?;
            }
        }
        if kind == ModuleKind::Mlp {
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
            if !side.is_stitched {
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
        let form = Form { has_norm, ..Form::PLAIN };
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
            let name = format!("{name}.{depth}");
            self.add(name, [&from, "out"], ModuleKind::Exit, Some(head.clone()))?;
            self.name_variant(Some("head".into()));
        }
        Ok(())
    }

    /// Adds the stitches of an SN-Net, each from after a block to before a block of the next
    /// anchor.
    fn add_stitches(&mut self, spec: &StitchesSpec) -> Result<(), ArchError> {
        let weights = Checkpoint::open(self.folder, &spec.file, &spec.sha256)?;
        for (pair, [from, to]) in spec.pairs.iter().enumerate() {
            let depths = [self.depth("stitches.pairs", from)?, self.depth("stitches.pairs", to)?];
            if depths[0] != depths[1] {
                let expected = "anchors of as many blocks as one another are stitched";
                let fault = Fault::new("stitches.pairs", format!("{from}, {to}"), expected);
                return Err(FamilyError::value(self.folder, fault).into());
            }
            for (after, before, window) in spec.windows(depths[0]) {
                let start = format!("{from}.{}", after + 1);
                let twin = format!("{to}~.{before}");
                let has_twin = self.spaces.iter().any(|space| space.name == twin);
                let end = if has_twin { twin } else { format!("{to}.{before}") };
                let widths = [&start, &end].map(|name| self.width_of(name));
                let name = format!("stitch_layers.{pair}.{window}.transform");
                let network = trained::stitch(&weights, &name, widths)?;
                let name = format!("stitch.{start}-{end}");
                self.add(name, [&start, &end], ModuleKind::Stitch, Some(network.into()))?;
            }
        }
        Ok(())
    }

    /// Adds the exits in the file of exits.
    fn add_exits(&mut self, spec: &ExitsSpec) -> Result<(), ArchError> {
        let weights = Checkpoint::open(self.folder, &spec.file, &spec.sha256)?;
        for (number, anchor) in spec.anchors.iter().enumerate() {
            for depth in 0..self.depth("exits.anchors", anchor)? {
                let name = format!("exits.{number}.{depth}");
                if !weights.has(&format!("{name}.head.weight")) {
                    continue;
                }
                let from = format!("{anchor}.{depth}");
                let widths = [self.width_of(&from), self.manifest.output.width];
                let network = trained::exit(&weights, &name, widths)?;
                let name = format!("exit.{from}");
                self.add(name, [&from, "out"], ModuleKind::Exit, Some(network.into()))?;
            }
        }
        Ok(())
    }

    /// Returns the number of blocks of `anchor`, which the manifest names under `key`.
    fn depth(&self, key: &str, anchor: &str) -> Result<usize, FamilyError> {
        let index = self.anchors.iter().position(|known| known == anchor);
        index.map(|index| self.opened[index].layout().num_blocks()).ok_or_else(|| {
            let known = self.anchors.join(", ");
            let expected = format!("there are the anchors {known}");
            FamilyError::value(self.folder, Fault::new(key, anchor, expected))
        })
    }

    fn width_of(&self, space: &str) -> usize {
        let found = self.spaces.iter().find(|known| known.name == space);
        found.and_then(Space::width).unwrap_or_default()
    }

    /// Sets the variant of the module added last.
    pub(super) fn name_variant(&mut self, variant: Option<String>) {
        if let Some(module) = self.modules.last_mut() {
            module.variant = variant;
        }
    }

    /// Adds a module between two spaces, without a variant.
    pub(super) fn add(
        &mut self,
        name: String,
        [from, to]: [&str; 2],
        kind: ModuleKind,
        body: Option<Body>,
    ) -> Result<(), ArchError> {
        if let Some(Body::Routed(routed)) = &body {
            routed.check(&name)?;
        }
        let find = |space: &str| {
            self.spaces.iter().position(|known| known.name == space).map(SpaceId).ok_or_else(|| {
                FamilyError::DanglingModule {
                    module: name.clone(),
                    space: space.to_owned(),
                    known: known_spaces(&self.spaces),
                }
            })
        };
        let (from, to) = (find(from)?, find(to)?);
        self.modules.push(Module { name, from, to, kind, variant: None });
        self.bodies.push(body);
        Ok(())
    }

    fn add_tokenizer(
        &mut self,
        name: &str,
        spec: &AnchorSpec,
        layout: &Layout,
    ) -> Result<(), ArchError> {
        let Some(location) = &spec.tokenizer else {
            return Ok(());
        };
        let path = self.folder.join(location);
        let malformed = |message: String| PoolError::Malformed { path: path.clone(), message };
        let sha256 = open::digest(self.folder, spec, location)?;
        let tokenizer = if let Some(known) = self.known_tokenizer(location, sha256, &layout.prompts)
        {
            known
        } else {
            let bytes = read_verified(self.folder, location, sha256, FileKind::Tokenizer)?;
            let tokenizer = Tokenizer::from_bytes(&bytes, self.manifest.limits.max_tokens)
                .map_err(|error| malformed(error.to_string()))?;
            Arc::new(tokenizer.with_prompts(layout.prompts.clone()))
        };
        let (words, num_words) = (tokenizer.vocabulary_size(), layout.num_words());
        if let Some(num_words) = num_words.filter(|num_words| words > *num_words) {
            let message = format!("has {words} words, but `{name}` knows {num_words}");
            return Err(malformed(message).into());
        }
        self.tokenizers.insert(name.into(), tokenizer);
        Ok(())
    }

    /// Returns the tokenizer of an earlier anchor that was read from the same file, with the same
    /// digest and prompts, or `None` if there is none.
    fn known_tokenizer(
        &self,
        location: &Path,
        sha256: &str,
        prompts: &Prompts,
    ) -> Option<Arc<Tokenizer>> {
        self.tokenizers.iter().find_map(|(name, tokenizer)| {
            let spec = self.manifest.anchors.get(name)?;
            let is_same = spec.tokenizer.as_deref() == Some(location)
                && spec.sha256.get(location).is_some_and(|other| other == sha256)
                && tokenizer.prompts() == prompts;
            is_same.then(|| tokenizer.clone())
        })
    }
}

/// Anchor that was opened, or the reason why it could not be.
type Opened = Result<Box<dyn Backbone>, ArchError>;

/// Opens `anchors` at the same time. Checking the digests of large files takes most of it.
fn opened(folder: &Path, anchors: &[(&String, &AnchorSpec)]) -> Vec<Opened> {
    thread::scope(|scope| {
        let threads: Vec<_> = anchors
            .iter()
            .map(|(name, spec)| scope.spawn(move || open::open(folder, name, spec)))
            .collect();
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|ended| ended.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Returns the names of `spaces`.
pub(super) fn known_spaces(spaces: &[Space]) -> String {
    spaces.iter().map(|space| space.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn is_missing(folder: &Path, spec: &AnchorSpec) -> bool {
    spec.sha256.keys().any(|file| !folder.join(file).exists())
}
