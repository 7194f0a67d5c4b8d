//! Tells rustc which cfgs `.ci/loom` sets, so that a misspelt one is a warning.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(loom)");
    let mutants = [
        "publish",
        "snapshot",
        "map_fence",
        "lookup_fence",
        "flag_late",
        "record_late",
        "grace",
        "record_stale",
        "copy_late",
        "close",
    ];
    println!("cargo::rustc-check-cfg=cfg(swiotlb_mutant, values(\"{}\"))", mutants.join("\", \""));
}
