//! One request: checked, then served. No I/O with the client.

use super::Export;
use crate::block::{BlockDevice, BlockError, Zeroes};
use crate::geometry::ByteRange;
use crate::nbd::wire::{Command, CommandFlags, MAX_PAYLOAD, NbdError, Request};

/// Checks what the protocol asks for before a request may touch the device ("Request types").
///
/// # Errors
/// The error to answer with.
pub(super) fn check(request: &Request, export: &Export) -> Result<(), NbdError> {
    let fits = ByteRange::within(request.offset, request.length.into(), export.device.size()).is_some();
    let changes = matches!(request.command, Command::WRITE | Command::TRIM | Command::WRITE_ZEROES);
    let allowed = match request.command {
        Command::WRITE_ZEROES => {
            CommandFlags(CommandFlags::FUA.0 | CommandFlags::NO_HOLE.0 | CommandFlags::FAST_ZERO.0)
        }
        // FUA is legal everywhere once it is offered.
        _ => CommandFlags::FUA,
    };
    if !request.flags.only(allowed) {
        return Err(NbdError::Invalid);
    }
    if changes && export.is_read_only() {
        return Err(NbdError::Permission);
    }
    match request.command {
        Command::FLUSH => Ok(()),
        Command::READ if request.length > MAX_PAYLOAD => Err(NbdError::Invalid),
        Command::READ | Command::TRIM | Command::CACHE if !fits => Err(NbdError::Invalid),
        Command::WRITE | Command::WRITE_ZEROES if !fits => Err(NbdError::NoSpace),
        Command::READ | Command::TRIM | Command::CACHE | Command::WRITE | Command::WRITE_ZEROES => Ok(()),
        _ => Err(NbdError::Invalid),
    }
}

/// Serves a request that passed [`check`] and moves no data: neither read nor write.
///
/// # Errors
/// The error to answer with.
pub(super) fn perform(request: &Request, device: &dyn BlockDevice) -> Result<(), NbdError> {
    let durable = request.flags.contains(CommandFlags::FUA);
    let (offset, length) = (request.offset, u64::from(request.length));
    match request.command {
        Command::FLUSH => device.flush(),
        Command::TRIM => device.trim(offset, length, durable),
        Command::WRITE_ZEROES => {
            let how = Zeroes {
                may_discard: !request.flags.contains(CommandFlags::NO_HOLE),
                fast: request.flags.contains(CommandFlags::FAST_ZERO),
            };
            device.write_zeroes(offset, length, how, durable)
        }
        _ => device.cache(offset, length),
    }
    .map_err(nbd_error)
}

/// Ours to NBD's: the only place where one becomes the other.
pub(super) fn nbd_error(error: BlockError) -> NbdError {
    match error {
        BlockError::NoSpace => NbdError::NoSpace,
        BlockError::NotSupported => NbdError::NotSupported,
        BlockError::Io(source) => {
            tracing::warn!(error = %source, "the backing failed a request");
            NbdError::Io
        }
        BlockError::LostWrites => NbdError::Io,
        BlockError::Frozen => NbdError::Permission,
        BlockError::Stopped => NbdError::Shutdown,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::block::{Extents, Features};

    struct Device {
        read_only: bool,
    }

    impl BlockDevice for Device {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn features(&self) -> Features {
            Features { read_only: self.read_only, preferred_block: 4096 }
        }

        fn read(&self, _: u64, _: &mut [u8], _: &mut Extents) -> Result<(), BlockError> {
            Ok(())
        }

        fn status(&self, _: u64, length: u64, _: usize, extents: &mut Extents) -> Result<(), BlockError> {
            extents.push(length, false);
            Ok(())
        }

        fn cache(&self, _: u64, _: u64) -> Result<(), BlockError> {
            Ok(())
        }

        fn write(&self, _: u64, _: &mut [u8], _: bool) -> Result<(), BlockError> {
            Ok(())
        }

        fn flush(&self) -> Result<(), BlockError> {
            Ok(())
        }

        fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), BlockError> {
            Ok(())
        }

        fn write_zeroes(&self, _: u64, _: u64, how: Zeroes, _: bool) -> Result<(), BlockError> {
            if how.fast { Err(BlockError::NotSupported) } else { Ok(()) }
        }

        fn stop(&self) {}
    }

    fn checked(
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        read_only: bool,
    ) -> Result<(), NbdError> {
        let request = Request { flags: CommandFlags(flags), command, cookie: 0, offset, length };
        let device = Arc::new(Device { read_only });
        check(&request, &Export { name: String::new(), description: String::new(), device, read_only: false })
    }

    #[test]
    fn ranges_flags_and_rights() {
        use Command as C;
        use NbdError as E;
        let end = 1 << 20;
        for (command, error) in [
            (C::READ, E::Invalid),
            (C::TRIM, E::Invalid),
            (C::CACHE, E::Invalid),
            (C::WRITE, E::NoSpace),
            (C::WRITE_ZEROES, E::NoSpace),
        ] {
            assert_eq!(checked(command, 0, end - 1, 1, false), Ok(()));
            assert_eq!(checked(command, 0, end, 1, false), Err(error));
            assert_eq!(checked(command, 0, u64::MAX, u32::MAX, false), Err(error));
            assert_eq!(checked(command, 1, 0, 1, false), Ok(()), "FUA is legal everywhere");
            assert_eq!(checked(command, 1 << 15, 0, 1, false), Err(E::Invalid));
        }
        for command in [C::WRITE, C::TRIM, C::WRITE_ZEROES] {
            assert_eq!(checked(command, 0, 0, 512, true), Err(E::Permission));
        }
        assert_eq!(checked(C::READ, CommandFlags::NO_HOLE.0, 0, 1, false), Err(E::Invalid));
        assert_eq!(checked(C::FLUSH, 0, 0, 0, true), Ok(()));
        assert_eq!(checked(Command(99), 0, 0, 0, false), Err(E::Invalid));
    }

    #[test]
    fn every_error_has_its_number() {
        let all = [
            (BlockError::NoSpace, NbdError::NoSpace),
            (BlockError::NotSupported, NbdError::NotSupported),
            (BlockError::Io(std::io::ErrorKind::Other.into()), NbdError::Io),
            (BlockError::LostWrites, NbdError::Io),
            (BlockError::Frozen, NbdError::Permission),
            (BlockError::Stopped, NbdError::Shutdown),
        ];
        for (ours, theirs) in all {
            assert_eq!(nbd_error(ours), theirs);
        }
        let fast = Request {
            flags: CommandFlags::FAST_ZERO,
            command: Command::WRITE_ZEROES,
            cookie: 0,
            offset: 0,
            length: 1,
        };
        assert_eq!(perform(&fast, &Device { read_only: false }), Err(NbdError::NotSupported));
    }
}
