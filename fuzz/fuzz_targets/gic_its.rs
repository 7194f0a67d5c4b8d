#![no_main]

libfuzzer_sys::fuzz_target!(|input: smmulab_fuzz::gic_its::Input| smmulab_fuzz::gic_its::run(input));
