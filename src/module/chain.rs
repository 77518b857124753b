//! Chains: networks of a step that run one after another in one session.
//!
//! A session of its own costs a module some 40 µs a step. A small decoder has 60 modules and needs
//! 8 ms for a token.

use super::{
    cache::{
        Cached, KEY_SCALES, PAST_KEYS, PAST_VALUES, PRESENT_KEYS, PRESENT_VALUES, STEP_INPUTS,
        VALUE_SCALES,
    },
    network::{Batching, INPUT_IDS, Network},
};
use crate::onnx::join;

/// Names that each network of a chain has for itself.
const OWN: [&str; 6] =
    [PAST_KEYS, PAST_VALUES, PRESENT_KEYS, PRESENT_VALUES, KEY_SCALES, VALUE_SCALES];

impl Network {
    /// Returns whether a step can run `networks` in one session: they have the precision of their
    /// products and the rotations of positions in common.
    pub(crate) fn is_chain(networks: &[&Self]) -> bool {
        let mut precisions = networks.iter().map(|network| network.precision());
        let first = precisions.next();
        let mut angles = networks.iter().filter_map(|network| network.cached());
        let turned = angles.next().map(|cached| &cached.frequencies);
        precisions.all(|other| Some(other) == first)
            && angles.all(|other| Some(&other.frequencies) == turned)
            && networks.iter().all(|network| network.is_chainable())
    }

    /// Returns the network that runs `networks` one after another. Each reads the first output of
    /// the one before it as its hidden states. The network keeps the caches of all of them, in
    /// their order.
    pub(crate) fn chain(networks: &[&Self]) -> Self {
        if let [only] = networks {
            return (*only).clone();
        }
        let models: Vec<_> = networks.iter().map(|network| network.model().clone()).collect();
        let precision = networks.first().map(|first| first.precision()).unwrap_or_default();
        let chain = Self::new(join(&models, &STEP_INPUTS, &OWN), precision);
        let cached: Vec<_> = networks.iter().filter_map(|network| network.cached()).collect();
        let Some(first) = cached.first() else { return chain };
        chain.with_cache(Cached {
            caches: cached.iter().flat_map(|own| own.caches.iter().copied()).collect(),
            frequencies: first.frequencies.clone(),
        })
    }

    fn is_chainable(&self) -> bool {
        let is_step = self.cached().is_some() || self.given().is_empty();
        let is_whole = self.batching() == Batching::Independent && !self.is_part();
        is_step && is_whole && !self.reads(INPUT_IDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        family::CacheType,
        module::{CacheSpec, Pairs, Port, Precision},
        onnx::{GraphBuilder, proto::data_type},
    };

    const ONE: CacheSpec =
        CacheSpec { num_heads: 1, head_width: 8, cache_type: CacheType::F32, pairs: Pairs::Halves };

    fn mlp(precision: Precision) -> Network {
        let mut graph = GraphBuilder::default();
        let hidden = graph.input("hidden", data_type::FLOAT, &[None, None, Some(4)]);
        let output = graph.node("Relu", &[&hidden], &[]);
        Network::new(graph.finish(&output, "output", &[None, None, Some(4)]), precision)
    }

    fn attention(frequency: f32) -> Network {
        let mut graph = GraphBuilder::default();
        let hidden = graph.input("hidden", data_type::FLOAT, &[None, None, Some(4)]);
        let past = graph.input(PAST_KEYS, data_type::FLOAT, &[None]);
        graph.input(super::super::ROWS, data_type::INT64, &[None]);
        let output = graph.node("Add", &[&hidden, &past], &[]);
        let model = graph.finish(&output, "output", &[None, None, Some(4)]);
        Network::new(model, Precision::F32)
            .with_cache(Cached { caches: vec![ONE], frequencies: vec![frequency] })
    }

    #[test]
    fn a_chain_has_one_precision_and_one_rotation() {
        let (plain, int8) = (mlp(Precision::F32), mlp(Precision::Int8));
        let (one, other) = (attention(1.0), attention(2.0));
        assert!(Network::is_chain(&[&one, &plain, &one]));
        assert!(!Network::is_chain(&[&one, &int8]));
        assert!(!Network::is_chain(&[&one, &plain, &other]));
        assert!(!Network::is_chain(&[&plain.clone().with_batching(Batching::OneByOne), &one]));
        assert!(!Network::is_chain(&[&plain.with_given(&["sum"]), &one]));
    }

    #[test]
    fn a_chain_reads_hidden_states_once_and_each_cache() {
        let (one, plain) = (attention(1.0), mlp(Precision::F32));
        let chain = Network::chain(&[&one, &plain, &one]);
        let ports: Vec<Port> = chain.ports("m").expect("ports").into_iter().map(|p| p.1).collect();
        let rows = Port::Given(super::super::ROWS);
        assert_eq!(ports, [Port::State, Port::Keys(0), rows, Port::Keys(1)]);
        assert_eq!(chain.cached().expect("caches").caches, [ONE, ONE]);
    }
}
