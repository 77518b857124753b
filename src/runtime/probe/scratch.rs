//! Networks beside the modules of a family, which fitting runs.

use std::collections::{HashMap, hash_map::Entry};

use crate::{
    module::Network,
    runtime::{
        Activation, Executor, RuntimeError, SideInputs,
        residents::ledger::Need,
        session::{ModuleSession, first},
    },
    tensor::Tensor,
};

/// Sessions of networks that are not modules of the executor's family. They are released with it,
/// or when a memory limit leaves no room.
#[derive(Debug)]
pub struct Scratch<'e> {
    executor: &'e Executor,
    /// Sessions by name and by the network's fingerprint.
    sessions: HashMap<(String, Vec<u8>), ModuleSession>,
}

impl<'e> Scratch<'e> {
    /// Creates a scratch without sessions, beside `executor`.
    pub fn new(executor: &'e Executor) -> Self {
        Self { executor, sessions: HashMap::new() }
    }

    /// Returns the executor of the family's own modules.
    pub fn executor(&self) -> &'e Executor {
        self.executor
    }

    /// Runs `network` once. Its session is kept under `name` and the network's fingerprint.
    ///
    /// # Errors
    ///
    /// Fails when the network cannot be loaded or fails.
    pub fn run(
        &mut self,
        name: &str,
        network: &Network,
        state: Option<&Activation>,
        sides: &SideInputs,
    ) -> Result<Tensor, RuntimeError> {
        let (runtime, family) = (self.executor.runtime(), self.executor.family());
        if !runtime.residents().has_room(Need::default()) {
            self.sessions.clear();
        }
        let key = (name.to_owned(), network.fingerprint());
        let session = match self.sessions.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let environment = runtime.environment();
                place.insert(ModuleSession::load(environment, &family.folder, name, network)?)
            }
        };
        let outputs = session.run(&[], state.map(Activation::value), sides)?;
        Activation::new(first(outputs)?).to_tensor()
    }
}
