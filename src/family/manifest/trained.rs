//! Stitches in SN-Net's layout and exits, which were trained together with anchors.

use std::path::PathBuf;

use serde::Deserialize;

/// Stitches in the layout of SN-Net's checkpoints: `stitch_layers.{pair}.{window}.transform.weight`
/// and `.bias` (Stitchable Neural Networks, CVPR 2023).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StitchesSpec {
    /// The safetensors file.
    pub file: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Names of the anchors before and after the stitches of each `{pair}`, in the file's order.
    pub pairs: Vec<[String; 2]>,
    /// Size of a window, in blocks. Any two blocks of a window are joined by the window's stitch.
    #[serde(default = "two")]
    pub kernel: usize,
    /// Distance from a window to the next, in blocks.
    #[serde(default = "one")]
    pub stride: usize,
    /// Whether paths over a stitch end with the final norm. In SN-Net v1 for DeiT they do not,
    /// although its anchors do.
    #[serde(default = "yes")]
    pub final_norm: bool,
}

/// Exits as tensors `exits.{anchor}.{depth}.norm` and `.head`, over the first token and the mean of
/// all tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitsSpec {
    /// The safetensors file.
    pub file: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Names of the anchors, in the order of the file's `{anchor}`.
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
    /// Returns the stitches between anchors of `depth` blocks. A stitch is the block that it
    /// follows, the block that it precedes, and its window. A pair of blocks belongs to the first
    /// window that has it (SN-Net's `paired`).
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
