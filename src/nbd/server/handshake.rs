//! The handshake: which export, described how ("Handshake phase").

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Agreed, Export, Exports};
use crate::nbd::wire::{
    ClientFlags, ExportReply, GREETING, InfoRequest, InfoType, MAX_OPTION_LENGTH, MAX_PAYLOAD, OptionCode,
    OptionHeader, OptionReply, WireError, block_size_info, export_info, server_entry, text_info,
};

/// Options in one handshake: more than any client needs, few enough to end one that never chooses.
const MAX_OPTIONS: usize = 1024;

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
    #[error("client asked for export {0:?} by NBD_OPT_EXPORT_NAME, which cannot be refused in another way")]
    NoSuchExport(String),
    #[error("client sent {MAX_OPTIONS} options without choosing")]
    TooManyOptions,
}

/// Haggles until the client chooses an export, gives up or errs beyond an answer.
pub(super) async fn haggle<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    exports: &Exports,
) -> Result<Outcome, HandshakeError> {
    stream.write_all(&GREETING).await?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags).await?;
    let client = ClientFlags::decode(flags)?;
    for _ in 0..MAX_OPTIONS {
        let mut header = [0; OptionHeader::LENGTH];
        stream.read_exact(&mut header).await?;
        let header = OptionHeader::decode(header)?;
        if header.length > MAX_OPTION_LENGTH {
            stream.write_all(&OptionReply::ERR_TOO_BIG.encode(header.code, b"option data too long")).await?;
            return Err(WireError::Length(header.length).into());
        }
        let mut data = vec![0; header.length as usize];
        stream.read_exact(&mut data).await?;
        let answer = answer(header.code, &data, client, exports)?;
        stream.write_all(&answer.bytes).await?;
        if let Some(outcome) = answer.then {
            return Ok(outcome);
        }
    }
    Err(HandshakeError::TooManyOptions)
}

/// What to send, and whether that ends the handshake.
struct Answer {
    bytes: Vec<u8>,
    then: Option<Outcome>,
}

impl Answer {
    fn and_go_on(bytes: Vec<u8>) -> Self {
        Self { bytes, then: None }
    }
}

fn answer(
    code: OptionCode,
    data: &[u8],
    client: ClientFlags,
    exports: &Exports,
) -> Result<Answer, HandshakeError> {
    Ok(match code {
        OptionCode::EXPORT_NAME => {
            let name = String::from_utf8_lossy(data);
            let Some(export) = exports.find(&name) else {
                return Err(HandshakeError::NoSuchExport(name.into_owned()));
            };
            let reply = ExportReply { size: export.device.size(), flags: export.flags() };
            let then = Outcome::Transmit(export.clone(), Agreed::default());
            Answer { bytes: reply.encode(client), then: Some(then) }
        }
        OptionCode::ABORT => Answer { bytes: OptionReply::ACK.encode(code, b""), then: Some(Outcome::Over) },
        OptionCode::LIST if !data.is_empty() => {
            Answer::and_go_on(OptionReply::ERR_INVALID.encode(code, b"NBD_OPT_LIST takes no data"))
        }
        OptionCode::LIST => {
            let entries = exports.iter().map(|export| server_entry(&export.name, &export.description));
            let mut replies: Vec<u8> =
                entries.flat_map(|entry| OptionReply::SERVER.encode(code, &entry)).collect();
            replies.extend(OptionReply::ACK.encode(code, b""));
            Answer::and_go_on(replies)
        }
        OptionCode::INFO | OptionCode::GO => describe(code, data, exports),
        _ => Answer::and_go_on(OptionReply::ERR_UNSUP.encode(code, b"option not supported")),
    })
}

/// NBD_OPT_INFO and NBD_OPT_GO.
fn describe(code: OptionCode, data: &[u8], exports: &Exports) -> Answer {
    let Ok(request) = InfoRequest::decode(data) else {
        return Answer::and_go_on(OptionReply::ERR_INVALID.encode(code, b"malformed option"));
    };
    let Some(export) = exports.find(&request.name) else {
        return Answer::and_go_on(OptionReply::ERR_UNKNOWN.encode(code, b"no such export"));
    };
    let device = &export.device;
    let mut infos = vec![
        export_info(device.size(), export.flags()),
        // Any byte range is served, so the smallest block is one byte.
        block_size_info(1, device.features().preferred_block, MAX_PAYLOAD),
    ];
    if request.wanted.contains(&InfoType::NAME) {
        infos.push(text_info(InfoType::NAME, &export.name));
    }
    if request.wanted.contains(&InfoType::DESCRIPTION) && !export.description.is_empty() {
        infos.push(text_info(InfoType::DESCRIPTION, &export.description));
    }
    let mut bytes: Vec<u8> = infos.iter().flat_map(|info| OptionReply::INFO.encode(code, info)).collect();
    bytes.extend(OptionReply::ACK.encode(code, b""));
    let then = (code == OptionCode::GO).then(|| Outcome::Transmit(export.clone(), Agreed::default()));
    Answer { bytes, then }
}
