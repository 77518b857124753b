//! Setup that the commands share: the machine, families and profiles.

use std::sync::Arc;

use super::{args::Common, progress::Bars};
use crate::{
    app::{AppError, Machine, MachineConfig, Measured, Profiles, default_memory_limit},
    assembly::Family,
    offer::{Profile, ShippedProfile},
    tensor::ByteSize,
};

/// Returns the settings of the runtime that `common` names.
pub(super) fn machine_config(common: &Common) -> MachineConfig {
    MachineConfig {
        library: common.onnxruntime.clone(),
        num_threads: common.threads,
        spin: !common.no_spin,
        memory_limit: memory_limit(common.memory_limit),
        cache: common.cache.clone(),
    }
}

/// Returns the memory in bytes that the process may hold, or `None` for no limit: what the option
/// says, or else what the control group leaves.
fn memory_limit(option: Option<ByteSize>) -> Option<u64> {
    match option {
        Some(ByteSize(0)) => None,
        Some(ByteSize(bytes)) => Some(bytes),
        None => {
            let limit = default_memory_limit()?;
            tracing::info!(bytes = limit, "the memory limit is that of the control group");
            Some(limit)
        }
    }
}

/// Starts the runtime with the options in `common`.
pub(super) fn machine(common: &Common) -> Result<Machine, AppError> {
    Machine::start(machine_config(common))
}

/// Returns the profile of `family`; measures the modules that the machine's cache lacks.
pub(super) fn profile(machine: &Machine, family: &Arc<Family>) -> Result<Profile, AppError> {
    let progress = Bars::default();
    Profiles { machine, progress: &progress }.of(family)
}

/// Returns the profile of `family`; measures all of its modules if `again` is true.
pub(super) fn profile_again(
    machine: &Machine,
    family: &Arc<Family>,
    again: bool,
) -> Result<Measured, AppError> {
    let progress = Bars::default();
    Profiles { machine, progress: &progress }.measured(family, again)
}

/// Returns the costs of `family` on this machine, to be shipped to others.
pub(super) fn shipped(machine: &Machine, family: &Family) -> Result<ShippedProfile, AppError> {
    Profiles { machine, progress: &Bars::default() }.shipped(family)
}
