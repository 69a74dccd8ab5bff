//! Why a command failed, and the exit code that says so.

use std::io;

use crate::audit::AuditError;
use crate::bench::BenchError;
use crate::config::{ConfigError, FileError};
use crate::control::ControlError;
use crate::descriptors::DescriptorError;
use crate::engine::{EngineError, HandoverError};
use crate::envelope::EnvelopeError;
use crate::geometry::GeometryError;
use crate::kms::{ContextError, ErrorClass, KmsError};
use crate::nbd::server::{ListenError, TlsError};
use crate::secret::SecretError;
use crate::store::StoreError;

/// Everything that ends a command early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A flag's value, or flags that do not go together.
    #[error("{0}")]
    Usage(String),
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A size.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Starting a volume.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A running volume that was to be reached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// TLS's files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A KMS call.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Measuring.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Descriptors that were left for this process.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// A file that the command was to read or write.
    #[error("{action} {what}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// What came back.
        source: io::Error,
    },
    /// The process itself could not be set up.
    #[error("{action}: {source}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// Some leftovers could not be cleared away.
    #[error("{0} of the leftovers could not be cleared away")]
    Leftovers(usize),
    /// Some lines of the audit log could not be read.
    #[error("lines of the audit log that are damaged: {0}; the others were shown")]
    Damaged(usize),
}

impl Failure {
    /// The exit code: the only place where errors become one.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Geometry(_) => 2,
            Self::Config(error) => config_code(error),
            Self::Engine(error) => engine_code(error),
            Self::Control(error) => control_code(error),
            Self::Kms(error) => kms_code(error.class),
            Self::Tls(error) => tls_code(error),
            Self::Bench(error) => bench_code(error),
            Self::Descriptors(error) => descriptor_code(error),
            Self::File { .. } | Self::Audit(_) => 7,
            Self::Process { .. } | Self::Leftovers(_) | Self::Damaged(_) => 1,
        }
    }
}

fn config_code(error: &ConfigError) -> u8 {
    match error {
        ConfigError::Content { .. } => 2,
        ConfigError::File { error, .. } => match error {
            FileError::NotFound
            | FileError::Io(_)
            | FileError::NotRegular
            | FileError::Writable(_)
            | FileError::Owner { .. }
            | FileError::TooLarge
            | FileError::NotUtf8(_) => 2,
        },
    }
}

fn engine_code(error: &EngineError) -> u8 {
    match error {
        EngineError::Kms(error) => kms_code(error.class),
        EngineError::Store(error) => store_code(error),
        EngineError::Envelope(error) => envelope_code(error),
        EngineError::Listen(error) => listen_code(error),
        EngineError::Context(error) => context_code(error),
        EngineError::Secret(error) => secret_code(error),
        EngineError::Handover(error) => handover_code(error),
        EngineError::Fleeting => 2,
    }
}

fn store_code(error: &StoreError) -> u8 {
    match error {
        StoreError::Io { .. }
        | StoreError::InUse(_)
        | StoreError::TooSmall { .. }
        | StoreError::HoldsData(_)
        | StoreError::WrongKind(_)
        | StoreError::ReadOnly(_)
        | StoreError::NoDirect { .. }
        | StoreError::Alignment { .. }
        | StoreError::Full(_) => 7,
    }
}

fn bench_code(error: &BenchError) -> u8 {
    match error {
        BenchError::Secret(error) => secret_code(error),
        BenchError::Store(error) => store_code(error),
        BenchError::Listen(error) => listen_code(error),
        BenchError::Geometry(_) => 2,
        BenchError::Fill(_) => 7,
        BenchError::Cipher(_) | BenchError::Io { .. } | BenchError::Stopped => 1,
    }
}

fn handover_code(error: &HandoverError) -> u8 {
    match error {
        HandoverError::NotRestartable | HandoverError::NoSecretMemory => 2,
        HandoverError::Missing(_)
        | HandoverError::Version(_)
        | HandoverError::Io { .. }
        | HandoverError::Socket(_) => 1,
        HandoverError::Secret(error) => secret_code(error),
    }
}

fn envelope_code(error: &EnvelopeError) -> u8 {
    match error {
        EnvelopeError::Io { .. } | EnvelopeError::InUse(_) | EnvelopeError::Exists(_) => 7,
        EnvelopeError::Flaw { .. }
        | EnvelopeError::Forged { .. }
        | EnvelopeError::Unbound { .. }
        | EnvelopeError::AnotherKey { .. } => 6,
        EnvelopeError::NoRoom { .. } | EnvelopeError::NoSlot { .. } | EnvelopeError::Grantee { .. } => 2,
        EnvelopeError::NotGranted { error, .. } | EnvelopeError::Kms(error) => kms_code(error.class),
        EnvelopeError::Secret(error) => secret_code(error),
        EnvelopeError::Context(error) => context_code(error),
    }
}

fn listen_code(error: &ListenError) -> u8 {
    match error {
        ListenError::Form(_)
        | ListenError::Range { .. }
        | ListenError::TooLong { .. }
        | ListenError::NotLoopback(_) => 2,
        ListenError::InUse(_)
        | ListenError::Occupied { .. }
        | ListenError::Owner { .. }
        | ListenError::Inherited { .. }
        | ListenError::Io { .. } => 8,
    }
}

fn descriptor_code(error: &DescriptorError) -> u8 {
    match error {
        DescriptorError::Predecessor(_) => 1,
        DescriptorError::Number { .. } | DescriptorError::Names { .. } | DescriptorError::Missing { .. } => 8,
    }
}

fn tls_code(error: &TlsError) -> u8 {
    match error {
        TlsError::Read { .. }
        | TlsError::NotPem { .. }
        | TlsError::Pem { .. }
        | TlsError::Missing { .. }
        | TlsError::Encrypted { .. }
        | TlsError::Unusable { .. }
        | TlsError::NoCa { .. }
        | TlsError::Mismatch { .. } => 8,
    }
}

fn control_code(error: &ControlError) -> u8 {
    match error {
        ControlError::Listen(error) => listen_code(error),
        ControlError::Descriptor(_) | ControlError::Timeout { .. } | ControlError::Lost { .. } => 1,
        ControlError::Absent(_)
        | ControlError::NobodyListens(_)
        | ControlError::Permission(_)
        | ControlError::Connect { .. }
        | ControlError::NotSealblk { .. } => 8,
        // It says itself what the same command would have ended with here.
        ControlError::Refused { exit_code, .. } => *exit_code,
    }
}

fn context_code(error: &ContextError) -> u8 {
    match error {
        ContextError::Form(_)
        | ContextError::EmptyKey
        | ContextError::Reserved(_)
        | ContextError::SameButForCase(..)
        | ContextError::Pairs(_)
        | ContextError::Characters(_) => 2,
    }
}

fn secret_code(error: &SecretError) -> u8 {
    match error {
        SecretError::Lock { .. } => 2,
        SecretError::Read(_) => 1,
        SecretError::Length { .. } | SecretError::EqualHalves => 6,
    }
}

fn kms_code(class: ErrorClass) -> u8 {
    match class {
        ErrorClass::Denied | ErrorClass::Grant => 3,
        ErrorClass::Unusable => 4,
        ErrorClass::Unreachable | ErrorClass::Throttled | ErrorClass::Nonsense => 5,
        ErrorClass::Corrupt => 6,
        ErrorClass::Config => 2,
        ErrorClass::Storage => 7,
        ErrorClass::DryRun => 1,
    }
}

macro_rules! through_engine {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Engine(error.into())
            }
        })*
    };
}
through_engine!(StoreError, ListenError, ContextError, EnvelopeError);
