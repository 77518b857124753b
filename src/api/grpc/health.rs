//! The standard health service, `grpc.health.v1`. The server has the empty name and the name of the
//! protocol's service; each model has its own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::serve::{FamilyState, Registry};

/// Names of the server in the health service.
const SERVER_NAMES: [&str; 2] = ["", "inference.GRPCInferenceService"];

/// Time between two looks at the models' states.
const INTERVAL: Duration = Duration::from_millis(200);

/// Reporters of states to the health service.
pub(super) struct Reporters {
    /// Reporter of the server and of every model.
    pub(super) all: HealthReporter,
    /// Reporter of the server alone, for clients that may not send requests.
    pub(super) stranger: HealthReporter,
}

/// Keeps the states of `reporters` up to date; never returns.
pub(super) async fn report_health(reporters: Reporters, registry: Arc<Registry>) {
    let mut sent = HashMap::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        for (name, status) in statuses(&registry) {
            if sent.insert(name.clone(), status) != Some(status) {
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
