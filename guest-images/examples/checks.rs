//! Prints the command that runs checks in a guest: `smmulab run --exec "$(checks 'COUNT=100' cpus rng)" …`.

fn main() {
    let mut arguments = std::env::args().skip(1);
    let settings = arguments.next().unwrap_or_default();
    let names: Vec<String> = arguments.collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match guest_images::run_checks(&names, &settings) {
        Some(command) => print!("{command}"),
        None => {
            eprintln!("checks: no such check; there are:");
            guest_images::CHECKS.iter().for_each(|(name, _)| eprintln!("  {name}"));
            std::process::exit(2);
        }
    }
}
