//! The arguments that name texts or images.

use std::path::PathBuf;

use clap::Args;

/// Texts or labelled images for offline work.
#[derive(Debug, Args)]
pub struct DataArguments {
    /// Texts (JSON Lines of {"id": …, "text": …}, perhaps with a class in "label" and the id of an
    /// answer in "answer") or labelled images (a folder of class/name.png, an IDX or NPY file);
    /// several are fitted together and evaluated apart. Evaluate on such as no fit has seen
    #[arg(long, alias = "corpus", required = true, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Labels of an IDX or NPY file of images [default for IDX: the file beside it]
    #[arg(long)]
    pub labels: Option<PathBuf>,
    /// Most texts or images; the first ones of a file, or as many of each class of a folder
    #[arg(long, alias = "texts")]
    pub examples: Option<usize>,
}
