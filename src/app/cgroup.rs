//! The memory limit of the process's control group, such as that of a container.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// Fraction of the group's limit that the process may hold by default. The kernel kills a process
/// of the group at the limit itself, where the pages of mapped files count as well.
const SHARE: f64 = 0.85;

/// Returns the memory in bytes that the process may hold, or `None` if its group has no limit.
pub fn default_memory_limit() -> Option<u64> {
    let limit = limit_under(Path::new("/sys/fs/cgroup"), Path::new("/proc/self/cgroup"))?;
    #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^53 bytes")]
    let share = limit as f64 * SHARE;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is smaller than the limit"
    )]
    let bytes = share as u64;
    Some(bytes)
}

/// Returns the least limit of the group that the file `own` names and of the groups around it, in
/// the file system `root`. Inside a container `root` often begins at the container's own group.
fn limit_under(root: &Path, own: &Path) -> Option<u64> {
    let groups = fs::read_to_string(own).unwrap_or_default();
    let mut limits = vec![limit_of(&root.join("memory.max"))];
    limits.push(limit_of(&root.join("memory/memory.limit_in_bytes")));
    for line in groups.lines() {
        // ID:CONTROLLERS:PATH; version 2 has the id 0 and no controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (folder, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let inside =
            Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
        let group: PathBuf = inside.collect();
        limits.extend(group.ancestors().map(|group| limit_of(&folder.join(group).join(file))));
    }
    limits.into_iter().flatten().min()
}

/// Returns the limit that the file `path` holds. Version 2 writes `max` for none, version 1 a
/// number that no machine has.
fn limit_of(path: &Path) -> Option<u64> {
    const NONE: u64 = 1 << 60;
    let text = fs::read_to_string(path).ok()?;
    text.trim().parse().ok().filter(|limit| *limit < NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the limit that is found where `own` is the process's list of groups, and `files`
    /// hold what follows them.
    fn found(own: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().expect("a folder");
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, content).expect("written");
        }
        let list = root.path().join("own");
        fs::write(&list, own).expect("written");
        limit_under(root.path(), &list)
    }

    #[test]
    fn the_least_limit_around_a_process_counts_in_version_2() {
        let files =
            [("memory.max", "max\n"), ("a/memory.max", "700\n"), ("a/b/memory.max", "900\n")];
        assert_eq!(found("0::/a/b\n", &files), Some(700));
        assert_eq!(found("0::/\n", &files), None);
        assert_eq!(found("0::/../../x\n", &[("memory.max", "512\n")]), Some(512));
    }

    #[test]
    fn version_1_writes_a_huge_number_for_no_limit() {
        let files = [
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/docker/x/memory.limit_in_bytes", "536870912\n"),
        ];
        let own = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n";
        assert_eq!(found(own, &files), Some(536_870_912));
        assert_eq!(found("4:memory:/\n", &files), None);
    }

    #[test]
    fn without_groups_there_is_no_limit() {
        assert_eq!(found("", &[]), None);
        assert_eq!(found("broken", &[("memory.max", "many")]), None);
    }
}
