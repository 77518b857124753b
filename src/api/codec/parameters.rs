//! The `parameters` of a request: its budget and options, by known names.

use schemars::JsonSchema;
use serde_json::{Map, Value};

use crate::{
    api::error::ApiError,
    plan::{Budget, BudgetParameters},
    serve::DEFAULT_PRIORITY,
};

/// Names of the known parameters, as error messages list them.
const KNOWN: &str = "latency_budget_ms, memory_budget_mb, min_quality, plan, prompt_name, \
                     priority, timeout, explain, binary_data_output";

/// Parameter by which a stream of answers has an empty last one. It has no effect on a request that
/// has one answer.
pub(crate) const EMPTY_FINAL: &str = "triton_enable_empty_final_response";

/// Parameters of a request; each is read by [`Parameters::parse`].
#[derive(Debug, JsonSchema)]
#[schemars(rename = "Parameters", deny_unknown_fields)]
#[expect(dead_code, reason = "it is a description")]
pub(crate) struct ParametersSchema {
    /// Time in milliseconds within which the answer should be ready, counted from arrival.
    latency_budget_ms: Option<f64>,
    /// Most memory of the plan's weights and largest activations, in 10⁶ bytes.
    memory_budget_mb: Option<f64>,
    /// Least quality, 0 to 1.
    min_quality: Option<f64>,
    /// Id of the plan to run, in place of any other.
    plan: Option<String>,
    /// Name of the prompt that stands before each text, in place of the default.
    prompt_name: Option<String>,
    /// Priority in the queue as in Triton: 1 runs first. 0 stands for none, which counts as 100.
    priority: Option<u64>,
    /// Latency budget in microseconds, if there is no other.
    timeout: Option<u64>,
    /// Whether the answer has the times of the stages.
    explain: Option<bool>,
    /// Whether outputs go back as raw bytes behind the JSON.
    binary_data_output: Option<bool>,
}

/// Parsed parameters of a request.
#[derive(Debug, PartialEq)]
pub(crate) struct Parameters {
    /// Budget of the request.
    pub(crate) budget: Budget,
    /// Name of the prompt before each text; `None` for the model's default.
    pub(crate) prompt_name: Option<String>,
    /// Priority in the queue; a request with a smaller number runs earlier.
    pub(crate) priority: u32,
    /// Whether the answer explains how it came about.
    pub(crate) explain: bool,
    /// Whether outputs go back as raw bytes behind the JSON.
    pub(crate) binary: bool,
}

impl Parameters {
    /// Parses the parameters in their wire form.
    ///
    /// `timeout`, in microseconds, is the latency budget if there is no other. The protocol's
    /// sequence parameters and [`EMPTY_FINAL`] are ignored.
    ///
    /// # Errors
    ///
    /// Fails on an unknown parameter, a value of the wrong type, and a number out of its range.
    pub(crate) fn parse(parameters: Map<String, Value>) -> Result<Self, ApiError> {
        let mut budget = BudgetParameters::default();
        let mut timeout_ms = None;
        let (mut explain, mut binary) = (false, false);
        let mut prompt_name = None;
        let mut priority = DEFAULT_PRIORITY;
        for (name, value) in parameters {
            let parameter = Parameter { name, value };
            match parameter.name.as_str() {
                "latency_budget_ms" => budget.latency_budget_ms = Some(parameter.number()?),
                "memory_budget_mb" => budget.memory_budget_mb = Some(parameter.number()?),
                "min_quality" => budget.min_quality = Some(parameter.number()?),
                "plan" => budget.plan = Some(parameter.text()?),
                "prompt_name" => prompt_name = Some(parameter.text()?),
                "timeout" => timeout_ms = parameter.timeout_ms()?,
                "explain" => explain = parameter.switch()?,
                "priority" => priority = parameter.priority()?,
                "binary_data_output" => binary = parameter.switch()?,
                "sequence_id" | "sequence_start" | "sequence_end" | EMPTY_FINAL => {}
                _ => {
                    let known = KNOWN.into();
                    return Err(ApiError::UnknownParameter { name: parameter.name, known });
                }
            }
        }
        budget.latency_budget_ms = budget.latency_budget_ms.or(timeout_ms);
        let budget = budget.parse().map_err(|error| ApiError::Serve(error.into()))?;
        Ok(Self { budget, prompt_name, priority, explain, binary })
    }
}

/// A parameter and its value, before the type of the value is checked.
struct Parameter {
    name: String,
    value: Value,
}

impl Parameter {
    fn number(self) -> Result<f64, ApiError> {
        self.value.as_f64().ok_or_else(|| self.refused("a number"))
    }

    fn whole_number(self) -> Result<u64, ApiError> {
        self.value.as_u64().ok_or_else(|| self.refused("an integer from 0 on"))
    }

    fn switch(self) -> Result<bool, ApiError> {
        self.value.as_bool().ok_or_else(|| self.refused("true or false"))
    }

    fn text(self) -> Result<String, ApiError> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => Err(self.refused("a string")),
        }
    }

    /// Returns the priority; 0 stands for the default, as in Triton.
    fn priority(self) -> Result<u32, ApiError> {
        Ok(match self.whole_number()? {
            0 => DEFAULT_PRIORITY,
            priority => u32::try_from(priority).unwrap_or(u32::MAX),
        })
    }

    /// Returns the timeout in milliseconds, or None if it is 0, as in Triton.
    fn timeout_ms(self) -> Result<Option<f64>, ApiError> {
        let microseconds = self.whole_number()?;
        #[expect(clippy::cast_precision_loss, reason = "a timeout is far below 2^53 µs")]
        let timeout_ms = microseconds as f64 / 1e3;
        Ok((microseconds > 0).then_some(timeout_ms))
    }

    fn refused(self, expected: &'static str) -> ApiError {
        ApiError::Parameter { name: self.name, found: shorten(&self.value), expected }
    }
}

/// Writes `value` for a message, without content that may be long.
pub(crate) fn shorten(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.len() > 32 => "a long string".to_owned(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::Parameters;
    use crate::plan::Budget;

    fn parse(parameters: Value) -> Result<Parameters, String> {
        match parameters {
            Value::Object(map) => Parameters::parse(map).map_err(|error| error.to_string()),
            other => Err(format!("{other} is not an object")),
        }
    }

    #[test]
    fn budgets_are_read_in_their_units() {
        let parsed = parse(json!({
            "latency_budget_ms": 2.5, "memory_budget_mb": 100, "min_quality": 0.9,
            "plan": "l6[0..6]", "timeout": 1, "priority": 3, "explain": true,
            "triton_enable_empty_final_response": true,
            "sequence_id": 7, "sequence_start": true, "sequence_end": true,
            "binary_data_output": true, "prompt_name": "query",
        }));
        let budget = Budget {
            latency: Some(Duration::from_micros(2500)),
            memory_bytes: Some(100_000_000),
            min_quality: Some(0.9),
            plan: Some("l6[0..6]".to_owned()),
        };
        let prompt_name = Some("query".to_owned());
        let expected = Parameters { budget, prompt_name, priority: 3, explain: true, binary: true };
        assert_eq!(parsed, Ok(expected));
    }

    #[test]
    fn a_timeout_is_the_latency_budget_where_there_is_no_other() {
        let latency = |parameters| parse(parameters).map(|parsed| parsed.budget.latency);
        assert_eq!(latency(json!({"timeout": 1500})), Ok(Some(Duration::from_micros(1500))));
        assert_eq!(latency(json!({"timeout": 0})), Ok(None));
    }

    #[test]
    fn no_priority_is_one_in_the_middle() {
        let priority = |parameters| parse(parameters).map(|parsed| parsed.priority);
        for none in [json!({}), json!({"priority": 0})] {
            assert_eq!(priority(none), Ok(100));
        }
        assert_eq!(priority(json!({"priority": 1})), Ok(1));
        assert_eq!(priority(json!({"priority": u64::MAX})), Ok(u32::MAX));
    }

    #[test]
    fn wrong_parameters_are_refused_by_name() {
        for (parameters, reason) in [
            (json!({"latency_budget": 3}), "latency_budget_ms, memory_budget_mb"),
            (json!({"latency_budget_ms": "NaN"}), "`latency_budget_ms` is \"NaN\""),
            (json!({"latency_budget_ms": null}), "must be a number"),
            (json!({"latency_budget_ms": 0}), "latency_budget_ms is 0"),
            (json!({"latency_budget_ms": -1}), "latency_budget_ms is -1"),
            (json!({"memory_budget_mb": -0.5}), "memory_budget_mb is -0.5"),
            (json!({"min_quality": 1.5}), "min_quality is 1.5"),
            (json!({"min_quality": [0.5]}), "an array"),
            (json!({"plan": 6}), "must be a string"),
            (json!({"prompt_name": null}), "must be a string"),
            (json!({"plan": ""}), "plan has 0 bytes"),
            (json!({"timeout": -5}), "an integer from 0 on"),
            (json!({"priority": "high"}), "an integer from 0 on"),
            (json!({"explain": "yes"}), "true or false"),
            (json!({"binary_data_output": 1}), "true or false"),
        ] {
            let error = parse(parameters.clone()).expect_err(&parameters.to_string());
            assert!(error.contains(reason), "{parameters}: {error}");
        }
    }
}
