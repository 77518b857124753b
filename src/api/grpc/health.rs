//! The standard health service, `grpc.health.v1`: the server under the empty name and that of the
//! protocol's service, each model under its own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::serve::{FamilyState, Registry};

/// The name of the inference service.
const SERVICE: &str = "inference.GRPCInferenceService";

/// How often states are looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// Keeps what `reporter` tells true; never ends.
pub(super) async fn report_health(reporter: HealthReporter, registry: Arc<Registry>) {
    let mut told = HashMap::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        for (name, status) in statuses(&registry) {
            if told.insert(name.clone(), status) != Some(status) {
                reporter.set_service_status(name, status).await;
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
    let mut statuses = vec![(String::new(), server), (SERVICE.to_owned(), server)];
    statuses.extend(
        registry.families().into_iter().map(|(name, state)| {
            (name, status(!draining && matches!(state, FamilyState::Ready(_))))
        }),
    );
    statuses
}
