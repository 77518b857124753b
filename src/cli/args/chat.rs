//! Options of `chat`.

use clap::Args;

/// Options of `chat`.
#[derive(Debug, Args)]
pub struct ChatArguments {
    /// Message to send; without one, each line of standard input is a message
    pub message: Option<String>,
    /// Family that answers
    #[arg(long, default_value = "chat")]
    pub family: String,
    /// URL of the server
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Token of a client, if the server asks for one
    #[arg(long, env = "TESSERA_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Instruction that stands before the chat
    #[arg(long)]
    pub system: Option<String>,
    /// Most tokens of an answer [default: what the context leaves]
    #[arg(long)]
    pub max_tokens: Option<u32>,
    /// Randomness of answers, from 0 to 2; 0 takes the most likely token [default: 1]
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Seed of the random choices; an answer with the same seed is the same
    #[arg(long)]
    pub seed: Option<u64>,
    /// Plan that answers [default: the best that the server chooses]
    #[arg(long)]
    pub plan: Option<String>,
}
