//! Writes the archive that makes an initramfs run a command: `cat initrd <(job 'uname -a')` boots into it.

use std::io::Write;

fn main() -> std::io::Result<()> {
    let command = std::env::args().nth(1).unwrap_or_default();
    std::io::stdout().write_all(&guest_images::job_cpio(&command))
}
