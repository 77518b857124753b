//! Modules that route tokens: a router, experts, and the networks before and after them.
//!
//! This module holds only the parts; the runtime routes. A *way* in identifiers is an expert.

use super::{error::ModuleError, network::Network};

/// Name of the tokens that experts read: an output of a routed module's entry,
/// `[batch, tokens, width]`. Without it, experts read the module's input hidden states.
pub const TOKENS: &str = "tokens";
/// Name of the router's scores: an output of the entry, `[batch, tokens, experts]` f32.
pub const SCORES: &str = "scores";
/// Name of the residual to which the experts' sum is added: an output of the entry,
/// `[batch, tokens, width]`. Without it, the residual is the module's input hidden states. An exit
/// may read it; otherwise the sum includes it.
pub const REST: &str = "rest";
/// Name of the keys for all queries: an output of the entry of routed attention.
pub const KEYS: &str = "keys";
/// Name of the values that attention mixes: an output of the entry of routed attention.
pub const VALUES: &str = "values";
/// Name of the queries of all chosen experts: an input of routed attention,
/// `[batch, tokens, experts per token, width]`.
pub const QUERIES: &str = "queries";
/// Name of the weighted sum of the experts' outputs: an input of the exit,
/// `[batch, tokens, width]`. It includes the residual unless the exit reads [`REST`].
pub const SUM: &str = "sum";

/// Module that routes each token to experts. `N` is the type that refers to networks.
///
/// # Shapes
///
/// - entry: \[batch, tokens, width\] to the outputs [`TOKENS`], [`SCORES`] and [`REST`]
/// - exit: [`SUM`] and perhaps [`REST`] to \[batch, tokens, width\]
#[derive(Debug, Clone)]
pub struct Routed<N = Network> {
    /// Network that every token passes first: norms, the router's scores, shared experts.
    pub entry: N,
    /// Router that chooses experts for each token.
    pub router: Router,
    /// Experts of the module.
    pub ways: Ways<N>,
    /// Network after the sum of the experts. Without it, the sum is added to the residual.
    pub exit: Option<N>,
}

/// Computation of a module.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// One network that every token passes.
    Network(Box<Network>),
    /// Router that chooses experts for each token.
    Routed(Box<Routed>),
}

impl From<Network> for Body {
    fn from(network: Network) -> Self {
        Self::Network(Box::new(network))
    }
}

/// Experts among which tokens are routed, in the order of the router's outputs. Several outputs may
/// lead to one network (MC-SMoE's merged experts).
#[derive(Debug, Clone)]
pub enum Ways<N = Network> {
    /// Networks from \[rows, width\] to \[rows, width\], one for each expert.
    Experts(Vec<N>),
    /// Mixture of attention heads (ModuleFormer, section 3). Each expert makes its own queries,
    /// which attend to shared keys. The expert also projects the result.
    Attention {
        /// Networks from \[rows, width\] to \[rows, query width\], one for each expert.
        queries: Vec<N>,
        /// Network from [`QUERIES`], [`KEYS`] and [`VALUES`] to \[batch, tokens, experts per token,
        /// query width\].
        attend: N,
        /// Networks from \[rows, query width\] to \[rows, width\], one for each expert.
        outputs: Vec<N>,
    },
}

/// Settings that turn scores into chosen experts and their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    /// Number of experts, and of scores per token.
    pub num_ways: usize,
    /// Maximum number of experts per token.
    pub top_k: usize,
    /// Order of normalizing and choosing.
    pub order: Order,
    /// Whether the weights of the chosen experts are scaled to add up to 1.
    pub renormalize: bool,
    /// Weight of a chosen expert's output.
    pub weighting: Weighting,
    /// Factor on all weights, such as Granite's residual multiplier.
    pub scale: f32,
    /// Experts that may be chosen, in ascending order; `None` for all. Other experts count as
    /// missing.
    pub allowed: Option<Vec<usize>>,
}

/// Order in which a router normalizes and chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Order {
    /// Softmax over all scores, of which the largest are chosen (Mixtral, Qwen, OLMoE,
    /// ModuleFormer).
    SoftmaxThenTopK,
    /// Softmax over the largest scores (Granite).
    TopKThenSoftmax,
    /// Softmax over all scores, of which those that reach this probability are chosen. The largest
    /// is always chosen, and at most `top_k` are.
    Threshold(f32),
}

/// Weight of a chosen expert's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighting {
    /// Probability that the router gives the expert.
    Probability,
    /// Constant weight of 1 (EMoE, section 3; MoEfication).
    One,
}

impl Router {
    /// Creates a router that chooses the `top_k` experts of the largest probabilities.
    pub fn new(num_ways: usize, top_k: usize, order: Order) -> Self {
        Self {
            num_ways,
            top_k,
            order,
            renormalize: false,
            weighting: Weighting::Probability,
            scale: 1.0,
            allowed: None,
        }
    }
}

impl Router {
    /// Returns the largest fraction of the allowed experts that a token uses.
    #[expect(clippy::cast_precision_loss, reason = "ways are few")]
    pub fn share(&self) -> f64 {
        let all = self.allowed.as_ref().map_or(self.num_ways, Vec::len);
        self.top_k as f64 / all.max(1) as f64
    }
}

impl Routed {
    /// Returns the module whose networks know which of their inputs it hands to them.
    pub(crate) fn with_ports(self) -> Self {
        self.map(|network, role, _| match role {
            "attend" => network.with_given(&[QUERIES, KEYS, VALUES]),
            "exit" => network.with_given(&[SUM, REST]),
            _ => network,
        })
    }
}

impl<N> Routed<N> {
    /// Returns every network that the module may run, the entry first.
    pub fn networks(&self) -> impl Iterator<Item = &N> {
        let (shared, one, two): (Option<&N>, &[N], &[N]) = match &self.ways {
            Ways::Experts(experts) => (None, experts, &[]),
            Ways::Attention { queries, attend, outputs } => (Some(attend), queries, outputs),
        };
        let allowed = self.router.allowed.as_ref();
        let ways = one.iter().enumerate().chain(two.iter().enumerate());
        let ways = ways.filter(move |(way, _)| allowed.is_none_or(|known| known.contains(way)));
        let ways = ways.map(|(_, network)| network);
        std::iter::once(&self.entry).chain(&self.exit).chain(shared).chain(ways)
    }

    /// Converts each network with `to`, which gets its role and its index within the role.
    pub(crate) fn map<M>(self, mut to: impl FnMut(N, &str, usize) -> M) -> Routed<M> {
        let Self { entry, router, ways, exit } = self;
        let mut all = |role: &str, networks: Vec<N>| {
            let networks = networks.into_iter().enumerate();
            networks.map(|(index, network)| to(network, role, index)).collect()
        };
        let ways = match ways {
            Ways::Experts(experts) => Ways::Experts(all("expert", experts)),
            Ways::Attention { queries, attend, outputs } => Ways::Attention {
                queries: all("query", queries),
                outputs: all("output", outputs),
                attend: to(attend, "attend", 0),
            },
        };
        Routed { entry: to(entry, "entry", 0), router, ways, exit: exit.map(|n| to(n, "exit", 0)) }
    }

    /// Returns the number of experts.
    pub fn num_ways(&self) -> usize {
        match &self.ways {
            Ways::Experts(experts) => experts.len(),
            Ways::Attention { queries, .. } => queries.len(),
        }
    }

    /// Checks that the router matches the experts; `name` is the module's name.
    ///
    /// # Errors
    ///
    /// Fails when there are not as many ways as scores, or more are to be taken than there are.
    pub(crate) fn check(&self, name: &str) -> Result<(), ModuleError> {
        let Router { num_ways, top_k, allowed, .. } = &self.router;
        let refuse = |reason| Err(ModuleError::Router { module: name.to_owned(), reason });
        if self.num_ways() != *num_ways {
            return refuse(format!("it has {num_ways} scores for {} ways", self.num_ways()));
        }
        let num_allowed = allowed.as_ref().map_or(*num_ways, Vec::len);
        if *top_k == 0 || *top_k > num_allowed {
            return refuse(format!("{top_k} ways are to be taken of {num_allowed}"));
        }
        if allowed.iter().flatten().any(|way| way >= num_ways) {
            return refuse(format!("a way is allowed that is none of {num_ways}"));
        }
        Ok(())
    }
}
