//! Building a family's spaces and modules from its manifest and its files.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    promises,
    variants::{Place, departures},
};
use crate::{
    arch::{
        Anchor, ArchError, Expansion, Form, MapParts, SplitFile, SplitPart,
        joint::{experts, fitted, trained},
        open,
    },
    family::{
        AnchorSpec, ExitsSpec, ExpertsSpec, FamilyError, Manifest, MapForm, MapSpec, Module,
        ModuleKind, Space, SpaceId, SpaceKind, StitchesSpec, fit_file_name,
    },
    input::Tokenizer,
    module::{Body, Network, Precision},
    pool::{Checkpoint, FitRecords, PoolError, open_verified},
};

/// Builder of a family's spaces, modules and networks.
#[derive(Debug)]
pub(super) struct FamilyBuilder<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    records: FitRecords,
    opened: Vec<Box<dyn Anchor>>,
    pub(super) anchors: Vec<String>,
    pub(super) spaces: Vec<Space>,
    pub(super) modules: Vec<Module>,
    pub(super) bodies: Vec<Option<Body>>,
    pub(super) features: Vec<Network>,
    pub(super) splits: Vec<SplitPart>,
    pub(super) tokenizers: BTreeMap<String, Arc<Tokenizer>>,
    /// Number of token ids in each anchor's vocabulary.
    pub(super) words: BTreeMap<String, usize>,
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

    fn space(self, depth: usize, inner: bool) -> String {
        format!("{}.{depth}{}", self.prefix(), if inner { "+" } else { "" })
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
        for (name, spec) in &manifest.anchors {
            if spec.optional && is_missing(folder, spec) {
                tracing::info!(
                    family = manifest.name,
                    anchor = name,
                    "optional anchor is not there"
                );
                continue;
            }
            builder.add_anchor(name, spec)?;
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
        let end = |name: &str, kind, shape| Space { name: name.into(), kind, shape };
        Self {
            folder,
            manifest,
            records,
            opened: Vec::new(),
            anchors: Vec::new(),
            spaces: vec![
                end("in", SpaceKind::Input, Vec::new()),
                end("out", SpaceKind::Output, vec![Some(manifest.output.width)]),
            ],
            modules: Vec::new(),
            bodies: Vec::new(),
            features: Vec::new(),
            splits: Vec::new(),
            tokenizers: BTreeMap::new(),
            words: BTreeMap::new(),
        }
    }

    fn add_anchor(&mut self, name: &str, spec: &AnchorSpec) -> Result<(), ArchError> {
        let anchor = open::open(self.folder, name, spec)?;
        promises::check(self.folder, self.manifest, name, &*anchor)?;
        self.add_tokenizer(name, spec, &*anchor)?;
        self.words.insert(name.into(), anchor.num_words());
        let side = Side { name, spec, index: self.anchors.len(), is_stitched: false };
        self.add_blocks(side, &*anchor)?;
        let (stem, first) = (format!("{name}.stem"), side.space(0, false));
        self.add(stem, ["in", &first], ModuleKind::Stem, Some(anchor.stem()?.into()))?;
        // Vectors of texts can be compared only in the reference's space. Classes are the same for
        // every anchor.
        if name == self.manifest.reference || self.manifest.image.is_some() {
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
    fn add_blocks(&mut self, side: Side<'_>, anchor: &dyn Anchor) -> Result<(), ArchError> {
        for depth in 0..=anchor.num_blocks() {
            let is_last = depth == anchor.num_blocks();
            let has_inner = !is_last && anchor.parts(depth).len() > 1;
            for inner in [false, true].into_iter().take(1 + usize::from(has_inner)) {
                let (index, stitched) = (side.index, side.is_stitched);
                self.spaces.push(Space {
                    name: side.space(depth, inner),
                    kind: SpaceKind::Hidden { anchor: index, depth, inner, stitched },
                    shape: anchor.hidden_shape(depth, inner),
                });
            }
        }
        for block in 0..anchor.num_blocks() {
            let parts = anchor.parts(block);
            let inner = side.space(block, true);
            let ends = [side.space(block, false), side.space(block + 1, false)];
            match *parts {
                [one, two] => {
                    self.add_part(side, anchor, Place { block, kind: one }, [&ends[0], &inner])?;
                    self.add_part(side, anchor, Place { block, kind: two }, [&inner, &ends[1]])?;
                }
                _ => {
                    let whole = Place { block, kind: ModuleKind::Block };
                    self.add_part(side, anchor, whole, [&ends[0], &ends[1]])?;
                }
            }
        }
        Ok(())
    }

    /// Adds a module of a block in all its forms.
    fn add_part(
        &mut self,
        side: Side<'_>,
        anchor: &dyn Anchor,
        place: Place,
        ends: [&str; 2],
    ) -> Result<(), ArchError> {
        let Place { block, kind } = place;
        let part = match kind {
            ModuleKind::Attention => ".attn",
            ModuleKind::Mlp => ".mlp",
            _ => "",
        };
        let plain = format!("{}.block.{block}{part}", side.prefix());
        let body = anchor.part(block, kind, Form::Plain)?;
        self.add(plain.clone(), ends, kind, Some(body))?;
        for (variant, departure) in departures(side.spec, anchor, place) {
            let body = departure.body(anchor, place)?;
            self.add(format!("{plain}.{variant}"), ends, kind, body)?;
            self.name_variant(Some(variant));
        }
        if kind == ModuleKind::Mlp {
            self.add_experts(side, anchor, block, ends)?;
        }
        Ok(())
    }

    /// Adds a feed-forward part split into experts, once for each supported number of experts per
    /// token.
    fn add_experts(
        &mut self,
        side: Side<'_>,
        anchor: &dyn Anchor,
        block: usize,
        ends: [&str; 2],
    ) -> Result<(), ArchError> {
        let manifest = self.manifest;
        let of_block = |spec: &ExpertsSpec| spec.anchor == side.name && spec.has_block(block);
        for (entry, spec) in manifest.experts.iter().enumerate().filter(|(_, s)| of_block(s)) {
            let Some(dense) = anchor.dense(block)? else {
                let expected = "an anchor of an ONNX file cannot be split".to_owned();
                let key = spec.key("anchor");
                return Err(
                    FamilyError::value(self.folder, &key, side.name.into(), expected).into()
                );
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
        anchor: &dyn Anchor,
        has_norm: bool,
    ) -> Result<(), ArchError> {
        let Some(head) = anchor.head(has_norm)? else {
            return Ok(());
        };
        let last = anchor.num_blocks();
        let name = format!("{}.head", side.prefix());
        let from = side.space(last, false);
        self.add(name.clone(), [&from, "out"], ModuleKind::Head, Some(head.clone().into()))?;
        for depth in side.spec.depths.iter().filter(|depth| **depth < last) {
            let from = side.space(*depth, false);
            let name = format!("{name}.{depth}");
            self.add(name, [&from, "out"], ModuleKind::Exit, Some(head.clone().into()))?;
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
                let expected = "anchors of as many blocks as one another are stitched".to_owned();
                return Err(FamilyError::value(
                    self.folder,
                    "stitches.pairs",
                    format!("{from}, {to}"),
                    expected,
                )
                .into());
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
        index.map(|index| self.opened[index].num_blocks()).ok_or_else(|| {
            let known = self.anchors.join(", ");
            let expected = format!("there are the anchors {known}");
            FamilyError::value(self.folder, key, anchor.to_owned(), expected)
        })
    }

    fn width_of(&self, space: &str) -> usize {
        let found = self.spaces.iter().find(|known| known.name == space);
        found.and_then(Space::width).unwrap_or_default()
    }

    /// Adds the fitted maps.
    fn add_maps(&mut self) -> Result<(), ArchError> {
        for map in &self.manifest.maps {
            if self.leads_to_missing_anchor(map) {
                continue;
            }
            let (from, to) = (self.space(map, &map.from)?, self.space(map, &map.to)?);
            let kind = map_kind(map, self.spaces[from.0].kind, self.spaces[to.0].kind)?;
            let shapes = [from, to].map(|space| self.spaces[space.0].shape.clone());
            let parts = MapParts {
                map,
                shape_in: &shapes[0],
                shape_out: &shapes[1],
                width_in: self.spaces[from.0].width().unwrap_or_default(),
                width_out: self.spaces[to.0].width().unwrap_or_default(),
                expansion: self.expansion(self.spaces[from.0].kind)?,
            };
            self.features.push(fitted::feature_network(&parts)?);
            let name = fit_file_name(map);
            let Some(record) = self.records.maps.get(&name) else {
                tracing::warn!(
                    from = map.from,
                    to = map.to,
                    "map is not fitted; run `tessera fit`"
                );
                continue;
            };
            let file = record.file(&name);
            let weights = Checkpoint::open(self.folder, Path::new(file.location), file.sha256)?;
            self.add_map(&parts, &weights, kind)?;
        }
        Ok(())
    }

    /// Adds a fitted map in all its forms.
    fn add_map(
        &mut self,
        parts: &MapParts<'_>,
        weights: &Checkpoint,
        kind: ModuleKind,
    ) -> Result<(), ArchError> {
        let map = parts.map;
        let ends = [map.from.as_str(), map.to.as_str()];
        let label = map.label.as_ref().map_or(String::new(), |label| format!(".{label}"));
        let name = format!("map.{}-{}{label}", map.from, map.to);
        let network = fitted::network(parts, weights, Precision::F32)?;
        self.add(name.clone(), ends, kind, Some(network.into()))?;
        self.name_variant(map.label.clone());
        for variant in &map.variants {
            let network = fitted::network(parts, weights, Precision::Int8)?;
            self.add(format!("{name}.{variant}"), ends, kind, Some(network.into()))?;
            let label = map.label.as_ref().map_or(variant.clone(), |l| format!("{l}-{variant}"));
            self.name_variant(Some(label));
        }
        Ok(())
    }

    /// Returns the expansion of the block that contains `space`, or `None` if there is none.
    fn expansion(&self, space: SpaceKind) -> Result<Option<Expansion>, ArchError> {
        match space {
            SpaceKind::Hidden { anchor, depth, inner: true, .. } => {
                self.opened[anchor].expansion(depth)
            }
            _ => Ok(None),
        }
    }

    /// Sets the variant of the module added last.
    fn name_variant(&mut self, variant: Option<String>) {
        if let Some(module) = self.modules.last_mut() {
            module.variant = variant;
        }
    }

    fn add(
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
        anchor: &dyn Anchor,
    ) -> Result<(), ArchError> {
        let Some(location) = &spec.tokenizer else {
            return Ok(());
        };
        let sha256 = open::digest(self.folder, spec, location)?;
        let max_tokens = self.manifest.limits.max_tokens;
        let file = open_verified(self.folder, location, sha256)?;
        let malformed =
            |message: String| PoolError::Malformed { path: file.path().to_owned(), message };
        let tokenizer = Tokenizer::from_bytes(file.bytes(), max_tokens)
            .map_err(|error| malformed(error.to_string()))?;
        let words = tokenizer.vocabulary_size();
        if words > anchor.num_words() {
            let knows = anchor.num_words();
            return Err(malformed(format!("has {words} words, but `{name}` knows {knows}")).into());
        }
        self.tokenizers.insert(name.into(), Arc::new(tokenizer));
        Ok(())
    }

    fn leads_to_missing_anchor(&self, map: &MapSpec) -> bool {
        [&map.from, &map.to].iter().any(|space| {
            let anchor = space.split('.').next().unwrap_or_default();
            self.manifest.anchors.get(anchor).is_some_and(|spec| spec.optional)
                && !self.anchors.iter().any(|known| known == anchor)
        })
    }

    fn space(&self, map: &MapSpec, name: &str) -> Result<SpaceId, ArchError> {
        let found = self.spaces.iter().position(|space| space.name == name && name != "in");
        found.map(SpaceId).ok_or_else(|| ArchError::Map {
            from: map.from.clone(),
            to: map.to.clone(),
            reason: format!("there is no space `{name}`; known: {}", known_spaces(&self.spaces)),
        })
    }
}

/// Returns the kind of a map between two spaces.
fn map_kind(map: &MapSpec, from: SpaceKind, to: SpaceKind) -> Result<ModuleKind, ArchError> {
    use SpaceKind::{Hidden, Output};
    let pooled = map.form == MapForm::Pooled;
    match (from, to) {
        (Hidden { inner: false, .. }, Output) if pooled => Ok(ModuleKind::Exit),
        (Hidden { anchor: a, .. }, Hidden { anchor: b, inner: false, .. }) if !pooled => {
            Ok(if a == b { ModuleKind::Bridge } else { ModuleKind::Stitch })
        }
        _ => Err(ArchError::Map {
            from: map.from.clone(),
            to: map.to.clone(),
            reason: "a `tokens` or `mlp` map ends between two blocks, a `pooled` one leads from \
                     there to `out`"
                .into(),
        }),
    }
}

fn known_spaces(spaces: &[Space]) -> String {
    spaces.iter().map(|space| space.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn is_missing(folder: &Path, spec: &AnchorSpec) -> bool {
    spec.sha256.keys().any(|file| !folder.join(file).exists())
}
