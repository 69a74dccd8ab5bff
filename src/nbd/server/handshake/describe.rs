//! What a client is told of exports.

use crate::nbd::server::{Agreed, Export, Exports, Replies};
use crate::nbd::wire::{
    ExportReply, InfoType, MAX_PAYLOAD, OptionCode, OptionReply, TransmissionFlags, block_size_info,
    export_info, server_entry, text_info,
};

/// The reply to NBD_OPT_EXPORT_NAME.
pub(super) fn export_reply(export: &Export, agreed: Agreed) -> ExportReply {
    ExportReply { size: export.device.size(), flags: flags(export, agreed) }
}

/// The replies to NBD_OPT_INFO and NBD_OPT_GO.
pub(super) fn describe(code: OptionCode, export: &Export, agreed: Agreed, wanted: &[InfoType]) -> Vec<u8> {
    let device = &export.device;
    let mut infos = vec![
        export_info(device.size(), flags(export, agreed)),
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

/// NBD_CMD_FLAG_DF means something in structured replies only, and a payload that filters contexts only in extended
/// requests, once there is a context.
fn flags(export: &Export, agreed: Agreed) -> TransmissionFlags {
    let flags = export.flags();
    match agreed.replies {
        Replies::Simple => flags,
        Replies::Extended if agreed.allocation => {
            flags.and(TransmissionFlags::SEND_DF).and(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
        }
        Replies::Structured | Replies::Extended => flags.and(TransmissionFlags::SEND_DF),
    }
}
