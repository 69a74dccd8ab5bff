//! What is told of an export ("Option types", "Transmission flags").

use super::{ClientFlags, codes, text};
use crate::nbd::wire::{WireError, take};

codes! {
    /// "NBD_REP_INFO" information types.
    InfoType(u16) {
        /// Size and transmission flags.
        EXPORT = 0,
        /// Canonical name.
        NAME = 1,
        /// Text for people.
        DESCRIPTION = 2,
        /// Block size constraints.
        BLOCK_SIZE = 3,
    }
}

/// Data of NBD_OPT_INFO and NBD_OPT_GO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export's name; empty for the default one.
    pub name: String,
    /// What the client wants to know besides [`InfoType::EXPORT`]; unknown types are to be ignored.
    pub wanted: Vec<InfoType>,
}

impl InfoRequest {
    /// Reads: 32 bits name length, name, 16 bits count, that many 16-bit types.
    ///
    /// # Errors
    /// [`WireError::Malformed`] for lengths that do not fit, a name over 4096 bytes, with a NUL, or not in UTF-8.
    pub fn decode(mut data: &[u8]) -> Result<Self, WireError> {
        let name = text(&mut data)?;
        let count = u16::from_be_bytes(take(&mut data)?);
        let wanted = (0..count)
            .map(|_| Ok(InfoType(u16::from_be_bytes(take(&mut data)?))))
            .collect::<Result<_, _>>()?;
        if data.is_empty() { Ok(Self { name, wanted }) } else { Err(WireError::Malformed) }
    }
}

/// "Transmission flags".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// The field is valid.
    pub const HAS_FLAGS: Self = Self(1 << 0);
    /// The export is read-only.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// NBD_CMD_FLUSH is served.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// NBD_CMD_FLAG_FUA is served.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// NBD_CMD_TRIM is served.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// NBD_CMD_WRITE_ZEROES is served.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// NBD_CMD_FLAG_DF is served; goes with structured replies.
    pub const SEND_DF: Self = Self(1 << 7);
    /// Several connections see each other's writes and flush for each other.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// NBD_CMD_CACHE is served.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// NBD_CMD_FLAG_FAST_ZERO is served.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);
    /// NBD_CMD_BLOCK_STATUS may have a payload that names contexts; goes with extended headers.
    pub const BLOCK_STATUS_PAYLOAD: Self = Self(1 << 12);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Answer to NBD_OPT_EXPORT_NAME, which has no header.
pub struct ExportReply {
    /// Bytes in the export.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportReply {
    /// With the 124 zero bytes unless both sides agreed to leave them out.
    pub fn encode(&self, client: ClientFlags) -> Vec<u8> {
        let mut bytes = self.size.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.flags.0.to_be_bytes());
        bytes.resize(bytes.len() + if client.no_zeroes { 0 } else { 124 }, 0);
        bytes
    }
}

/// Data of an NBD_INFO_EXPORT reply.
pub fn export_info(size: u64, flags: TransmissionFlags) -> Vec<u8> {
    [&InfoType::EXPORT.0.to_be_bytes()[..], &size.to_be_bytes(), &flags.0.to_be_bytes()].concat()
}

/// Data of an NBD_INFO_BLOCK_SIZE reply: smallest, preferred and largest request in bytes.
pub fn block_size_info(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let sizes = [minimum, preferred, maximum].map(u32::to_be_bytes).concat();
    [&InfoType::BLOCK_SIZE.0.to_be_bytes()[..], &sizes].concat()
}

/// Data of an NBD_INFO_NAME or NBD_INFO_DESCRIPTION reply.
pub fn text_info(kind: InfoType, text: &str) -> Vec<u8> {
    [&kind.0.to_be_bytes()[..], text.as_bytes()].concat()
}

/// Data of an NBD_REP_SERVER reply: an export's name and description.
pub fn server_entry(name: &str, description: &str) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[..], name.as_bytes(), description.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_requests() {
        let good = b"\0\0\0\x03vol\0\x02\0\x03\0\x63";
        let request = InfoRequest { name: "vol".into(), wanted: vec![InfoType::BLOCK_SIZE, InfoType(0x63)] };
        assert_eq!(InfoRequest::decode(good), Ok(request));
        for length in 0..good.len() {
            assert_eq!(InfoRequest::decode(&good[..length]), Err(WireError::Malformed), "{length} bytes");
        }
        assert_eq!(InfoRequest::decode(b"\0\0\0\0\0\0x"), Err(WireError::Malformed));
        assert_eq!(InfoRequest::decode(b"\0\0\0\x01\xff\0\0"), Err(WireError::Malformed));
        assert_eq!(InfoRequest::decode(b"\0\0\0\x01\0\0\0"), Err(WireError::Malformed));
        assert_eq!(InfoRequest::decode(b"\xff\xff\xff\xff"), Err(WireError::Malformed));
    }

    #[test]
    fn the_longest_name_that_is_taken_has_4096_bytes() {
        let asks = |length: usize| {
            let name = vec![b'x'; length];
            let data = [&u32::try_from(length).unwrap().to_be_bytes()[..], &name, &[0, 0]].concat();
            InfoRequest::decode(&data)
        };
        assert_eq!(asks(4096).unwrap().name.len(), 4096);
        assert_eq!(asks(4097), Err(WireError::Malformed));
    }
}
