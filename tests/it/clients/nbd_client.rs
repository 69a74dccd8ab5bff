//! nbd-client, the kernel's own, as far as it needs no kernel module: its list of exports.

use super::{Served, Way, run};
use crate::support::tool;

#[test]
fn lists_the_exports() {
    for way in [Way::Tcp, Way::Tls] {
        let served = Served::start(way, &["--size", "1M", "--export", "one", "--read-only-export", "two"]);
        let file = |name: &str| served.certificates.join(name).display().to_string();
        let mut args = vec!["-l".to_owned(), "127.0.0.1".into(), served.port().into()];
        if way == Way::Tls {
            args.extend(["-enable-tls", "-tlshostname", "localhost"].map(str::to_owned));
            for (option, name) in [
                ("-cacertfile", "ca-cert.pem"),
                ("-certfile", "client-cert.pem"),
                ("-keyfile", "client-key.pem"),
            ] {
                args.extend([option.to_owned(), file(name)]);
            }
        }
        let said = run(tool("nbd-client"), args);
        assert!(said.contains("one: sealblk vol-") && said.contains("two: sealblk vol-"), "{said}");
        served.stop();
    }
}
