#![no_main]

libfuzzer_sys::fuzz_target!(|input: smmulab_fuzz::virtio_blk::Input| smmulab_fuzz::virtio_blk::run(input));
