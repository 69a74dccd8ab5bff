//! The handshake: which export, described how, and how replies will look ("Handshake phase").
//!
//! What is said stands in [`Session`], which knows no I/O; here its options are read and its answers written.

mod channel;
mod describe;
mod session;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

pub(super) use channel::Channel;
pub use session::{Answer, Fault, Session, Then, Upgrade};

use super::tls::Tls;
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
pub(super) enum Outcome<S> {
    /// The client has chosen an export.
    Transmit(Channel<S>, Arc<Export>, Agreed),
    /// The session is over.
    Over,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
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
/// [`LAST_ANSWERS`]. A client that has chosen is told so only if `settle` returns true.
pub(super) async fn haggle<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    exports: &Exports,
    tls: Option<&Arc<Tls>>,
    stop: watch::Receiver<Signal>,
    settle: impl Fn() -> bool + Sync,
) -> Result<Outcome<S>, HandshakeError> {
    let mut ending = stop.clone();
    tokio::select! {
        outcome = converse(stream, exports, tls, &stop, &settle) => outcome,
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
    mut stream: S,
    exports: &Exports,
    tls: Option<&Arc<Tls>>,
    stop: &watch::Receiver<Signal>,
    settle: &(dyn Fn() -> bool + Sync),
) -> Result<Outcome<S>, HandshakeError> {
    stream.write_all(&GREETING).await?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags).await?;
    let mode = tls.map(|tls| tls.mode()).unwrap_or_default();
    let session = Session::new(exports, ClientFlags::decode(flags)?, mode);
    let mut rest = Rest { options: MAX_OPTIONS, data: MAX_DATA, stop, settle };
    // Not one byte more is taken from the stream than belongs to an option, so that whatever a client (or somebody
    // between it and here) sends after NBD_OPT_STARTTLS in the clear meets the TLS handshake, and fails there.
    let upgrade = match rest.options(&mut stream, session).await? {
        Step::Transmit(export, agreed) => {
            return Ok(Outcome::Transmit(Channel::Plain(stream), export, agreed));
        }
        Step::StartTls(upgrade) => upgrade,
        Step::Over => return Ok(Outcome::Over),
    };
    let Some(tls) = tls else { return Ok(Outcome::Over) };
    let mut stream = tls.accept(stream).await.map_err(HandshakeError::Tls)?;
    match rest.options(&mut stream, upgrade.secured()).await {
        Ok(Step::Transmit(export, agreed)) => {
            Ok(Outcome::Transmit(Channel::Tls(Box::new(stream)), export, agreed))
        }
        other => {
            // "the party initiating the transaction SHOULD shutdown TLS first"; a client that has gone needs it not.
            let _ = stream.shutdown().await;
            other.map(|_| Outcome::Over)
        }
    }
}

/// How options in a row end.
enum Step<'a> {
    Transmit(Arc<Export>, Agreed),
    StartTls(Upgrade<'a>),
    Over,
}

/// What a client may still do in its handshake.
struct Rest<'s> {
    options: usize,
    data: u64,
    stop: &'s watch::Receiver<Signal>,
    settle: &'s (dyn Fn() -> bool + Sync),
}

impl Rest<'_> {
    async fn options<'a, S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        mut session: Session<'a>,
    ) -> Result<Step<'a>, HandshakeError> {
        loop {
            self.options = self.options.checked_sub(1).ok_or(HandshakeError::TooManyOptions)?;
            let mut header = [0; OptionHeader::LENGTH];
            stream.read_exact(&mut header).await?;
            let header = OptionHeader::decode(header)?;
            let Some(left) = self.data.checked_sub(header.length.into()) else {
                stream.write_all(&session.option(header.code, None).bytes).await?;
                return Err(HandshakeError::TooMuchData);
            };
            self.data = left;
            let data = option_data(stream, header.length).await?;
            let answer = if *self.stop.borrow() == Signal::End {
                session.shut_down(header.code)
            } else {
                session.option(header.code, data.as_deref())
            };
            // Before the answer: whoever has it keeps its place, whichever client comes next.
            if matches!(answer.then, Then::Transmit(..)) && !(self.settle)() {
                return Ok(Step::Over);
            }
            stream.write_all(&answer.bytes).await?;
            // Under TLS, bytes that are written are not sent yet.
            stream.flush().await?;
            session = match answer.then {
                Then::GoOn(session) => session,
                Then::StartTls(upgrade) => return Ok(Step::StartTls(upgrade)),
                Then::Transmit(export, agreed) => return Ok(Step::Transmit(export, agreed)),
                Then::Over => return Ok(Step::Over),
                Then::HangUp(fault) => return Err(fault.into()),
            };
        }
    }
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
