//! A family as it is loaded: what its plans cost and are worth.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    arch::Family,
    family::ModuleId,
    fit::{self, FitError, Profile, QualityRecords},
    plan::{PlanEntry, PlanTable},
};

/// A family with what is known of its costs and qualities.
#[derive(Debug)]
pub struct LoadedFamily {
    /// The family.
    pub family: Arc<Family>,
    /// What its modules cost on this machine.
    pub profile: Profile,
    /// What its plans are worth.
    pub quality: QualityRecords,
    /// Its plans.
    pub table: PlanTable,
    /// What never gives way to other modules.
    pub(super) pinned: Vec<ModuleId>,
    /// The plans that read the same tokens, by tokenizer; images have none.
    pub(super) alike: BTreeMap<Option<PathBuf>, PlanTable>,
}

impl LoadedFamily {
    /// Computes the plans of `family`; what is predicted is made larger by `margin`.
    ///
    /// # Errors
    ///
    /// Fails when the plans cannot be computed, or none is good enough to be offered.
    pub fn new(
        family: Arc<Family>,
        profile: Profile,
        quality: QualityRecords,
        margin: f64,
    ) -> Result<Self, FitError> {
        let table = fit::plan_table(&family, &profile, &quality, margin)?;
        let mut groups: BTreeMap<Option<PathBuf>, Vec<PlanEntry>> = BTreeMap::new();
        for entry in table.entries() {
            let path: Vec<ModuleId> = entry.modules.iter().copied().map(ModuleId).collect();
            let tokenizer = tokenizer_of(&family, &path).map(Path::to_owned);
            groups.entry(tokenizer).or_default().push(entry.clone());
        }
        let group = |(tokenizer, entries)| Ok((tokenizer, PlanTable::new(entries, margin)?));
        let alike = groups.into_iter().map(group).collect::<Result<_, FitError>>()?;
        Ok(Self { family, profile, quality, table, pinned: Vec::new(), alike })
    }

    /// Keeps modules in memory, also under a memory limit: those of an anchor, one by its name, or
    /// with `*` all of the family.
    ///
    /// # Errors
    ///
    /// Fails with the name of what the family does not have.
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
                return Err(format!("`{name}` is no anchor or module of `{family}`"));
            }
            self.pinned.extend(meant);
        }
        Ok(self)
    }

    /// Returns the modules that its plans use, those of the best plan first.
    pub(super) fn modules(&self) -> Vec<ModuleId> {
        let mut seen = std::collections::HashSet::new();
        let entries = self.table.entries().iter();
        let modules = entries.flat_map(|entry| entry.modules.iter().copied());
        modules.filter(|index| seen.insert(*index)).map(ModuleId).collect()
    }

    /// Returns what turns texts into the tokens that `path` reads; images have none.
    pub(super) fn tokenizer(&self, path: &[ModuleId]) -> Option<&Path> {
        tokenizer_of(&self.family, path)
    }
}

fn tokenizer_of<'a>(family: &'a Family, path: &[ModuleId]) -> Option<&'a Path> {
    let anchor = family.graph.stem_anchor(path).unwrap_or_default();
    family.manifest.anchors.get(anchor)?.tokenizer.as_deref()
}
