#![no_main]

libfuzzer_sys::fuzz_target!(|input: smmulab_fuzz::smmu_queues::Input| smmulab_fuzz::smmu_queues::run(input));
