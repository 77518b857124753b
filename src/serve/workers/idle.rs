//! Work for families while no request is to be answered: measuring their modules.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Weak,
};

use crate::{
    runtime::Executor,
    serve::{
        idle::{IdleTurn, IdleWork},
        planner::Planner,
    },
};

/// Work for a family that waits until nothing else is to be done.
#[derive(Debug)]
pub(crate) struct Idle {
    /// Measurements.
    pub(crate) work: Box<dyn IdleWork>,
    /// Planner that gets the measured costs.
    pub(crate) planner: Weak<Planner>,
}

impl Idle {
    /// Goes on with the work on `executor`. Returns whether there is more.
    pub(super) fn turn(&mut self, executor: &Executor, is_quiet: &dyn Fn() -> bool) -> bool {
        let Some(planner) = self.planner.upgrade() else { return false };
        let turn = AssertUnwindSafe(|| self.work.turn(executor, is_quiet));
        match catch_unwind(turn).unwrap_or(IdleTurn::Failed) {
            IdleTurn::More => true,
            IdleTurn::Done(profile) => {
                planner.replace(&profile);
                false
            }
            IdleTurn::Failed => false,
        }
    }
}
