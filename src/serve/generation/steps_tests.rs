//! Tests of the choice of turns.

use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};

use super::*;

const BOUNDS: Bounds = Bounds { max_running: 4, prompt_tokens: 256, prompt_tokens_beside: 64 };

fn asked(num_prompt: usize) -> Asked {
    Asked { client: 1, priority: 1, num_prompt }
}

/// Runs a step; every sequence whose last token ran gets one more until it has `most` tokens.
/// Returns the turns.
fn step(steps: &mut Steps, lengths: &mut BTreeMap<SequenceKey, usize>, most: usize) -> Vec<Turn> {
    let turns = steps.next();
    for turn in &turns {
        steps.ran(*turn);
        let length = lengths.get_mut(&turn.key).expect("a known sequence");
        assert_eq!(turn.is_last, turn.end == *length, "{turn:?}");
        if !turn.is_last {
            continue;
        }
        if *length < most {
            *length += 1;
            steps.grew(turn.key);
        } else {
            steps.remove(turn.key);
        }
    }
    turns
}

#[test]
fn a_prompt_runs_in_chunks_and_each_later_token_alone() {
    let mut steps = Steps::new(BOUNDS);
    steps.add(SequenceKey(1), asked(150));
    let mut lengths = BTreeMap::from([(SequenceKey(1), 150)]);
    let turns: Vec<Vec<Turn>> = (0..6).map(|_| step(&mut steps, &mut lengths, 152)).collect();
    let ranges: Vec<(usize, usize, bool)> =
        turns.iter().flatten().map(|turn| (turn.start, turn.end, turn.is_last)).collect();
    let expected =
        [(0, 64, false), (64, 128, false), (128, 150, true), (150, 151, true), (151, 152, true)];
    assert_eq!(ranges, expected);
    assert!(steps.is_empty());
}

#[test]
fn a_long_prompt_has_its_turns_however_many_short_ones_arrive_later() {
    const LONG: SequenceKey = SequenceKey(0);
    let mut steps = Steps::new(BOUNDS);
    steps.add(LONG, asked(640));
    let mut lengths = BTreeMap::from([(LONG, 640)]);
    let mut num_turns = 0;
    for key in 1..=50 {
        // Two arrive in each step, and more wait than ever have a cache.
        for key in [2 * key - 1, 2 * key] {
            steps.add(SequenceKey(key), asked(60));
            lengths.insert(SequenceKey(key), 60);
        }
        let turns = step(&mut steps, &mut lengths, 62);
        num_turns += turns.iter().filter(|turn| turn.key == LONG).count();
    }
    assert_eq!(num_turns, 10, "one in four of the turns at least, and ten chunks");
}

#[test]
fn prompts_run_beside_sequences_that_generate_one_chunk_at_a_time() {
    let mut steps = Steps::new(BOUNDS);
    let mut lengths = BTreeMap::new();
    for key in 1..=4 {
        steps.add(SequenceKey(key), asked(100));
        lengths.insert(SequenceKey(key), 100);
    }
    let first = step(&mut steps, &mut lengths, 1_000);
    assert_eq!(first.len(), 4, "nothing generates, so four chunks run: {first:?}");
    step(&mut steps, &mut lengths, 1_000);
    steps.remove(SequenceKey(4));
    steps.add(SequenceKey(5), asked(200));
    lengths.insert(SequenceKey(5), 200);
    let beside = step(&mut steps, &mut lengths, 1_000);
    let sizes: Vec<usize> = beside.iter().map(|turn| turn.end - turn.start).collect();
    assert_eq!(sizes, [1, 1, 1, 64]);
}

#[test]
fn a_sequence_of_higher_priority_gets_a_cache_first_and_loses_it_last() {
    let mut steps = Steps::new(Bounds { max_running: 2, ..BOUNDS });
    for (key, priority) in [(1, 2), (2, 3), (3, 1)] {
        steps.add(SequenceKey(key), Asked { priority, ..asked(10) });
    }
    steps.next();
    assert_eq!(steps.counts(), (1, 2));
    assert_eq!(steps.preempt(), Some(SequenceKey(1)), "3 has the higher priority");
    assert_eq!(steps.preempt(), None, "one sequence goes on");
    assert_eq!(steps.num_preempted(), 1);
}

#[test]
fn clients_get_caches_in_turns() {
    let mut steps = Steps::new(Bounds { max_running: 2, ..BOUNDS });
    for key in 1..=4 {
        steps.add(SequenceKey(key), Asked { client: 7, ..asked(10) });
    }
    steps.add(SequenceKey(5), Asked { client: 8, ..asked(10) });
    let keys: Vec<SequenceKey> = steps.next().iter().map(|turn| turn.key).collect();
    assert_eq!(keys, [SequenceKey(1), SequenceKey(5)]);
}

#[test]
fn a_preempted_sequence_runs_the_same_chunks_again() {
    let mut steps = Steps::new(BOUNDS);
    let mut lengths = BTreeMap::from([(SequenceKey(1), 70), (SequenceKey(2), 70)]);
    steps.add(SequenceKey(1), asked(70));
    steps.add(SequenceKey(2), asked(70));
    (0..4).for_each(|_| drop(step(&mut steps, &mut lengths, 100)));
    assert_eq!(steps.preempt(), Some(SequenceKey(2)));
    let mut again = Vec::new();
    while !again.iter().any(|turn: &Turn| turn.is_last) {
        let turns = step(&mut steps, &mut lengths, 100);
        again.extend(turns.into_iter().filter(|turn| turn.key == SequenceKey(2)));
    }
    let ranges: Vec<(usize, usize)> = again.iter().map(|turn| (turn.start, turn.end)).collect();
    assert_eq!(ranges, [(0, 64), (64, 70), (70, 71), (71, 72), (72, 73)]);
}

#[test]
fn after_a_preemption_the_others_run_until_one_ends_or_one_is_more_urgent() {
    let [first, second, third, urgent] = [1, 2, 3, 4].map(SequenceKey);
    let keys = |steps: &mut Steps| -> Vec<SequenceKey> {
        let turns = steps.next();
        turns.iter().for_each(|turn| steps.ran(*turn));
        turns.into_iter().map(|turn| turn.key).collect()
    };
    let mut steps = Steps::new(BOUNDS);
    [first, second, third].into_iter().for_each(|key| steps.add(key, asked(500)));
    assert_eq!(keys(&mut steps), [first, second, third]);
    assert_eq!(steps.preempt(), Some(third));
    assert_eq!(keys(&mut steps), [first, second], "it would be preempted in each step");
    steps.add(urgent, Asked { priority: 0, ..asked(500) });
    assert!(keys(&mut steps).contains(&urgent));
    assert_eq!(steps.preempt(), Some(second));
    assert_eq!(steps.preempt(), Some(first));
    assert_eq!(keys(&mut steps), [urgent]);
    steps.remove(urgent);
    assert_eq!(keys(&mut steps), [first, second, third]);
    assert_eq!(steps.preempt(), Some(third));
    // Memory may have come from elsewhere.
    assert!((0..PAUSE).any(|_| keys(&mut steps).contains(&third)));
}

/// Sequences that arrive at given steps: prompt, number of tokens to generate, client, priority.
fn traffic() -> impl Strategy<Value = Vec<(usize, usize, usize, u64, u32)>> {
    let one = (0..40_usize, 1..300_usize, 1..20_usize, 0..3_u64, 1..3_u32);
    prop::collection::vec(one, 1..20)
}

proptest! {
    /// Checks that the turns of a sequence do not depend on others, and that every sequence ends.
    #[test]
    fn a_sequence_has_the_same_turns_under_any_load(
        traffic in traffic(),
        preempted in prop::collection::vec(0..200_usize, 0..5),
    ) {
        let mut steps = Steps::new(BOUNDS);
        let mut lengths: BTreeMap<SequenceKey, usize> = BTreeMap::new();
        let mut turns: BTreeMap<SequenceKey, Vec<(usize, usize)>> = BTreeMap::new();
        let mut left: Vec<_> = traffic.iter().copied().enumerate().collect();
        for index in 0..5_000 {
            let now: Vec<_> = left.extract_if(.., |(_, one)| one.0 <= index).collect();
            for (key, (_, num_prompt, _, client, priority)) in now {
                let key = SequenceKey(key as u64);
                steps.add(key, Asked { client, priority, num_prompt });
                lengths.insert(key, num_prompt);
            }
            if preempted.contains(&index) {
                steps.preempt();
            }
            for turn in steps.next() {
                let own = turns.entry(turn.key).or_default();
                own.retain(|(start, _)| *start < turn.start);
                own.push((turn.start, turn.end));
                steps.ran(turn);
                let place = usize::try_from(turn.key.0).expect("few sequences");
                let (_, num_prompt, most, ..) = traffic[place];
                let length = lengths.get_mut(&turn.key).expect("a known sequence");
                if turn.is_last && *length == num_prompt + most {
                    steps.remove(turn.key);
                } else if turn.is_last {
                    *length += 1;
                    steps.grew(turn.key);
                }
            }
            prop_assert!(steps.counts().1 <= BOUNDS.max_running);
            if left.is_empty() && steps.is_empty() {
                break;
            }
        }
        prop_assert!(steps.is_empty(), "some never end: {:?}", steps.counts());
        for (key, (_, num_prompt, most, ..)) in traffic.iter().enumerate() {
            let mut alone = Vec::new();
            let mut start = 0;
            while start < num_prompt + most {
                let end = match start < *num_prompt {
                    true => (start + CHUNK).min(*num_prompt),
                    false => start + 1,
                };
                alone.push((start, end));
                start = end;
            }
            prop_assert_eq!(&turns[&SequenceKey(key as u64)], &alone);
        }
    }
}
