//! Distinct networks of a family.

use std::collections::BTreeMap;

use crate::module::{Body, Compute, ModuleError, Network, Port};

/// Distinct networks of a family. Equal networks are kept once, such as the head that may follow
/// any block.
#[derive(Debug, Default)]
pub(super) struct Networks {
    /// Networks, each with its name in errors and logs.
    kept: Vec<(Network, String)>,
    known: BTreeMap<Vec<u8>, usize>,
}

impl Networks {
    /// Keeps the networks of the module `name` that are not yet known. Checks that each of their
    /// inputs has a source; a module that `starts` a path reads no hidden states.
    pub(super) fn keep(
        &mut self,
        name: &str,
        starts: bool,
        body: Body,
    ) -> Result<Compute, ModuleError> {
        match body {
            Body::Network(network) => {
                check_ports(name, starts, &network)?;
                Ok(Compute::Network(self.position(*network, || name.to_owned())))
            }
            Body::Routed(routed) => {
                let routed = routed.with_ports();
                routed.networks().try_for_each(|network| check_ports(name, false, network))?;
                let keep = |network, role: &str, index| {
                    self.position(network, || format!("{name}.{role}.{index}"))
                };
                Ok(Compute::Routed(Box::new(routed.map(keep))))
            }
        }
    }

    /// Keeps the network `name` of a step, and returns its position. Checks that each of its inputs
    /// has a source.
    pub(super) fn keep_network(
        &mut self,
        name: &str,
        network: Network,
    ) -> Result<usize, ModuleError> {
        check_ports(name, false, &network)?;
        Ok(self.position(network, || name.to_owned()))
    }

    /// Returns the number of networks.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Returns the name of the network at the position `index`.
    pub(super) fn name(&self, index: usize) -> &str {
        &self.kept[index].1
    }

    /// Returns the network at the position `index`.
    pub(super) fn network(&self, index: usize) -> &Network {
        &self.kept[index].0
    }

    fn position(&mut self, network: Network, name: impl FnOnce() -> String) -> usize {
        let Self { kept, known } = self;
        *known.entry(network.fingerprint()).or_insert_with(|| {
            kept.push((network, name()));
            kept.len() - 1
        })
    }
}

/// Checks that each input of a network of the module `module` has a source.
fn check_ports(module: &str, starts: bool, network: &Network) -> Result<(), ModuleError> {
    let ports = network.ports(module)?;
    match ports.into_iter().find(|(_, port)| starts && *port == Port::State) {
        Some((input, _)) => Err(ModuleError::NoState { module: module.to_owned(), input }),
        None => Ok(()),
    }
}
