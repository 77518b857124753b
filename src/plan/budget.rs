//! The budget of a request, parsed from its parameters.
//!
//! A [`Budget`] from [`BudgetParameters::parse`] holds only valid numbers.
//! [`PlanTable`](super::PlanTable) decides whether a plan meets it.

use std::time::Duration;

use super::{
    error::BudgetError,
    limits::{MAX_LATENCY_BUDGET_MS, MAX_MEMORY_BUDGET_MB, MAX_PLAN_ID_BYTES},
};

/// Smallest latency budget in milliseconds that does not round to zero.
const MIN_LATENCY_BUDGET_MS: f64 = 1e-6;

/// Limits on the cost and the quality of a request's plan. `None` sets no limit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Budget {
    /// Most time that the sub-network may take.
    pub latency: Option<Duration>,
    /// Most memory that its weights and activations may take, in bytes.
    pub memory_bytes: Option<u64>,
    /// Least quality, in [0, 1].
    pub min_quality: Option<f64>,
    /// Id of the only plan that may be used.
    pub plan: Option<String>,
}

/// The budget parameters of a request, as sent by the client.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BudgetParameters {
    /// Most latency, in milliseconds.
    pub latency_budget_ms: Option<f64>,
    /// Most memory, in megabytes of 10⁶ bytes.
    pub memory_budget_mb: Option<f64>,
    /// Least quality, in [0, 1].
    pub min_quality: Option<f64>,
    /// Plan id.
    pub plan: Option<String>,
}

impl Budget {
    /// Returns the budget without a latency limit and with a least quality, so that the fastest
    /// plan is chosen.
    #[must_use]
    pub fn fastest(&self) -> Self {
        let min_quality = self.min_quality.or(Some(0.0));
        Self { latency: None, min_quality, ..self.clone() }
    }
}

impl BudgetParameters {
    /// Checks the parameters and converts their units.
    ///
    /// # Errors
    ///
    /// Fails on a number that is NaN or outside its range. Fails on a plan id that is empty or too
    /// long.
    pub fn parse(self) -> Result<Budget, BudgetError> {
        Ok(Budget {
            latency: self.latency_budget_ms.map(parse_latency).transpose()?,
            memory_bytes: self.memory_budget_mb.map(parse_memory).transpose()?,
            min_quality: self.min_quality.map(parse_quality).transpose()?,
            plan: self.plan.map(parse_plan).transpose()?,
        })
    }
}

fn parse_latency(value: f64) -> Result<Duration, BudgetError> {
    if (MIN_LATENCY_BUDGET_MS..=MAX_LATENCY_BUDGET_MS).contains(&value) {
        return Ok(Duration::from_secs_f64(value / 1e3));
    }
    Err(BudgetError::OutOfRange { parameter: "latency_budget_ms", value, range: "[1e-6, 1e9]" })
}

fn parse_memory(value: f64) -> Result<u64, BudgetError> {
    if (0.0..=MAX_MEMORY_BUDGET_MB).contains(&value) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range was checked, and a part of a byte does not count"
        )]
        return Ok((value * 1e6) as u64);
    }
    Err(BudgetError::OutOfRange { parameter: "memory_budget_mb", value, range: "[0, 1e12]" })
}

fn parse_quality(value: f64) -> Result<f64, BudgetError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(BudgetError::OutOfRange { parameter: "min_quality", value, range: "[0, 1]" })
}

fn parse_plan(plan: String) -> Result<String, BudgetError> {
    if (1..=MAX_PLAN_ID_BYTES).contains(&plan.len()) {
        return Ok(plan);
    }
    Err(BudgetError::PlanIdLength { num_bytes: plan.len() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Budget, BudgetParameters, MAX_PLAN_ID_BYTES};
    use crate::plan::BudgetError;

    fn refused_parameter(parameters: BudgetParameters) -> &'static str {
        match parameters.parse() {
            Err(BudgetError::OutOfRange { parameter, .. }) => parameter,
            Err(BudgetError::PlanIdLength { .. }) => "plan",
            Ok(_) => "none",
        }
    }

    #[test]
    fn valid_parameters_become_a_budget_in_base_units() {
        let parameters = BudgetParameters {
            latency_budget_ms: Some(2.5),
            memory_budget_mb: Some(1.5),
            min_quality: Some(1.0),
            plan: Some("small".to_owned()),
        };
        let budget = Budget {
            latency: Some(Duration::from_micros(2500)),
            memory_bytes: Some(1_500_000),
            min_quality: Some(1.0),
            plan: Some("small".to_owned()),
        };
        assert_eq!(parameters.parse(), Ok(budget));
        assert_eq!(BudgetParameters::default().parse(), Ok(Budget::default()));
    }

    #[test]
    fn numbers_outside_their_ranges_are_refused() {
        let latency = |value| BudgetParameters {
            latency_budget_ms: Some(value),
            ..BudgetParameters::default()
        };
        let memory = |value| BudgetParameters {
            memory_budget_mb: Some(value),
            ..BudgetParameters::default()
        };
        let quality =
            |value| BudgetParameters { min_quality: Some(value), ..BudgetParameters::default() };
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            assert_eq!(refused_parameter(latency(value)), "latency_budget_ms");
            assert_eq!(refused_parameter(memory(value)), "memory_budget_mb");
            assert_eq!(refused_parameter(quality(value)), "min_quality");
        }
        for value in [0.0, 1e-9, 1e10] {
            assert_eq!(refused_parameter(latency(value)), "latency_budget_ms");
        }
        assert_eq!(refused_parameter(quality(1.001)), "min_quality");
    }

    #[test]
    fn plan_ids_of_impossible_length_are_refused() {
        for plan in [String::new(), "x".repeat(MAX_PLAN_ID_BYTES + 1)] {
            let parameters = BudgetParameters { plan: Some(plan), ..BudgetParameters::default() };
            assert_eq!(refused_parameter(parameters), "plan");
        }
    }

    #[test]
    fn a_refusal_names_parameter_value_and_range() {
        let parameters = BudgetParameters { min_quality: Some(1.5), ..BudgetParameters::default() };
        let error = parameters.parse().expect_err("1.5 is not a quality");
        assert_eq!(error.to_string(), "min_quality is 1.5, it must lie in [0, 1]");
    }
}
