//! The handshake: which export, described how, and how replies will look ("Handshake phase").
//!
//! What is said stands in [`Session`], which knows no I/O; here its options are read and its answers written.

mod describe;
mod session;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

pub use session::{Answer, Fault, Session, Then};

use super::{Agreed, Export, Exports, Signal};
use crate::nbd::wire::{ClientFlags, GREETING, MAX_OPTION_LENGTH, OptionHeader, WireError};

/// Options in one handshake: more than any client needs, few enough to end one that never chooses.
const MAX_OPTIONS: usize = 1024;
/// Bytes of option data in one handshake. What is too long for its option is read off and thrown away, so that the
/// client learns why and can go on; this is what a client may cost so, beside its time. The longest option that
/// anybody has is a few dozen KiB long.
const MAX_DATA: u64 = 16 << 20;
/// Once the server ends, for a client to ask once more and be told so.
pub(super) const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// How a handshake ended.
pub(super) enum Outcome {
    /// The client has chosen an export.
    Transmit(Arc<Export>, Agreed),
    /// The session is over.
    Over,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("client: {0}")]
    Wire(#[from] WireError),
    #[error("client {0}")]
    Fault(#[from] Fault),
    #[error("client sent {MAX_OPTIONS} options without choosing")]
    TooManyOptions,
    #[error("client sent more than {MAX_DATA} bytes of option data without choosing")]
    TooMuchData,
}

/// Haggles until the client chooses an export, gives up or errs beyond an answer, or until the server has ended for
/// [`LAST_ANSWERS`].
pub(super) async fn haggle<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    exports: &Exports,
    stop: watch::Receiver<Signal>,
) -> Result<Outcome, HandshakeError> {
    let mut ending = stop.clone();
    tokio::select! {
        outcome = converse(stream, exports, &stop) => outcome,
        () = async {
            ended(&mut ending).await;
            tokio::time::sleep(LAST_ANSWERS).await;
        } => Ok(Outcome::Over),
    }
}

/// Returns once the server ends, or nobody is left to say that it does.
async fn ended(stop: &mut watch::Receiver<Signal>) {
    drop(stop.wait_for(|signal| *signal == Signal::End).await);
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    exports: &Exports,
    stop: &watch::Receiver<Signal>,
) -> Result<Outcome, HandshakeError> {
    stream.write_all(&GREETING).await?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags).await?;
    let mut session = Session::new(exports, ClientFlags::decode(flags)?);
    let mut budget = MAX_DATA;
    for _ in 0..MAX_OPTIONS {
        let mut header = [0; OptionHeader::LENGTH];
        stream.read_exact(&mut header).await?;
        let header = OptionHeader::decode(header)?;
        let Some(left) = budget.checked_sub(header.length.into()) else {
            stream.write_all(&session.option(header.code, None).bytes).await?;
            return Err(HandshakeError::TooMuchData);
        };
        budget = left;
        let data = option_data(stream, header.length).await?;
        let answer = if *stop.borrow() == Signal::End {
            session.shut_down(header.code)
        } else {
            session.option(header.code, data.as_deref())
        };
        stream.write_all(&answer.bytes).await?;
        session = match answer.then {
            Then::GoOn(session) => session,
            Then::Transmit(export, agreed) => return Ok(Outcome::Transmit(export, agreed)),
            Then::Over => return Ok(Outcome::Over),
            Then::HangUp(fault) => return Err(fault.into()),
        };
    }
    Err(HandshakeError::TooManyOptions)
}

/// An option's data; `None` if it was too long, and is thrown away.
async fn option_data<S: AsyncRead + Unpin>(stream: &mut S, length: u32) -> io::Result<Option<Vec<u8>>> {
    if length <= MAX_OPTION_LENGTH {
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await?;
        return Ok(Some(data));
    }
    let thrown = tokio::io::copy(&mut stream.take(length.into()), &mut tokio::io::sink()).await?;
    if thrown < length.into() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) }
}

#[cfg(test)]
mod tests;
