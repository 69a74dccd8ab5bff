//! stub
/// x
pub struct ServeOptions;
/// x
pub fn serve() {}
