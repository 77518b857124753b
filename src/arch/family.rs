//! A family as loaded: its manifest, its graph and the network of every module.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{ArchError, Network, Stamps, Tokenizer, builder::FamilyBuilder};
use crate::family::{FamilyGraph, MANIFEST_FILE, Manifest, MapSpec, ModuleId, SpaceId};

/// A family ready to be run: what each module computes, and how they join.
#[derive(Debug)]
pub struct Family {
    /// The manifest.
    pub manifest: Manifest,
    /// Where the family's files lie.
    pub folder: PathBuf,
    /// The graph.
    pub graph: FamilyGraph,
    networks: Vec<Network>,
    /// Which of `networks` each module runs; `None` for the identity.
    of_module: Vec<Option<usize>>,
    features: Vec<Network>,
    tokenizers: BTreeMap<String, Arc<Tokenizer>>,
    stamps: Stamps,
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
        // Before anything is read: what changes from here on is noticed when it is needed.
        let stamps = Stamps::take(folder)
            .map_err(|source| ArchError::Unreadable { path: folder.to_owned(), source })?;
        let manifest = Manifest::read(folder)?;
        let parts = FamilyBuilder::build(folder, &manifest)?;
        let graph = FamilyGraph::new(parts.anchors, parts.spaces, parts.modules)
            .map_err(|source| ArchError::Graph { path: folder.join(MANIFEST_FILE), source })?;
        let (networks, of_module) = share(parts.networks);
        Ok(Self {
            folder: folder.to_owned(),
            graph,
            networks,
            of_module,
            features: parts.features,
            tokenizers: parts.tokenizers,
            manifest,
            stamps,
        })
    }

    /// Returns what the files of the family's folder were when it was loaded.
    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// Returns a file with weights of `network` that is not the one that was loaded any more.
    pub fn changed_file(&self, network: &Network) -> Option<PathBuf> {
        let files: BTreeSet<String> = network.files().collect();
        let mut paths = files.into_iter().map(|file| self.folder.join(file));
        paths.find(|path| !self.stamps.is_unchanged(path))
    }

    /// Returns what module `id` computes, or `None` where it is the identity.
    ///
    /// # Panics
    ///
    /// Panics when `id` is of another family and out of range.
    pub fn network(&self, id: ModuleId) -> Option<&Network> {
        self.network_index(id).map(|index| &self.networks[index])
    }

    /// Returns the position of what module `id` computes among the family's networks; modules that
    /// compute the same share one.
    ///
    /// # Panics
    ///
    /// Panics when `id` is of another family and out of range.
    pub fn network_index(&self, id: ModuleId) -> Option<usize> {
        self.of_module[id.0]
    }

    /// Returns the number of networks that differ.
    pub fn num_networks(&self) -> usize {
        self.networks.len()
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

    /// Tells whether a module is a map that was fitted in closed form.
    pub fn is_fitted(&self, id: ModuleId) -> bool {
        let module = self.graph.module(id);
        let name = |space: SpaceId| self.graph.spaces()[space.0].name.as_str();
        let (from, to) = (name(module.from), name(module.to));
        let label = module.variant.as_deref().map(|label| label.trim_end_matches("int8"));
        let label = label.map(|label| label.trim_end_matches('-')).filter(|l| !l.is_empty());
        let is_of =
            |map: &MapSpec| map.from == from && map.to == to && map.label.as_deref() == label;
        self.manifest.maps.iter().any(is_of)
    }

    /// Returns the tokenizer of `anchor`; `None` where the family reads images.
    pub fn tokenizer(&self, anchor: &str) -> Option<&Arc<Tokenizer>> {
        self.tokenizers.get(anchor)
    }

    /// Tells whether two anchors share one tokenizer, or need none.
    pub fn share_tokenizer(&self, one: &str, other: &str) -> bool {
        let location = |name| self.manifest.anchors.get(name).map(|anchor| &anchor.tokenizer);
        location(one).is_some() && location(one) == location(other)
    }
}

/// Keeps one of networks that are the same, such as the head that may follow any block.
fn share(networks: Vec<Option<Network>>) -> (Vec<Network>, Vec<Option<usize>>) {
    let mut known = BTreeMap::new();
    let mut kept = Vec::new();
    let of_module = networks.into_iter().map(|network| {
        let network = network?;
        Some(*known.entry(network.fingerprint()).or_insert_with(|| {
            kept.push(network);
            kept.len() - 1
        }))
    });
    let of_module = of_module.collect();
    (kept, of_module)
}
