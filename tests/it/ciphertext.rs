//! What lies on the backing is AES-256-XTS as others compute it: dm-crypt's `aes-xts-plain64`.

use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Arc;

use sealblk::audit::AuditLog;
use sealblk::envelope::{Layout, file};
use sealblk::geometry::{SectorSize, VolumeSize};
use sealblk::kms::{Provider, Role};
use sealblk::nbd::server::{Address, Export, Exports, Limits, Listener, Resumed, Signal, Terms, serve};
use sealblk::secret::DataKey;
use sealblk::store::Backing;
use sealblk::volume::{EncryptedVolume, Options};
use sealblk::xts::Implementation;

use crate::support::{Lab, assert_succeeds, finish, python, tool};

const SIZE: u64 = 4 << 20;

/// Deciphers a backing sector by sector and compares with the image: key in hexadecimal on stdin.
const ORACLE: &str = r"
import sys
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
backing, image, sector = sys.argv[1], sys.argv[2], int(sys.argv[3])
key = bytes.fromhex(sys.stdin.read())
with open(backing, 'rb') as b, open(image, 'rb') as i:
    number = 0
    while plain := i.read(sector):
        tweak = number.to_bytes(16, 'little')
        encryptor = Cipher(algorithms.AES(key), modes.XTS(tweak)).encryptor()
        assert b.read(sector) == encryptor.update(plain) + encryptor.finalize(), f'sector {number}'
        number += 1
print(number, 'sectors are equal')
";

/// The data key of an envelope that was provisioned for `layout`.
async fn unlock(lab: &Lab, layout: Layout) -> DataKey {
    let (size, sector) = (layout.size.bytes().to_string(), layout.sector.to_string());
    let args = ["provision", "--size", &size, "--sector-size", &sector, "--output", "envelope"];
    assert_succeeds(&finish(lab.sealblk(args)));
    let path = lab.path("envelope");
    let document = file::read(&path).unwrap();
    let token = file::read_token(&file::token_path(&path)).unwrap();
    let provider = Provider::Local { directory: lab.state().join("kms") };
    let host = provider.open(Role::Host, AuditLog::open(&lab.state()).unwrap().for_nobody()).await.unwrap();
    let permit = token.as_ref().into();
    host.unwrap(&document.slots[0].wrapped(), &document.whole_context(), permit).await.unwrap()
}

fn compare(implementation: Implementation, sector: SectorSize) {
    let lab = Lab::new();
    let (image, backing, socket) = (lab.path("image"), lab.path("backing"), lab.path("socket"));
    let mut random = vec![0; SIZE as usize];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    std::fs::write(&image, &random).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let layout = Layout { sector, size: VolumeSize::new(SIZE, sector).unwrap() };
    let key = runtime.block_on(unlock(&lab, layout));
    let hexadecimal: String = key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
    let (store, mut leftover) = Backing::File(backing.clone()).open_new(SIZE).unwrap();
    leftover.give_name().unwrap();
    let cipher = implementation.cipher(&key, sector);
    let options = Options { read_only: false, discard: true, flush: true };
    let volume = EncryptedVolume::new(Box::new(store), cipher, layout.size, options);
    let export = Export {
        name: String::new(),
        description: String::new(),
        device: Arc::new(volume),
        read_only: false,
    };
    let (stop, stopped) = tokio::sync::watch::channel(Signal::Run);
    let (serving, uri) = runtime.block_on(async {
        let listener = Listener::bind(&Address::Unix(socket), Terms::default()).await.unwrap();
        let uri = listener.uri("", false).unwrap();
        (
            tokio::spawn(serve(
                vec![listener],
                Exports::new(vec![export]),
                None,
                Limits::default(),
                Resumed::default(),
                stopped,
            )),
            uri,
        )
    });
    let mut copy = tool("nbdcopy");
    copy.arg(&image).arg(&uri);
    assert_succeeds(&finish(copy));
    stop.send(Signal::End).unwrap();
    let served = runtime.block_on(serving).unwrap();
    assert!(served.connections > 0 && served.cut_off == 0);

    let mut oracle = python();
    oracle.arg("-c").arg(ORACLE).arg(&backing).arg(&image).arg(sector.bytes().to_string());
    let mut oracle = oracle.stdin(Stdio::piped()).spawn().unwrap();
    oracle.stdin.take().unwrap().write_all(hexadecimal.as_bytes()).unwrap();
    assert!(oracle.wait().unwrap().success());
}

#[test]
fn sectors_of_4096_bytes() {
    for implementation in Implementation::available() {
        compare(implementation, SectorSize::B4096);
    }
}

#[test]
fn sectors_of_512_bytes() {
    for implementation in Implementation::available() {
        compare(implementation, SectorSize::B512);
    }
}
