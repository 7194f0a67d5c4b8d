//! Users' mistakes: one clear line and status 2, and nothing of theirs is lost.

mod common;

use std::fs::File;
use std::process::Stdio;

use common::{smmulab, stderr, stdout};

fn refused(args: &[&str]) -> String {
    let output = smmulab().args(args).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert_eq!(stdout(&output), "", "{args:?}");
    text
}

fn one_line(args: &[&str]) -> String {
    let text = refused(args);
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    text
}

#[test]
fn a_missing_kernel_is_named() {
    assert!(one_line(&["run", "--kernel", "/nonexistent/Image"]).contains("/nonexistent/Image"));
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel");
    std::fs::write(&path, b"just some text, longer than a kernel header has to be, so that it is read")
        .unwrap();
    assert!(one_line(&["run", "--kernel", path.to_str().unwrap()]).contains("not an arm64 kernel Image"));
    std::fs::write(&path, b"").unwrap();
    assert!(one_line(&["run", "--kernel", path.to_str().unwrap()]).contains("not an arm64 kernel Image"));
}

#[test]
fn a_disk_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, b"x").unwrap();
    let kernel = kernel.to_str().unwrap();
    assert!(
        one_line(&["run", "--kernel", kernel, "--disk", "/nonexistent/disk"]).contains("/nonexistent/disk")
    );
    let directory = dir.path().to_str().unwrap();
    assert!(one_line(&["run", "--kernel", kernel, "--disk", directory]).contains(directory));
}

#[test]
fn bad_options_are_explained() {
    assert!(refused(&["run", "--cpus", "many"]).contains("--cpus"));
    assert!(one_line(&["run", "--cpus", "9"]).contains("1 to 8"));
    assert!(refused(&["run", "--mem", "1X"]).contains("--mem"));
    assert!(one_line(&["run", "--mem", "1M"]).contains("64M"));
    assert!(refused(&["run", "--smmu", "oas=eleventy"]).contains("oas"));
    assert!(refused(&["run", "--frobnicate"]).contains("--frobnicate"));
    let words = "x".repeat(2048);
    assert!(one_line(&["run", "--kernel", "/nonexistent", "--append", &words]).contains("2047"));
    assert!(one_line(&["run", "--kernel", "/nonexistent", "--exec", "true"]).contains("--initrd"));
    assert!(refused(&["run", "--dma-bits", "31"]).contains("--dma-bits"));
    assert!(refused(&["run", "--restricted-dma", "gpu"]).contains("disk0"));
    assert!(one_line(&["run", "--restricted-dma", "rng"]).contains("--smmu off"));
    assert!(one_line(&["run", "--image", "debian-2.2"]).contains("debian-2.2"));
}

#[test]
fn help_documents_the_exit_statuses() {
    let output = smmulab().args(["run", "--help"]).output().unwrap();
    assert!(output.status.success());
    for word in ["124", "125", "Ctrl-A x", "--exec", "--stats", "--time-limit"] {
        assert!(stdout(&output).contains(word), "{word}");
    }
}

#[test]
fn a_result_that_cannot_be_written_is_a_line_and_one_that_nobody_reads_is_none() {
    let bench = |out: Stdio| {
        smmulab().args(["bench", "swiotlb", "--rounds", "1", "--reads", "0"]).stdout(out).output().unwrap()
    };
    let full = bench(File::options().write(true).open("/dev/full").unwrap().into());
    let text = stderr(&full);
    assert_eq!((full.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("standard output"), "{text}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unread = bench(writer.into());
    assert_eq!((unread.status.code(), stderr(&unread).as_str()), (Some(128 + 13), ""));
}
