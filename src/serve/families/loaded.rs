//! A loaded family with the costs and qualities of its plans.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    assembly::Family,
    family::ModuleId,
    input::Prompts,
    offer::{OfferError, Profile, QualityRecords, plan_table},
    plan::{PlanEntry, PlanTable},
    serve::idle::IdleWork,
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
    /// Measurements to be made while nothing else runs.
    pub(super) idle: Option<Box<dyn IdleWork>>,
    /// Tables of the plans that read the same tokens, by tokenizer and prompts; `None` for images.
    pub(crate) alike: BTreeMap<Option<(PathBuf, Prompts)>, PlanTable>,
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
        let mut groups: BTreeMap<Option<(PathBuf, Prompts)>, Vec<PlanEntry>> = BTreeMap::new();
        for entry in table.entries() {
            let tokenizer = tokenizer_of(&family, &entry.plan.path)
                .map(|(location, prompts)| (location.to_owned(), prompts.clone()));
            groups.entry(tokenizer).or_default().push(entry.clone());
        }
        let group = |(tokenizer, entries)| Ok((tokenizer, PlanTable::new(entries, margin)?));
        let alike = groups.into_iter().map(group).collect::<Result<_, OfferError>>()?;
        Ok(Self { family, profile, quality, table, pinned: Vec::new(), idle: None, alike })
    }

    /// Measures by `work` while nothing else runs.
    #[must_use]
    pub fn with_idle_work(mut self, work: Box<dyn IdleWork>) -> Self {
        self.idle = Some(work);
        self
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

    /// Returns the tokenizer of the texts that `path` reads, and their prompts. Returns `None` for
    /// images.
    pub(crate) fn tokenizer(&self, path: &[ModuleId]) -> Option<(&Path, &Prompts)> {
        tokenizer_of(&self.family, path)
    }
}

fn tokenizer_of<'a>(family: &'a Family, path: &[ModuleId]) -> Option<(&'a Path, &'a Prompts)> {
    let anchor = family.graph.stem_anchor(path).unwrap_or_default();
    let location = family.manifest.anchors.get(anchor)?.tokenizer.as_deref()?;
    Some((location, family.tokenizer(anchor)?.prompts()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        serve::support_tests::{BEST, CHEAP, small},
        tensor::MappedFile,
    };

    /// Returns the names of the modules of `ids`.
    fn names<'a>(loaded: &'a LoadedFamily, ids: &[ModuleId]) -> Vec<&'a str> {
        ids.iter().map(|id| loaded.family.graph.module(*id).name.as_str()).collect()
    }

    #[test]
    fn a_name_pins_an_anchor_or_a_module_or_the_whole_family() {
        let pinned = |name: &str| {
            let loaded = small().pin(&[name]).expect(name);
            let names = names(&loaded, &loaded.pinned);
            names.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(pinned("s.stem"), ["s.stem"]);
        let anchor = pinned("s");
        for module in ["s.stem", "s.block.0.attn", "s.block.5.mlp", "s.head"] {
            assert!(anchor.iter().any(|name| name == module), "{module}: {anchor:?}");
        }
        assert!(anchor.iter().all(|name| name.starts_with("s.")), "no stitch: {anchor:?}");
        let block = pinned("s.block.1");
        assert!(block.iter().all(|name| name.starts_with("s.block.1.")), "{block:?}");
        assert_eq!(pinned("*").len(), small().family.graph.modules().len());
    }

    #[test]
    fn names_add_to_one_another_and_one_that_means_nothing_is_refused() {
        let loaded = small().pin(&["s.stem", "m.head"]).expect("both exist");
        assert_eq!(names(&loaded, &loaded.pinned), ["s.stem", "m.head"]);
        for wrong in ["x", "s.ste", "s.stem.", ""] {
            let error = small().pin(&["s", wrong]).expect_err(wrong);
            assert_eq!(error, format!("`{wrong}` is not an anchor or module of `fashion`"));
        }
    }

    #[test]
    fn modules_are_listed_once_and_those_of_the_best_plan_first() {
        let loaded = small();
        let best = loaded.table.find(BEST).expect("it is offered").plan.path.clone();
        let cheap = loaded.table.find(CHEAP).expect("it is offered").plan.path.clone();
        let modules = loaded.modules();
        assert_eq!(modules[..best.len()], best);
        let mut once = modules.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), modules.len());
        assert!(cheap.iter().all(|id| modules.contains(id)));
    }

    #[test]
    fn plans_for_images_all_read_the_same() {
        let loaded = small();
        assert_eq!(loaded.alike.keys().collect::<Vec<_>>(), [&None]);
        assert_eq!(loaded.alike[&None].entries().len(), loaded.table.entries().len());
        assert_eq!(loaded.tokenizer(&loaded.table.entries()[0].plan.path), None);
    }

    #[test]
    fn plans_of_anchors_with_other_prompts_read_other_tokens() {
        let pool = tempfile::tempdir().expect("a folder");
        let folder = pool.path().join("texts");
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references/sentence/prompt");
        let about = "config_sentence_transformers.json";
        let mut digests = String::new();
        for anchor in ["a", "b", "c"] {
            let to = folder.join(anchor);
            fs::create_dir_all(to.join("1_Pooling")).expect("created");
            let signed = ["config.json", "model.safetensors", "tokenizer.json"];
            for name in signed.iter().chain(&["modules.json", "1_Pooling/config.json", about]) {
                fs::copy(case.join(name), to.join(name)).expect("copied");
            }
            let digest = |name: &str| MappedFile::open(&to.join(name)).expect("mapped").sha256();
            digests
                .extend(signed.map(|name| format!("\"{anchor}/{name}\" = \"{}\"\n", digest(name))));
        }
        fs::write(folder.join("b").join(about), "{}").expect("written");
        let mut manifest =
            "name = \"texts\"\ntask = \"sentence-embedding\"\ndescription = \"A.\"\n\
            license = \"Apache-2.0\"\nreference = \"a\"\nlimits = { max_tokens = 8 }\n\
            output = { name = \"embedding\", width = 24 }\n\
            quality = { metric = \"recall@10\", file = \"quality.json\" }\n"
                .to_owned();
        for anchor in ["a", "b", "c"] {
            manifest += &format!(
                "[anchors.{anchor}]\nfolder = \"{anchor}\"\ntokenizer = \"a/tokenizer.json\"\n\
                 [anchors.{anchor}.sha256]\n{digests}"
            );
        }
        fs::write(folder.join("family.toml"), manifest).expect("written");
        let family = Family::load(&folder).expect("it loads");
        let reads = |stem: &str| {
            let index = family.graph.modules().iter().position(|module| module.name == stem);
            let path = [ModuleId(index.expect("a stem"))];
            let (location, prompts) = tokenizer_of(&family, &path).expect("it reads texts");
            (location.to_owned(), prompts.clone())
        };
        assert_eq!(reads("a.stem"), reads("c.stem"));
        assert_ne!(reads("a.stem"), reads("b.stem"));
        assert!(family.prompt_names().is_empty(), "`b` has none");
    }
}
