//! Tests of the embedded KMS as a whole.
