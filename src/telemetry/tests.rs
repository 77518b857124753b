//! Tests of the metrics: rendered values match the observed ones.

use std::time::Duration;

use super::{
    LogFormat, Metrics,
    metrics::{MAX_PLAN_LABELS, OTHER_PLANS},
    routing::MAX_WAY_LABELS,
    start_logging,
};
use crate::{
    plan::{Quality, QualitySource},
    runtime::{Residency, Routing},
    serve::{
        Ending, ErrorCode, Finish, Observer, Outcome, PlanSummary, Report, SequenceReport,
        StepChange, Timings,
    },
};

fn report(plan: &str) -> Report {
    Report {
        plan: PlanSummary {
            plan: plan.to_owned(),
            predicted_latency: Duration::from_millis(4),
            memory_bytes: 1,
            quality: Quality { value: 1.0, source: QualitySource::Measured },
        },
        batch: 1,
        tokens: 8,
        total_tokens: 8,
        latency: Duration::from_millis(6),
        preprocess: Duration::from_millis(1),
        queue: Duration::from_millis(1),
        compute: Duration::from_millis(4),
        routed: Vec::new(),
    }
}

fn answered(metrics: &Metrics, plan: &str, budget_ms: Option<u64>) {
    let latency_budget = budget_ms.map(Duration::from_millis);
    metrics.finished("text", &Outcome::Answered { report: &report(plan), latency_budget });
}

fn assert_line(metrics: &Metrics, line: &str) {
    let text = metrics.render();
    assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
}

#[test]
fn answers_and_failures_are_counted() {
    let metrics = Metrics::new().expect("metrics");
    answered(&metrics, "l6[0..6]", Some(5));
    answered(&metrics, "l6[0..6]", Some(7));
    answered(&metrics, "l3[0..3]", None);
    for code in [ErrorCode::BudgetInfeasible, ErrorCode::NotFound, ErrorCode::NotFound] {
        metrics.finished("text", &Outcome::Failed { code });
    }
    for line in [
        r#"tessera_api_requests_total{code="ok",family="text"} 3"#,
        r#"tessera_api_requests_total{code="budget_infeasible",family="text"} 1"#,
        r#"tessera_api_requests_total{code="not_found",family="text"} 2"#,
        r#"tessera_plan_chosen_total{family="text",plan="l6[0..6]"} 2"#,
        r#"tessera_plan_budget_violations_total{family="text"} 1"#,
        r#"tessera_plan_infeasible_total{family="text"} 1"#,
        r#"tessera_serve_stage_duration_seconds_bucket{family="text",stage="total",le="0.005"} 0"#,
        r#"tessera_serve_stage_duration_seconds_bucket{family="text",stage="total",le="0.01"} 3"#,
        r#"tessera_plan_prediction_ratio_bucket{family="text",le="0.8"} 3"#,
        r#"tessera_plan_prediction_ratio_bucket{family="text",le="0.67"} 0"#,
    ] {
        assert_line(&metrics, line);
    }
}

#[test]
fn modules_residency_and_the_queue_are_followed() {
    let metrics = Metrics::new().expect("metrics");
    metrics.module_ran("text", "l6.block.0", Duration::from_micros(300));
    for num_loads in [3, 5] {
        let residency =
            Residency { num_modules: num_loads, weight_bytes: 1000, num_loads, num_evictions: 0 };
        metrics.residency_changed("text", &residency);
    }
    for change in [1, 1, -1] {
        metrics.queue_changed("text", change);
    }
    for line in [
        r#"tessera_runtime_module_duration_seconds_count{family="text",module="l6.block.0"} 1"#,
        r#"tessera_runtime_module_loads_total{family="text"} 5"#,
        r#"tessera_runtime_resident_bytes{family="text"} 1000"#,
        r#"tessera_runtime_resident_modules{family="text"} 5"#,
        r#"tessera_serve_queue_depth{family="text"} 1"#,
        concat!(r#"tessera_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
    ] {
        assert_line(&metrics, line);
    }
}

#[test]
fn plans_beyond_the_limit_share_one_label() {
    let metrics = Metrics::new().expect("metrics");
    for index in 0..MAX_PLAN_LABELS + 10 {
        answered(&metrics, &format!("plan{index}"), None);
    }
    answered(&metrics, "plan0", None);
    assert_line(&metrics, r#"tessera_plan_chosen_total{family="text",plan="plan0"} 2"#);
    let other = format!(r#"tessera_plan_chosen_total{{family="text",plan="{OTHER_PLANS}"}} 10"#);
    assert_line(&metrics, &other);
}

#[test]
fn a_filter_that_does_not_parse_is_refused_by_name() {
    let error = start_logging("tessera=loud", LogFormat::Json, None).expect_err("no level");
    assert!(error.to_string().contains("`tessera=loud`"), "{error}");
}

#[test]
fn the_ways_of_tokens_are_counted_and_those_beyond_the_limit_share_one_label() {
    let metrics = Metrics::new().expect("metrics");
    let routing = |taken: Vec<u32>, rows: Vec<u32>| Routing {
        num_ways: taken.len() / rows.len(),
        top_k: 1,
        taken,
        rows,
    };
    // Two sequences of three tokens, four ways.
    metrics.tokens_routed("m", "m.block.0.mlp", &routing(vec![3, 0, 0, 0, 0, 2, 1, 0], vec![3, 3]));
    let mut many = vec![0; MAX_WAY_LABELS + 2];
    many[MAX_WAY_LABELS..].fill(5);
    metrics.tokens_routed("m", "m.block.1.mlp", &routing(many, vec![10]));
    metrics.router_failed("m", "m.block.0.mlp");
    let label = r#"family="m",module="m.block.0.mlp""#;
    for line in [
        format!("tessera_runtime_routed_tokens_total{{{label}}} 6"),
        r#"tessera_runtime_expert_tokens_total{expert="0",family="m",module="m.block.0.mlp"} 3"#
            .to_owned(),
        r#"tessera_runtime_expert_tokens_total{expert="1",family="m",module="m.block.0.mlp"} 2"#
            .to_owned(),
        format!("tessera_runtime_expert_imbalance_ratio{{{label}}} 2"),
        format!("tessera_runtime_expert_skipped_ratio{{{label}}} 0.75"),
        format!("tessera_runtime_router_failures_total{{{label}}} 1"),
        format!(
            "tessera_runtime_expert_tokens_total{{expert=\"other\",{}}} 10",
            label.replace("block.0", "block.1")
        ),
    ] {
        assert_line(&metrics, &line);
    }
}

#[test]
fn sequences_are_counted_by_why_they_ended_and_times_only_where_there_are_tokens() {
    let metrics = Metrics::new().expect("metrics");
    let timings = Timings {
        num_cached: 64,
        num_prompt: 100,
        queue: Duration::from_millis(10),
        prefill: Duration::from_millis(30),
        num_generated: 5,
        decode: Duration::from_millis(80),
    };
    let whole = SequenceReport {
        ending: Ending::Finished(Finish::Length),
        timings,
        first_token: Some(Duration::from_millis(40)),
        total: Duration::from_millis(125),
    };
    metrics.sequence_ended("chat", &whole);
    metrics.sequence_ended(
        "chat",
        &SequenceReport {
            ending: Ending::Closed,
            timings: Timings { num_prompt: 7, ..Timings::default() },
            first_token: None,
            total: Duration::from_millis(5),
        },
    );
    let change = StepChange { num_running: 3, num_waiting: 1, num_preempted: 2, cache_bytes: 640 };
    metrics.step_ran("chat", &change);
    let change = StepChange { num_running: -1, num_waiting: -1, num_preempted: 2, cache_bytes: 0 };
    metrics.step_ran("chat", &change);
    for line in [
        r#"tessera_generation_sequences_total{family="chat",reason="length"} 1"#,
        r#"tessera_generation_sequences_total{family="chat",reason="closed"} 1"#,
        r#"tessera_generation_prompt_tokens_total{family="chat"} 107"#,
        r#"tessera_generation_generated_tokens_total{family="chat"} 5"#,
        r#"tessera_generation_prefix_cache_queried_tokens_total{family="chat"} 107"#,
        r#"tessera_generation_prefix_cache_hit_tokens_total{family="chat"} 64"#,
        r#"tessera_generation_time_to_first_token_seconds_sum{family="chat"} 0.04"#,
        r#"tessera_generation_time_to_first_token_seconds_count{family="chat"} 1"#,
        r#"tessera_generation_time_per_output_token_seconds_sum{family="chat"} 0.02"#,
        r#"tessera_generation_duration_seconds_sum{family="chat"} 0.13"#,
        r#"tessera_generation_duration_seconds_count{family="chat"} 2"#,
        r#"tessera_generation_sequences_running{family="chat"} 2"#,
        r#"tessera_generation_sequences_waiting{family="chat"} 0"#,
        r#"tessera_generation_cache_bytes{family="chat"} 640"#,
        r#"tessera_generation_preemptions_total{family="chat"} 4"#,
    ] {
        assert_line(&metrics, line);
    }
}
