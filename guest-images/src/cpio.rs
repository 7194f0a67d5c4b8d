//! Writes cpio archives in the `newc` format, the only one Linux unpacks into its initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

/// File type and permission bits as in `st_mode`.
const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// Archives end on this boundary, so that they can follow one another in one initrd.
const BLOCK: usize = 512;

/// A `newc` archive in memory. Times and owners are zero: the same contents give the same bytes.
///
/// Parents must be added before what they hold; the kernel makes no directory by itself.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An archive with nothing in it.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a directory with mode 755.
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds a regular file; `permissions` are its low nine mode bits.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, data: &[u8]) {
        self.entry(path, REGULAR | (permissions & 0o777), (0, 0), data);
    }

    /// Adds a symbolic link at `path` to `target`.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK, (0, 0), target.as_bytes());
    }

    /// Adds a character device node with mode 600.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[]);
    }

    /// Closes the archive and gives its bytes, padded so that another archive may follow.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.header("TRAILER!!!", 0, 1, (0, 0), 0);
        self.pad(BLOCK);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(data.len()).expect("an initramfs file is smaller than 4 GiB");
        self.entries += 1;
        self.header(path, mode, links, device, size);
        self.bytes.extend_from_slice(data);
        self.pad(4);
    }

    /// The magic and thirteen fields of eight hexadecimal digits, then the name with its NUL.
    fn header(&mut self, name: &str, mode: u32, links: u32, device: (u32, u32), size: u32) {
        let name_size = name.len() as u32 + 1;
        let (inode, uid, gid, mtime, check) = (self.entries, 0, 0, 0, 0);
        self.bytes.extend_from_slice(b"070701");
        for field in [inode, mode, uid, gid, links, mtime, size, 0, 0, device.0, device.1, name_size, check] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Reads an archive back: (name, mode, data) for each entry.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut out = Vec::new();
        let total = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let consumed = total - bytes.len();
            let data = (consumed + 110 + name_size).next_multiple_of(4) - consumed;
            if name == "TRAILER!!!" {
                assert!(bytes[data..].iter().all(|b| *b == 0));
                return out;
            }
            out.push((name, mode, bytes[data..data + size].to_vec()));
            let next = (consumed + data + size).next_multiple_of(4) - consumed;
            bytes = &bytes[next..];
        }
    }

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.directory("bin");
        archive.file("bin/a", 0o755, b"hello");
        archive.symlink("bin/b", "a");
        archive.character_device("console", 5, 1);
        archive.finish()
    }

    #[test]
    fn what_is_written_reads_back() {
        let entries = read(&sample());
        assert_eq!(
            entries,
            [
                ("bin".into(), 0o040_755, vec![]),
                ("bin/a".into(), 0o100_755, b"hello".to_vec()),
                ("bin/b".into(), 0o120_777, b"a".to_vec()),
                ("console".into(), 0o020_600, vec![]),
            ]
        );
    }

    #[test]
    fn archives_end_on_a_block_so_that_another_may_follow() {
        assert_eq!(sample().len() % BLOCK, 0);
        assert_eq!(Archive::new().finish().len(), BLOCK);
    }

    #[test]
    fn the_cpio_program_agrees() {
        let Ok(mut child) =
            Command::new("cpio").args(["-t", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "the cpio program is not installed");
            println!("SKIPPED: the cpio program is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "bin\nbin/a\nbin/b\nconsole\n");
    }
}
