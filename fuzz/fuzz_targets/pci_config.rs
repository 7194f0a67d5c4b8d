#![no_main]

libfuzzer_sys::fuzz_target!(|input: smmulab_fuzz::pci_config::Input| smmulab_fuzz::pci_config::run(input));
