//! Compressed modules (`.ko.gz`, `.ko.xz`, `.ko.zst`) are unpacked while the host still runs,
//! not in the blackout.

use std::io::Read;

/// Unpacks `bytes` by what they are (not by a file name); plain bytes come back unchanged.
///
/// # Errors
/// What the decompressor says of damaged input.
pub fn decompress(bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match bytes.as_slice() {
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut out)?;
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            lzma_rust2::XzReader::new(bytes.as_slice(), true).read_to_end(&mut out)?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = ruzstd::decoding::StreamingDecoder::new(bytes.as_slice())
                .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e.to_string()))?;
            decoder.read_to_end(&mut out)?;
        }
        _ => return Ok(bytes),
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const TEXT: &[u8] = b"\x7fELF and so on, and so on, and so on";

    #[test]
    fn plain_bytes_stay() {
        assert_eq!(decompress(TEXT.to_vec()).unwrap(), TEXT);
    }

    #[test]
    fn gzip_and_zstd_are_unpacked() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(TEXT).unwrap();
        assert_eq!(decompress(gz.finish().unwrap()).unwrap(), TEXT);
        let zstd =
            ruzstd::encoding::compress_to_vec(TEXT, ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(decompress(zstd).unwrap(), TEXT);
    }

    #[test]
    fn xz_is_unpacked() {
        // `printf hello | xz --check=crc32`
        let xz = [
            0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00,
            0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x04, 0x68,
            0x65, 0x6c, 0x6c, 0x6f, 0x00, 0x00, 0x00, 0x00, 0x86, 0xa6, 0x10, 0x36, 0x00, 0x01,
            0x19, 0x05, 0xbc, 0xe8, 0xec, 0xcb, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00,
            0x00, 0x01, 0x59, 0x5a,
        ];
        assert_eq!(decompress(xz.to_vec()).unwrap(), b"hello");
    }

    #[test]
    fn damage_is_an_error() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(TEXT).unwrap();
        let mut bytes = gz.finish().unwrap();
        let last = bytes.len() - 6;
        bytes[last] ^= 0x40;
        assert!(decompress(bytes).is_err());
    }
}
