//! ATS and page requests in guests: each function's translation cache is in use, and the checker silent.

use super::*;

/// Finds the PCI engine and its capabilities.
const CONFIG: &str = include_str!("../guest/engine_config.sh");

/// The machine of these tests: everything, caches that keep all, the checker that ends the run, ATS.
fn machine<'a>(options: &[&'a str]) -> Vec<&'a str> {
    [&["--smmu", ALL, "--device", "engine"][..], &CHECKED, &ATS, options].concat()
}

/// `dma_map_benchmark` on a device whose ATS is on: each unmap invalidates that device's cache, too.
#[test]
fn the_map_benchmark_runs_with_ats_on() {
    if skipped() {
        return;
    }
    for threads in ["1", "2", "4"] {
        let check = guest_images::run_checks(&["map-benchmark"], &format!("THREADS={threads}")).unwrap();
        let command = format!("{CONFIG}\nsaid_ats\n{check}");
        let run = guest(&command, &machine(&["--cpus", threads, "--append", "dma_debug=off"]));
        assert!(run.output.contains("ATS control 8000\n"), "ATS is enabled: {}", run.output);
        assert!(run.output.contains(&format!("{threads} threads, 1 pages: map ")), "{}", run.output);
        let invalidations = run.count("commands/TLBI_NH_VA");
        assert!(invalidations > 1000, "{:?}", run.smmu);
        // The engine's, not the other functions': those map for as long as it takes to read and write a few times.
        assert!(run.engine("invalidations") > 1000, "{}", run.ats);
        assert!(run.count("commands/ATC_INV") >= run.engine("invalidations"), "{:?}", run.smmu);
        assert_eq!(run.count("atc_timeouts"), 0);
        assert_eq!(run.events(), BTreeMap::new());
    }
}
