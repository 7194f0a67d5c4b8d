#![no_main]

libfuzzer_sys::fuzz_target!(|input: smmulab_fuzz::virtio_console::Input| smmulab_fuzz::virtio_console::run(
    input
));
