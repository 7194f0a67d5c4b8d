//! `smmulab image`: list, fetch and build guests.

use anyhow::Result;
use guest_images::{Name, Progress, Series, Store};

use crate::cli::ImageCommand;

/// Carries out the command.
///
/// # Errors
/// When an image is unknown or cannot be fetched or built; the message says what to do.
pub fn run(command: ImageCommand) -> Result<()> {
    let store = Store::open()?;
    match command {
        ImageCommand::List => {
            println!("{:16} {:28} CACHED", "IMAGE", "WHAT");
            for listed in store.list() {
                let cached = listed.cached.map_or_else(|| "-".to_string(), |image| image.release);
                println!("{:16} {:28} {cached}", listed.name.to_string(), listed.description);
            }
        }
        ImageCommand::Fetch { names, refresh } => {
            for name in names {
                let image = store.fetch(&name.parse()?, refresh, Progress::auto())?;
                println!("{name}: Linux {}", image.release);
            }
        }
        ImageCommand::Build { name } => {
            let name: Name = name.parse()?;
            anyhow::ensure!(
                name.series == Series::Lab,
                "only `lab` is built; `image fetch {name}` fetches it"
            );
            let image = store.build_lab(true, Progress::auto())?;
            println!("{name}: Linux {} in {}", image.release, image.kernel.display());
        }
    }
    Ok(())
}
