//! AWS KMS calls over real HTTP.
