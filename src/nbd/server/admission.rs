//! Who is served: the peer's user on Unix sockets, and how many connections there may be, in all and for one peer.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{VsockAddr, getpeername, getsockopt, sockopt::PeerCredentials};
use rustix::net::AddressFamily;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::seldom::Seldom;
use super::{Limits, Listener};

/// Who may connect to a Unix socket, besides root, the process's own user and the owner of the socket's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Users {
    /// Whoever can open the file.
    Any,
    /// These, by their numbers.
    Only(Vec<u32>),
}

impl Default for Users {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

impl Users {
    pub(super) fn contain(&self, user: u32) -> bool {
        let own = rustix::process::geteuid().as_raw();
        match self {
            Self::Any => true,
            Self::Only(users) => user == 0 || user == own || users.contains(&user),
        }
    }
}

/// Whom a connection is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// A user of this machine, by a Unix socket (SO_PEERCRED).
    User(u32),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The network that an IPv6 address is in: one machine has a /64 to itself, mostly.
    V6([u16; 4]),
    /// A virtual machine, by its context id.
    Machine(u32),
}

impl Peer {
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(match rustix::net::sockopt::socket_domain(socket)? {
            AddressFamily::UNIX => Self::User(getsockopt(&socket, PeerCredentials)?.uid()),
            AddressFamily::VSOCK => Self::Machine(getpeername::<VsockAddr>(socket.as_raw_fd())?.cid()),
            _ => {
                let address = rustix::net::getpeername(socket)?.ok_or(io::ErrorKind::NotConnected)?;
                Self::at(SocketAddr::try_from(address)?.ip())
            }
        })
    }

    fn at(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user {user}"),
            Self::V4(address) => write!(f, "{address}"),
            Self::V6([a, b, c, d]) => write!(f, "{}/64", Ipv6Addr::new(*a, *b, *c, *d, 0, 0, 0, 0)),
            Self::Machine(cid) => write!(f, "vsock CID {cid}"),
        }
    }
}

/// Lets clients in.
pub(super) struct Admission {
    total: Arc<Semaphore>,
    per_peer: usize,
    seats: Seats,
    forbidden: Seldom,
    crowded: Seldom,
    failed: Seldom,
}

/// A place among all connections.
pub(super) struct Room {
    _permit: OwnedSemaphorePermit,
}

/// A client that was let in, for as long as it is connected.
pub(super) struct Admitted {
    /// `None` for one that a predecessor left where there is no room any more.
    _room: Option<Room>,
    _seat: Option<Seat>,
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            total: Arc::new(Semaphore::new(limits.connections)),
            per_peer: limits.connections_per_peer,
            seats: Seats::default(),
            forbidden: Seldom::default(),
            crowded: Seldom::default(),
            failed: Seldom::default(),
        }
    }

    /// Waits until there are fewer connections than there may be.
    pub(super) async fn room(&self) -> Option<Room> {
        // It is never closed.
        let permit = self.total.clone().acquire_owned().await.ok()?;
        Some(Room { _permit: permit })
    }

    /// Lets a client in, unless it may not be one, or has as many connections as a peer may have; logs that.
    pub(super) fn admit(
        &self,
        listener: &Listener,
        socket: BorrowedFd<'_>,
        room: Option<Room>,
    ) -> Option<Admitted> {
        let peer = match Peer::of(socket) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::debug!(%error, "a client went before it was known who it was");
                return None;
            }
        };
        match peer {
            Peer::User(user) if !listener.admits(user) => {
                if let Some(unsaid) = self.forbidden.say() {
                    tracing::warn!(
                        unsaid,
                        "user {user} connected and may not: start the volume with --allow-user {user} if it should"
                    );
                }
                return None;
            }
            _ => {}
        }
        let seat = self.seats.take(peer, self.per_peer);
        if seat.is_none()
            && let Some(unsaid) = self.crowded.say()
        {
            let most = self.per_peer;
            tracing::warn!(
                unsaid,
                "{peer} has {most} connections, the most for one peer, and gets no more: see --max-connections-per-peer"
            );
        }
        Some(Admitted { _room: room, _seat: Some(seat?) })
    }

    /// A predecessor's client stays, even where limits have been lowered.
    pub(super) fn readmit(&self, socket: BorrowedFd<'_>) -> Admitted {
        let room = self.total.clone().try_acquire_owned().ok();
        let room = room.map(|permit| Room { _permit: permit });
        let seat = Peer::of(socket).ok().and_then(|peer| self.seats.take(peer, usize::MAX));
        Admitted { _room: room, _seat: seat }
    }

    /// Logs that a client could not be accepted.
    pub(super) fn failed(&self, error: &io::Error) {
        if let Some(unsaid) = self.failed.say() {
            tracing::warn!(%error, unsaid, "cannot accept a connection");
        }
    }
}

/// Connections of each peer that has any.
#[derive(Clone, Default)]
struct Seats(Arc<Mutex<HashMap<Peer, usize>>>);

impl Seats {
    fn lock(&self) -> MutexGuard<'_, HashMap<Peer, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, peer: Peer, most: usize) -> Option<Seat> {
        let mut taken = self.lock();
        let count = taken.entry(peer).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Seat { peer, seats: self.clone() })
    }
}

/// One connection of a peer.
struct Seat {
    peer: Peer,
    seats: Seats,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_peer_is_its_network_and_a_mapped_address_is_ipv4() {
        let peer = |text: &str| Peer::at(text.parse().unwrap());
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:0:0:2"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
        assert_eq!(peer("2001:db8::1").to_string(), "2001:db8::/64");
        assert_ne!(Peer::User(3), Peer::Machine(3));
    }

    #[test]
    fn a_seat_is_free_again_once_its_connection_has_gone() {
        let seats = Seats::default();
        let (one, other) = (Peer::User(1), Peer::User(2));
        let first = seats.take(one, 2).unwrap();
        let _second = seats.take(one, 2).unwrap();
        assert!(seats.take(one, 2).is_none());
        assert!(seats.take(other, 2).is_some(), "another peer has seats of its own");
        drop(first);
        assert!(seats.take(one, 2).is_some());
        assert_eq!(seats.lock().len(), 1, "whoever has gone is forgotten");
    }

    #[test]
    fn root_and_the_process_own_user_always_may() {
        let own = rustix::process::geteuid().as_raw();
        let nobody = Users::default();
        assert!(nobody.contain(0) && nobody.contain(own));
        assert!(!nobody.contain(own + 4711));
        assert!(Users::Only(vec![own + 4711]).contain(own + 4711));
        assert!(Users::Any.contain(own + 4711));
    }
}
