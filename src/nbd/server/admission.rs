//! Who is served: the peer's user on Unix sockets, and how many connections there may be, in all and for one peer.

mod seats;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::socket::{VsockAddr, getpeername, getsockopt, sockopt::PeerCredentials};
use rustix::net::AddressFamily;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::seldom::Seldom;
use super::{Limits, Listener};

use self::seats::{Got, Seat, Seats};

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
    most: usize,
    per_peer: usize,
    seats: Seats,
    full: Seldom,
    forbidden: Seldom,
    crowded: Seldom,
    displaced: Seldom,
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
    /// `None` for one that a predecessor left and whose peer is not known any more.
    seat: Option<Seat>,
}

impl Admitted {
    /// What returns when another client of the same peer has got this one's place, which it can until this one is
    /// settled.
    pub(super) fn displaced(&mut self) -> impl Future<Output = ()> + use<> {
        let lost = self.seat.as_mut().map(Seat::lost);
        async move {
            match lost {
                Some(lost) => lost.await,
                None => std::future::pending().await,
            }
        }
    }

    /// The client has chosen its export: nobody gets its place any more. False if somebody has got it before.
    pub(super) fn settle(&self) -> bool {
        self.seat.as_ref().is_none_or(Seat::settle)
    }
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            total: Arc::new(Semaphore::new(limits.connections)),
            most: limits.connections,
            per_peer: limits.connections_per_peer,
            seats: Seats::default(),
            full: Seldom::default(),
            forbidden: Seldom::default(),
            crowded: Seldom::default(),
            displaced: Seldom::default(),
            failed: Seldom::default(),
        }
    }

    /// Waits until there are fewer connections than there may be; logs that it has to.
    pub(super) async fn room(&self) -> Option<Room> {
        if self.total.available_permits() == 0
            && let Some(unsaid) = self.full.say()
        {
            let most = self.most;
            tracing::warn!(
                unsaid,
                "a client waits to be accepted until one of the {most} that are connected ends: see --max-connections"
            );
        }
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
        if let Peer::User(user) = peer
            && !listener.admits(user)
        {
            if let Some(unsaid) = self.forbidden.say() {
                tracing::warn!(
                    unsaid,
                    "user {user} connected, but may not be a client: --allow-user {user} lets it be one"
                );
            }
            return None;
        }
        let seat = self.seat(peer)?;
        Some(Admitted { _room: room, seat: Some(seat) })
    }

    fn seat(&self, peer: Peer) -> Option<Seat> {
        let (seat, what, seldom) = match self.seats.take(peer, self.per_peer) {
            Got::Free(seat) => return Some(seat),
            Got::Displaced(seat) => {
                (Some(seat), "a new one takes the place of the oldest in its handshake", &self.displaced)
            }
            Got::Nothing => (None, "a new one was closed", &self.crowded),
        };
        if let Some(unsaid) = seldom.say() {
            let most = self.per_peer;
            tracing::warn!(
                unsaid,
                "{peer} has {most} connections, the most for one peer; {what}: see --max-connections-per-peer"
            );
        }
        seat
    }

    /// A predecessor's client stays, even where limits have been lowered.
    pub(super) fn readmit(&self, socket: BorrowedFd<'_>) -> Admitted {
        let room = self.total.clone().try_acquire_owned().ok();
        let room = room.map(|permit| Room { _permit: permit });
        let seat = Peer::of(socket).ok().map(|peer| self.seats.keep(peer));
        Admitted { _room: room, seat }
    }

    /// Logs that a client could not be accepted.
    pub(super) fn failed(&self, error: &io::Error) {
        if let Some(unsaid) = self.failed.say() {
            tracing::warn!(%error, unsaid, "cannot accept a connection");
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
    fn root_and_the_process_own_user_always_may() {
        let own = rustix::process::geteuid().as_raw();
        let nobody = Users::default();
        assert!(nobody.contain(0) && nobody.contain(own));
        assert!(!nobody.contain(own + 4711));
        assert!(Users::Only(vec![own + 4711]).contain(own + 4711));
        assert!(Users::Any.contain(own + 4711));
    }
}
