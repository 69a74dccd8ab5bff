//! TCP and vsock: what other machines may reach.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{VsockAddr, getsockname};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpListener, lookup_host};

use super::{BACKLOG, ListenError};

/// VMADDR_CID_ANY and VMADDR_PORT_ANY (vsock(7)).
pub(super) const ANY: u32 = u32::MAX;
/// VMADDR_CID_HOST: by which guests reach their host.
const HOST: u32 = 2;

/// Binds a TCP address. With `open`, it may be one that other machines reach.
pub(super) async fn bind_tcp(host: &str, open: bool) -> Result<OwnedFd, ListenError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(format!("tcp:{host}")),
        _ => ListenError::Io { address: format!("tcp:{host}"), source },
    };
    let addresses: Vec<SocketAddr> = lookup_host(host).await.map_err(failed)?.collect();
    for address in &addresses {
        require_loopback(*address, open)?;
    }
    let listener = TcpListener::bind(&addresses[..]).await.map_err(failed)?;
    Ok(listener.into_std().map_err(failed)?.into())
}

/// Other machines may reach `address` only if that is meant.
pub(super) fn require_loopback(address: SocketAddr, open: bool) -> Result<(), ListenError> {
    if open || address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(ListenError::NotLoopback(format!("tcp address {address}")))
}

/// A vsock is a network that reaches into other machines, whatever its CID is.
pub(super) fn require_open(cid: u32, port: u32, open: bool) -> Result<(), ListenError> {
    if open {
        return Ok(());
    }
    Err(ListenError::NotLoopback(format!("vsock address {}", vsock_name(cid, port))))
}

/// Binds a vsock address; port 0 lets the kernel choose.
pub(super) fn bind_vsock(cid: u32, port: u32, open: bool) -> Result<OwnedFd, ListenError> {
    require_open(cid, port, open)?;
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(vsock_name(cid, port)),
        _ => ListenError::Io { address: vsock_name(cid, port), source },
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)
        .map_err(|error| failed(error.into()))?;
    let chosen = if port == 0 { ANY } else { port };
    nix::sys::socket::bind(socket.as_raw_fd(), &VsockAddr::new(cid, chosen))
        .map_err(|error| failed(error.into()))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
    Ok(socket)
}

/// As a user writes it.
fn vsock_name(cid: u32, port: u32) -> String {
    if cid == ANY { format!("vsock:{port}") } else { format!("vsock:{cid}:{port}") }
}

/// Where a TCP socket is bound.
pub(super) fn tcp_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?)?)
}

/// CID and port that a vsock socket is bound to.
pub(super) fn vsock_address(socket: &OwnedFd) -> io::Result<(u32, u32)> {
    let address: VsockAddr = getsockname(socket.as_raw_fd())?;
    Ok((address.cid(), address.port()))
}

/// The authority of a URI. A socket that is bound to any CID is named by the one that guests know their host by.
pub(super) fn vsock_authority(cid: u32, port: u32) -> String {
    format!("{}:{port}", if cid == ANY { HOST } else { cid })
}
