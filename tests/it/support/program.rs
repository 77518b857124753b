//! The program, as it is run.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::root;

/// The program, serving.
pub(crate) struct Program {
    child: Child,
    address: String,
    pub(crate) log: Vec<String>,
}

impl Program {
    /// Starts the program with further `options` on a free port and waits until it serves.
    pub(crate) fn start(pool: &Path, options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tessera"))
            .args(["serve", "--port", "0", "--no-grpc", "--log-format", "json", "--pool"])
            .arg(pool)
            .arg("--cache")
            .arg(pool.join("cache"))
            .args(options)
            .current_dir(root())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let stderr = child.stderr.take().expect("piped");
        let mut program = Self { child, address: String::new(), log: Vec::new() };
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        while let Some(line) = lines.next() {
            program.log.push(line.clone());
            if let Some((_, rest)) = line.split_once("\"address\":\"") {
                program.address = rest.split('"').next().expect("an address").to_owned();
            }
            if line.contains("every family is loaded or failed") {
                // The program must not wait for a reader of its later lines.
                std::thread::spawn(move || lines.for_each(drop));
                return program;
            }
        }
        panic!("the server ended before it served: {:?}", program.log);
    }

    /// Returns the status and the body of the answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("connects");
        let head = format!("{method} {path} HTTP/1.1\r\nhost: tessera\r\nconnection: close\r\n");
        write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{answer}"));
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Returns the status of the answer.
    pub(crate) fn status(&self, method: &str, path: &str, body: &str) -> u16 {
        self.ask(method, path, body).0
    }

    /// Returns the bytes of memory that the program holds.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        let kibibytes = line.trim().strip_suffix(" kB").expect("a unit").parse::<u64>();
        kibibytes.expect("a number") * 1024
    }

    /// Tells the program to end (SIGTERM) and returns its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(&id).status().expect("kill runs").success());
        self.child.wait().expect("ends").code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
