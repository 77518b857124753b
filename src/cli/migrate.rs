//! The `migrate` command.

use super::{
    args::{Common, MigrateArguments},
    progress::say,
};
use crate::{
    app::{family_names, writer_of},
    family::{FORMAT, MANIFEST_FILE, migrated},
    telemetry,
    tensor::{FileKind, read_text},
};

/// Brings manifests of older formats up to date. Comments and order are kept.
pub(super) fn migrate(common: &Common, arguments: &MigrateArguments) -> anyhow::Result<()> {
    telemetry::start_logging(&common.log, common.log_format, None)?;
    let names = match &arguments.family {
        Some(name) => vec![name.clone()],
        None => family_names(&common.pool)?,
    };
    for name in names {
        let writer = writer_of(&common.pool, &name)?;
        let path = writer.folder().join(MANIFEST_FILE);
        match migrated(&path, &read_text(&path, FileKind::Manifest)?)? {
            Some(_) if arguments.dry_run => say(&format!("{name}: would be of format {FORMAT}")),
            Some(text) => {
                writer.replace(&path, text.as_bytes())?;
                say(&format!("{name}: is of format {FORMAT} now"));
            }
            None => say(&format!("{name}: is of format {FORMAT}")),
        }
    }
    Ok(())
}
