//! Loaded families: the manifest, the graph and the network of every module.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    builder::FamilyBuilder,
    networks::Networks,
    steps::{StepRun, StepRuns},
};
use crate::{
    arch::{ArchError, SplitPart},
    family::{
        FamilyError, FamilyGraph, Fault, GenerationSpec, INT8, MANIFEST_FILE, Manifest, MapSpec,
        Module, ModuleId, Passed, SpaceId,
    },
    input::{Language, Tokenizer},
    module::{Batching, Body, CacheSpec, Compute, Network},
    pool::{FitRecords, PoolError, Stamps},
};

/// Loaded family, ready to run: its modules and the graph that joins them.
#[derive(Debug)]
pub struct Family {
    /// Manifest of the family.
    pub manifest: Manifest,
    /// Path of the family's folder.
    pub folder: PathBuf,
    /// Graph of the family's modules.
    pub graph: FamilyGraph,
    networks: Networks,
    /// Networks that each module runs, by position in `networks`; `None` for the identity.
    computes: Vec<Option<Compute>>,
    /// Modules that a sequence's step runs in one session.
    steps: StepRuns,
    features: Vec<Network>,
    splits: Vec<SplitPart>,
    tokenizers: BTreeMap<String, Arc<Tokenizer>>,
    words: BTreeMap<String, usize>,
    language: Option<Arc<Language>>,
    stamps: Stamps,
}

impl Family {
    /// Loads the family in `folder`.
    ///
    /// Checks digests, and reads headers and configurations; weights stay in their files. An
    /// optional anchor with missing files is left out, and so are the maps from and to it.
    ///
    /// # Errors
    ///
    /// Fails on any fault of the manifest, a file or the graph; the error names it.
    pub fn load(folder: &Path) -> Result<Self, ArchError> {
        Self::load_from(folder, None)
    }

    /// Loads the family in `folder` with only the fitted files in `records`.
    ///
    /// # Errors
    ///
    /// Fails like [`load`](Self::load).
    pub fn load_with(folder: &Path, records: FitRecords) -> Result<Self, ArchError> {
        Self::load_from(folder, Some(records))
    }

    fn load_from(folder: &Path, records: Option<FitRecords>) -> Result<Self, ArchError> {
        // The stamps are taken before anything is read, so that any later change is noticed.
        let stamps = Stamps::take(folder)
            .map_err(|source| PoolError::Unreadable { path: folder.to_owned(), source })?;
        let manifest = Manifest::read(folder)?;
        let records = records.map_or_else(|| FitRecords::read(folder), Ok)?;
        let parts = FamilyBuilder::build(folder, &manifest, records)?;
        let graph = FamilyGraph::new(parts.anchors, parts.spaces, parts.modules)
            .map_err(|source| ArchError::Graph { path: folder.join(MANIFEST_FILE), source })?
            .with_reference(&manifest.reference);
        let mut networks = Networks::default();
        let named = graph.modules().iter().zip(parts.bodies);
        let keep = |(module, body): (&Module, Option<Body>)| {
            let starts = module.from == graph.input();
            body.map(|body| networks.keep(&module.name, starts, body)).transpose()
        };
        let computes: Vec<_> = named.map(keep).collect::<Result<_, _>>()?;
        let in_step = parts.steps.into_iter().map(|(index, network)| (ModuleId(index), network));
        let steps = StepRuns::new(&graph, &mut networks, &in_step.collect())?;
        if manifest.generation != GenerationSpec::default() && steps.caches.is_empty() {
            let expected = "the family has no attention that keeps a cache";
            let fault = Fault::new("generation.cache", "int8", expected);
            return Err(FamilyError::value(folder, fault).into());
        }
        Ok(Self {
            folder: folder.to_owned(),
            graph,
            networks,
            computes,
            steps,
            features: parts.features,
            splits: parts.splits,
            tokenizers: parts.tokenizers,
            words: parts.words,
            language: parts.language,
            manifest,
            stamps,
        })
    }

    /// Returns the stamps of the files in the family's folder, taken when it was loaded.
    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// Returns a file with weights of `network` that has changed since loading, or `None`.
    pub fn changed_file(&self, network: &Network) -> Option<PathBuf> {
        let files: BTreeSet<String> = network.files().collect();
        let mut paths = files.into_iter().map(|file| self.folder.join(file));
        paths.find(|path| !self.stamps.is_unchanged(path))
    }

    /// Returns the computation of module `id`, or `None` if it is the identity.
    ///
    /// # Panics
    ///
    /// Panics when `id` is of another family and out of range.
    pub fn compute(&self, id: ModuleId) -> Option<&Compute> {
        self.computes[id.0].as_ref()
    }

    /// Returns the cache that module `id` keeps in a sequence's step, or `None`.
    pub fn cache(&self, id: ModuleId) -> Option<CacheSpec> {
        self.steps.caches.get(&id).copied()
    }

    /// Returns the modules from `first` on that a sequence's step runs in one session. Returns
    /// `None` if no such run begins there.
    pub fn step_run(&self, first: ModuleId) -> Option<&StepRun> {
        self.steps.runs.get(&first)
    }

    /// Returns the network at the position `index`, as returned by [`compute`](Self::compute).
    ///
    /// # Panics
    ///
    /// Panics when `index` is out of range.
    pub fn network(&self, index: usize) -> &Network {
        self.networks.network(index)
    }

    /// Returns whether rows run one at a time, because a network mixes the rows of a batch.
    pub fn is_one_by_one(&self) -> bool {
        (0..self.num_networks()).any(|index| self.network(index).batching() == Batching::OneByOne)
    }

    /// Returns the number of distinct networks.
    pub fn num_networks(&self) -> usize {
        self.networks.len()
    }

    /// Returns the name of the network at the position `index`. It is the name of the first module
    /// that runs the network. The network's role follows if the module routes tokens.
    ///
    /// # Panics
    ///
    /// Panics when `index` is out of range.
    pub fn network_name(&self, index: usize) -> &str {
        self.networks.name(index)
    }

    /// Returns the positions of the networks that module `id` may run, each once. The list is empty
    /// for the identity. A routed module's entry comes first.
    ///
    /// # Panics
    ///
    /// Panics when `id` is of another family and out of range.
    pub fn networks_of(&self, id: ModuleId) -> Vec<usize> {
        match self.compute(id) {
            None => Vec::new(),
            Some(Compute::Network(index)) => vec![*index],
            Some(Compute::Routed(routed)) => {
                let mut seen = BTreeSet::new();
                routed.networks().copied().filter(|index| seen.insert(*index)).collect()
            }
        }
    }

    /// Returns the size of all weights of module `id` when loaded, in bytes.
    ///
    /// # Panics
    ///
    /// Panics when `id` is of another family and out of range.
    pub fn weight_bytes(&self, id: ModuleId) -> u64 {
        self.networks_of(id).into_iter().map(|index| self.network(index).weight_bytes()).sum()
    }

    /// Returns bytes that identify the computation of module `id`, or `None` if it is the identity.
    ///
    /// # Panics
    ///
    /// Panics when `id` is of another family and out of range.
    pub fn fingerprint(&self, id: ModuleId) -> Option<Vec<u8>> {
        self.named_by(id, Network::fingerprint)
    }

    /// Returns bytes that identify the cost of module `id` in caches, or `None` if it is the
    /// identity. The same network costs less where tokens were merged.
    ///
    /// # Panics
    ///
    /// Panics when `id` is of another family and out of range.
    pub fn cost_key(&self, id: ModuleId) -> Option<Vec<u8>> {
        let mut key = self.named_by(id, Network::cost_key)?;
        let from = &self.graph.spaces()[self.graph.module(id).from.0];
        if let Passed::Merging(every) = from.kind.passed() {
            key.extend(every.to_le_bytes());
        }
        Some(key)
    }

    fn named_by(&self, id: ModuleId, name: fn(&Network) -> Vec<u8>) -> Option<Vec<u8>> {
        match self.compute(id)? {
            Compute::Network(index) => Some(name(self.network(*index))),
            Compute::Routed(routed) => {
                let mut bytes = format!("{:?}", routed.router).into_bytes();
                routed.networks().for_each(|index| bytes.extend(name(self.network(*index))));
                Some(bytes)
            }
        }
    }

    /// Returns the networks that compute the features of each of the manifest's maps, in the
    /// manifest's order.
    ///
    /// Maps from and to a missing optional anchor are left out.
    pub fn feature_networks(&self) -> impl Iterator<Item = (&MapSpec, &Network)> {
        let maps = self.manifest.maps.iter().filter(|map| {
            let has = |name: &str| self.graph.space_named(name).is_some();
            has(&map.from) && has(&map.to)
        });
        maps.zip(&self.features)
    }

    /// Returns the feed-forward parts that the manifest splits among experts.
    pub fn split_parts(&self) -> &[SplitPart] {
        &self.splits
    }

    /// Returns whether a module is a map that was fitted in closed form.
    pub fn is_fitted(&self, id: ModuleId) -> bool {
        let module = self.graph.module(id);
        let name = |space: SpaceId| self.graph.spaces()[space.0].name.as_str();
        let (from, to) = (name(module.from), name(module.to));
        let label = module.variant.as_deref().map(|label| label.trim_end_matches(INT8));
        let label = label.map(|label| label.trim_end_matches('-')).filter(|l| !l.is_empty());
        let is_of =
            |map: &MapSpec| map.from == from && map.to == to && map.label.as_deref() == label;
        self.manifest.maps.iter().any(is_of)
    }

    /// Returns the tokenizer of `anchor`, or `None` if it reads images or only token ids.
    pub fn tokenizer(&self, anchor: &str) -> Option<&Arc<Tokenizer>> {
        self.tokenizers.get(anchor)
    }

    /// Returns the language of a family that generates text.
    pub fn language(&self) -> Option<&Arc<Language>> {
        self.language.as_ref()
    }

    /// Returns the number of token ids that requests may name. It is the size of the tokenizer's
    /// vocabulary, or of the anchor's if it has no tokenizer.
    pub fn vocabulary_size(&self, anchor: &str) -> usize {
        match self.tokenizer(anchor) {
            Some(tokenizer) => tokenizer.vocabulary_size(),
            None => self.words.get(anchor).copied().unwrap_or(usize::MAX),
        }
    }

    /// Returns the names of the prompts that every anchor with a tokenizer has.
    pub fn prompt_names(&self) -> Vec<&str> {
        let mut all = self.tokenizers.values().map(|tokenizer| &tokenizer.prompts().named);
        let first = all.next().into_iter().flat_map(BTreeMap::keys);
        let others: Vec<_> = all.collect();
        let is_common = |name: &&String| others.iter().all(|named| named.contains_key(*name));
        first.filter(is_common).map(String::as_str).collect()
    }

    /// Returns whether two anchors read the same tokens of a text behind the prompt `prompt_name`,
    /// or behind the default for `None`: they share one tokenizer, or both have none, with equal
    /// vocabulary sizes.
    pub fn share_tokenizer(&self, one: &str, other: &str, prompt_name: Option<&str>) -> bool {
        let location = |name| self.manifest.anchors.get(name).map(|anchor| &anchor.tokenizer);
        let prompt = |name| self.tokenizer(name).map(|own| own.prompts().find(prompt_name));
        location(one).is_some()
            && location(one) == location(other)
            && prompt(one) == prompt(other)
            && self.vocabulary_size(one) == self.vocabulary_size(other)
    }
}
