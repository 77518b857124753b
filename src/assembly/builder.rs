//! Building a family's spaces and modules from its manifest and its files.

use std::{
    collections::BTreeMap, num::NonZero, panic::resume_unwind, path::Path, sync::Arc, thread,
};

use super::{language, promises};
use crate::{
    arch::{ArchError, Backbone, Layout, SplitPart, joint::trained, open},
    family::{
        AnchorSpec, ExitsSpec, FamilyError, Fault, Manifest, Module, ModuleKind, Space, SpaceId,
        SpaceKind, SpaceSpec, StitchesSpec,
    },
    input::{Language, Prompts, Tokenizer},
    module::{Body, Network},
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
        self.add_sides(name, spec, &*anchor)?;
        self.anchors.push(name.into());
        self.opened.push(anchor);
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

    pub(super) fn width_of(&self, space: &str) -> usize {
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
