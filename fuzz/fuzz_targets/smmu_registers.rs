#![no_main]

libfuzzer_sys::fuzz_target!(|input: smmulab_fuzz::smmu_registers::Input| smmulab_fuzz::smmu_registers::run(
    input
));
