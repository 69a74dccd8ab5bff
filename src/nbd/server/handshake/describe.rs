//! What a client is told of exports.

use crate::nbd::server::{Export, Exports, Replies};
use crate::nbd::wire::{
    ExportReply, InfoType, MAX_PAYLOAD, OptionCode, OptionReply, TransmissionFlags, block_size_info,
    export_info, server_entry, text_info,
};

/// The reply to NBD_OPT_EXPORT_NAME.
pub(super) fn export_reply(export: &Export, replies: Replies) -> ExportReply {
    ExportReply { size: export.device.size(), flags: flags(export, replies) }
}

/// The replies to NBD_OPT_INFO and NBD_OPT_GO.
pub(super) fn describe(code: OptionCode, export: &Export, replies: Replies, wanted: &[InfoType]) -> Vec<u8> {
    let device = &export.device;
    let mut infos = vec![
        export_info(device.size(), flags(export, replies)),
        // Any byte range is served, so the smallest block is one byte, and no client need have asked for this.
        block_size_info(1, device.features().preferred_block, MAX_PAYLOAD),
    ];
    if wanted.contains(&InfoType::NAME) {
        infos.push(text_info(InfoType::NAME, &export.name));
    }
    if wanted.contains(&InfoType::DESCRIPTION) && !export.description.is_empty() {
        infos.push(text_info(InfoType::DESCRIPTION, &export.description));
    }
    let mut bytes: Vec<u8> = infos.iter().flat_map(|info| OptionReply::INFO.encode(code, info)).collect();
    bytes.extend(OptionReply::ACK.encode(code, b""));
    bytes
}

/// The replies to NBD_OPT_LIST.
pub(super) fn list(code: OptionCode, exports: &Exports) -> Vec<u8> {
    let entries = exports.iter().map(|export| server_entry(&export.name, &export.description));
    let mut bytes: Vec<u8> = entries.flat_map(|entry| OptionReply::SERVER.encode(code, &entry)).collect();
    bytes.extend(OptionReply::ACK.encode(code, b""));
    bytes
}

/// NBD_CMD_FLAG_DF means something in structured replies only.
fn flags(export: &Export, replies: Replies) -> TransmissionFlags {
    match replies {
        Replies::Simple => export.flags(),
        Replies::Structured | Replies::Extended => export.flags().and(TransmissionFlags::SEND_DF),
    }
}
