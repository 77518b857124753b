//! Tests of reading secrets again, and of what the log says of it.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::api::{Limits, TlsFiles};

/// Clients file with one client.
const CLIENTS: &str = "[clients.one]\ntoken = \"a token of the tests\"\n";

/// Private key for these tests alone.
const KEY: &str = include_str!("../../tests/references/tls/key.pem");

/// Certificate of [`KEY`], which signs itself and is valid until 2120.
const CERTIFICATE: &str = include_str!("../../tests/references/tls/certificate.pem");

/// Lines of the log of one thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Files of secrets in `folder`, and a server's settings that name some of them.
fn config(folder: &Path, clients: bool, tls: bool) -> NetworkConfig {
    let tls_files = TlsFiles {
        certificate: folder.join("certificate.pem"),
        key: folder.join("key.pem"),
        client_authority: None,
    };
    fs::write(folder.join("clients.toml"), CLIENTS).expect("written");
    fs::write(&tls_files.certificate, CERTIFICATE).expect("written");
    fs::write(&tls_files.key, KEY).expect("written");
    let second = Duration::from_secs(1);
    NetworkConfig {
        http: "127.0.0.1:0".to_owned(),
        grpc: None,
        limits: Limits {
            max_connections: 1,
            max_streams: 1,
            header_timeout: second,
            idle_timeout: second,
            write_timeout: second,
            drain_timeout: second,
        },
        clients: clients.then(|| folder.join("clients.toml")),
        tls: tls.then_some(tls_files),
    }
}

/// Reads the secrets again and returns the lines of the log.
fn reload(secrets: &Secrets) -> Vec<String> {
    let lines = Lines::default();
    let log = tracing_subscriber::fmt().with_writer(lines.clone()).without_time();
    let log = log.with_ansi(false).with_target(false).finish();
    tracing::subscriber::with_default(log, || secrets.reload());
    let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_log_says_what_was_read_again_and_what_was_not() {
    for (clients, tls, broken, expected) in [
        (false, false, &[][..], &[][..]),
        (true, false, &[], &["INFO clients were read again"]),
        (false, true, &[], &["INFO certificates were read again"]),
        (true, true, &[], &["INFO clients were read", "INFO certificates were read"]),
        (true, false, &["clients.toml"], &["ERROR the clients stay as they were: "]),
        (false, true, &["key.pem"], &["ERROR the certificate stays as it was: "]),
        (true, true, &["clients.toml"], &["ERROR the clients stay", "INFO certificates were"]),
        (true, true, &["certificate.pem"], &["INFO clients were", "ERROR the certificate"]),
        (true, true, &["clients.toml", "key.pem"], &["ERROR the clients", "ERROR the certificate"]),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let secrets = Secrets::read(&config(folder.path(), clients, tls)).expect("read");
        for name in broken {
            fs::write(folder.path().join(name), "broken").expect("written");
        }
        let lines = reload(&secrets);
        assert_eq!(lines.len(), expected.len(), "{lines:?}");
        for (line, start) in lines.iter().zip(expected) {
            assert!(line.starts_with(start), "{line}");
        }
        for (name, line) in broken.iter().zip(lines.iter().filter(|l| l.starts_with("ERROR"))) {
            assert!(line.contains(name), "{line} names no {name}");
        }
    }
}
