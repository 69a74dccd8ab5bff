//! What is answered to a client's options, one after the other: values in, values out.
//!
//! A [`Session`] is used up by each option, and what it [becomes](Then) is all that is left: once an export is
//! chosen there is no session that could take another option. What the client has selected of an export's metadata
//! stands in those reply modes that can tell of it and nowhere else. At NBD_OPT_STARTTLS only an [`Upgrade`] is left,
//! which knows nothing of what was agreed on in the clear.

use std::sync::Arc;

use crate::nbd::server::tls::TlsMode;
use crate::nbd::server::{Agreed, Export, Exports, Replies};
use crate::nbd::wire::{
    ALLOCATION, ALLOCATION_CONTEXT, ClientFlags, ContextRequest, InfoRequest, MAX_STRING, OptionCode,
    OptionReply, WireError, context_entry,
};

use super::describe::{describe, export_reply, list};

/// A client's haggling, between two options.
pub struct Session<'a> {
    exports: &'a Exports,
    client: ClientFlags,
    security: Security,
    mode: Mode,
}

/// What there is of TLS ("TLS support").
#[derive(Clone, Copy, PartialEq, Eq)]
enum Security {
    /// The session is in the clear, and TLS is not configured.
    Absent,
    /// The session is in the clear, and TLS can begin.
    Offered,
    /// The session is in the clear, and TLS has to begin before anything else.
    Required,
    /// The session is under TLS.
    Running,
}

/// What the client has agreed on so far.
enum Mode {
    Simple,
    Structured(Selected),
    Extended(Selected),
}

/// The export of which the client has selected `base:allocation`.
type Selected = Option<Arc<Export>>;

/// What an option leads to.
pub struct Answer<'a> {
    /// To be sent, before anything else happens.
    pub bytes: Vec<u8>,
    /// What comes after it.
    pub then: Then<'a>,
}

/// What comes after an option.
pub enum Then<'a> {
    /// The next option.
    GoOn(Session<'a>),
    /// A TLS handshake. Nothing that the client has sent in the clear may be taken for part of what follows it.
    StartTls(Upgrade<'a>),
    /// Transmission.
    Transmit(Arc<Export>, Agreed),
    /// Nothing: the client wanted so.
    Over,
    /// Nothing: the client has done what cannot be answered.
    HangUp(Fault),
}

/// All that is left of a session at NBD_OPT_STARTTLS: "the server MUST NOT preserve any negotiation state".
pub struct Upgrade<'a> {
    exports: &'a Exports,
    client: ClientFlags,
}

impl<'a> Upgrade<'a> {
    /// The session after the TLS handshake.
    pub fn secured(self) -> Session<'a> {
        let Self { exports, client } = self;
        Session { exports, client, security: Security::Running, mode: Mode::Simple }
    }
}

/// What a client did that has no answer but the end of the session.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// NBD_OPT_EXPORT_NAME with a name of which there is no export.
    #[error("asked for export {0:?} by NBD_OPT_EXPORT_NAME, which cannot be refused in another way")]
    NoSuchExport(String),
    /// NBD_OPT_EXPORT_NAME with data that cannot be a name.
    #[error("sent a name that is too long by NBD_OPT_EXPORT_NAME, which cannot be refused in another way")]
    LongName,
    /// NBD_OPT_EXPORT_NAME, to whose reply extended headers do not go.
    #[error("used NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS")]
    ExportNameExtended,
    /// NBD_OPT_EXPORT_NAME before NBD_OPT_STARTTLS, where TLS is required.
    #[error("used NBD_OPT_EXPORT_NAME without TLS, which cannot be refused in another way")]
    WithoutTls,
    /// NBD_OPT_EXPORT_NAME while the server ends.
    #[error("used NBD_OPT_EXPORT_NAME while the server ends, which cannot be refused in another way")]
    ShuttingDown,
}

impl<'a> Session<'a> {
    /// A client that has sent its flags.
    pub fn new(exports: &'a Exports, client: ClientFlags, tls: TlsMode) -> Self {
        let security = match tls {
            TlsMode::Off => Security::Absent,
            TlsMode::On => Security::Offered,
            TlsMode::Require => Security::Required,
        };
        Self { exports, client, security, mode: Mode::Simple }
    }

    /// Answers an option. `data` is `None` where it had more than
    /// [`MAX_OPTION_LENGTH`](crate::nbd::wire::MAX_OPTION_LENGTH) bytes, which have been thrown away.
    pub fn option(self, code: OptionCode, data: Option<&[u8]>) -> Answer<'a> {
        match code {
            OptionCode::ABORT => Answer::ends(OptionReply::ACK.encode(code, b""), Then::Over),
            OptionCode::EXPORT_NAME if self.security == Security::Required => {
                Answer::ends(Vec::new(), Then::HangUp(Fault::WithoutTls))
            }
            _ if self.security == Security::Required && code != OptionCode::STARTTLS => {
                self.refuse(code, OptionReply::ERR_TLS_REQD, "nothing goes without TLS here")
            }
            OptionCode::EXPORT_NAME => self.export_name(data),
            OptionCode::STARTTLS
            | OptionCode::LIST
            | OptionCode::STRUCTURED_REPLY
            | OptionCode::EXTENDED_HEADERS
                if data.is_none_or(|data| !data.is_empty()) =>
            {
                self.refuse(code, OptionReply::ERR_INVALID, "this option takes no data")
            }
            OptionCode::STARTTLS => self.start_tls(code),
            OptionCode::LIST => Answer { bytes: list(code, self.exports), then: Then::GoOn(self) },
            OptionCode::INFO | OptionCode::GO => self.info(code, data),
            OptionCode::STRUCTURED_REPLY => self.structured_reply(code),
            OptionCode::EXTENDED_HEADERS => self.extended_headers(code),
            OptionCode::LIST_META_CONTEXT => self.list_contexts(code, data),
            OptionCode::SET_META_CONTEXT => self.set_contexts(code, data),
            _ => self.refuse(code, OptionReply::ERR_UNSUP, "option not supported"),
        }
    }

    /// Answers an option while the server ends ("Termination of the session during option haggling").
    pub fn shut_down(self, code: OptionCode) -> Answer<'a> {
        match code {
            OptionCode::EXPORT_NAME => Answer::ends(Vec::new(), Then::HangUp(Fault::ShuttingDown)),
            OptionCode::ABORT => Answer::ends(OptionReply::ACK.encode(code, b""), Then::Over),
            _ => self.refuse(code, OptionReply::ERR_SHUTDOWN, "the server is about to end"),
        }
    }

    /// Another reply than success, with a text for people.
    fn refuse(self, code: OptionCode, error: OptionReply, why: &str) -> Answer<'a> {
        Answer { bytes: error.encode(code, why.as_bytes()), then: Then::GoOn(self) }
    }

    fn refuse_data(self, code: OptionCode, error: WireError) -> Answer<'a> {
        match error {
            WireError::Length(_) => self.refuse(code, OptionReply::ERR_TOO_BIG, "too much in one option"),
            WireError::Magic(_) | WireError::ClientFlags(_) | WireError::Malformed => {
                self.refuse(code, OptionReply::ERR_INVALID, "malformed option")
            }
        }
    }

    fn refuse_name(self, code: OptionCode) -> Answer<'a> {
        self.refuse(code, OptionReply::ERR_UNKNOWN, "no such export")
    }

    fn acknowledge(self, code: OptionCode) -> Answer<'a> {
        Answer { bytes: OptionReply::ACK.encode(code, b""), then: Then::GoOn(self) }
    }

    /// NBD_OPT_STARTTLS.
    fn start_tls(self, code: OptionCode) -> Answer<'a> {
        match self.security {
            Security::Absent => self.refuse(code, OptionReply::ERR_POLICY, "TLS is not configured"),
            Security::Running => self.refuse(code, OptionReply::ERR_INVALID, "this is TLS already"),
            // "The server MUST operate in NOTLS mode unless the client replied with NBD_FLAG_C_FIXED_NEWSTYLE"; where TLS
            // is required, nothing else is to be had either.
            Security::Offered | Security::Required if !self.client.fixed_newstyle => {
                self.refuse(code, OptionReply::ERR_POLICY, "TLS needs the client flag for fixed newstyle")
            }
            Security::Offered | Security::Required => {
                let upgrade = Upgrade { exports: self.exports, client: self.client };
                Answer::ends(OptionReply::ACK.encode(code, b""), Then::StartTls(upgrade))
            }
        }
    }

    /// NBD_OPT_EXPORT_NAME.
    fn export_name(self, data: Option<&[u8]>) -> Answer<'a> {
        let hang_up = |fault| Answer::ends(Vec::new(), Then::HangUp(fault));
        if matches!(self.mode, Mode::Extended(_)) {
            return hang_up(Fault::ExportNameExtended);
        }
        let Some(data) = data.filter(|data| data.len() <= MAX_STRING) else {
            return hang_up(Fault::LongName);
        };
        let name = String::from_utf8_lossy(data);
        match self.exports.find(&name) {
            None => hang_up(Fault::NoSuchExport(name.into_owned())),
            Some(export) => {
                let agreed = self.mode.agreed(export);
                let bytes = export_reply(export, agreed).encode(self.client);
                Answer::ends(bytes, Then::Transmit(export.clone(), agreed))
            }
        }
    }

    /// NBD_OPT_INFO and NBD_OPT_GO.
    fn info(self, code: OptionCode, data: Option<&[u8]>) -> Answer<'a> {
        let request = match whole(data).and_then(InfoRequest::decode) {
            Ok(request) => request,
            Err(error) => return self.refuse_data(code, error),
        };
        let Some(export) = self.exports.find(&request.name) else { return self.refuse_name(code) };
        let agreed = self.mode.agreed(export);
        let bytes = describe(code, export, agreed, &request.wanted);
        let then = match code {
            OptionCode::GO => Then::Transmit(export.clone(), agreed),
            _ => Then::GoOn(self),
        };
        Answer { bytes, then }
    }

    /// NBD_OPT_STRUCTURED_REPLY.
    fn structured_reply(self, code: OptionCode) -> Answer<'a> {
        match self.mode {
            Mode::Simple => Self { mode: Mode::Structured(None), ..self }.acknowledge(code),
            Mode::Structured(_) => {
                self.refuse(code, OptionReply::ERR_INVALID, "structured replies are agreed on already")
            }
            Mode::Extended(_) => {
                self.refuse(code, OptionReply::ERR_EXT_HEADER_REQD, "extended headers are agreed on already")
            }
        }
    }

    /// NBD_OPT_EXTENDED_HEADERS. What the client has selected stays: only how it is told of changes.
    fn extended_headers(self, code: OptionCode) -> Answer<'a> {
        match self.mode {
            Mode::Simple => Self { mode: Mode::Extended(None), ..self }.acknowledge(code),
            Mode::Structured(selected) => Self { mode: Mode::Extended(selected), ..self }.acknowledge(code),
            Mode::Extended(_) => {
                self.refuse(code, OptionReply::ERR_INVALID, "extended headers are agreed on already")
            }
        }
    }

    /// NBD_OPT_LIST_META_CONTEXT.
    fn list_contexts(self, code: OptionCode, data: Option<&[u8]>) -> Answer<'a> {
        if matches!(self.mode, Mode::Simple) {
            return self.refuse_contexts(code);
        }
        match whole(data).and_then(ContextRequest::decode) {
            Err(error) => self.refuse_data(code, error),
            Ok(request) if self.exports.find(&request.name).is_none() => self.refuse_name(code),
            // In lists the number means nothing, and should be zero.
            Ok(request) => Answer {
                bytes: contexts(code, request.lists_allocation().then_some(0)),
                then: Then::GoOn(self),
            },
        }
    }

    /// NBD_OPT_SET_META_CONTEXT: "replaces all previously-set metadata contexts (including when this command fails)".
    fn set_contexts(mut self, code: OptionCode, data: Option<&[u8]>) -> Answer<'a> {
        let selected = match &mut self.mode {
            Mode::Simple => return self.refuse_contexts(code),
            Mode::Structured(selected) | Mode::Extended(selected) => selected,
        };
        *selected = None;
        let request = match whole(data).and_then(ContextRequest::decode) {
            Ok(request) => request,
            Err(error) => return self.refuse_data(code, error),
        };
        let Some(export) = self.exports.find(&request.name) else { return self.refuse_name(code) };
        *selected = request.selects_allocation().then(|| export.clone());
        let number = selected.as_ref().map(|_| ALLOCATION_CONTEXT);
        Answer { bytes: contexts(code, number), then: Then::GoOn(self) }
    }

    fn refuse_contexts(self, code: OptionCode) -> Answer<'a> {
        self.refuse(
            code,
            OptionReply::ERR_INVALID,
            "metadata needs structured replies or extended headers first",
        )
    }
}

impl<'a> Answer<'a> {
    fn ends(bytes: Vec<u8>, then: Then<'a>) -> Self {
        Self { bytes, then }
    }
}

impl Mode {
    /// What holds if `export` is chosen now: what was selected of another one has lapsed.
    fn agreed(&self, export: &Arc<Export>) -> Agreed {
        let (replies, selected) = match self {
            Self::Simple => (Replies::Simple, &None),
            Self::Structured(selected) => (Replies::Structured, selected),
            Self::Extended(selected) => (Replies::Extended, selected),
        };
        Agreed {
            replies,
            allocation: selected.as_ref().is_some_and(|selected| Arc::ptr_eq(selected, export)),
        }
    }
}

/// Data that was not too long to be kept.
fn whole(data: Option<&[u8]>) -> Result<&[u8], WireError> {
    data.ok_or(WireError::Length(u32::MAX))
}

/// The replies that name [`ALLOCATION`] with its number, if it is to be named.
fn contexts(code: OptionCode, number: Option<u32>) -> Vec<u8> {
    let entry = number.map(|number| context_entry(number, ALLOCATION));
    let mut bytes = entry.map_or_else(Vec::new, |entry| OptionReply::META_CONTEXT.encode(code, &entry));
    bytes.extend(OptionReply::ACK.encode(code, b""));
    bytes
}
