//! The standard health service, `grpc.health.v1`: the server under the empty name and that of the
//! protocol's service, each model under its own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::serve::{FamilyState, Registry};

/// The names under which the server itself is asked for.
const SERVER_NAMES: [&str; 2] = ["", "inference.GRPCInferenceService"];

/// How often states are looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// What tells of health.
pub(super) struct Reporters {
    /// Tells of the server and of every model.
    pub(super) all: HealthReporter,
    /// Tells those who may not ask of the server alone.
    pub(super) stranger: HealthReporter,
}

/// Keeps what `reporters` tell true; never ends.
pub(super) async fn report_health(reporters: Reporters, registry: Arc<Registry>) {
    let mut told = HashMap::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        for (name, status) in statuses(&registry) {
            if told.insert(name.clone(), status) != Some(status) {
                if SERVER_NAMES.contains(&name.as_str()) {
                    reporters.stranger.set_service_status(&name, status).await;
                }
                reporters.all.set_service_status(name, status).await;
            }
        }
    }
}

fn statuses(registry: &Registry) -> Vec<(String, ServingStatus)> {
    let status = |is_serving| match is_serving {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    let server = status(registry.is_ready());
    let draining = registry.is_draining();
    let mut statuses = SERVER_NAMES.map(|name| (name.to_owned(), server)).to_vec();
    statuses.extend(
        registry.families().into_iter().map(|(name, state)| {
            (name, status(!draining && matches!(state, FamilyState::Ready(_))))
        }),
    );
    statuses
}
