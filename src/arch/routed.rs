//! A module inside which every token takes ways of its own: a router, alternatives, and what comes
//! before and after.
//!
//! Only what it consists of; the runtime routes.

use super::{ModuleError, Network};

/// The tokens as experts read them: an output of a routed module's entry, `[batch, tokens, width]`;
/// where there is none they are the hidden states that the module read.
pub const TOKENS: &str = "tokens";
/// The router's scores: an output of the entry, `[batch, tokens, ways]` f32.
pub const SCORES: &str = "scores";
/// What the ways' sum is added to: an output of the entry, `[batch, tokens, width]`; where there is
/// none it is the hidden states that the module read. An exit may read it; else the sum has it.
pub const REST: &str = "rest";
/// The keys that all queries are compared with: an output of the entry where attention is routed.
pub const KEYS: &str = "keys";
/// The values that attention mixes: an output of the entry where attention is routed.
pub const VALUES: &str = "values";
/// The queries of all ways: an input of routed attention, `[batch, tokens, ways per token, width]`.
pub const QUERIES: &str = "queries";
/// The weighted sum of what the ways made: an input of the exit, `[batch, tokens, width]`. The rest
/// is in it where the exit does not read that by itself.
pub const SUM: &str = "sum";

/// A module whose tokens take ways of their own. `N` is how it refers to networks.
///
/// # Shapes
///
/// - entry: \[batch, tokens, width\] to the outputs [`TOKENS`], [`SCORES`] and [`REST`]
/// - exit: [`SUM`] and perhaps [`REST`] to \[batch, tokens, width\]
#[derive(Debug, Clone)]
pub struct Routed<N = Network> {
    /// What every token passes first: norms, the router's scores, experts that all share.
    pub entry: N,
    /// Which ways a token takes.
    pub router: Router,
    /// The ways.
    pub ways: Ways<N>,
    /// What follows the sum of the ways; without it the sum is added to the rest.
    pub exit: Option<N>,
}

/// What a module computes.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// The same for every token.
    Network(Box<Network>),
    /// What each token's ways do.
    Routed(Box<Routed>),
}

impl From<Network> for Body {
    fn from(network: Network) -> Self {
        Self::Network(Box::new(network))
    }
}

/// The alternatives among which tokens are routed, by the router's outputs. Several outputs may
/// lead to one network (MC-SMoE's merged experts).
#[derive(Debug, Clone)]
pub enum Ways<N = Network> {
    /// Each makes \[rows, width\] of \[rows, width\].
    Experts(Vec<N>),
    /// Mixture of attention heads (ModuleFormer, section 3): each way makes queries of its own, all
    /// are compared with the same keys, and what is found is projected by the way again.
    Attention {
        /// \[rows, width\] to \[rows, query width\], one for each way.
        queries: Vec<N>,
        /// [`QUERIES`], [`KEYS`] and [`VALUES`] to \[batch, tokens, ways per token, query width\].
        attend: N,
        /// \[rows, query width\] to \[rows, width\], one for each way.
        outputs: Vec<N>,
    },
}

/// How scores become ways and their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    /// The number of scores a token has.
    pub num_ways: usize,
    /// How many ways a token takes, at most.
    pub top_k: usize,
    /// What is normalized when.
    pub order: Order,
    /// Whether the weights of the ways taken are made to add up to 1.
    pub renormalize: bool,
    /// What a way's output is multiplied by.
    pub weighting: Weighting,
    /// A factor on all weights, such as Granite's residual multiplier.
    pub scale: f32,
    /// The ways that may be taken, in ascending order; `None` for all. Others count as if they were
    /// not there.
    pub allowed: Option<Vec<usize>>,
}

/// The order in which a router normalizes and chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Order {
    /// A softmax over all scores, of which the largest are taken (Mixtral, Qwen, OLMoE,
    /// ModuleFormer).
    SoftmaxThenTopK,
    /// A softmax over the largest scores (Granite).
    TopKThenSoftmax,
    /// A softmax over all scores, of which those are taken that reach this probability: the largest
    /// in any case, and no more than `top_k`.
    Threshold(f32),
}

/// What a way's output is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighting {
    /// The probability that the router gives the way.
    Probability,
    /// One (EMoE, section 3; MoEfication).
    One,
}

impl Router {
    /// Returns the router that takes the `top_k` ways of the largest probabilities.
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
    /// Returns the share of the ways that a token takes, at most.
    #[expect(clippy::cast_precision_loss, reason = "ways are few")]
    pub fn share(&self) -> f64 {
        let all = self.allowed.as_ref().map_or(self.num_ways, Vec::len);
        self.top_k as f64 / all.max(1) as f64
    }
}

impl<N> Routed<N> {
    /// Returns every network that it may run, the entry first.
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

    /// Refers to networks in another way; `index` tells the roles of those that are several apart.
    pub(super) fn map<M>(self, mut to: impl FnMut(N, &str, usize) -> M) -> Routed<M> {
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

    /// Returns the number of ways that there are.
    pub fn num_ways(&self) -> usize {
        match &self.ways {
            Ways::Experts(experts) => experts.len(),
            Ways::Attention { queries, .. } => queries.len(),
        }
    }

    /// Checks that the router and the ways go together; `name` is the module's.
    ///
    /// # Errors
    ///
    /// Fails when there are not as many ways as scores, or more are to be taken than there are.
    pub(super) fn check(&self, name: &str) -> Result<(), ModuleError> {
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
