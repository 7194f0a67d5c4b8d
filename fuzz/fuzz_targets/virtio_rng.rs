#![no_main]

libfuzzer_sys::fuzz_target!(|input: smmulab_fuzz::virtio_rng::Input| smmulab_fuzz::virtio_rng::run(input));
