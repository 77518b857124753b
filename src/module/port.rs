//! Ports: the inputs of a network, and the source of each.

use std::collections::HashSet;

use super::{
    ModuleError,
    cache::{KEY_SCALES, PAST_KEYS, PAST_VALUES, VALUE_SCALES},
    network::{ATTENTION_MASK, INPUT_IDS, Network, PIXEL_VALUES, TOKEN_SIZES},
};

/// Inputs that a request brings.
const INPUTS: [&str; 3] = [INPUT_IDS, ATTENTION_MASK, PIXEL_VALUES];

/// Source of a network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Hidden states that the module reads.
    State,
    /// Input of the request.
    Input(&'static str),
    /// Value that a routed module, a step or a merging of tokens hands to the network.
    Given(&'static str),
    /// Keys before the step in one of the network's caches, by its index.
    Keys(usize),
    /// Values before the step in one of the network's caches, by its index.
    Values(usize),
    /// Scales of the keys in one of the network's caches, by its index.
    KeyScales(usize),
    /// Scales of the values in one of the network's caches, by its index.
    ValueScales(usize),
}

impl Network {
    /// Returns the network's inputs in their order, each with its source. Errors name it `module`.
    ///
    /// # Errors
    ///
    /// Fails when two inputs have no source but the hidden states.
    pub fn ports(&self, module: &str) -> Result<Vec<(String, Port)>, ModuleError> {
        let mut state: Option<&str> = None;
        let mut ports = Vec::new();
        let mut caches = CachePorts::default();
        let graph = self.model().graph.iter();
        let weights: HashSet<&str> =
            graph.clone().flat_map(|g| &g.initializer).map(|weight| weight.name.as_str()).collect();
        // Old exports declare weights as inputs too.
        let inputs = graph.flat_map(|graph| &graph.input).map(|input| input.name.as_str());
        for name in inputs.filter(|name| !weights.contains(name)) {
            let known =
                |names: &[&'static str]| names.iter().find(|known| **known == name).copied();
            let given = known(self.given()).or(known(&[TOKEN_SIZES])).map(Port::Given);
            let cache = self.cached().and_then(|_| caches.next(name));
            let input = known(&INPUTS).map(Port::Input);
            let port = given.or(cache).or(input).unwrap_or(Port::State);
            if port == Port::State
                && let Some(first) = state.replace(name)
            {
                let (module, first, second) = (module.into(), first.into(), name.into());
                return Err(ModuleError::TwoStates { module, first, second });
            }
            ports.push((name.to_owned(), port));
        }
        Ok(ports)
    }
}

/// Counter of the caches of a network, whose inputs stand in the order of its modules.
#[derive(Default)]
struct CachePorts {
    num_keys: usize,
    num_values: usize,
    num_key_scales: usize,
    num_value_scales: usize,
}

impl CachePorts {
    /// Returns the port of the input `name` if it is a cache.
    fn next(&mut self, name: &str) -> Option<Port> {
        // In a chain, the position of the module stands before the name.
        let next = |count: &mut usize| std::mem::replace(count, *count + 1);
        match name.rsplit('/').next() {
            Some(PAST_KEYS) => Some(Port::Keys(next(&mut self.num_keys))),
            Some(PAST_VALUES) => Some(Port::Values(next(&mut self.num_values))),
            Some(KEY_SCALES) => Some(Port::KeyScales(next(&mut self.num_key_scales))),
            Some(VALUE_SCALES) => Some(Port::ValueScales(next(&mut self.num_value_scales))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        module::{Precision, REST, SUM},
        onnx::proto::{GraphProto, ModelProto, ValueInfoProto, data_type},
    };

    fn network(inputs: &[&str]) -> Network {
        let input = inputs.iter().map(|name| ValueInfoProto::tensor(name, data_type::FLOAT, &[]));
        let graph = GraphProto { input: input.collect(), ..GraphProto::default() };
        let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        Network::new(model, Precision::F32)
    }

    #[test]
    fn every_input_has_one_source() {
        let ports = network(&["block.3", ATTENTION_MASK]).ports("m").expect("known");
        let mask = (ATTENTION_MASK.to_owned(), Port::Input(ATTENTION_MASK));
        assert_eq!(ports, [("block.3".to_owned(), Port::State), mask]);
        let exit = network(&[SUM, REST]).with_given(&[SUM, REST]).ports("m").expect("known");
        assert!(exit.iter().all(|(_, port)| matches!(port, Port::Given(_))), "{exit:?}");
    }

    #[test]
    fn two_inputs_without_a_source_are_refused() {
        for inputs in [["hidden", "token_type_ids"], [SUM, REST]] {
            let error = network(&inputs).ports("m").expect_err("two states").to_string();
            assert!(inputs.iter().all(|input| error.contains(input)), "{error}");
        }
    }
}
