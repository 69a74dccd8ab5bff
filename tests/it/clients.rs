//! Programs and libraries that others wrote, each as its users use it, with and without TLS.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::certificates::Certificates;
use crate::support::{Lab, Volume, assert_succeeds, finish, text, tool};

mod addresses;
mod fio;
mod nbd_client;
mod nbdcopy;
mod nbdinfo;
mod nbdsh;
mod old_way;
mod qemu_img;
mod qemu_io;
mod tshark;

/// How a client comes to a volume.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Unix,
    Tcp,
    /// Over TCP, where client and server show each other certificates.
    Tls,
}

impl Way {
    const ALL: [Self; 3] = [Self::Unix, Self::Tcp, Self::Tls];
}

/// A volume, served in one way.
struct Served {
    lab: Lab,
    way: Way,
    volume: Volume,
    certificates: PathBuf,
}

impl Served {
    /// `sealblk run ARGS`, with the backing in the lab's directory.
    fn start(way: Way, args: &[&str]) -> Self {
        let lab = Lab::new();
        let backing = lab.path("backing");
        let mut all = vec!["--backing".into(), backing.display().to_string()];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        if way != Way::Unix {
            all.extend(["--listen", "tcp:127.0.0.1:0"].map(str::to_owned));
        }
        let certificates = lab.path("tls").join("good");
        if way == Way::Tls {
            assert_eq!(Certificates::new(&lab).good, certificates);
            all.extend(["--tls", "require"].map(str::to_owned));
            for (option, file) in [
                ("--tls-cert", "server-cert.pem"),
                ("--tls-key", "server-key.pem"),
                ("--tls-client-ca", "ca-cert.pem"),
            ] {
                all.extend([option.to_owned(), certificates.join(file).display().to_string()]);
            }
        }
        let volume = Volume::start(&lab, &all.iter().map(String::as_str).collect::<Vec<_>>());
        Self { lab, way, volume, certificates }
    }

    /// As libnbd takes it: to the default export.
    fn uri(&self) -> String {
        let scheme = if self.way == Way::Tls { "nbds:" } else { "nbd" };
        assert!(self.volume.uri.starts_with(scheme), "{}", self.volume.uri);
        match self.way {
            Way::Tls => format!("{}?tls-certificates={}", self.volume.uri, self.certificates.display()),
            _ => self.volume.uri.clone(),
        }
    }

    /// The port in a URI of TCP.
    fn port(&self) -> &str {
        self.volume.uri.rsplit_once(':').unwrap().1.split_once('/').unwrap().0
    }

    /// What QEMU's programs take instead of a file name, and the option before it that names certificates.
    fn image(&self) -> (Vec<String>, String) {
        let socket = || self.volume.socket().display().to_string();
        let tcp = || format!("driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={}", self.port());
        let object = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", self.certificates.display());
        match self.way {
            Way::Unix => (vec![], format!("driver=nbd,server.type=unix,server.path={}", socket())),
            Way::Tcp => (vec![], tcp()),
            Way::Tls => (vec!["--object".into(), object], format!("{},tls-creds=tls", tcp())),
        }
    }

    /// qemu-io's commands succeed, patterns that are read among them; discards are passed on.
    fn qemu_io(&self, commands: &[&str]) -> String {
        let (mut args, image) = self.image();
        args.extend(["-d", "unmap", "--image-opts"].map(str::to_owned));
        args.extend(commands.iter().flat_map(|command| ["-c".to_owned(), (*command).to_owned()]));
        args.push(image);
        let said = run(peer("qemu-io"), args);
        assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
        said
    }

    /// A client that takes its certificates from its user's home directory. libnbd looks there for nobody who is
    /// root, so the client is told in a user namespace that it is somebody else.
    fn at_home(&self, name: &str) -> Command {
        let home = self.lab.path("home");
        std::fs::create_dir_all(home.join(".pki")).unwrap();
        // The directory need not be there: without TLS nobody looks.
        let _ = std::os::unix::fs::symlink(&self.certificates, home.join(".pki/libnbd"));
        let mut command = tool("unshare");
        command.args(["--user", "--map-user=1000", "--"]).arg(peer(name).get_program());
        command.env("HOME", &home).current_dir(&home);
        command
    }

    /// Bytes of disk space that the backing takes.
    fn allocated(&self) -> u64 {
        allocated(&self.lab.path("backing"))
    }

    /// Ends the volume; its teardown record.
    fn stop(self) -> Value {
        stops_in_order(self.volume)
    }
}

/// Bytes of disk space that a file takes.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// A client of target/peers, which is newer than the system's may be; where it is missing the test fails and says how
/// to get it.
fn peer(name: &str) -> Command {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/bin").join(name);
    assert!(program.is_file(), "{} is missing: run scripts/setup test", program.display());
    Command::new(program)
}

/// `COMMAND ARGS` succeeds; what it prints.
fn run<S: AsRef<std::ffi::OsStr>>(mut command: Command, args: impl IntoIterator<Item = S>) -> String {
    command.args(args);
    let output = finish(command);
    assert_succeeds(&output);
    text(&output.stdout)
}

fn stops_in_order(volume: Volume) -> Value {
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!(record["keys_wiped"], true, "{record}");
    assert_eq!(record["connections_cut"], 0, "{record}");
    record
}

/// A file of `size` bytes with holes, and data in `pieces` (place and length, both multiples of 4 KiB); no sector of
/// the data is like another, and none is zeros.
fn sparse_image(path: &Path, size: u64, pieces: &[(u64, u64)]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (start, length) in pieces {
        let words = (start / 8..(start + length) / 8).flat_map(|word| (word + 1).to_le_bytes());
        file.write_all_at(&words.collect::<Vec<u8>>(), *start).unwrap();
    }
}
