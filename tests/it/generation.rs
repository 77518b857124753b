//! Generated sequences: the same under any load, and equal to the decoder over whole sequences.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Instant,
};

use tessera::{
    family::PlanId,
    plan::Budget,
    serve::{
        DEFAULT_PRIORITY, ErrorCode, FamilyService, Finish, GenerateRequest, Grammar, Sampling,
        SamplingParameters, SequenceEvent, ServiceConfig, Timings,
    },
    telemetry::Metrics,
};

use crate::support::{
    CONFIG, Families, Served,
    decoder::{Random, at_once, llama},
    language::Model,
};

/// A decoder that generates, served.
pub(crate) struct Chat {
    served: Served,
    model: Model,
}

impl Chat {
    fn new() -> Self {
        Self::configured(CONFIG)
    }

    fn configured(config: ServiceConfig) -> Self {
        Self::of(llama().with_context(1_000), config)
    }

    pub(crate) fn of(model: Model, config: ServiceConfig) -> Self {
        let family = model.load().unwrap_or_else(|e| panic!("{e}"));
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        Self { served: Served::observed(config, metrics, Families::of(family)), model }
    }

    fn service(&self) -> Arc<FamilyService> {
        self.served.service("language")
    }
}

fn request(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    let greedy = SamplingParameters { temperature: 0.0, ..SamplingParameters::default() };
    GenerateRequest {
        prompt: prompt.to_vec(),
        sampling: Sampling::new(greedy, 64).expect("valid"),
        num_sequences: 1,
        grammar: None,
        max_tokens: Some(max_tokens),
        ends: Vec::new(),
        budget: Budget::default(),
        priority: DEFAULT_PRIORITY,
        client: 0,
        arrival: Instant::now(),
    }
}

/// Lets a client ask for ten tokens behind a prompt. Returns them, and the number of the prompt's
/// tokens that were in a cache.
pub(crate) async fn by(chat: &Chat, client: u64, prompt: &[i64]) -> (Vec<u32>, usize) {
    let prompt: Vec<u32> = prompt.iter().map(|id| id.unsigned_abs() as u32).collect();
    let asked = GenerateRequest { client, ..request(&prompt, 10) };
    let (tokens, _, timings) = generate(&chat.service(), asked).await;
    (tokens, timings.num_cached)
}

/// Returns the generated tokens of each sequence, and their ends.
async fn generate(
    service: &Arc<FamilyService>,
    request: GenerateRequest,
) -> (Vec<u32>, Finish, Timings) {
    let mut generation = service.arrive().generate(request).await.expect("admitted");
    let mut tokens = Vec::new();
    loop {
        match generation.next().await.expect("generated").expect("an end comes first") {
            (_, SequenceEvent::Token(token)) => tokens.push(token.token),
            (_, SequenceEvent::Ended(finish, timings)) => {
                assert!(generation.next().await.expect("ended").is_none());
                return (tokens, finish, timings);
            }
            (_, SequenceEvent::Failed(error)) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_is_the_same_alone_and_beside_others() {
    let chat = Chat::new();
    let service = chat.service();
    let mut random = Random(3);
    let lengths = [1, 5, 64, 70, 130, 200].into_iter();
    let prompts: Vec<Vec<u32>> = lengths.map(|num| prompt(&mut random, num)).collect();
    let mut alone = Vec::new();
    for prompt in &prompts {
        let (tokens, finish, timings) = generate(&service, request(prompt, 20)).await;
        assert_eq!((tokens.len(), finish), (20, Finish::Length));
        assert_eq!((timings.num_prompt, timings.num_generated), (prompt.len(), 20));
        alone.push(tokens);
    }
    let together: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let (service, request) = (service.clone(), request(prompt, 20));
            tokio::spawn(async move { generate(&service, request).await })
        })
        .collect();
    for (task, alone) in together.into_iter().zip(&alone) {
        let (tokens, ..) = task.await.expect("no panic");
        assert_eq!(tokens, *alone);
    }
}

/// Returns tokens of a prompt.
fn prompt(random: &mut Random, num: usize) -> Vec<u32> {
    random.tokens(num).into_iter().map(|id| id.unsigned_abs() as u32).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greedy_tokens_are_those_of_the_whole_sequence_at_once() {
    let chat = Chat::new();
    let start = prompt(&mut Random(5), 70);
    let (tokens, ..) = generate(&chat.service(), request(&start, 8)).await;
    let executor = chat.model.executor();
    let plan = PlanId::parse(&executor.family().graph, "a[0..2]").expect("a plan");
    let mut sequence: Vec<i64> = start.into_iter().map(i64::from).collect();
    for token in tokens {
        let logits = at_once(&executor, &plan, &sequence);
        let last = logits.last().expect("a token");
        let best = last.iter().copied().fold(f32::MIN, f32::max);
        assert!(best - last[token as usize] < 1e-4, "{token} is not the most likely");
        sequence.push(i64::from(token));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_was_read_is_found_again_by_its_client_and_changes_nothing() {
    let chat = Chat::new();
    let (service, mut random) = (chat.service(), Random(9));
    let (known, end) = (prompt(&mut random, 150), prompt(&mut random, 5));
    let longer: Vec<u32> = known.iter().chain(&end).copied().collect();
    let by = |client, tokens: &[u32]| GenerateRequest { client, ..request(tokens, 10) };
    let (_, _, first) = generate(&service, by(1, &known)).await;
    let (cold, _, other) = generate(&service, by(2, &longer)).await;
    let (warm, _, again) = generate(&service, by(1, &longer)).await;
    assert_eq!((first.num_cached, other.num_cached, again.num_cached), (0, 0, 128));
    assert_eq!(warm, cold);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_another_client_s_prompt_begins_is_found_only_where_prefixes_are_shared() {
    let mut random = Random(9);
    let (known, end) = (prompt(&mut random, 150), prompt(&mut random, 5));
    let longer: Vec<u32> = known.iter().chain(&end).copied().collect();
    let by = |client, tokens: &[u32]| GenerateRequest { client, ..request(tokens, 10) };
    let mut answers = Vec::new();
    for (shares_prefixes, num_cached) in [(false, 0), (true, 128)] {
        let chat = Chat::configured(ServiceConfig { shares_prefixes, ..CONFIG });
        let service = chat.service();
        generate(&service, by(1, &known)).await;
        let (tokens, _, other) = generate(&service, by(2, &longer)).await;
        assert_eq!(other.num_cached, num_cached, "shared: {shares_prefixes}");
        answers.push(tokens);
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_draws_the_same_under_load_and_each_sequence_of_a_request_its_own() {
    let chat = Chat::new();
    let service = chat.service();
    let start = prompt(&mut Random(2), 40);
    let drawn = |seed| {
        let parameters = SamplingParameters { seed, ..SamplingParameters::default() };
        let sampling = Sampling::new(parameters, 64).expect("valid");
        GenerateRequest { sampling, num_sequences: 3, ..request(&start, 30) }
    };
    let alone = sequences(&service, drawn(7)).await;
    assert_ne!(alone[0], alone[1]);
    assert_ne!(alone, sequences(&service, drawn(8)).await);
    let others: Vec<_> = (0..6)
        .map(|index| {
            let (service, tokens) = (service.clone(), prompt(&mut Random(index), 90));
            tokio::spawn(async move { generate(&service, request(&tokens, 60)).await })
        })
        .collect();
    assert_eq!(sequences(&service, drawn(7)).await, alone);
    for other in others {
        other.await.expect("no panic");
    }
}

/// Returns the tokens of every sequence of a request.
async fn sequences(service: &Arc<FamilyService>, request: GenerateRequest) -> Vec<Vec<u32>> {
    let mut generation = service.arrive().generate(request).await.expect("admitted");
    let mut found = vec![Vec::new(); generation.num_sequences()];
    while let Some((index, event)) = generation.next().await.expect("generated") {
        if let SequenceEvent::Token(token) = event {
            found[index].push(token.token);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_family_cannot_generate_is_refused_with_the_reason() {
    let chat = Chat::new();
    let service = chat.service();
    let long = vec![1; 1_000];
    for (request, reason) in [
        (request(&[], 1), "it is empty"),
        (request(&[64], 1), "64 is no token"),
        (request(&[1], 1_000), "the context holds 1000"),
        (request(&long, 1), "the prompt has 1000 tokens"),
        (request(&[1], 0), "at least 1"),
    ] {
        let error = service.arrive().generate(request).await.expect_err("refused");
        let message = error.to_string();
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{message}");
        assert!(message.contains(reason), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_frees_its_place() {
    let chat = Chat::new();
    let service = chat.service();
    for _ in 0..200 {
        let generation = service.arrive().generate(request(&[1, 2], 900)).await;
        let mut generation = generation.expect("a place");
        generation.next().await.expect("generated");
    }
    let (tokens, ..) = generate(&service, request(&[3], 5)).await;
    assert_eq!(tokens.len(), 5);
}

#[tokio::test]
async fn a_grammar_is_read_off_the_async_threads() {
    let chat = crate::chats::Chat::new();
    let service = chat.served.service("language");
    let asked = |grammar: Option<Grammar>| GenerateRequest { grammar, ..request(&[65], 3) };
    // An expression with so many states takes long to read, and is refused or kept.
    let costly = Grammar::Regex("[ab]*a[ab]{200}".to_owned());
    let mut slow = pin!(service.arrive().generate(asked(Some(costly))));
    let is_waited_for = poll_fn(|context| Poll::Ready(slow.as_mut().poll(context).is_pending()));
    assert!(is_waited_for.await, "the grammar was read by the thread that asks");
    let (tokens, ..) = generate(&service, asked(None)).await;
    assert_eq!(tokens.len(), 3);
    if let Ok(mut generation) = slow.await {
        generation.next().await.expect("a token that the grammar allows");
    }
    // Answers of a request keep the grammar each for itself.
    let choice = Some(Grammar::Choice(vec!["left".to_owned(), "right".to_owned()]));
    let several = GenerateRequest { num_sequences: 4, grammar: choice, ..request(&[65], 9) };
    let ends = vec![257];
    for tokens in sequences(&service, GenerateRequest { ends, ..several }).await {
        let bytes: Vec<u8> = tokens.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
        assert!([&b"left"[..], b"right"].contains(&&*bytes), "{bytes:?}");
    }
}
