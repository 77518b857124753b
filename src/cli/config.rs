//! Options from a file. They replace the defaults, so the environment and flags take precedence.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use super::args::Arguments;
use crate::tensor::{FileKind, read_text};

/// Command whose options a file may hold, beside the options of all commands.
const SERVE: &str = "serve";

/// Options that a file must not hold.
const NOT_IN_FILES: [&str; 4] = ["config", "check_config", "help", "version"];

/// Reads the command line, the environment and the file that `--config` or `TESSERA_CONFIG` names.
///
/// # Errors
///
/// Fails on a file that cannot be read, is not TOML, or has a key that is not an option. A wrong
/// command line ends the process, as is usual.
pub(super) fn parse(line: impl Iterator<Item = OsString>) -> anyhow::Result<Arguments> {
    let line: Vec<OsString> = line.collect();
    let mut command = Arguments::command();
    if let Some(path) = config_path(&line) {
        command = with_defaults(command, &path)?;
    }
    let matches = command.get_matches_from(line);
    Arguments::from_arg_matches(&matches).map_err(Into::into)
}

/// Returns the path of the options file, or None if it is not named. Ignores errors in `line`.
fn config_path(line: &[OsString]) -> Option<PathBuf> {
    let lenient = Arguments::command().ignore_errors(true).try_get_matches_from(line).ok()?;
    let of = |matches: &ArgMatches| matches.get_one::<PathBuf>("config").cloned();
    lenient.subcommand().and_then(|(_, inner)| of(inner)).or_else(|| of(&lenient))
}

/// Sets the options in the file at `path` as defaults of `command`.
fn with_defaults(mut command: Command, path: &Path) -> anyhow::Result<Command> {
    let shown = path.display();
    let text =
        read_text(path, FileKind::Options).with_context(|| format!("{shown}: cannot be read"))?;
    let table: toml::Table = text.parse().with_context(|| format!("{shown}: is not valid TOML"))?;
    // Both lists of names are read before `command` is changed.
    let common = option_names(&command);
    let serve = command.find_subcommand(SERVE).map(option_names).unwrap_or_default();
    for (key, value) in table {
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => {
                value.to_string()
            }
            _ => anyhow::bail!("{shown}: key `{key}` must be a string, a number or a boolean"),
        };
        if common.contains(&key) {
            command = command.mut_arg(key, |option| option.default_value(text));
        } else if serve.contains(&key) {
            command = command
                .mut_subcommand(SERVE, |c| c.mut_arg(key, |option| option.default_value(text)));
        } else {
            let known = [common, serve].concat().join(", ");
            anyhow::bail!("{shown}: unknown key `{key}`; known: {known}");
        }
    }
    Ok(command)
}

/// Returns the names of the options of `command` that a file may hold.
fn option_names(command: &Command) -> Vec<String> {
    let names = command.get_arguments().map(|option| option.get_id().to_string());
    names.filter(|name| !NOT_IN_FILES.contains(&name.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::args::Command as Chosen, tensor::mutate::feed_file};

    fn parsed(file: &str, line: &[&str]) -> anyhow::Result<Arguments> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tessera.toml");
        std::fs::write(&path, file).expect("written");
        let path = path.to_str().expect("text").to_owned();
        let line = line.iter().map(ToString::to_string).chain(["--config".to_owned(), path]);
        parse(line.map(OsString::from))
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_defaults() {
        let file = "port = 9000\nqueue_limit = 7\nno_spin = true\npool = \"elsewhere\"";
        let arguments = parsed(file, &["tessera", "serve", "--port", "9001"]).expect("valid");
        assert!(arguments.common.no_spin);
        assert_eq!(arguments.common.pool, Path::new("elsewhere"));
        let Chosen::Serve(serve) = arguments.command else { panic!("another command") };
        assert_eq!((serve.port, serve.queue_limit, serve.grpc_port), (9001, 7, 8001));
    }

    #[test]
    fn other_commands_take_their_part_of_the_file() {
        let arguments = parsed("port = 9000\nthreads = 1", &["tessera", "front"]).expect("valid");
        assert_eq!(arguments.common.threads, 1);
    }

    #[test]
    fn fuzz_option_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tessera.toml");
        let seed = b"port = 9000\nqueue_limit = 7\nno_spin = true\npool = \"elsewhere\"\n";
        let command = Arguments::command();
        feed_file(&[seed.to_vec()], &path, || drop(with_defaults(command.clone(), &path)));
    }

    #[test]
    fn a_wrong_file_is_refused_by_key() {
        for (file, reason) in [
            ("prot = 1", "unknown key `prot`; known: pool, "),
            ("port = [1]", "key `port` must be a string"),
            ("port = ", "is not valid TOML"),
            ("config = \"other\"", "unknown key `config`"),
        ] {
            let error = parsed(file, &["tessera", "serve"]).expect_err(reason);
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
    }

    #[test]
    fn times_that_clocks_cannot_add_are_refused() {
        for option in ["request", "header", "idle", "write", "drain"] {
            let parse = |seconds: u64| {
                let option = format!("--{option}-timeout={seconds}");
                Arguments::command().try_get_matches_from(["tessera", "serve", &option])
            };
            assert!(parse(1_000_000_000).is_ok(), "{option}");
            let error = parse(u64::MAX).expect_err(option).to_string();
            assert!(error.contains("is not in 0..=1000000000"), "{error}");
        }
    }

    #[test]
    fn the_reference_file_has_every_option_and_no_other() {
        let text = include_str!("../../deploy/tessera.toml");
        let mut keys: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("#").unwrap_or(line).split_once(" = "))
            .map(|(key, _)| key)
            .filter(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            .collect();
        keys.sort_unstable();
        let command = Arguments::command();
        let serve = command.find_subcommand(SERVE).expect("there is one");
        let mut options = [option_names(&command), option_names(serve)].concat();
        options.sort();
        assert_eq!(keys, options);
        // Every option is accepted once it is uncommented.
        let uncommented: Vec<&str> =
            text.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).collect();
        let settings = uncommented.into_iter().filter(|line| line.contains(" = "));
        let settings: Vec<&str> = settings.filter(|line| !line.starts_with(' ')).collect();
        parsed(&settings.join("\n"), &["tessera", "serve"]).expect("valid");
    }
}
