//! Writes the archive that makes an initramfs run a command: `cat initrd <(job 'uname -a')` boots into it. With
//! `--checks NAME… [-- SETTINGS]` the command is those of this crate's checks.

use std::io::Write;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let command = match arguments.split_first() {
        Some((first, rest)) if first == "--checks" => {
            let (names, settings) = match rest.iter().position(|a| a == "--") {
                Some(at) => (&rest[..at], rest[at + 1..].join("\n")),
                None => (rest, String::new()),
            };
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            guest_images::run_checks(&names, &settings)
                .ok_or_else(|| std::io::Error::other("no such check"))?
        }
        _ => arguments.join(" "),
    };
    std::io::stdout().write_all(&guest_images::job_cpio(&command))
}
