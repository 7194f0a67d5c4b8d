//! How `--exec 'CMD'` reaches the guest, and how its output and exit status come back.
//!
//! The command travels in a second cpio archive behind the initramfs: no quoting, no length limit of the kernel command
//! line. The initramfs's `/init` runs it with its output on the virtio console (`/dev/hvc0`) and writes a trailer there
//! when it has ended: a NUL byte, then the line `smmulab-exit:STATUS`.

use crate::cpio::Archive;

/// What `/init` writes before the status.
const MARK: &[u8] = b"\0smmulab-exit:";

/// No exit status has more digits than this; a longer number is no trailer.
const DIGITS: usize = 3;

/// The archive to append to the initramfs so that its `/init` runs `cmd` with `sh` and powers off.
///
/// Both archives must start on a four-byte boundary; those of this crate are padded to 512.
pub fn job_cpio(cmd: &str) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.directory("smmulab");
    archive.file("smmulab/job.sh", 0o755, format!("{cmd}\n").as_bytes());
    archive.finish()
}

/// Separates a job's output from the trailer that carries its exit status, as bytes come in.
///
/// Output that merely looks like the start of a trailer is passed on as soon as it turns out not to be one. What
/// follows the trailer is dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExitTrailer {
    /// Bytes that may be the beginning of a trailer.
    held: Vec<u8>,
    status: Option<i32>,
}

impl ExitTrailer {
    /// A parser that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes of the virtio console and gives those that are the job's output.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.status.is_some() {
                break;
            }
            self.held.push(byte);
            match judge(&self.held) {
                Verdict::Partial => {}
                Verdict::Trailer(status) => {
                    self.held.clear();
                    self.status = Some(status);
                }
                Verdict::Output => {
                    // Only a NUL starts a trailer, and a mark has just one: at most this byte can start another.
                    self.held.pop();
                    output.append(&mut self.held);
                    if byte == MARK[0] {
                        self.held.push(byte);
                    } else {
                        output.push(byte);
                    }
                }
            }
        }
        output
    }

    /// The job's exit status, once the trailer has been seen.
    pub fn status(&self) -> Option<i32> {
        self.status
    }

    /// The console is closed: gives what was held back. A job that never ended has no status.
    pub fn finish(self) -> (Vec<u8>, Option<i32>) {
        (self.held, self.status)
    }
}

enum Verdict {
    Partial,
    Output,
    Trailer(i32),
}

/// What the bytes held so far can be.
fn judge(held: &[u8]) -> Verdict {
    if held.len() <= MARK.len() {
        return if MARK.starts_with(held) { Verdict::Partial } else { Verdict::Output };
    }
    let number = &held[MARK.len()..];
    let (last, digits) = number.split_last().expect("longer than the mark");
    match last {
        b'0'..=b'9' if number.len() <= DIGITS => Verdict::Partial,
        b'\n' if !digits.is_empty() => {
            Verdict::Trailer(digits.iter().fold(0, |n, d| n * 10 + i32::from(d - b'0')))
        }
        _ => Verdict::Output,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(chunks: &[&[u8]]) -> (Vec<u8>, Option<i32>) {
        let mut trailer = ExitTrailer::new();
        let mut output: Vec<u8> = chunks.iter().flat_map(|c| trailer.feed(c)).collect();
        let (rest, status) = trailer.finish();
        output.extend(rest);
        (output, status)
    }

    #[test]
    fn output_and_status_are_separated() {
        assert_eq!(run(&[b"hello\n\0smmulab-exit:3\n"]), (b"hello\n".to_vec(), Some(3)));
        assert_eq!(run(&[b"\0smmulab-exit:0\n"]), (vec![], Some(0)));
        assert_eq!(run(&[b"x\0smmulab-exit:137\nlate"]), (b"x".to_vec(), Some(137)));
    }

    #[test]
    fn output_that_resembles_a_trailer_is_output() {
        for text in [
            &b"\0\0smmulab-exi\0"[..],
            b"\0smmulab-exit:\n",
            b"\0smmulab-exit:1234\n",
            b"\0smmulab-exit:-1\n",
            b"smmulab-exit:1\n",
            b"\0smmulab-exit:1",
        ] {
            assert_eq!(run(&[text]), (text.to_vec(), None));
        }
        assert_eq!(run(&[b"\0smmulab\0smmulab-exit:7\n"]), (b"\0smmulab".to_vec(), Some(7)));
        assert_eq!(run(&[b"\0smmulab-exit:\0smmulab-exit:7\n"]), (b"\0smmulab-exit:".to_vec(), Some(7)));
    }

    #[test]
    fn output_is_not_held_back_without_need() {
        let mut trailer = ExitTrailer::new();
        assert_eq!(trailer.feed(b"login: "), b"login: ");
        assert_eq!(trailer.feed(b"a\0sm"), b"a");
        assert_eq!(trailer.status(), None);
        assert_eq!(trailer.feed(b"x"), b"\0smx");
    }

    #[test]
    fn the_job_is_a_shell_script_with_the_command_as_it_is() {
        let archive = job_cpio("echo 'a \"b\" $c'; exit 4");
        let text = String::from_utf8_lossy(&archive).into_owned();
        assert!(text.contains("smmulab/job.sh\0"));
        assert!(text.contains("echo 'a \"b\" $c'; exit 4\n"));
        assert_eq!(archive.len() % 512, 0);
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(output in proptest::collection::vec(prop_oneof![Just(0u8), Just(b's'), any::<u8>()], 0..40),
                                status in 0..=255i32, cuts in proptest::collection::vec(0usize..70, 0..6)) {
            let mut bytes = output.clone();
            bytes.extend(format!("\0smmulab-exit:{status}\n").as_bytes());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(run(&chunks), (output, Some(status)));
        }
    }
}
