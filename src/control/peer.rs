//! Who is at the other end.

use tokio::net::UnixStream;

use super::{Refusal, RefusalKind};

/// The exit code of addresses that cannot be used.
const EXIT_ADDRESS: u8 = 8;

/// The process at the other end of a connection, as the kernel saw it connect (unix(7), SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its process id, if it is in a namespace that this process sees.
    pub pid: Option<i32>,
}

/// The peer, if it may give orders: root, the user of this process, or one of `others`.
pub(super) fn admit(stream: &UnixStream, others: &[u32]) -> Result<Peer, Refusal> {
    let refuse =
        |message: String| Refusal::new(RefusalKind::Forbidden, "peer-not-allowed", message, EXIT_ADDRESS);
    let credentials =
        stream.peer_cred().map_err(|error| refuse(format!("who connects cannot be told: {error}")))?;
    let (uid, own) = (credentials.uid(), rustix::process::geteuid().as_raw());
    if uid == 0 || uid == own || others.contains(&uid) {
        return Ok(Peer { uid, pid: credentials.pid() });
    }
    let who = if own == 0 { "root".into() } else { format!("its user ({own}), or as root") };
    Err(refuse(format!("user {uid} may not control this volume; run this as {who}")))
}
