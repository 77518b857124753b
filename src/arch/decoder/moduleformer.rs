//! ModuleFormer's checkpoints (`model_type = "moduleformer"`; Shen et al. 2023; MoLM's releases):
//! experts of feed-forward parts and of attention.
//!
//! A block computes `x + attention(norm(x))`, then `x + experts(norm(x))`, with layer norms. Each
//! attention expert has its own queries and output projection. All share keys and values, so that a
//! cache of them would not depend on the experts of a token. There are no positions: attention
//! breaks a stick from each token back (section 3.2).

use serde::Deserialize;

use super::{
    HEAD,
    attention::{num_tokens, permuted, reshaped, reshaped_to, seen},
    check_tied,
    config::inverse_root,
    embedded, finish_head, scaled, token_scores,
};
use crate::{
    arch::{
        backbone::{Backbone, Form},
        error::ArchError,
        keys::{ConfigFile, Keys, TRANSFORMERS},
        layout::{Axes, Layout, PartId, PartSpec, Reads},
        ops::{extent, float_weight, linear, token_input, with_hidden},
    },
    family::{Fault, ModuleKind, SpaceSpec},
    module::{
        Body, INPUT_IDS, KEYS, Network, Order, Precision, QUERIES, Routed, Router, SCORES, TOKENS,
        VALUES, Ways,
    },
    onnx::{
        Attribute, GraphBuilder,
        proto::{TensorProto, data_type},
    },
    pool::{Checkpoint, PoolError},
    tensor::signed,
};

/// Name of the table of embeddings.
const EMBEDDINGS: &str = "transformer.wte.weight";

/// Epsilon of the layer norms. The original code ignores the configuration's value.
const EPSILON: f32 = 1e-5;

/// ModuleFormer whose weights lie in a checkpoint.
#[derive(Debug)]
pub(crate) struct ModuleFormer {
    config: Config,
    checkpoint: Checkpoint,
    layout: Layout,
}

/// Keys of `config.json` that affect the network.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    vocab_size: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    att_hidden: usize,
    ffd_hidden: usize,
    gating_size: usize,
    n_att_experts: usize,
    k_att: usize,
    n_mlp_experts: usize,
    k_mlp: usize,
    block_size: Option<usize>,
    history_length: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// Experts of one sub-layer: the prefix of their tensors' names, and their sizes.
#[derive(Debug)]
struct Bank {
    name: String,
    count: usize,
    top_k: usize,
    inner: usize,
}

/// Keys of `config.json` beside those of every configuration.
const CONFIG_KEYS: Keys = Keys {
    honoured: &[
        "att_hidden",
        "block_size",
        "ffd_hidden",
        "gating_size",
        "history_length",
        "k_att",
        "k_mlp",
        "n_att_experts",
        "n_embd",
        "n_head",
        "n_layer",
        "n_mlp_experts",
        "tie_word_embeddings",
        "vocab_size",
    ],
    only: &[("activation_function", &["\"gelu_new\""]), ("gate_type", &["\"mlp\""])],
    ignored: &[
        ("the original code has an epsilon of its own", &["layer_norm_epsilon"]),
        (
            "they are about training",
            &[
                "attn_pdrop",
                "embd_pdrop",
                "moe_pdrop",
                "resid_pdrop",
                "sample_topk",
                "aux_loss_type",
                "aux_loss_weight",
            ],
        ),
    ],
};

/// Reads the configuration `file`, and finds the tensors in `checkpoint`.
///
/// # Errors
///
/// Fails on a configuration that is not supported.
pub(crate) fn open(
    file: ConfigFile<'_>,
    checkpoint: Checkpoint,
) -> Result<ModuleFormer, ArchError> {
    let config: Config = file.read(&[TRANSFORMERS, CONFIG_KEYS])?;
    if let Some(fault) = config.fault() {
        return Err(file.refuse(fault));
    }
    if config.tie_word_embeddings {
        check_tied(file, &checkpoint, EMBEDDINGS)?;
    }
    let layout = config.layout();
    Ok(ModuleFormer { config, checkpoint, layout })
}

impl Config {
    /// Returns the first fault, or `None` if there is none.
    fn fault(&self) -> Option<Fault> {
        let takes =
            [("k_att", self.k_att, self.n_att_experts), ("k_mlp", self.k_mlp, self.n_mlp_experts)];
        for (key, top_k, count) in takes {
            if !(1..=count).contains(&top_k) {
                let expected = format!("it must be 1 to the number of experts, {count}");
                return Some(Fault::new(key, top_k, expected));
            }
        }
        let heads = self.n_head;
        if heads == 0 || self.att_hidden == 0 || !self.att_hidden.is_multiple_of(heads) {
            return Some(Fault::new("n_head", heads, "it must divide att_hidden"));
        }
        if !(1..=1_000).contains(&self.n_layer) {
            return Some(Fault::new("n_layer", self.n_layer, "1 to 1000 is supported"));
        }
        None
    }
}

impl Backbone for ModuleFormer {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn build(&self, part: PartId, form: &Form<'_>) -> Result<Body, ArchError> {
        let PartSpec { kind, block, .. } = self.layout.part(part);
        let block = block.unwrap_or_default();
        let routed = match kind {
            ModuleKind::Stem => return self.stem().map(Body::from),
            ModuleKind::Head => return self.head(form.has_norm).map(Body::from),
            ModuleKind::Attention => self.attention(block, form),
            _ => self.experts(block, form),
        };
        routed.map(|routed| Body::Routed(Box::new(routed)))
    }
}

impl Config {
    fn layout(&self) -> Layout {
        let history = self.history_length.unwrap_or(0);
        let reads = Reads::Tokens {
            num_words: Some(self.vocab_size),
            max_tokens: self.block_size.map(|block| block.saturating_add(history)),
        };
        let hidden = SpaceSpec::of_extents(&[None, Some(self.n_embd)]);
        let part =
            |kind, num_experts| (kind, Axes { num_experts: Some(num_experts), ..Axes::default() });
        let blocks = (0..self.n_layer).map(|_| {
            vec![
                part(ModuleKind::Attention, self.n_att_experts),
                part(ModuleKind::Mlp, self.n_mlp_experts),
            ]
        });
        Layout::uniform(reads, &hidden, token_scores(self.vocab_size, self.n_embd), blocks)
    }
}

impl ModuleFormer {
    fn stem(&self) -> Result<Network, ArchError> {
        let mut graph = GraphBuilder::default();
        let ids = token_input(&mut graph, INPUT_IDS);
        let words = embedded(&mut graph, &ids, self.embeddings()?);
        let shape = [None, None, extent(self.config.n_embd)];
        Ok(Network::new(graph.finish(&words, "output", &shape), Precision::F32))
    }

    fn head(&self, has_norm: bool) -> Result<Network, ArchError> {
        let Config { vocab_size, n_embd, tie_word_embeddings, .. } = self.config;
        let (mut graph, hidden) = with_hidden(n_embd);
        let states = match has_norm {
            true => self.norm(&mut graph, &hidden, "transformer.ln_f")?,
            false => hidden,
        };
        let matrix = match tie_word_embeddings {
            true => self.embeddings()?,
            false => self.checkpoint.weight(HEAD, &[vocab_size, n_embd])?,
        };
        let logits = linear(&mut graph, &states, matrix);
        let model = finish_head(graph, [&logits, &states], [vocab_size, n_embd]);
        Ok(Network::new(model, Precision::F32))
    }

    fn embeddings(&self) -> Result<TensorProto, PoolError> {
        let Config { vocab_size, n_embd, .. } = self.config;
        self.checkpoint.weight(EMBEDDINGS, &[vocab_size, n_embd])
    }

    /// Builds the feed-forward experts of block `index` with their norm and residual.
    fn experts(&self, index: usize, form: &Form<'_>) -> Result<Routed, ArchError> {
        let block = format!("transformer.h.{index}");
        let bank = Bank {
            name: format!("{block}.mlpf"),
            count: self.config.n_mlp_experts,
            top_k: self.config.k_mlp,
            inner: self.config.ffd_hidden,
        };
        let (mut graph, hidden) = with_hidden(self.config.n_embd);
        let normed = self.norm(&mut graph, &hidden, &format!("{block}.ln_2"))?;
        let entry = self.finish_entry(graph, &normed, &bank)?;
        let expert = |number| {
            let (mut graph, rows) = with_rows(self.config.n_embd);
            let matrix = self.input_matrix(&bank, number)?;
            let inner = product(&mut graph, &rows, matrix);
            let inner = graph.fused("FastGelu", &[&inner], &[]);
            let made = product(&mut graph, &inner, self.output_matrix(&bank, number)?);
            Ok(finish_rows(graph, &made, self.config.n_embd, form.precision))
        };
        let experts = (0..bank.count).map(expert).collect::<Result<_, ArchError>>()?;
        let router = bank.router(form);
        Ok(Routed { entry, router, ways: Ways::Experts(experts), exit: None })
    }

    /// Builds the attention experts of block `index` with their norm and residual.
    fn attention(&self, index: usize, form: &Form<'_>) -> Result<Routed, ArchError> {
        let Config { n_embd: width, att_hidden: inner, .. } = self.config;
        let block = format!("transformer.h.{index}");
        let bank = Bank {
            name: format!("{block}.attn.q_proj"),
            count: self.config.n_att_experts,
            top_k: self.config.k_att,
            inner,
        };
        let (mut graph, hidden) = with_hidden(width);
        let normed = self.norm(&mut graph, &hidden, &format!("{block}.ln_1"))?;
        for (part, output) in [("k_proj", KEYS), ("v_proj", VALUES)] {
            let name = format!("{block}.attn.{part}");
            let matrix = self.checkpoint.weight(&format!("{name}.weight"), &[inner, width])?;
            let value = linear(&mut graph, &normed, matrix);
            let bias = self.checkpoint.weight(&format!("{name}.bias"), &[inner])?;
            let bias = float_weight(&mut graph, bias);
            let value = graph.node("Add", &[&value, &bias], &[]);
            graph.output(&value, output, &[None, None, extent(inner)]);
        }
        let entry = self.finish_entry(graph, &normed, &bank)?;
        let way = |is_query: bool, number| {
            let (read, made) = if is_query { (width, inner) } else { (inner, width) };
            let matrix = match is_query {
                true => self.input_matrix(&bank, number)?,
                false => self.output_matrix(&bank, number)?,
            };
            let (mut graph, rows) = with_rows(read);
            let value = product(&mut graph, &rows, matrix);
            Ok(finish_rows(graph, &value, made, form.precision))
        };
        let all = |is_query| (0..bank.count).map(move |number| way(is_query, number));
        let ways = Ways::Attention {
            queries: all(true).collect::<Result<_, ArchError>>()?,
            attend: break_stick(self.config.n_head, inner),
            outputs: all(false).collect::<Result<_, ArchError>>()?,
        };
        Ok(Routed { entry, router: bank.router(form), ways, exit: None })
    }

    /// Adds the router, and builds the entry.
    fn finish_entry(
        &self,
        mut graph: GraphBuilder,
        normed: &str,
        bank: &Bank,
    ) -> Result<Network, ArchError> {
        let Config { n_embd: width, gating_size, .. } = self.config;
        let gate = |part: &str, shape: &[usize]| {
            self.checkpoint.finite_weight(&format!("{}.gate.w_gate.{part}", bank.name), shape)
        };
        let hidden = linear(&mut graph, normed, gate("0.weight", &[gating_size, width])?);
        let bias = float_weight(&mut graph, gate("0.bias", &[gating_size])?);
        let hidden = graph.fused("BiasGelu", &[&hidden, &bias], &[]);
        let scores = linear(&mut graph, &hidden, gate("3.weight", &[bank.count, gating_size])?);
        graph.output(normed, TOKENS, &[None, None, extent(width)]);
        let model = graph.finish(&scores, SCORES, &[None, None, extent(bank.count)]);
        Ok(Network::new(model, Precision::F32))
    }

    /// Returns the first matrix of an expert, `[width, inner]`.
    fn input_matrix(&self, bank: &Bank, number: usize) -> Result<TensorProto, PoolError> {
        let width = self.config.n_embd;
        let name = format!("{}.experts.weight", bank.name);
        self.checkpoint.matrix(&name, [bank.count, width, bank.inner], number, 0..width)
    }

    /// Returns the last matrix of an expert, `[inner, width]`.
    fn output_matrix(&self, bank: &Bank, number: usize) -> Result<TensorProto, PoolError> {
        let (width, inner) = (self.config.n_embd, bank.inner);
        let name = format!("{}.output_experts.weight", bank.name);
        self.checkpoint.matrix(&name, [bank.count, inner, width], number, 0..inner)
    }

    fn norm(&self, graph: &mut GraphBuilder, value: &str, name: &str) -> Result<String, ArchError> {
        let mut vector = |part: &str| -> Result<String, ArchError> {
            let weight =
                self.checkpoint.weight(&format!("{name}.{part}"), &[self.config.n_embd])?;
            Ok(float_weight(graph, weight))
        };
        let (gamma, beta) = (vector("weight")?, vector("bias")?);
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(EPSILON))];
        Ok(graph.node("LayerNormalization", &[value, &gamma, &beta], &attributes))
    }
}

impl Bank {
    fn router(&self, form: &Form<'_>) -> Router {
        let mut router = Router::new(self.count, self.top_k, Order::SoftmaxThenTopK);
        form.route(&mut router);
        router
    }
}

/// Builds stick-breaking attention.
///
/// Token i gives token j ≤ i the share σ(l_ij) · Π σ(−l_im) over m from j + 1 to i. That equals
/// exp(l_ij + Σ log σ(−l_im)) over m from j.
///
/// # Shapes
///
/// - queries, output: \[batch, tokens, experts per token, width\]
/// - keys, values: \[batch, tokens, width\]
fn break_stick(num_heads: usize, width: usize) -> Network {
    let (heads, head) = (signed(num_heads), signed(width / num_heads));
    let mut graph = GraphBuilder::default();
    let queries = graph.input(QUERIES, data_type::FLOAT, &[None, None, None, extent(width)]);
    let keys = graph.input(KEYS, data_type::FLOAT, &[None, None, extent(width)]);
    let values = graph.input(VALUES, data_type::FLOAT, &[None, None, extent(width)]);
    let count = num_tokens(&mut graph, &keys);
    let queries = scaled(&mut graph, &queries, inverse_root(width / num_heads));
    let queries = reshaped(&mut graph, &queries, &[0, 0, 0, heads, head]);
    let queries = permuted(&mut graph, &queries, &[0, 3, 2, 1, 4]);
    let queries = reshaped(&mut graph, &queries, &[0, heads, -1, head]);
    let keys = reshaped(&mut graph, &keys, &[0, 0, heads, head]);
    let keys = permuted(&mut graph, &keys, &[0, 2, 3, 1]);
    let scores = graph.node("MatMul", &[&queries, &keys], &[]);
    let scores = reshaped_to(&mut graph, &scores, &[0, heads, -1], &[&count, &count]);
    let seen = seen(&mut graph, &count, None);
    let nothing = graph.float(0.0);
    let left = graph.node("Softplus", &[&scores], &[]);
    let left = graph.node("Neg", &[&left], &[]);
    let left = graph.node("Where", &[&seen, &left, &nothing], &[]);
    let axis = graph.int(-1);
    let left = graph.node("CumSum", &[&left, &axis], &[("reverse", Attribute::Int(1))]);
    let shares = graph.node("Add", &[&scores, &left], &[]);
    let shares = graph.node("Exp", &[&shares], &[]);
    let shares = graph.node("Where", &[&seen, &shares, &nothing], &[]);
    let shares = reshaped_to(&mut graph, &shares, &[0, heads, -1], &[&count]);
    let values = reshaped(&mut graph, &values, &[0, 0, heads, head]);
    let values = permuted(&mut graph, &values, &[0, 2, 1, 3]);
    let mixed = graph.node("MatMul", &[&shares, &values], &[]);
    let last = graph.ints(&[head]);
    let mixed = reshaped_to(&mut graph, &mixed, &[0, heads, -1], &[&count, &last]);
    let mixed = permuted(&mut graph, &mixed, &[0, 3, 2, 1, 4]);
    let mixed = reshaped(&mut graph, &mixed, &[0, 0, 0, signed(width)]);
    let shape = [None, None, None, extent(width)];
    Network::new(graph.finish(&mixed, "output", &shape), Precision::F32)
}

/// Creates a graph with an input of rows, `[rows, width]` f32.
fn with_rows(width: usize) -> (GraphBuilder, String) {
    let mut graph = GraphBuilder::default();
    let rows = graph.input("hidden", data_type::FLOAT, &[None, extent(width)]);
    (graph, rows)
}

/// Multiplies `value` by a `[in, out]` matrix that needs no transpose.
fn product(graph: &mut GraphBuilder, value: &str, matrix: TensorProto) -> String {
    let matrix = float_weight(graph, matrix);
    graph.node("MatMul", &[value, &matrix], &[])
}

fn finish_rows(graph: GraphBuilder, value: &str, width: usize, precision: Precision) -> Network {
    Network::new(graph.finish(value, "output", &[None, extent(width)]), precision)
}
