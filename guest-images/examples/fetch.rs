//! Fetches an image and prints where its kernel and initramfs are.

use guest_images::{Progress, fetch};

fn main() {
    let name = std::env::args().nth(1).unwrap_or_else(|| guest_images::DEFAULT.to_string());
    match fetch(&name, Progress::auto()) {
        Ok(image) => println!("{}\n{}", image.kernel.display(), image.initrd.display()),
        Err(error) => {
            eprintln!("fetch: {error}");
            std::process::exit(2);
        }
    }
}
