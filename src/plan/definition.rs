//! A plan: what runs for a request.

use std::collections::BTreeMap;

/// Index of a module in its family's graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(pub usize);

/// Sub-network that runs for a request. Requests of equal plans run as one batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Plan {
    /// Modules to run, from the input to the output.
    pub path: Vec<ModuleId>,
    /// Bricks on the modules, such as adapters: the name of each by its kind.
    pub bricks: BTreeMap<String, String>,
    /// Extents of what is computed, such as the number of dimensions, by name.
    pub extents: BTreeMap<String, usize>,
}

/// Bricks and extents from which plans may choose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offers {
    /// Names of the bricks by kind.
    pub bricks: BTreeMap<String, Vec<String>>,
    /// Values of the extents by name.
    pub extents: BTreeMap<String, Vec<usize>>,
}

/// The plan of a path without bricks, at its full extents.
impl From<Vec<ModuleId>> for Plan {
    fn from(path: Vec<ModuleId>) -> Self {
        Self { path, ..Self::default() }
    }
}

impl Plan {
    /// Returns the choices besides the path as `key=value`: bricks by kind, then extents by name.
    pub fn choices(&self) -> impl Iterator<Item = String> {
        let bricks = self.bricks.iter().map(|(kind, name)| format!("{kind}={name}"));
        bricks.chain(self.extents.iter().map(|(name, extent)| format!("{name}={extent}")))
    }

    /// Adds the choice `key=value`, which `offers` must have.
    ///
    /// # Errors
    ///
    /// Fails with a message if the choice is not of this form, is not offered, or stands twice.
    pub fn choose(&mut self, offers: &Offers, choice: &str) -> Result<(), String> {
        let form = || format!("`@{choice}` is not of the form @key=value");
        let (key, value) = choice.split_once('=').ok_or_else(form)?;
        let is_new = if let Some(names) = offers.bricks.get(key) {
            if !names.iter().any(|name| name == value) {
                let known = names.join(", ");
                return Err(format!("`{key}` is `{value}`, but must be one of {known}"));
            }
            self.bricks.insert(key.to_owned(), value.to_owned()).is_none()
        } else if let Some(extents) = offers.extents.get(key) {
            let extent = value.parse().ok().filter(|extent| extents.contains(extent));
            let extent = extent.ok_or_else(|| {
                let known: Vec<String> = extents.iter().map(usize::to_string).collect();
                format!("`{key}` is `{value}`, but must be one of {}", known.join(", "))
            })?;
            self.extents.insert(key.to_owned(), extent).is_none()
        } else {
            let known: Vec<&str> =
                offers.bricks.keys().chain(offers.extents.keys()).map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(format!("`{key}` is not a choice of the family; its choices are {known}"));
        };
        if is_new { Ok(()) } else { Err(format!("`{key}` stands twice")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers() -> Offers {
        let bricks = BTreeMap::from([("lora".into(), vec!["billing".into(), "legal".into()])]);
        Offers { bricks, extents: BTreeMap::from([("dims".into(), vec![64, 128])]) }
    }

    fn chosen(offers: &Offers, choices: &[&str]) -> Result<Plan, String> {
        let mut plan = Plan::from(vec![ModuleId(0)]);
        choices.iter().try_for_each(|choice| plan.choose(offers, choice))?;
        Ok(plan)
    }

    #[test]
    fn plans_differ_by_their_bricks_and_extents() {
        let plans = ["lora=billing", "lora=legal", "dims=128"];
        let plans = plans.map(|choice| chosen(&offers(), &[choice]).expect("offered"));
        assert_ne!(plans[0], plans[1]);
        assert_ne!(plans[0], plans[2]);
        assert_ne!(plans[0], Plan::from(vec![ModuleId(0)]));
    }

    #[test]
    fn choices_are_written_in_one_order() {
        let both = chosen(&offers(), &["dims=128", "lora=billing"]).expect("offered");
        let written: Vec<String> = both.choices().collect();
        assert_eq!(written, ["lora=billing", "dims=128"]);
        assert_eq!(chosen(&offers(), &["lora=billing", "dims=128"]), Ok(both));
    }

    #[test]
    fn what_is_not_offered_is_refused_by_key_and_value() {
        for (choices, reason) in [
            (["lora"].as_slice(), "not of the form"),
            (&["lora=other"], "must be one of billing, legal"),
            (&["dims=100"], "`dims` is `100`, but must be one of 64, 128"),
            (&["dims=-1"], "must be one of 64, 128"),
            (&["steps=4"], "its choices are lora, dims"),
            (&["dims=64", "dims=64"], "stands twice"),
        ] {
            let error = chosen(&offers(), choices).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
        let error = chosen(&Offers::default(), &["lora=billing"]).expect_err("none is offered");
        assert!(error.contains("its choices are none"), "{error}");
    }
}
