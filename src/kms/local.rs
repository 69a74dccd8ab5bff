//! The embedded KMS.
