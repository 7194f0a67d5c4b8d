//! ATS and page requests in guests: the engine's translation cache is in use, Linux answers the pages that it asks for, and the
//! checker is silent.
//!
//! Linux's driver (6.1 to 7.2) has a PRI queue, but nobody to serve a page: every group gets Response Failure (PRI_RESP with Resp 0).
//! It never enables page requests either; the guest's shell does, in configuration space.

use std::path::PathBuf;

use guest_images::Store;
use tempfile::TempDir;

use super::*;

/// Finds the PCI engine and its capabilities, and has what the tests do to them.
const CONFIG: &str = include_str!("../guest/ats_config.sh");

/// The machine of these tests: caches that keep all, the checker that ends the run, ATS.
fn machine<'a>(options: &[&'a str]) -> Vec<&'a str> {
    let own = |of| options.contains(&of);
    let smmu = if own("--smmu") { &[][..] } else { &["--smmu", ALL] };
    let ats = if own("--ats") { &[][..] } else { &ATS };
    [smmu, ats, &CHECKED, &["--device", "engine"], options].concat()
}

/// Runs a script that knows [`CONFIG`]: it succeeds, and nobody has anything to say.
fn silent(script: &str, options: &[&str]) -> Run {
    let run = guest(&format!("{CONFIG}\n{script}"), &machine(options));
    for bad in ["WARNING:", "BUG:", "Oops", "CMD_SYNC timeout", "smmulab: check"] {
        assert!(!run.log.contains(bad), "{script}: {bad}\n{}", run.log);
    }
    assert_eq!(run.events(), BTreeMap::new(), "{}", run.log);
    assert_eq!((run.count("command_errors"), run.count("atc_timeouts")), (0, 0));
    run
}

/// Runs a script that the checker ends: what was reported.
fn reported(script: &str, options: &[&str]) -> String {
    let output = command(&format!("{CONFIG}\n{script}"), &machine(options)).output().unwrap();
    let (text, log) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(123), "{script}: {text}\n{log}");
    log.lines()
        .skip_while(|line| !line.starts_with("smmulab: check"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// One request as Linux's driver logs it: StreamID, SubstreamID, PRGIndex, L for the last of a group, read or write, address.
fn requests(run: &Run) -> Vec<String> {
    let lines = run.log.lines().filter_map(|line| line.split_once("\tsid "));
    lines.map(|(_, request)| request.to_owned()).collect()
}

/// Every request is in the log, and every group is answered, by the driver.
fn denied(run: &Run, groups: u64) {
    let requests = requests(run);
    assert_eq!(requests.len() as u64, run.count("page_requests"), "{}", run.log);
    assert_eq!(run.log.matches("unexpected PRI request received").count(), requests.len(), "{}", run.log);
    assert_eq!(run.engine("page_requests"), run.count("page_requests"));
    assert_eq!(run.count("commands/PRI_RESP"), groups, "{}", run.log);
    assert_eq!((run.count("page_responses"), run.count("page_auto_responses")), (groups, 0));
}

/// `dma_map_benchmark` on a device whose ATS is on: each unmap invalidates that device's cache, too.
#[test]
fn the_map_benchmark_runs_with_ats_on() {
    if skipped() {
        return;
    }
    for threads in ["1", "2", "4"] {
        let check = guest_images::run_checks(&["map-benchmark"], &format!("THREADS={threads}")).unwrap();
        let run = silent(&format!("status ATS\n{check}"), &["--cpus", threads, "--append", "dma_debug=off"]);
        assert!(run.output.starts_with("ATS: on, "), "{}", run.output);
        assert!(run.output.contains(&format!("{threads} threads, 1 pages: map ")), "{}", run.output);
        let invalidations = run.count("commands/TLBI_NH_VA");
        assert!(invalidations > 1000, "{:?}", run.smmu);
        // The engine's, not the other functions': those map for as long as it takes to read and write a few times.
        assert!(run.engine("invalidations") > 1000, "{}", run.ats);
        assert!(run.count("commands/ATC_INV") >= run.engine("invalidations"), "{:?}", run.smmu);
    }
}

/// An access that nobody mapped asks for its pages, with a PASID and without; Linux refuses the group, and the engine's command
/// fails there. The lab kernel and Debian's; the PRI queue's interrupt as a message and as a wire.
#[test]
fn linux_answers_page_requests() {
    if skipped() {
        return;
    }
    let wired = format!("{ALL},ecmdq=0,msi=off");
    for (image, smmu) in [("lab", ALL), ("lab", &wired), ("debian-6.12", ALL), ("debian-newest", ALL)] {
        let tools = smmulab().args(["image", "tools", image]).output().unwrap();
        if !tools.status.success() {
            return skip(&format!("no tools for {image}: {}", stderr(&tools)));
        }
        linux_answers(&["--image", image, "--smmu", smmu]);
    }
}

fn linux_answers(options: &[&str]) {
    let script = "insmod /smmulab/smmulab_engine.ko && page_requests_on || exit 1\nstatus before\n\
         exec 3<>/dev/smmulab0\necho 'fault size=16384' >&3 || exit 1\ncat <&3; status fault; forgive\n\
         echo 'pasid loops=1' >&3 || exit 1\ncat <&3; status pasid; forgive\n\
         echo 'copy size=65536 frames=4' >&3 || exit 1\nstatus copy";
    let run = silent(script, options);
    let expected = "before: on, page requests 0001, status 8000\n\
         refused at 123456000\nfault: on, page requests 0001, status 8001\n\
         refused at 40401000\nrefused at 40000000\npasid: on, page requests 0001, status 8001\n\
         copy: on, page requests 0001, status 8000\n";
    assert_eq!(run.output, expected);
    // `fault` reads 64-bit elements, and asks for a page; `pasid` copies, and asks for what comes next as well. After that its
    // PASID has no CD: no translation, and so no page to ask for.
    let sid = "0x00000020";
    let mut expected = vec![format!("{sid}.0x00000: [0L] unprivileged R access at iova 0x0000000123456000")];
    for (n, last) in ["", "", "", "L"].into_iter().enumerate() {
        let page = 0x4040_1000 + n * 0x1000;
        expected.push(format!("{sid}.0x00055: [0{last}] unprivileged R access at iova {page:#018x}"));
    }
    assert_eq!(requests(&run), expected);
    denied(&run, 2);
}

/// A PRI queue of two entries overflows: the SMMU answers what is lost itself, the engine asks again, and Linux takes note and
/// acknowledges.
#[test]
fn the_pri_queue_overflows() {
    if skipped() {
        return;
    }
    let smmu = format!("{ALL},priqs=1");
    // What asks again after the first refusal finds page requests stopped; this device then gives up.
    let ats = format!("{},denied=abort", ATS[1]);
    let script = "insmod /smmulab/smmulab_engine.ko && page_requests_on || exit 1\n\
         exec 3<>/dev/smmulab0\necho 'fault-storm frames=16' >&3 || exit 1\n\
         sleep 0.2; status after; forgive; echo 'fault size=4096' >&3 && cat <&3";
    let run = silent(script, &["--smmu", &smmu, "--ats", &ats]);
    let expected = "after: on, page requests 0001, status 8001\nrefused at 123456000\n";
    assert_eq!(run.output, expected);
    assert!(run.log.contains("PRIQ overflow detected -- requests lost"), "{}", run.log);
    let written = requests(&run).len() as u64;
    assert!(written >= 2 && run.count("page_requests") > written, "{:?}", run.smmu);
    assert_eq!(run.count("page_auto_responses"), run.count("page_requests") - written, "each is a group");
    assert_eq!(run.count("commands/PRI_RESP"), written);
}

/// Nobody answers, since the guest turns the PRI queue's interrupt off; or the engine has no page requests, and makes the access.
#[test]
fn the_twins_of_page_requests_are_reported() {
    if skipped() {
        return;
    }
    let storm = "exec 3<>/dev/smmulab0\necho 'fault-storm frames=1' >&3\nsleep 3";
    // SMMU_IRQ_CTRL without PRIQ_IRQEN.
    let deaf = format!(
        "insmod /smmulab/smmulab_engine.ko && page_requests_on && devmem 0x9050050 32 5 || exit 1\n{storm}"
    );
    let report = reported(&deaf, &[]);
    assert!(report.starts_with("smmulab: check: page-request-unanswered: "), "{report}");
    assert!(report.contains("missing: CMD_PRI_RESP(StreamID=0x20, PRGIndex=0)"), "{report}");
    let without = reported(&format!("insmod /smmulab/smmulab_engine.ko\n{storm}"), &[]);
    assert!(without.starts_with("smmulab: check: dma-unmapped: a device reads 0x123456000"), "{without}");
}

/// Programs that have the engine by VFIO or iommufd; what they unmapped is asked for as a page in the end, and refused.
#[test]
fn programs_map_and_unmap_with_ats_and_page_requests_on() {
    if skipped() {
        return;
    }
    let script = "for_programs && page_requests_on || exit 1\n\
         for program in vfio iommufd; do labtest $program ${engine##*/} 20 || exit 1; status $program; forgive; done";
    let run = silent(script, &[]);
    let beside: Vec<u64> = run.output.lines().filter_map(|line| copies_beside(line, "20 rounds, ")).collect();
    assert!(beside.len() == 2 && beside.iter().all(|&copies| copies < 20), "DMA goes on: {}", run.output);
    for program in ["vfio", "iommufd"] {
        let end = format!("then refused at 40000000\n{program}: on, page requests 0001, status 8001\n");
        assert!(run.output.contains(&end), "{}", run.output);
    }
    run.engine_uses_its_cache(true);
    denied(&run, 2);
}

/// `labtest` with vmm/tests/guest/ats_nested.c in a file that is a disk for the guest; nothing without a compiler.
fn program() -> Option<(TempDir, PathBuf)> {
    let headers =
        Store::open().unwrap().cached(&"lab".parse().unwrap()).unwrap().build.unwrap().join("usr/include");
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("labtest");
    let shared =
        ["main.c", "engine.c", "iommufd.c"].map(|name| here.join("../guest-images/programs").join(name));
    let own = here.join("tests/guest/ats_nested.c");
    let built = Command::new("aarch64-linux-gnu-gcc")
        .args(["-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-isystem"])
        .arg(headers)
        .arg("-o")
        .arg(&file)
        .args(shared)
        .arg(own)
        .output();
    let Ok(built) = built else {
        skip("there is no aarch64-linux-gnu-gcc");
        return None;
    };
    assert!(built.status.success(), "{}", stderr(&built));
    let length = std::fs::metadata(&file).unwrap().len().next_multiple_of(512);
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length).unwrap();
    Some((dir, file))
}

/// Nested translation with ATS in the virtual STE: a page is moved twenty times under DMA, with invalidations of the device's
/// cache by the virtual machine's own commands. In the end it goes, and is asked for as a page.
#[test]
fn a_virtual_smmu_invalidates_the_devices_cache() {
    if skipped() {
        return;
    }
    let Some((_dir, program)) = program() else { return };
    let disk = format!("{},ro", program.display());
    let options = ["--disk", &disk];
    let script = |how: &str| {
        format!(
            "fetch_program && for_programs && page_requests_on || exit 1\n/tmp/labtest nested ${{engine##*/}} {how}"
        )
    };
    let run = silent(&script("greedy"), &options);
    assert_eq!(run.output, "then refused at 1235f000\nnested: 20 rounds\n");
    run.engine_uses_its_cache(true);
    assert!(run.count("s2_fetches") > 0 && run.engine("invalidations") >= 20, "{:?}", run.smmu);
    assert_eq!(requests(&run), ["0x00000028.0x00000: [0L] unprivileged W access at iova 0x000000001235f000"]);
    denied(&run, 1);
    let missing = "missing: CMD_ATC_INV(StreamID=0x28, Address=0x1235f000, Size=0) and CMD_SYNC";
    for (how, kind) in [("forgetful", "atc-missing"), ("hasty", "atc-early")] {
        let report = reported(&script(how), &options);
        assert!(
            report.starts_with(&format!("smmulab: check: {kind}: ")) && report.contains(missing),
            "{report}"
        );
    }
    // The same without ATS.
    let script =
        format!("{CONFIG}\nfetch_program && for_programs && /tmp/labtest nested ${{engine##*/}} plain");
    let run = guest(&script, &[&["--smmu", ALL, "--device", "engine"][..], &CHECKED, &options].concat());
    assert_eq!(run.output, "nested: 20 rounds\n");
    assert_eq!((run.events(), run.count("commands/ATC_INV")), (BTreeMap::new(), 0));
}

/// PCI functions stall only where the SMMU has no other way (IDR0.STALL_MODEL 0b10), as for Linux no device has both a firmware
/// node that lets it stall and ATS. Then a page that ATS does not grant is accessed untranslated, stalls, and is served.
#[test]
fn processes_share_their_memory_with_an_engine_that_uses_ats_and_stalls() {
    if skipped() {
        return;
    }
    let smmu = format!("{ALL},stall=forced");
    let sva = guest_images::run_checks(&["sva"], "").unwrap();
    for cpus in ["1", "2"] {
        let run = guest(&sva, &machine(&["--smmu", &smmu, "--cpus", cpus]));
        assert!(run.output.contains("bound again as PASID"), "{}", run.output);
        let stalled = run.count("stalled");
        assert!(stalled > 100, "{:?}", run.smmu);
        assert_eq!(run.count("commands/RESUME"), stalled, "every stall is answered, once");
        let faults = run.count("events/F_TRANSLATION") + run.count("events/F_PERMISSION");
        assert_eq!(run.events().values().sum::<u64>(), faults, "{:?}", run.events());
        run.engine_uses_its_cache(true);
    }
}

/// With page requests on, the same engine asks for the first page of a process that nobody has touched, and for those behind it; Linux
/// serves no page request, of a bound process neither.
#[test]
fn pages_of_processes_are_refused_as_well() {
    if skipped() {
        return;
    }
    let script = "insmod /smmulab/smmulab_engine.ko && page_requests_on || exit 1\n\
         labtest sva /dev/smmulab0; [ $? = 1 ] && rmmod smmulab_engine && status after";
    let run = silent(script, &[]);
    let (_, refused) =
        run.output.split_once("a copy to untouched pages: state ffffffff, refused at ").unwrap();
    let (page, end) = refused.split_once('\n').unwrap();
    assert_eq!(end, "after: on, page requests 0001, status 8001\n");
    let first = u64::from_str_radix(page, 16).unwrap();
    let expected = ["0", "0", "0", "0L"].into_iter().zip(0..).map(|(group, n)| {
        format!("0x00000020.0x00001: [{group}] unprivileged W access at iova {:#018x}", first + n * 0x1000)
    });
    assert_eq!(requests(&run), expected.collect::<Vec<_>>());
    denied(&run, 1);
}
