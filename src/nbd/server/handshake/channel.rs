//! What a client that has chosen its export is reached by.

use std::io;

use tokio_rustls::server::TlsStream;

use crate::nbd::server::link::Link;
use crate::nbd::server::socket::Stream;
use crate::nbd::server::tls::TlsSocket;

/// A stream, in the clear or under TLS.
pub(in crate::nbd::server) enum Channel<S> {
    Plain(S),
    Tls(Box<TlsStream<S>>),
}

impl Channel<Stream> {
    /// For the threads of transmission.
    ///
    /// # Errors
    /// The operating system's.
    pub(in crate::nbd::server) fn into_link(self) -> io::Result<Link> {
        Ok(match self {
            Self::Plain(stream) => Link::Plain(stream.into_blocking()?),
            Self::Tls(stream) => {
                let (stream, session) = stream.into_inner();
                Link::Tls(Box::new(TlsSocket::new(stream.into_blocking()?, session)))
            }
        })
    }
}
