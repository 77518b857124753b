//! A loaded family with the costs and qualities of its plans.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    assembly::Family,
    family::ModuleId,
    offer::{OfferError, Profile, QualityRecords, plan_table},
    plan::{PlanEntry, PlanTable},
};

/// A family with its known costs and qualities.
#[derive(Debug)]
pub struct LoadedFamily {
    /// Modules and manifest of the family.
    pub family: Arc<Family>,
    /// Costs of the modules on this machine.
    pub profile: Profile,
    /// Qualities of the plans.
    pub quality: QualityRecords,
    /// Table of the plans.
    pub table: PlanTable,
    /// Modules that are never evicted.
    pub(super) pinned: Vec<ModuleId>,
    /// Tables of the plans that read the same tokens, by tokenizer; images have no tokenizer.
    pub(crate) alike: BTreeMap<Option<PathBuf>, PlanTable>,
}

impl LoadedFamily {
    /// Computes the plans of `family`; predictions are enlarged by `margin`.
    ///
    /// # Errors
    ///
    /// Fails when the plans cannot be computed, or no plan is good enough to be offered.
    pub fn new(
        family: Arc<Family>,
        profile: Profile,
        quality: QualityRecords,
        margin: f64,
    ) -> Result<Self, OfferError> {
        let table = plan_table(&family, &profile, &quality, margin)?;
        let mut groups: BTreeMap<Option<PathBuf>, Vec<PlanEntry>> = BTreeMap::new();
        for entry in table.entries() {
            let tokenizer = tokenizer_of(&family, &entry.plan.path).map(Path::to_owned);
            groups.entry(tokenizer).or_default().push(entry.clone());
        }
        let group = |(tokenizer, entries)| Ok((tokenizer, PlanTable::new(entries, margin)?));
        let alike = groups.into_iter().map(group).collect::<Result<_, OfferError>>()?;
        Ok(Self { family, profile, quality, table, pinned: Vec::new(), alike })
    }

    /// Keeps modules in memory, even under a memory limit. A name is that of an anchor or of one
    /// module, or `*` for the whole family.
    ///
    /// # Errors
    ///
    /// Fails with a message about the first name that the family does not have.
    pub fn pin(mut self, names: &[&str]) -> Result<Self, String> {
        for name in names {
            let is_meant = |module: &str| {
                let rest = module.strip_prefix(name);
                *name == "*" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let modules = self.family.graph.modules().iter().enumerate();
            let meant: Vec<ModuleId> = modules
                .filter(|(_, module)| is_meant(&module.name))
                .map(|(index, _)| ModuleId(index))
                .collect();
            if meant.is_empty() {
                let family = &self.family.manifest.name;
                return Err(format!("`{name}` is not an anchor or module of `{family}`"));
            }
            self.pinned.extend(meant);
        }
        Ok(self)
    }

    /// Returns the modules that the plans use, those of the best plan first.
    pub(super) fn modules(&self) -> Vec<ModuleId> {
        let mut seen = std::collections::HashSet::new();
        let entries = self.table.entries().iter();
        let modules = entries.flat_map(|entry| entry.plan.path.iter().copied());
        modules.filter(|id| seen.insert(*id)).collect()
    }

    /// Returns the tokenizer of the texts that `path` reads, or `None` for images.
    pub(crate) fn tokenizer(&self, path: &[ModuleId]) -> Option<&Path> {
        tokenizer_of(&self.family, path)
    }
}

fn tokenizer_of<'a>(family: &'a Family, path: &[ModuleId]) -> Option<&'a Path> {
    let anchor = family.graph.stem_anchor(path).unwrap_or_default();
    family.manifest.anchors.get(anchor)?.tokenizer.as_deref()
}
