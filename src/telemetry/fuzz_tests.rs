//! Fuzz test of the traces that requests name, which must be continued or ignored: `make fuzz`.

use super::continue_trace;
use crate::tensor::mutate::feed;

#[test]
fn parents_of_traces() {
    let seeds =
        ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=1,other@tenant=2"];
    feed(&seeds.map(|seed| seed.as_bytes().to_vec()), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let span = tracing::Span::none();
        continue_trace(&span, Some(&text), Some(seeds[1]));
        continue_trace(&span, Some(seeds[0]), Some(&text));
    });
}
