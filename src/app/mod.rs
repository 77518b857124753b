//! Composition of the server: from a configuration to listening sockets.
//!
//! This room parses no command line and installs no signal handler. Start at [`App::build`].

mod build;
mod cgroup;
mod config;
mod error;
mod follow;
mod idle;
mod loader;
mod machine;
mod profiles;
mod progress;
mod secrets;

pub use build::App;
pub use cgroup::default_memory_limit;
pub use config::{Config, NetworkConfig, PoolConfig};
pub use error::AppError;
pub use loader::{check_pins, family_names, family_of, quality_of, writer_of};
pub use machine::{Machine, MachineConfig};
pub use profiles::{Known, Measured, Profiles};
pub use secrets::Secrets;
