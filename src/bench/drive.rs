//! Sending of requests when they are due.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinSet};

use super::{
    Message, Target,
    measured::{Measured, Tally},
    target::Answer,
};

/// Largest number of due requests that wait for a task to send them.
const MAX_DUE: usize = 4_096;

/// Requests to send, and their due times.
#[derive(Debug)]
pub struct Load {
    /// Requests with their latency budgets, sent in turn.
    pub messages: Vec<(Message, Duration)>,
    /// Due times of the requests, from the start of the load.
    pub offsets: Vec<Duration>,
    /// Time from the start in which due requests are sent but not counted.
    pub warm_up: Duration,
    /// Time from the start in which requests are due.
    pub length: Duration,
}

/// Sends `load` to `target` and waits for all answers.
pub async fn drive(target: &Target, load: Load) -> Measured {
    let Load { messages, offsets, warm_up, length } = load;
    let messages = Arc::new(messages);
    let start = Instant::now();
    let (sender, mut due) = mpsc::channel(MAX_DUE);
    // The async timer counts in milliseconds, so too many requests would be sent together.
    let clock = std::thread::spawn(move || {
        for offset in offsets {
            let mut left = (start + offset).saturating_duration_since(Instant::now());
            while !left.is_zero() {
                std::thread::park_timeout(left);
                left = (start + offset).saturating_duration_since(Instant::now());
            }
            if sender.blocking_send(offset).is_err() {
                return;
            }
        }
    });
    let mut asking = JoinSet::new();
    let mut index = 0;
    let mut tally = Tally::new();
    while let Some(offset) = due.recv().await {
        let (target, messages, own) = (target.clone(), messages.clone(), index);
        index += 1;
        asking.spawn(async move {
            let (message, budget) = &messages[own % messages.len()];
            let lag = (start + offset).elapsed();
            let answer = target.ask(message, Instant::now()).await;
            Ended { offset, answer, budget: *budget, lag }
        });
        while let Some(Ok(ended)) = asking.try_join_next() {
            count(&mut tally, &ended, warm_up);
        }
    }
    while let Some(ended) = asking.join_next().await {
        if let Ok(ended) = ended {
            count(&mut tally, &ended, warm_up);
        }
    }
    drop(clock.join());
    tally.finish(length.saturating_sub(warm_up))
}

/// A request that was answered.
struct Ended {
    /// Time from the start of the load to the request.
    offset: Duration,
    answer: Answer,
    budget: Duration,
    /// Time by which the request was sent too late.
    lag: Duration,
}

fn count(tally: &mut Tally, Ended { offset, answer, budget, lag }: &Ended, warm_up: Duration) {
    if *offset >= warm_up {
        tally.add(answer, *budget, *lag);
    }
}

/// Returns the number of requests per second that `target` answers during `length`. Each of
/// `num_clients` clients asks again as soon as it has its last answer.
pub async fn capacity(
    target: &Target,
    message: &Message,
    num_clients: usize,
    length: Duration,
) -> f64 {
    let mut clients = JoinSet::new();
    let start = Instant::now();
    for _ in 0..num_clients {
        let (target, message) = (target.clone(), message.clone());
        clients.spawn(async move {
            let mut count = 0_u32;
            while start.elapsed() < length {
                let answer = target.ask(&message, Instant::now()).await;
                count += u32::from(answer.status == Some(200));
            }
            count
        });
    }
    let counts = clients.join_all().await;
    f64::from(counts.into_iter().sum::<u32>()) / start.elapsed().as_secs_f64()
}
