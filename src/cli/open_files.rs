//! The limit on open files: a connection takes a descriptor.

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use crate::ring::MOST;

/// Descriptors that are not connections: backing, journal, envelope, listeners, pipes, calls to the KMS; and rings.
const OTHERS: u64 = 64 + MOST as u64;

/// The limit after [`OpenFiles::raise`], and the one before.
pub(super) struct OpenFiles {
    before: Rlimit,
    now: Rlimit,
}

impl OpenFiles {
    /// Raises the soft limit to the hard one. It is low for the sake of programs that use select(2) only.
    pub(super) fn raise() -> Self {
        let before = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: before.maximum, maximum: before.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit on open files");
        }
        Self { before, now: getrlimit(Resource::Nofile) }
    }

    /// So many of `connections` as there are descriptors for, at least one; fewer with a warning.
    pub(super) fn fit(&self, connections: usize) -> usize {
        let Some(most) = self.now.current else { return connections };
        let room = usize::try_from(most.saturating_sub(OTHERS).max(1)).unwrap_or(usize::MAX);
        if room < connections {
            tracing::warn!(
                "only {room} connections are served at once instead of {connections}: {most} files may be open (ulimit -Hn, LimitNOFILE=)"
            );
        }
        room.min(connections)
    }

    /// Gives a child the limit from before.
    ///
    /// # Errors
    /// What `prlimit(2)` answers, `ESRCH` where the child is gone.
    pub(super) fn restore(&self, child: u32) -> rustix::io::Result<()> {
        let pid = i32::try_from(child).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
        prlimit(Some(pid), Resource::Nofile, self.before).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_other_files() {
        let limit = |most| {
            let limit = Rlimit { current: most, maximum: most };
            OpenFiles { before: limit, now: limit }
        };
        assert_eq!(limit(None).fit(100_000), 100_000);
        assert_eq!(limit(Some(1024)).fit(100), 100);
        assert_eq!(limit(Some(1024)).fit(1024), 896);
        assert_eq!(limit(Some(10)).fit(1024), 1);
    }
}
