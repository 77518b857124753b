//! The index page.

/// Routes, as the index page shows them.
pub(super) const ROUTES: &str = "\
GET  /v2                          server metadata
GET  /v2/health/live              200 while the process runs
GET  /v2/health/ready             200 while it takes requests
GET  /v2/models/{model}           metadata: inputs, outputs, task, limits
GET  /v2/models/{model}/ready     200 while the model takes requests
POST /v2/models/{model}/infer     inference within a budget
GET  /v2/models/{model}/plans     the Pareto front (?batch=1&tokens=128)
POST /v2/models/{model}/plan      the plan that a budget would get
GET  /v2/models/{model}/config    the model as a Triton configuration
GET  /v2/models/{model}/stats     what the model has answered
GET  /v2/models/stats             what every model has answered
POST /v2/repository/index         the models of the pool
POST /v2/repository/models/{model}/load      load a model, or load it anew
POST /v2/repository/models/{model}/unload    stop serving a model
POST /v1/embeddings               embeddings for OpenAI's clients
GET  /v1/models                   the models with embeddings
GET  /metrics                     Prometheus metrics
GET  /openapi.json                all of this for programs
GET  /docs                        the same for people
Every model route also exists under /v2/models/{model}/versions/{version}.
";
