//! Topological order of a graph.

/// Start and end of an edge, as indices of spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Space where the edge starts.
    pub from: usize,
    /// Space where the edge ends.
    pub to: usize,
}

/// Returns all of `num_spaces` spaces in topological order (Kahn's algorithm).
///
/// # Errors
///
/// Fails with the index of an edge that lies on a cycle.
pub fn topological_order(edges: &[Ends], num_spaces: usize) -> Result<Vec<usize>, usize> {
    let mut num_waiting = vec![0_usize; num_spaces];
    let mut outgoing = vec![Vec::new(); num_spaces];
    for edge in edges {
        num_waiting[edge.to] += 1;
        outgoing[edge.from].push(edge.to);
    }
    let mut sorted: Vec<usize> = (0..num_spaces).filter(|space| num_waiting[*space] == 0).collect();
    let mut next = 0;
    while next < sorted.len() {
        for &target in &outgoing[sorted[next]] {
            num_waiting[target] -= 1;
            if num_waiting[target] == 0 {
                sorted.push(target);
            }
        }
        next += 1;
    }
    match find_cycle_edge(edges, &num_waiting) {
        Some(edge) => Err(edge),
        None => Ok(sorted),
    }
}

/// Returns an edge of a cycle, or `None` if there are no cycles. `num_waiting` is positive for the
/// spaces that the sort could not place.
///
/// Each of these spaces has a predecessor among them, so enough steps back end on a cycle.
fn find_cycle_edge(edges: &[Ends], num_waiting: &[usize]) -> Option<usize> {
    let mut back = vec![None; num_waiting.len()];
    for (index, edge) in edges.iter().enumerate() {
        if num_waiting[edge.from] > 0 {
            back[edge.to] = Some(index);
        }
    }
    let mut edge = back[num_waiting.iter().position(|waiting| *waiting > 0)?]?;
    for _ in 0..num_waiting.len() {
        edge = back[edges[edge].from]?;
    }
    Some(edge)
}
