#![no_main]

libfuzzer_sys::fuzz_target!(|input: smmulab_fuzz::virtio_net::Input| smmulab_fuzz::virtio_net::run(input));
