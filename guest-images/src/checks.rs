//! Workloads that run in a guest by `--exec` and demand something of the machine.
//!
//! Each is a shell script for the initramfs's busybox. It says what it demands in its head, prints what is wrong, and
//! exits with 0 only if nothing is.

/// The checks, by name. `disk-hash`, `disk-write` and `download` print a hash for the host to compare; `download` wants
/// `URL` set, `direct-reads` takes `COUNT`.
pub const CHECKS: [(&str, &str); 15] = [
    ("iommu-groups", include_str!("../checks/iommu-groups.sh")),
    ("smmu-log", include_str!("../checks/smmu-log.sh")),
    ("interrupts", include_str!("../checks/interrupts.sh")),
    ("cpus", include_str!("../checks/cpus.sh")),
    ("disk-hash", include_str!("../checks/disk-hash.sh")),
    ("disk-write", include_str!("../checks/disk-write.sh")),
    ("rebind", include_str!("../checks/rebind.sh")),
    ("rng", include_str!("../checks/rng.sh")),
    ("download", include_str!("../checks/download.sh")),
    ("direct-reads", include_str!("../checks/direct-reads.sh")),
    ("engine", include_str!("../checks/engine.sh")),
    ("mistakes", include_str!("../checks/mistakes.sh")),
    ("sva", include_str!("../checks/sva.sh")),
    ("passthrough", include_str!("../checks/passthrough.sh")),
    ("map-benchmark", include_str!("../checks/map-benchmark.sh")),
];

/// The script of the check called `name`.
pub fn check(name: &str) -> Option<&'static str> {
    CHECKS.iter().find(|(n, _)| *n == name).map(|(_, script)| *script)
}

/// One command for `--exec` that runs several checks, each in a shell of its own, and prints `ok NAME` or `FAILED NAME`
/// after what the check printed. Its status is the number of checks that failed.
///
/// `settings` are shell assignments that the checks can read, such as `URL=http://10.0.2.2/file`.
pub fn run_checks(names: &[&str], settings: &str) -> Option<String> {
    let mut command = format!("failed=0\n{settings}\n");
    for name in names {
        let script = check(name)?;
        command.push_str(&format!(
            "(\n{script}) && echo 'ok {name}' || {{ echo 'FAILED {name}'; failed=$((failed + 1)); }}\n"
        ));
    }
    command.push_str("exit $failed\n");
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn every_check_says_what_it_demands_and_is_a_shell_script() {
        for (name, script) in CHECKS {
            assert!(script.starts_with("# Demands: "), "{name}");
            let status = Command::new("sh")
                .args(["-n", "-c", script])
                .stdin(Stdio::null())
                .status()
                .expect("every host has a shell");
            assert!(status.success(), "{name}");
        }
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/checks")).unwrap().count();
        assert_eq!(files, CHECKS.len());
    }

    #[test]
    fn failures_are_counted_and_named() {
        let command = run_checks(&["download", "download"], "URL=").unwrap();
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "URL is not set\nFAILED download\nURL is not set\nFAILED download\n");
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(run_checks(&["no such check"], ""), None);
    }
}
