//! A decoder with random weights.

use std::collections::BTreeMap;

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use tessera::{
    input::Encoding,
    plan::Plan,
    runtime::{Executor, SideInputs},
};

use super::language::Model;

/// Returns a decoder of two blocks in Llama's layout, with random weights and 64 token ids.
pub(crate) fn llama() -> Model {
    llama_of(64)
}

/// Returns a decoder of two blocks in Llama's layout, with random weights and `num_words` token
/// ids.
pub(crate) fn llama_of(num_words: usize) -> Model {
    llama_with(num_words, Heads { num: 4, num_shared: 2, width: 8 })
}

/// Heads of a decoder's attention.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) num: usize,
    pub(crate) num_shared: usize,
    pub(crate) width: usize,
}

/// Returns a decoder of two blocks in Llama's layout, with random weights, `num_words` token ids
/// and these heads.
pub(crate) fn llama_with(num_words: usize, heads: Heads) -> Model {
    let config = json!({
        "model_type": "llama", "vocab_size": num_words, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": heads.num,
        "num_key_value_heads": heads.num_shared, "head_dim": heads.width,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    });
    let (width, shared_width) = (heads.num * heads.width, heads.num_shared * heads.width);
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    shapes.insert("model.embed_tokens.weight".into(), vec![num_words, 32]);
    shapes.insert("lm_head.weight".into(), vec![num_words, 32]);
    shapes.insert("model.norm.weight".into(), vec![32]);
    for block in 0..2 {
        let layer = format!("model.layers.{block}");
        for (name, shape) in [
            ("input_layernorm", vec![32]),
            ("post_attention_layernorm", vec![32]),
            ("self_attn.q_proj", vec![width, 32]),
            ("self_attn.k_proj", vec![shared_width, 32]),
            ("self_attn.v_proj", vec![shared_width, 32]),
            ("self_attn.o_proj", vec![32, width]),
            ("mlp.gate_proj", vec![48, 32]),
            ("mlp.up_proj", vec![48, 32]),
            ("mlp.down_proj", vec![32, 48]),
        ] {
            shapes.insert(format!("{layer}.{name}.weight"), shape);
        }
    }
    let mut random = Random(7);
    let stored: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let num: usize = shape.iter().product();
            let values = (0..num).flat_map(|_| random.next().to_le_bytes()).collect();
            (name, shape, values)
        })
        .collect();
    let views = stored.iter().map(|(name, shape, values)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), values).expect("a tensor"))
    });
    let weights = safetensors::serialize(views, None).expect("serialized");
    Model::of_files([
        ("config.json".to_owned(), config.to_string().into_bytes()),
        ("model.safetensors".to_owned(), weights),
    ])
}

/// Numbers between -0.5 and 0.5 (a linear congruential generator).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Returns the next number.
    pub(crate) fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    }

    /// Returns token ids below 63.
    pub(crate) fn tokens(&mut self, num: usize) -> Vec<i64> {
        (0..num).map(|_| ((self.next() + 0.5) * 63.0) as i64).collect()
    }
}

/// Returns the logits of each token, with the whole sequence at once.
pub(crate) fn at_once(executor: &Executor, plan: &Plan, tokens: &[i64]) -> Vec<Vec<f32>> {
    let encoding = Encoding {
        batch: 1,
        tokens: tokens.len(),
        input_ids: tokens.to_vec(),
        attention_mask: vec![1; tokens.len()],
    };
    let sides = SideInputs::of_encoding(encoding).expect("tokens");
    let outputs = executor.run(plan, &sides, &mut ()).unwrap_or_else(|e| panic!("{e}"));
    rows(outputs[0].as_f32().expect("f32"), tokens.len())
}

/// Returns `num` rows of equal length.
pub(crate) fn rows(values: &[f32], num: usize) -> Vec<Vec<f32>> {
    values.chunks_exact(values.len() / num).map(<[f32]>::to_vec).collect()
}
