//! A family as loaded: its manifest, its graph and the network of every module.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ArchError, Checkpoint, FitRecords, Network, Tokenizer, bert,
    checkpoint::open_verified,
    encoder::Encoder,
    exported::Exported,
    fitted::{self, Expansion, MapParts, fit_file_name},
    mpnet,
    network::Precision,
    pooling::mean_head,
};
use crate::family::{
    AnchorSpec, FamilyError, FamilyGraph, Manifest, MapForm, MapSpec, Module, ModuleId, ModuleKind,
    Space, SpaceId, SpaceKind,
};

/// A family ready to be run: what each module computes, and how they join.
#[derive(Debug)]
pub struct Family {
    /// The manifest.
    pub manifest: Manifest,
    /// Where the family's files lie.
    pub folder: PathBuf,
    /// The graph.
    pub graph: FamilyGraph,
    networks: Vec<Option<Network>>,
    features: Vec<Network>,
    tokenizers: BTreeMap<String, Arc<Tokenizer>>,
}

/// A pretrained network of either kind.
#[derive(Debug)]
enum Anchor {
    Encoder(Box<Encoder>),
    Exported(Box<Exported>),
}

impl Family {
    /// Loads the family in `folder`.
    ///
    /// Digests are checked, headers and configurations are read; weights stay in their files. An
    /// optional anchor whose files are missing is left out, with the maps from and to it.
    ///
    /// # Errors
    ///
    /// Fails on whatever is wrong with the manifest, a file or the graph; the error names it.
    pub fn load(folder: &Path) -> Result<Self, ArchError> {
        let manifest = Manifest::read(folder)?;
        let mut builder = FamilyBuilder::new(folder, &manifest);
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
        builder.add_maps()?;
        let FamilyBuilder { anchors, spaces, modules, networks, features, tokenizers, .. } =
            builder;
        let names = anchors.into_iter().map(|anchor| anchor.0).collect();
        let graph = FamilyGraph::new(names, spaces, modules)?;
        Ok(Self { folder: folder.to_owned(), graph, networks, features, tokenizers, manifest })
    }

    /// Returns what module `id` computes, or `None` where it is the identity.
    ///
    /// # Panics
    ///
    /// Panics when `id` is of another family and out of range.
    pub fn network(&self, id: ModuleId) -> Option<&Network> {
        self.networks[id.0].as_ref()
    }

    /// Returns the networks that compute what each of the manifest's maps sees, in the manifest's
    /// order.
    ///
    /// Maps from and to an optional anchor that is not there are left out.
    pub fn feature_networks(&self) -> impl Iterator<Item = (&MapSpec, &Network)> {
        let maps = self.manifest.maps.iter().filter(|map| {
            let has = |name: &str| self.graph.space_named(name).is_some();
            has(&map.from) && has(&map.to)
        });
        maps.zip(&self.features)
    }

    /// Returns the tokenizer of `anchor`.
    pub fn tokenizer(&self, anchor: &str) -> Option<&Arc<Tokenizer>> {
        self.tokenizers.get(anchor)
    }

    /// Tells whether two anchors share one tokenizer.
    pub fn share_tokenizer(&self, one: &str, other: &str) -> bool {
        let location = |name| self.manifest.anchors.get(name).map(|anchor| &anchor.tokenizer);
        location(one).is_some() && location(one) == location(other)
    }
}

struct FamilyBuilder<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    anchors: Vec<(String, Anchor)>,
    spaces: Vec<Space>,
    modules: Vec<Module>,
    networks: Vec<Option<Network>>,
    features: Vec<Network>,
    tokenizers: BTreeMap<String, Arc<Tokenizer>>,
}

impl<'a> FamilyBuilder<'a> {
    fn new(folder: &'a Path, manifest: &'a Manifest) -> Self {
        let end = |name: &str, kind, width| Space { name: name.into(), kind, width };
        Self {
            folder,
            manifest,
            anchors: Vec::new(),
            spaces: vec![
                end("in", SpaceKind::Input, None),
                end("out", SpaceKind::Output, Some(manifest.output.width)),
            ],
            modules: Vec::new(),
            networks: Vec::new(),
            features: Vec::new(),
            tokenizers: BTreeMap::new(),
        }
    }

    fn add_anchor(&mut self, name: &str, spec: &AnchorSpec) -> Result<(), ArchError> {
        let anchor = Anchor::open(self.folder, name, spec)?;
        self.check_limits(name, &anchor)?;
        self.add_tokenizer(name, spec, &anchor)?;
        let index = self.anchors.len();
        for depth in 0..=anchor.num_blocks() {
            for inner in [false, true] {
                if inner && depth == anchor.num_blocks() {
                    continue;
                }
                self.spaces.push(Space {
                    name: format!("{name}.{depth}{}", if inner { "+" } else { "" }),
                    kind: SpaceKind::Hidden { anchor: index, depth, inner },
                    width: Some(anchor.width()),
                });
            }
        }
        let first = format!("{name}.0");
        self.add(format!("{name}.stem"), ["in", &first], ModuleKind::Stem, Some(anchor.stem()?))?;
        for block in 0..anchor.num_blocks() {
            self.add_block(name, spec, &anchor, block)?;
        }
        if name == self.manifest.reference {
            let last = format!("{name}.{}", anchor.num_blocks());
            let head = Some(mean_head(anchor.width()));
            self.add(format!("{name}.head"), [&last, "out"], ModuleKind::Head, head)?;
        }
        self.anchors.push((name.into(), anchor));
        Ok(())
    }

    fn add_block(
        &mut self,
        name: &str,
        spec: &AnchorSpec,
        anchor: &Anchor,
        block: usize,
    ) -> Result<(), ArchError> {
        let spaces = [
            format!("{name}.{block}"),
            format!("{name}.{block}+"),
            format!("{name}.{}", block + 1),
        ];
        let kinds = [(ModuleKind::Attention, "attn"), (ModuleKind::Mlp, "mlp")];
        for (part, (kind, part_name)) in kinds.into_iter().enumerate() {
            let ends = [spaces[part].as_str(), spaces[part + 1].as_str()];
            let plain = format!("{name}.block.{block}.{part_name}");
            let network = anchor.sub_layer(block, part, Precision::F32)?;
            self.add(plain.clone(), ends, kind, Some(network))?;
            for variant in &spec.variants {
                let network = match variant.as_str() {
                    "int8" => Some(anchor.sub_layer(block, part, Precision::Int8)?),
                    _ => None,
                };
                self.add(format!("{plain}.{variant}"), ends, kind, network)?;
                self.name_variant(Some(variant.clone()));
            }
        }
        Ok(())
    }

    /// Adds the maps that have been fitted.
    fn add_maps(&mut self) -> Result<(), ArchError> {
        let records = FitRecords::read(self.folder)?;
        for map in &self.manifest.maps {
            if self.leads_to_missing_anchor(map) {
                continue;
            }
            let (from, to) = (self.space(map, &map.from)?, self.space(map, &map.to)?);
            let kind = map_kind(map, self.spaces[from.0].kind, self.spaces[to.0].kind)?;
            let parts = MapParts {
                map,
                width_in: self.spaces[from.0].width.unwrap_or_default(),
                width_out: self.spaces[to.0].width.unwrap_or_default(),
                expansion: self.expansion(self.spaces[from.0].kind)?,
            };
            self.features.push(fitted::feature_network(&parts)?);
            let Some(record) = records.maps.get(&fit_file_name(map)) else {
                tracing::warn!(
                    from = map.from,
                    to = map.to,
                    "map is not fitted; run `tessera fit`"
                );
                continue;
            };
            let file = PathBuf::from(fit_file_name(map));
            let weights = Checkpoint::open(self.folder, &file, &record.sha256)?;
            let label = map.label.as_ref().map_or(String::new(), |label| format!(".{label}"));
            let name = format!("map.{}-{}{label}", map.from, map.to);
            let network = fitted::network(&parts, &weights, Precision::F32)?;
            self.add(name.clone(), [&map.from, &map.to], kind, Some(network))?;
            self.name_variant(map.label.clone());
            for variant in &map.variants {
                let network = fitted::network(&parts, &weights, Precision::Int8)?;
                self.add(format!("{name}.{variant}"), [&map.from, &map.to], kind, Some(network))?;
                let label =
                    map.label.as_ref().map_or(variant.clone(), |l| format!("{l}-{variant}"));
                self.name_variant(Some(label));
            }
        }
        Ok(())
    }

    /// Returns the expansion of the block inside which a space lies, where its anchor has one.
    fn expansion(&self, space: SpaceKind) -> Result<Option<Expansion>, ArchError> {
        match space {
            SpaceKind::Hidden { anchor, depth, inner: true } => match &self.anchors[anchor].1 {
                Anchor::Encoder(encoder) => encoder.expansion(depth).map(Some),
                Anchor::Exported(_) => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Gives the module added last its variant.
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
        network: Option<Network>,
    ) -> Result<(), ArchError> {
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
        self.networks.push(network);
        Ok(())
    }

    fn add_tokenizer(
        &mut self,
        name: &str,
        spec: &AnchorSpec,
        anchor: &Anchor,
    ) -> Result<(), ArchError> {
        let sha256 = digest(self.folder, spec, &spec.tokenizer)?;
        let max_tokens = self.manifest.limits.max_tokens;
        let tokenizer = Tokenizer::open(self.folder, &spec.tokenizer, sha256, max_tokens)?;
        let words = tokenizer.vocabulary_size();
        if words > anchor.num_words() {
            return Err(ArchError::Malformed {
                path: self.folder.join(&spec.tokenizer),
                message: format!("has {words} words, but `{name}` knows {}", anchor.num_words()),
            });
        }
        self.tokenizers.insert(name.into(), Arc::new(tokenizer));
        Ok(())
    }

    /// Checks what the manifest promises against what the anchor can do.
    fn check_limits(&self, name: &str, anchor: &Anchor) -> Result<(), FamilyError> {
        let refuse = |key: &str, value: usize, expected: String| {
            let (path, key) = (self.folder.join("family.toml"), key.to_owned());
            Err(FamilyError::Value { path, key, value: value.to_string(), expected })
        };
        let (tokens, width) = (self.manifest.limits.max_tokens, self.manifest.output.width);
        if tokens > anchor.max_tokens() {
            let expected = format!("`{name}` has positions for {}", anchor.max_tokens());
            return refuse("limits.max_tokens", tokens, expected);
        }
        if name == self.manifest.reference && width != anchor.width() {
            let expected = format!("the reference `{name}` is {} wide", anchor.width());
            return refuse("output.width", width, expected);
        }
        Ok(())
    }

    fn leads_to_missing_anchor(&self, map: &MapSpec) -> bool {
        [&map.from, &map.to].iter().any(|space| {
            let anchor = space.split('.').next().unwrap_or_default();
            self.manifest.anchors.get(anchor).is_some_and(|spec| spec.optional)
                && !self.anchors.iter().any(|known| known.0 == anchor)
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

/// Tells what a map between two spaces is.
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

impl Anchor {
    fn open(folder: &Path, name: &str, spec: &AnchorSpec) -> Result<Self, ArchError> {
        if let Some(onnx) = &spec.onnx {
            let sha256 = digest(folder, spec, &onnx.file)?;
            let exported = Exported::open(folder, name, onnx, sha256)?;
            return Ok(Self::Exported(Box::new(exported)));
        }
        let anchor = spec.folder.clone().unwrap_or_default();
        let (config, weights) = (anchor.join("config.json"), anchor.join("model.safetensors"));
        let file = open_verified(folder, &config, digest(folder, spec, &config)?)?;
        let text = String::from_utf8_lossy(file.bytes()).into_owned();
        let config_path = folder.join(&config);
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| {
            ArchError::Malformed { path: config_path.clone(), message: e.to_string() }
        })?;
        let checkpoint = Checkpoint::open(folder, &weights, digest(folder, spec, &weights)?)?;
        match value["model_type"].as_str() {
            Some("bert") => bert::open(&config_path, &text, checkpoint),
            Some("mpnet") => mpnet::open(&config_path, &text, checkpoint),
            other => Err(ArchError::Config {
                path: config_path,
                key: "model_type".into(),
                value: other.unwrap_or_default().into(),
                expected: "`bert` and `mpnet` are supported".into(),
            }),
        }
        .map(|encoder| Self::Encoder(Box::new(encoder)))
    }

    fn num_blocks(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.num_blocks(),
            Self::Exported(exported) => exported.num_blocks(),
        }
    }

    fn width(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.width(),
            Self::Exported(exported) => exported.width(),
        }
    }

    fn max_tokens(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.max_tokens(),
            Self::Exported(_) => usize::MAX,
        }
    }

    fn num_words(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.num_words(),
            Self::Exported(_) => usize::MAX,
        }
    }

    fn stem(&self) -> Result<Network, ArchError> {
        match self {
            Self::Encoder(encoder) => encoder.stem(),
            Self::Exported(exported) => Ok(exported.stem()),
        }
    }

    fn sub_layer(
        &self,
        block: usize,
        part: usize,
        precision: Precision,
    ) -> Result<Network, ArchError> {
        match self {
            Self::Encoder(encoder) if part == 0 => encoder.attention(block, precision),
            Self::Encoder(encoder) => encoder.mlp(block, precision),
            Self::Exported(exported) => Ok(exported.sub_layer(block, part, precision)),
        }
    }
}

fn known_spaces(spaces: &[Space]) -> String {
    spaces.iter().map(|space| space.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn is_missing(folder: &Path, spec: &AnchorSpec) -> bool {
    spec.sha256.keys().any(|file| !folder.join(file).exists())
}

fn digest<'a>(folder: &Path, spec: &'a AnchorSpec, file: &Path) -> Result<&'a str, ArchError> {
    let found = spec.sha256.get(file).map(String::as_str);
    found.ok_or_else(|| ArchError::NoDigest { path: folder.join(file) })
}
