//! Makes a plain arm64 `Image` of whatever a package calls vmlinuz.

use crate::error::{Error, Result};
use std::io::Read;

/// `ARM\x64` at this offset marks an `Image` (Linux's `Documentation/arch/arm64/booting.rst`).
const IMAGE_MAGIC: (usize, &[u8]) = (0x38, b"ARM\x64");

/// No kernel unpacks to more than this.
const LIMIT: u64 = 512 << 20;

/// Unpacks `vmlinuz`: an `Image` as it is, one compressed with gzip, or an EFI zboot file around one.
pub(crate) fn to_image(vmlinuz: Vec<u8>) -> Result<Vec<u8>> {
    if is_image(&vmlinuz) {
        return Ok(vmlinuz);
    }
    let payload = match zboot_payload(&vmlinuz) {
        Some(payload) => payload?,
        None => &vmlinuz[..],
    };
    if !payload.starts_with(&[0x1f, 0x8b]) {
        return Err(Error::Format("vmlinuz is neither an arm64 Image nor one compressed with gzip".into()));
    }
    let mut image = Vec::new();
    flate2::read::MultiGzDecoder::new(payload)
        .take(LIMIT)
        .read_to_end(&mut image)
        .map_err(|e| Error::Format(format!("vmlinuz does not unpack: {e}")))?;
    if is_image(&image) { Ok(image) } else { Err(Error::Format("vmlinuz holds no arm64 Image".into())) }
}

fn is_image(bytes: &[u8]) -> bool {
    let (offset, magic) = IMAGE_MAGIC;
    bytes.get(offset..offset + magic.len()) == Some(magic)
}

/// An EFI zboot file (Linux's `drivers/firmware/efi/libstub/zboot-header.S`): `MZ`, `zimg`, then the payload's offset
/// and size; at 24 the compression's name. `None` if it is none.
fn zboot_payload(bytes: &[u8]) -> Option<Result<&[u8]>> {
    if !bytes.starts_with(b"MZ") || bytes.get(4..8)? != b"zimg" {
        return None;
    }
    let word = |at: usize| {
        let four = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(four)).ok()
    };
    let (offset, size) = (word(8)?, word(12)?);
    let method = bytes.get(24..30)?.split(|b| *b == 0).next()?;
    if method != b"gzip" {
        let method = String::from_utf8_lossy(method).into_owned();
        return Some(Err(Error::Format(format!(
            "vmlinuz is compressed with {method}, which is not supported"
        ))));
    }
    let payload = offset.checked_add(size).and_then(|end| bytes.get(offset..end));
    Some(payload.ok_or_else(|| Error::Format("vmlinuz is cut off".into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn image() -> Vec<u8> {
        let mut image = vec![7; 4096];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zboot(payload: &[u8], method: &[u8; 8]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..2].copy_from_slice(b"MZ");
        file[4..8].copy_from_slice(b"zimg");
        file[8..12].copy_from_slice(&64u32.to_le_bytes());
        file[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file[24..32].copy_from_slice(method);
        file.extend_from_slice(payload);
        file.extend_from_slice(&[0; 512]);
        file
    }

    #[test]
    fn an_image_stays_and_gzip_and_zboot_unpack() {
        assert_eq!(to_image(image()).unwrap(), image());
        assert_eq!(to_image(gzip(&image())).unwrap(), image());
        assert_eq!(to_image(zboot(&gzip(&image()), b"gzip\0\0\0\0")).unwrap(), image());
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(to_image(b"#!/bin/sh".to_vec()).is_err());
        assert!(to_image(gzip(b"hello")).is_err());
        let message = to_image(zboot(b"x", b"zstd\0\0\0\0")).unwrap_err().to_string();
        assert!(message.contains("zstd"), "{message}");
        let mut cut = zboot(&gzip(&image()), b"gzip\0\0\0\0");
        cut.truncate(70);
        assert!(to_image(cut).is_err());
    }
}
