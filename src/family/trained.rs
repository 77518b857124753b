//! What is trained together with anchors: stitches in SN-Net's layout, and exits.

use std::path::PathBuf;

use serde::Deserialize;

/// Stitches in the layout of SN-Net's checkpoints: `stitch_layers.{pair}.{window}.transform.weight`
/// and `.bias` (Stitchable Neural Networks, CVPR 2023).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StitchesSpec {
    /// The safetensors file.
    pub file: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// The anchors that each `{pair}` leads from and to, in the file's order.
    pub pairs: Vec<[String; 2]>,
    /// The blocks of a window; every two of them are joined, and share the window's stitch.
    #[serde(default = "two")]
    pub kernel: usize,
    /// How far a window lies from the next, in blocks.
    #[serde(default = "one")]
    pub stride: usize,
    /// Whether paths over a stitch end with the final norm. SN-Net v1's for DeiT do not, though its
    /// anchors do.
    #[serde(default = "yes")]
    pub final_norm: bool,
}

/// Exits: `exits.{anchor}.{depth}.norm` and `.head` over the first token and the mean of all.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitsSpec {
    /// The safetensors file.
    pub file: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// The anchors in the order of the file's `{anchor}`.
    pub anchors: Vec<String>,
}

fn two() -> usize {
    2
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

impl StitchesSpec {
    /// Lists the stitches between anchors of `depth` blocks: after which block, before which block,
    /// and the window that owns the stitch. A window has the pairs in it that none before it has
    /// (SN-Net's `paired`).
    pub fn windows(&self, depth: usize) -> Vec<(usize, usize, usize)> {
        let mut found: Vec<(usize, usize, usize)> = Vec::new();
        let starts = (0..(depth + 1).saturating_sub(self.kernel)).step_by(self.stride.max(1));
        for (window, start) in starts.enumerate() {
            for after in start..start + self.kernel {
                for before in start..start + self.kernel {
                    if !found.iter().any(|known| (known.0, known.1) == (after, before)) {
                        found.push((after, before, window));
                    }
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_as_many_as_the_papers_say() {
        let spec = |kernel, stride| StitchesSpec {
            file: "weights.safetensors".into(),
            sha256: String::new(),
            pairs: Vec::new(),
            kernel,
            stride,
            final_norm: true,
        };
        for (depth, pairs, windows) in [(12, 34, 11), (9, 25, 8), (6, 16, 5)] {
            let found = spec(2, 1).windows(depth);
            assert_eq!(found.len(), pairs, "depth {depth}");
            assert_eq!(found.last().map(|last| last.2 + 1), Some(windows), "depth {depth}");
        }
        assert_eq!(spec(2, 1).windows(6)[..4], [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]);
        assert!(spec(3, 1).windows(2).is_empty());
    }
}
