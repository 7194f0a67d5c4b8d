#![no_main]

libfuzzer_sys::fuzz_target!(|input: smmulab_fuzz::pgtable_walk::Input| smmulab_fuzz::pgtable_walk::run(
    input
));
