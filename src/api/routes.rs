//! The one table of HTTP routes, and the layers around them.
//!
//! The router, the OpenAPI document and the index page all come from [`routes`].

use std::sync::{Arc, LazyLock};

use axum::{Router, extract::DefaultBodyLimit, handler::Handler, middleware, routing};
use bytes::Bytes;
use serde_json::Value;
use tower_http::{
    CompressionLevel,
    catch_panic::CatchPanicLayer,
    compression::{
        CompressionLayer,
        predicate::{NotForContentType, Predicate, SizeAbove},
    },
};

use super::{
    codec::{decode::WireRequest, encode::WireResponse},
    error,
    http::{
        generate::{
            chat::{self, ChatAnswer, ChatQuestion},
            completions::{self, CompletionAnswer, CompletionQuestion},
            responses::{self, ResponseAnswer, ResponseQuestion},
            tokens::{self, DetokenizeQuestion, TokenizeQuestion, Tokens},
            triton::{self, GenerateAnswer, GenerateQuestion},
        },
        health::{self, Liveness, Readiness, ServerMetadata},
        infer,
        models::{self, Metadata, ModelReadiness},
        openai::{self, Answer, List, Listed, Question},
        plans::{self, WireChoice, WireFront, WireQuestion},
        repository::{self, AllStatistics, IndexQuestion, RepositoryCall},
    },
    layers,
    openapi::{self, document},
    route::{Content, Route, VERSION, events_of, json_of, json_or_raw},
    state::{ApiConfig, ApiState, Shared},
    triton::messages::{ModelConfig, repository_index_response::ModelIndex},
};
use crate::plan::Shape;

/// Size in bytes of the smallest answer that is compressed, if the client accepts that.
const MIN_COMPRESSED_BYTES: u64 = 2048;

/// Query of the route that lists plans.
const PLANS_QUERY: [(&str, usize); 2] =
    [("batch", Shape::DEFAULT.batch), ("tokens", Shape::DEFAULT.tokens)];

/// Returns a route with the method GET.
fn get<H, T>(path: &'static str, about: &'static str, handler: H, response: Content) -> Route
where
    H: Handler<T, Arc<Shared>>,
    T: 'static,
{
    let handler = routing::get(handler);
    Route { method: "get", path, about, handler, query: &[], request: None, response }
}

/// Returns a route with the method POST and an empty answer, which reads JSON of `request`.
fn post<H, T>(path: &'static str, about: &'static str, handler: H, request: Content) -> Route
where
    H: Handler<T, Arc<Shared>>,
    T: 'static,
{
    let (handler, request, response) = (routing::post(handler), Some(request), Content::Empty);
    Route { method: "post", path, about, handler, query: &[], request, response }
}

impl Route {
    /// Sets the content of the answer.
    fn giving(self, response: Content) -> Self {
        Self { response, ..self }
    }
}

/// Returns the routes. Those of a model are also there under a version of it.
fn routes() -> Vec<Route> {
    let mut routes = Vec::from(server_routes());
    routes.extend(model_routes());
    routes.extend(text_routes());
    routes.extend(repository_routes());
    routes.extend(openai_routes());
    routes
}

fn server_routes() -> [Route; 7] {
    use Content::{Page, Text};
    [
        get("/", "Routes and models, for people", health::index, Text),
        get("/v2", "Server metadata", health::server, json_of::<ServerMetadata>()),
        get("/v2/health/live", "Liveness: 200", health::live, json_of::<Liveness>()),
        get("/v2/health/ready", "Readiness: 200 or 503", health::ready, json_of::<Readiness>()),
        get("/metrics", "Prometheus metrics", health::metrics, Text),
        get("/openapi.json", "OpenAPI document", openapi::openapi, json_of::<Value>()),
        get("/docs", "OpenAPI document, for people", openapi::docs, Page),
    ]
}

fn model_routes() -> [Route; 8] {
    let statistics = json_of::<AllStatistics>();
    let ready = json_of::<ModelReadiness>();
    let plans = json_of::<WireFront<'_>>();
    let infer = post(
        "/v2/models/{model}/infer",
        "Inference within a budget",
        infer::infer,
        json_or_raw::<WireRequest>(),
    );
    let plan = post(
        "/v2/models/{model}/plan",
        "Plan that a budget would get",
        plans::choose,
        json_of::<WireQuestion>(),
    );
    let front = get("/v2/models/{model}/plans", "Pareto front of plans", plans::front, plans);
    let config = json_of::<ModelConfig>();
    [
        get("/v2/models/{model}", "Model metadata", models::metadata, json_of::<Metadata>()),
        get("/v2/models/{model}/ready", "Readiness of a model", models::ready, ready),
        infer.giving(json_or_raw::<WireResponse<'_>>()),
        Route { query: &PLANS_QUERY, ..front },
        plan.giving(json_of::<WireChoice<'_>>()),
        get("/v2/models/{model}/config", "Triton configuration", repository::config, config),
        get("/v2/models/{model}/stats", "Model statistics", repository::statistics, statistics),
        get("/v2/models/stats", "All statistics", repository::all_statistics, statistics),
    ]
}

fn text_routes() -> [Route; 2] {
    let (whole, stream) = ("/v2/models/{model}/generate", "/v2/models/{model}/generate_stream");
    let question = json_of::<GenerateQuestion>();
    [
        post(whole, "Continuation of a text", triton::generate, question)
            .giving(json_of::<GenerateAnswer>()),
        post(stream, "Continuation of a text, as events", triton::generate_stream, question)
            .giving(events_of::<GenerateAnswer>()),
    ]
}

fn repository_routes() -> [Route; 3] {
    let call = json_of::<RepositoryCall>();
    let index = json_of::<IndexQuestion>();
    let load = "/v2/repository/models/{model}/load";
    let unload = "/v2/repository/models/{model}/unload";
    [
        post("/v2/repository/index", "Models of the pool", repository::index, index)
            .giving(json_of::<Vec<ModelIndex>>()),
        post(load, "Loading of a model", repository::load, call),
        post(unload, "End of serving a model", repository::unload, call),
    ]
}

fn openai_routes() -> [Route; 8] {
    let question = json_of::<Question>();
    let (chat, text) = (json_of::<ChatQuestion>(), json_of::<CompletionQuestion>());
    let response = json_of::<ResponseQuestion>();
    let (words, ids) = (json_of::<TokenizeQuestion>(), json_of::<DetokenizeQuestion>());
    [
        post("/v1/chat/completions", "Next message of a chat", chat::chat, chat)
            .giving(json_of::<ChatAnswer>()),
        post("/v1/responses", "Response to a chat, not stored", responses::responses, response)
            .giving(json_of::<ResponseAnswer>()),
        post("/v1/completions", "Continuation of a text", completions::completions, text)
            .giving(json_of::<CompletionAnswer>()),
        post("/tokenize", "Tokens of a text", tokens::tokenize, words).giving(json_of::<Tokens>()),
        post("/detokenize", "Text of tokens", tokens::detokenize, ids)
            .giving(json_of::<tokens::Text>()),
        get(
            "/v1/models",
            "Models that OpenAI's clients can use",
            openai::models,
            json_of::<List>(),
        ),
        get("/v1/models/{model}", "Name of a model", openai::model, json_of::<Listed>()),
        post("/v1/embeddings", "Embeddings within a budget", openai::embeddings, question)
            .giving(json_of::<Answer<'_>>()),
    ]
}

/// Returns the index page: a line for each route.
fn index(routes: &[Route]) -> String {
    let mut page = String::new();
    for Route { method, path, about, .. } in routes {
        page.push_str(&format!("{:<5}{path:<44}{about}\n", method.to_uppercase()));
    }
    page + &format!("Every model route also exists under {VERSION}.\n")
}

/// Returns the OpenAPI document of the routes as JSON.
fn written_document() -> Bytes {
    document(&routes()).to_string().into()
}

/// Builds the router of all HTTP routes.
pub fn router(state: ApiState, config: &ApiConfig) -> Router {
    let routes = routes();
    let document = LazyLock::new(written_document as fn() -> Bytes);
    let index = index(&routes);
    let shared = Arc::new(Shared { api: state, config: *config, document, index });
    let mut router = Router::new();
    for route in routes {
        if let Some(path) = route.versioned() {
            router = router.route(&path, route.handler.clone());
        }
        router = router.route(route.path, route.handler);
    }
    router
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(DefaultBodyLimit::max(config.max_body.as_usize()))
        .layer(middleware::from_fn_with_state(shared.clone(), layers::admit))
        .layer(middleware::from_fn_with_state(config.request_timeout, layers::limit_time))
        .layer(CatchPanicLayer::custom(layers::answer_panic))
        .layer(middleware::from_fn_with_state(shared.clone(), layers::trace))
        .layer(
            CompressionLayer::new()
                .quality(CompressionLevel::Fastest)
                // A compressed event would wait for the next ones.
                .compress_when(SizeAbove::new(MIN_COMPRESSED_BYTES).and(NotForContentType::SSE)),
        )
        .with_state(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_and_the_index_page_have_every_route() {
        let routes = routes();
        let (document, index) = (document(&routes), index(&routes));
        let paths = document["paths"].as_object().expect("paths");
        let num_documented: usize =
            paths.values().map(|path| path.as_object().expect("methods").len()).sum();
        assert_eq!(num_documented, routes.len());
        assert_eq!(index.lines().count(), routes.len() + 1);
        for Route { method, path, .. } in &routes {
            assert!(paths[*path].get(*method).is_some(), "{method} {path}");
            let is_listed = |line: &str| {
                let mut words = line.split_whitespace();
                words.next() == Some(&method.to_uppercase()) && words.next() == Some(path)
            };
            assert!(index.lines().any(is_listed), "{method} {path}");
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = document(&routes());
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        for rest in text.split("\"$ref\":\"").skip(1) {
            let target = rest.split('"').next().expect("a target");
            let name = target.strip_prefix("#/components/schemas/").expect(target);
            assert!(schemas.contains_key(name), "{name}");
        }
        assert!(schemas.len() > 20);
    }
}
