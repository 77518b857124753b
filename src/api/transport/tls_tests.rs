//! Fuzz test of certificates and keys, which must be read or refused: `make fuzz`.

use std::fs;

use super::*;
use crate::tensor::mutate::feed_file;

/// Returns a file with keys and certificates for tests alone.
fn pem(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references/tls");
    fs::read(folder.join(name)).expect("read")
}

#[test]
fn fuzz_pem_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let [certificate, key, authority] =
        ["certificate", "key", "authority"].map(|name| folder.path().join(name));
    let files = TlsFiles {
        certificate: certificate.clone(),
        key: key.clone(),
        client_authority: Some(authority.clone()),
    };
    let good = || {
        fs::write(&certificate, pem("certificate.pem")).expect("written");
        fs::write(&key, pem("key.pem")).expect("written");
        fs::write(&authority, pem("certificate.pem")).expect("written");
    };
    good();
    Configs::read(&files).expect("valid files");
    let [own, rsa] = ["certificate.pem", "rsa-certificate.pem"].map(pem);
    let keys = ["key.pem", "sec1.pem", "ed25519.pem", "rsa.pem"].map(pem);
    let certificates = [own.clone(), rsa.clone(), [own, rsa].concat()];
    let all = [&certificates[..], &keys].concat();
    for path in [&certificate, &key, &authority] {
        good();
        feed_file(&all, path, || drop(Configs::read(&files)));
    }
}
