//! Adding a family's fitted maps to its graph.

use std::path::Path;

use super::builder::{FamilyBuilder, known_spaces};
use crate::{
    arch::{ArchError, Expansion, MapParts, joint::fitted},
    family::{MapForm, MapSpec, ModuleKind, Space, SpaceId, SpaceKind, fit_file_name},
    module::Precision,
    pool::Checkpoint,
};

impl FamilyBuilder<'_> {
    /// Adds the fitted maps.
    pub(super) fn add_maps(&mut self) -> Result<(), ArchError> {
        for map in &self.manifest.maps {
            if self.leads_to_missing_anchor(map) {
                continue;
            }
            let (from, to) = (self.space(map, &map.from)?, self.space(map, &map.to)?);
            let kind = map_kind(map, self.spaces[from.0].kind, self.spaces[to.0].kind)?;
            let shapes = [from, to].map(|space| self.spaces[space.0].shape());
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
            SpaceKind::Hidden { anchor, depth, position, .. } if position > 0 => {
                let dense = self.opened[anchor].dense(depth)?;
                // A map reads the block's own input, before any norm.
                Ok(dense.filter(|dense| !dense.is_pre_norm).map(|dense| dense.expansion))
            }
            _ => Ok(None),
        }
    }

    fn leads_to_missing_anchor(&self, map: &MapSpec) -> bool {
        [&map.from, &map.to].iter().any(|space| {
            let anchor = space.split('.').next().unwrap_or_default();
            self.manifest.anchors.get(anchor).is_some_and(|spec| spec.optional)
                && !self.anchors.iter().any(|known| known == anchor)
        })
    }

    fn space(&self, map: &MapSpec, name: &str) -> Result<SpaceId, ArchError> {
        // What is fitted reads a row for each token.
        let is_it = |space: &Space| {
            let is_merged = space.kind.passed().is_merging();
            space.name == name && name != "in" && !is_merged
        };
        let found = self.spaces.iter().position(is_it);
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
        (Hidden { position: 0, .. }, Output) if pooled => Ok(ModuleKind::Exit),
        (Hidden { anchor: a, .. }, Hidden { anchor: b, position: 0, .. }) if !pooled => {
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
